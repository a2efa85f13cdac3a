/** Fuzzers of formats/soci and formats/gzip: golden files with something wrong in them give a value or a typed error, soon. */

import assert from "node:assert/strict";
import { gzipSync } from "node:zlib";
import { type DiffID, sha256 } from "../src/base/digest.ts";
import { decoderFor } from "../src/formats/all.ts";
import { GzipInflate } from "../src/formats/gzip/inflate.ts";
import { openSociLayer } from "../src/formats/soci/adapter.ts";
import { LayerHasher } from "../src/formats/soci/build-hash.ts";
import { LayerIndexer, NotIndexable } from "../src/formats/soci/build-index.ts";
import type { Cut } from "../src/formats/soci/build-protocol.ts";
import { readPrefetch, readSociIndex } from "../src/formats/soci/index.ts";
import { readZtoc } from "../src/formats/soci/read.ts";
import { writeZtoc } from "../src/formats/soci/write.ts";
import { randomImage } from "../test/interop/random-layers.ts";
import { fixtureLayers, goldenZtocs } from "../test/suites/golden-soci.ts";
import { sample } from "../test/suites/soci-sample.ts";
import { type Fuzzer, mutate, type Random, tolerated } from "./fuzzer.ts";
import { buildTree, damagedTar } from "./tar.ts";

/** As the threads of build.ts do it, in one. Null: SOCI has no zTOC for such a layer. */
function buildZtoc(blob: Uint8Array, random: Random): { ztoc: Uint8Array; diffID: DiffID } | null {
  const hasher = new LayerHasher();
  let cuts: Cut[] = [];
  try {
    using indexer = new LayerIndexer(
      { spanSize: random.pick([0, 1000, 65_536]), layer: "fuzz" },
      {
        decoded: (bytes) => hasher.decoded(bytes),
        cut: (offset, previousEnd) => cuts.push({ offset, previousEnd }),
        memberEnd: (crc, length) => hasher.memberEnd(crc, length),
      },
    );
    const step = 4 + random.below(20_000);
    for (let at = 0; at < blob.byteLength; at += step) {
      const chunk = blob.subarray(at, at + step);
      indexer.push(chunk);
      hasher.stored(chunk, cuts);
      cuts = [];
    }
    indexer.finish();
    const { diffID, spans } = hasher.finish();
    return { ztoc: indexer.writeZtoc("fuzz", spans), diffID };
  } catch (error) {
    if (error instanceof NotIndexable) return null;
    throw error;
  }
}

let ztocs: readonly Uint8Array[] | null = null;

function someZtoc(random: Random): Uint8Array {
  ztocs ??= goldenZtocs()
    .map(({ bytes }) => bytes)
    .filter((bytes) => bytes.byteLength < 1_000_000);
  return random.pick(ztocs);
}

const INDEX = JSON.stringify({
  schemaVersion: 2,
  mediaType: "application/vnd.oci.image.manifest.v1+json",
  config: { mediaType: "application/vnd.amazon.soci.index.v2+json", digest: sha256(Buffer.from("{}")), size: 2 },
  layers: [
    {
      mediaType: "application/octet-stream",
      digest: sha256(Buffer.from("a")),
      size: 1,
      annotations: {
        "com.amazon.soci.image-layer-digest": sha256(Buffer.from("b")),
        "com.amazon.soci.span-size": "4194304",
      },
    },
  ],
  annotations: { "com.amazon.soci.build-tool-identifier": "x" },
});

export const SOCI_FUZZERS: { readonly [name: string]: Fuzzer } = {
  "soci.read": {
    round(random) {
      const bytes = mutate(someZtoc(random), random);
      tolerated(() => readZtoc(bytes));
    },
  },
  "soci.layer": {
    round(random) {
      // the whole way: table, tree, and every span of the true blob
      const { content, blob } = sample({ spanSize: random.pick([4096, 65_536, 1_000_000]) });
      const ztoc = mutate(writeZtoc(content), random);
      tolerated(() => {
        const layer = { digest: sha256(blob), size: blob.length, mediaType: "", diffID: sha256(blob) as never };
        const lazy = openSociLayer({ ztoc, layer, role: random.pick(["lowest", "upper"]) });
        const decoder = decoderFor(lazy.decode, lazy.units);
        for (let unit = 0; unit < lazy.units.unitCount; unit++) {
          const stored = blob.subarray(lazy.units.unitStart[unit]!, lazy.units.unitEnd[unit]!);
          const decoded = decoder.decode(unit, stored);
          assert.equal(decoded.byteLength, lazy.units.unitDecodedLength[unit]);
          decoder.check(unit, decoded);
        }
      });
    },
  },
  "soci.index": {
    round(random) {
      const bytes = mutate(Buffer.from(INDEX), random);
      tolerated(() => readSociIndex(bytes));
      tolerated(() =>
        readPrefetch(mutate(Buffer.from('{"version":"1.0","prefetch_spans":[{"start_span":1,"end_span":8}]}'), random)),
      );
    },
  },
  "soci.build": {
    round(random) {
      // a layer that we pull eagerly and have a zTOC for is lazily the same: its tree is, and every span decodes
      const sound = random.pick(randomImage(random.below(2 ** 31)));
      const tar = random.below(3) === 0 ? sound : damagedTar(sound, random);
      const role = random.pick(["lowest", "upper"] as const);
      const eager = tolerated(() => buildTree(role, tar, 1 << 20));
      const blob = gzipSync(tar, { level: random.pick([0, 1, 9]) });
      const built = tolerated(() => buildZtoc(blob, random));
      if (eager === null || built === null) return;
      const layer = { digest: sha256(blob), size: blob.length, mediaType: "", diffID: built.diffID };
      const lazy = openSociLayer({ ztoc: built.ztoc, layer, role });
      assert.deepEqual(lazy.tree, eager);
      const decoder = decoderFor(lazy.decode, lazy.units);
      for (let unit = 0; unit < lazy.units.unitCount; unit++) {
        const stored = blob.subarray(lazy.units.unitStart[unit]!, lazy.units.unitEnd[unit]!);
        const decoded = decoder.decode(unit, stored);
        // an extension header that no entry follows is not in a zTOC, and the check says so
        tolerated(() => decoder.check(unit, decoded));
      }
    },
  },
  "gzip.inflate": {
    round(random) {
      const blob = mutate(
        random.pick([fixtureLayers("multigz")[2]!.bytes, fixtureLayers("fnamegz")[1]!.bytes]),
        random,
      );
      tolerated(() => {
        using stream = new GzipInflate({
          data() {},
          boundary: (_consumed, produced) => produced + random.pick([0, 1000]),
        });
        const step = 1 + random.below(5000);
        for (let at = 0; at < blob.byteLength; at += step) stream.push(blob.subarray(at, at + step));
        stream.finish();
      });
    },
  },
};
