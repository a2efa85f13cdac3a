/** Fuzzers of formats/soci and formats/gzip: golden files with something wrong in them give a value or a typed error, soon. */

import assert from "node:assert/strict";
import { sha256 } from "../src/base/digest.ts";
import { decoderFor } from "../src/formats/all.ts";
import { GzipInflate } from "../src/formats/gzip/inflate.ts";
import { openSociLayer } from "../src/formats/soci/adapter.ts";
import { readPrefetch, readSociIndex } from "../src/formats/soci/index.ts";
import { readZtoc } from "../src/formats/soci/read.ts";
import { writeZtoc } from "../src/formats/soci/write.ts";
import { fixtureLayers, goldenZtocs } from "../test/suites/golden-soci.ts";
import { sample } from "../test/suites/soci-sample.ts";
import { type Fuzzer, mutate, type Random, tolerated } from "./fuzzer.ts";

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
