/** Fuzzers of formats/nydus/write: layers, also damaged ones, become blobs that give back their tars and contents, or are refused; damaged tar-splits give a typed error, soon. */

import assert from "node:assert/strict";
import { gzipSync, zstdCompressSync, zstdDecompressSync } from "node:zlib";
import { TAR_SPLIT_NAME } from "../src/formats/nydus/tar-split.ts";
import { unpackTar } from "../src/formats/nydus/write/reverse.ts";
import { randomImage } from "../test/interop/random-layers.ts";
import { contentsOf, convertNative, convertRef, inPieces, tarOf } from "../test/tools/nydus-layer.ts";
import { type Fuzzer, mutate, type Random, toleratedLater } from "./fuzzer.ts";

function layer(random: Random): Uint8Array {
  const tar = random.pick(randomImage(random.below(2 ** 31)));
  return random.below(3) === 0 ? mutate(tar, random) : tar;
}

function options(random: Random) {
  const chunkSize = random.pick([4096, 65_536, 1_048_576]);
  return {
    compressor: random.pick(["zstd", "lz4_block", "none"] as const),
    chunkSize,
    batchSize: random.pick([0, 4096, chunkSize]),
  };
}

const native: Fuzzer = {
  async round(random) {
    const tar = layer(random);
    const role = random.pick(["lowest", "upper"] as const);
    const stored = random.pick([gzipSync, zstdCompressSync, (bytes: Uint8Array) => Buffer.from(bytes)])(tar);
    const chosen = options(random);
    const converted = await toleratedLater(() => convertNative(stored, chosen, { role }));
    if (converted === null) return;
    assert.ok((await tarOf(converted)).equals(tar), "the tar comes back");
    const { blob } = converted.layer;
    const { bytes } = converted;
    await contentsOf(converted.layer, new Map(blob === null ? [] : [[blob.facts.id, { data: bytes, meta: bytes }]]));
  },
};

const ref: Fuzzer = {
  async round(random) {
    const tar = layer(random);
    const level = random.below(10);
    const cuts = Array.from({ length: random.below(4) }, () => random.below(tar.byteLength)).sort((a, b) => a - b);
    const members = [0, ...cuts].map((start, index) =>
      gzipSync(tar.subarray(start, cuts[index] ?? tar.byteLength), { level, memLevel: 1 + random.below(9) }),
    );
    const stored = random.below(8) === 0 ? tar : Buffer.concat(members);
    const chunkSize = random.pick([4096, 65_536, 2_097_152]);
    const converted = await toleratedLater(() => convertRef(stored, { chunkSize }));
    if (converted === null) return;
    const { blob } = converted.layer;
    await contentsOf(
      converted.layer,
      new Map(blob === null ? [] : [[blob.facts.id, { data: stored, meta: converted.bytes }]]),
    );
  },
};

const tarSplit: Fuzzer = {
  async round(random) {
    const tar = random.pick(randomImage(random.below(2 ** 31)));
    const converted = await toleratedLater(() => convertNative(tar, {}, { role: "upper" }));
    if (converted === null) return;
    const { bytes, tail } = converted;
    const { storedOffset, storedSize } = tail.toc!.find(({ name }) => name === TAR_SPLIT_NAME)!;
    const part = bytes.subarray(storedOffset, storedOffset + storedSize);
    const damaged =
      random.below(4) === 0 ? mutate(part, random) : zstdCompressSync(mutate(zstdDecompressSync(part), random));
    const chunk = new Uint8Array(1 + random.below(5000));
    await toleratedLater(async () => {
      for await (const _ of unpackTar(inPieces(damaged, 1 + random.below(3000)), { read: async () => chunk }, "fuzz"));
    });
  },
};

export const NYDUS_WRITE_FUZZERS: { readonly [name: string]: Fuzzer } = {
  "nydus.native": native,
  "nydus.ref": ref,
  "nydus.tar-split": tarSplit,
};
