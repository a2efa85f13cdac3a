/** Fuzzers of formats/nydus: golden bootstraps, chunk arrays and blobs with something wrong in them give a value or a typed error, soon. */

import assert from "node:assert/strict";
import { zstdDecompressSync } from "node:zlib";
import { digestHex } from "../src/base/digest.ts";
import { alignUp } from "../src/base/ranges.ts";
import { checkErofs } from "../src/erofs/check.ts";
import { openErofs } from "../src/erofs/read.ts";
import { bytesSource, layoutSource } from "../src/erofs/source.ts";
import { layoutDevices } from "../src/erofs/write.ts";
import { decoderFor } from "../src/formats/all.ts";
import { looksLikeBlob, readBlobTail } from "../src/formats/nydus/blob-tail.ts";
import { type NydusBootstrap, readBootstrap } from "../src/formats/nydus/bootstrap.ts";
import { chunkInfoFromBlob, chunkInfoFromFile } from "../src/formats/nydus/chunk-info.ts";
import { readLayerBootstrap } from "../src/formats/nydus/layer-bootstrap.ts";
import { mergedNydus } from "../src/formats/nydus/merged.ts";
import { openNydus } from "../src/formats/nydus/open.ts";
import { ChunkDictionary, imageBlobs } from "../src/formats/nydus/write/dictionary.ts";
import { nydusBlob, nydusBootstrap, nydusVariants, storedChunkInfo } from "../test/suites/golden-nydus.ts";
import { type Fuzzer, mutate, type Random, tolerated } from "./fuzzer.ts";

/** Small ones whose blobs are in the repository, one of each kind. */
const SMALL = [
  "v6-none-1m-upper-layers",
  "v6-zstd-64k-notoc-upper-layers",
  "v6-zstd-1m-encrypted-upper-layers",
] as const;
const LARGE = ["v6-zstd-1m", "v6-zstd-1m-batch", "v6-zran", "v6-zran-multi", "v6-lz4-64k-sha256"] as const;

const SMALL_BLOBS = SMALL.flatMap((variant) => Object.values(nydusVariants[variant]!.layers));

/** The part `image.boot` of a blob, plain. */
function bootstrapOf(id: string): Buffer {
  const blob = nydusBlob(id)!;
  const { parts, toc } = readBlobTail(bytesSource(blob));
  const part = parts.find(({ name }) => name === "image.boot")!;
  const stored = blob.subarray(part.start, part.start + part.size);
  return toc === null ? stored : zstdDecompressSync(stored);
}

const bootstraps = new Map<string, Buffer>();

function golden(variant: string): Buffer {
  let bytes = bootstraps.get(variant);
  if (bytes === undefined) {
    bytes = nydusBootstrap(variant);
    bootstraps.set(variant, bytes);
  }
  return bytes;
}

const parsed = new Map<string, NydusBootstrap>();

function goldenImage(variant: string): NydusBootstrap {
  let bootstrap = parsed.get(variant);
  if (bootstrap === undefined) {
    bootstrap = readBootstrap(golden(variant));
    parsed.set(variant, bootstrap);
  }
  return bootstrap;
}

/** In `mutate` most changes are near the ends of what it is given: windows let them reach the middle. */
function mutateWindow(bytes: Uint8Array, random: Random): Uint8Array {
  if (random.below(3) === 0) return mutate(bytes, random);
  const copy = Uint8Array.from(bytes);
  const size = Math.min(copy.byteLength, random.pick([128, 512, 4096]));
  const start = random.below(copy.byteLength - size + 1);
  const changed = mutate(copy.subarray(start, start + size), random);
  copy.set(changed, start);
  return copy;
}

export const NYDUS_FUZZERS: { readonly [name: string]: Fuzzer } = {
  "nydus.bootstrap": {
    round(random) {
      const bytes = mutateWindow(golden(random.pick(Object.keys(nydusVariants))), random);
      tolerated(() => new ChunkDictionary(imageBlobs(readBootstrap(bytes))));
    },
  },
  "nydus.layer": {
    round(random) {
      const id = random.pick(SMALL_BLOBS);
      const bytes = mutateWindow(bootstrapOf(id), random);
      tolerated(() => readLayerBootstrap(bytes, { id, size: 100_000 }, random.pick(["lowest", "upper"])));
    },
  },
  "nydus.chunks": {
    round(random) {
      const bootstrap = goldenImage(random.pick([...LARGE, ...SMALL]));
      const blob = random.pick(bootstrap.blobs);
      const stored = storedChunkInfo(blob)!;
      tolerated(() => chunkInfoFromBlob(blob, mutateWindow(stored, random)));
      tolerated(() => chunkInfoFromFile(blob, mutateWindow(stored, random)));
    },
  },
  "nydus.image": {
    round(random) {
      // the whole way: a tree, chunk arrays, and every unit of the true blobs, one of the three with something wrong in it
      const variant = random.pick(SMALL);
      const wrong = random.below(3);
      tolerated(() => {
        const bytes = golden(variant);
        const bootstrap = readBootstrap(wrong === 0 ? mutateWindow(bytes, random) : bytes);
        const blobs = bootstrap.blobs.map((blob) => nydusBlob(blob.id) ?? new Uint8Array(0));
        const infos = bootstrap.blobs.map((blob, index) => {
          const { offset, compressedSize } = blob.chunkInfo!;
          const stored = blobs[index]!.subarray(offset, offset + compressedSize + 4096);
          return chunkInfoFromBlob(
            blob,
            wrong === 1 && stored.byteLength > 600 ? mutateWindow(stored, random) : stored,
          );
        });
        const sizes = blobs.map((blob) => blob.byteLength);
        const { units, decode } = openNydus(bootstrap, infos, sizes, variant);
        const decoder = decoderFor(decode, units);
        for (let unit = 0; unit < units.unitCount; unit++) {
          const whole = blobs[units.unitBlob[unit]!]!;
          const stored = whole.subarray(units.unitStart[unit], units.unitEnd[unit]);
          const given = wrong === 2 && stored.byteLength > 8 ? mutate(stored, random) : stored;
          const decoded = tolerated(() => decoder.decode(unit, given));
          if (decoded !== null) assert.equal(decoded.byteLength, units.unitDecodedLength[unit]);
        }
      });
    },
  },
  "nydus.merged": {
    round(random) {
      // what is mounted: tables of whole blobs, and an image over them that our own reader finds sound
      const variant = random.pick([...SMALL, "v6-zstd-1m-batch", "v6-zran"]);
      const wrong = random.below(2);
      tolerated(() => {
        const bytes = golden(variant);
        const bootstrap = wrong === 0 ? readBootstrap(mutateWindow(bytes, random)) : goldenImage(variant);
        const infos = bootstrap.blobs.map((blob) => {
          const stored = storedChunkInfo(blob) ?? new Uint8Array(0);
          const given = wrong === 1 && stored.byteLength > 600 ? mutateWindow(stored, random) : stored;
          return chunkInfoFromBlob(blob, given);
        });
        const sizes = bootstrap.blobs.map((blob) => nydusBlob(blob.id)?.byteLength ?? 0);
        const merged = mergedNydus(bootstrap, infos, sizes, variant);
        const devices = merged.blobs.map((blob) => {
          if (blob === null) return null;
          const { units } = blob.table;
          const last = units.pieceCount - 1;
          return {
            tag: digestHex(blob.blob.digest),
            size: alignUp(units.pieceAddress[last]! + units.pieceLength[last]!, 4096),
          };
        });
        const layout = layoutDevices(merged.tree, devices, { uuid: new Uint8Array(16) });
        checkErofs(openErofs(layoutSource(layout)));
      });
    },
  },
  "nydus.tail": {
    round(random) {
      const bytes = mutateWindow(nydusBlob(random.pick(SMALL_BLOBS))!, random);
      const source = bytesSource(bytes);
      tolerated(() => readBlobTail(source));
      tolerated(() => looksLikeBlob(source));
    },
  },
};
