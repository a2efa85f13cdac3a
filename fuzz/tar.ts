/** Fuzzers of formats/tar and the trees made of it: tars with something wrong in them give a tree or a typed error, soon, however they are cut. */

import assert from "node:assert/strict";
import { gzipSync, zstdCompressSync } from "node:zlib";
import type { FileTree } from "../src/erofs/file-tree.ts";
import { impliedLower, mergeTrees } from "../src/erofs/overlay.ts";
import { LayerTreeBuilder } from "../src/formats/tar/apply.ts";
import { LayerDecoder } from "../src/formats/tar/decompress.ts";
import { TarReader } from "../src/formats/tar/records.ts";
import { randomImage } from "../test/interop/random-layers.ts";
import { withChecksum } from "../test/tar-bytes.ts";
import { type Fuzzer, mutate, type Random, tolerated } from "./fuzzer.ts";

export function buildTree(role: "lowest" | "upper", tar: Uint8Array, chunk: number): FileTree {
  const builder = new LayerTreeBuilder(role, "fuzz");
  const reader = new TarReader({ entry: (entry) => builder.add(entry).dataWanted, data() {} }, { layer: "fuzz" });
  for (let at = 0; at < tar.byteLength; at += chunk) reader.push(tar.subarray(at, at + chunk));
  reader.finish();
  return builder.finish();
}

/** Changes bytes and makes the checksums of most blocks right again, so that more than the checksum is tried. */
export function damagedTar(tar: Uint8Array, random: Random): Uint8Array {
  const bytes = mutate(tar, random);
  for (let at = 0; at + 512 <= bytes.byteLength; at += 512) {
    const block = bytes.subarray(at, at + 512);
    if (random.below(8) > 0 && block.some((byte) => byte !== 0)) bytes.set(withChecksum(block), at);
  }
  return bytes;
}

/** A damaged tar means the same in one piece and in many, or is refused both ways. */
const reader: Fuzzer = {
  round(random) {
    const tar = damagedTar(random.pick(randomImage(random.below(2 ** 31))), random);
    const role = random.pick(["lowest", "upper"] as const);
    const whole = tolerated(() => buildTree(role, tar, 1 << 20));
    const pieces = tolerated(() => buildTree(role, tar, 1 + random.below(1500)));
    assert.deepEqual(pieces, whole);
  },
};

/** Stacks of odd layers merge; their extra lower is a sound tree. */
const merge: Fuzzer = {
  round(random) {
    const layers = randomImage(random.below(2 ** 31));
    const trees = tolerated(() =>
      layers.map((tar, index) => buildTree(index === 0 ? "lowest" : "upper", tar, 1 << 20)),
    );
    if (trees === null) return;
    tolerated(() => mergeTrees(trees));
    tolerated(() => impliedLower(trees));
  },
};

const stream: Fuzzer = {
  round(random) {
    const tar = random.pick(randomImage(random.below(2 ** 31)));
    const blob = mutate(random.pick([gzipSync, zstdCompressSync])(tar), random);
    tolerated(() => {
      let size = 0;
      using decoder = new LayerDecoder({
        layer: "fuzz",
        data(bytes) {
          size += bytes.byteLength;
        },
      });
      decoder.push(blob);
      decoder.finish();
      return size;
    });
  },
};

export const TAR_FUZZERS: { readonly [name: string]: Fuzzer } = {
  "tar.read": reader,
  "tar.merge": merge,
  "tar.stream": stream,
};
