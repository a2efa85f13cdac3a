/** Native layers against the real tool's blobs, the strict reader, and the tars that they came from. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { gunzipSync, gzipSync } from "node:zlib";
import fc from "fast-check";
import { nydusBlob, nydusVariants } from "../../../../test/suites/golden-nydus.ts";
import { fixtureLayers } from "../../../../test/suites/golden-soci.ts";
import {
  contentsOf,
  convertNative,
  inPieces,
  LAYER_TYPE,
  sourceContents,
  storedArray,
  tarOf,
} from "../../../../test/tools/nydus-layer.ts";
import { sha256 } from "../../../base/digest.ts";
import { bytesSource } from "../../../erofs/source.ts";
import { type TarEntry, writeTar } from "../../../sandbox/tar-writer.ts";
import { readBlobTail } from "../blob-tail.ts";
import { BlobFeature } from "../ondisk.ts";
import { writeBootstrap } from "./bootstrap.ts";
import { openDictionary } from "./dictionary.ts";
import { mergeLayers } from "./merge.ts";
import { buildNativeLayer } from "./native.ts";
import { NYDUS_DEFAULTS, type NydusOptions } from "./options.ts";

const VARIANTS: readonly Partial<NydusOptions>[] = [
  {},
  { batchSize: 0 },
  { compressor: "lz4_block", chunkSize: 65_536, batchSize: 0 },
  { compressor: "lz4_block", chunkSize: 65_536, batchSize: 65_536, digester: "blake3" },
  { compressor: "none", chunkSize: 4096, batchSize: 4096 },
  { chunkSize: 16 * 1024 * 1024, batchSize: 0 },
  { compressionLevel: 9, batchSize: 1024 * 1024 },
];

async function checkRoundTrip(stored: Uint8Array, tar: Uint8Array, options: Partial<NydusOptions>): Promise<void> {
  const converted = await convertNative(stored, options);
  const { layer, bytes, blob, diffID } = converted;
  assert.equal(blob.digest, sha256(bytes));
  assert.equal(blob.size, bytes.byteLength);
  assert.equal(diffID, sha256(tar));
  assert.ok((await tarOf(converted)).equals(tar), "the tar comes back");
  const blobs = new Map(layer.blob === null ? [] : [[layer.blob.facts.id, { data: bytes, meta: bytes }]]);
  const contents = await contentsOf(layer, blobs);
  assert.deepEqual([...contents.sha256.values()].sort(), await sourceContents(stored));
  const array = storedArray(layer, bytes);
  if (array !== null) {
    const { index: _, digest: __, crc32: ___, ...written } = layer.blob!.chunks;
    assert.deepEqual({ ...array, restarts: null }, { ...written, restarts: null });
  }
}

test("data, chunk array and digests are byte for byte those of the real tool", async () => {
  const original = nydusVariants["v6-zran"]!.original!;
  for (const [name, id] of Object.entries(nydusVariants["v6-none-1m-upper-layers"]!.layers)) {
    const options = { compressor: "none", batchSize: 0, digester: "blake3" } as const;
    const ours = await convertNative(nydusBlob(original[name]!)!, options, { role: "upper" });
    const bytes = nydusBlob(id)!;
    const theirs = readBlobTail(bytesSource(bytes));
    for (const part of ["image.blob", "blob.meta", "blob.digest"]) {
      const own = ours.tail.parts.find((one) => one.name === part)!;
      const golden = theirs.parts.find((one) => one.name === part)!;
      assert.deepEqual(own, golden);
      // with the header behind it
      const end = golden.start + golden.size + 512;
      assert.ok(ours.bytes.subarray(own.start, end).equals(bytes.subarray(golden.start, end)), `${name}: ${part}`);
    }
    assert.deepEqual(ours.tail.toc!.slice(0, 4), theirs.toc!.slice(0, 4));
  }
});

test("batches and their chunks are those of the real tool", async () => {
  const { chunks } = (
    await convertNative(fixtureLayers("gogz")[0]!.bytes, { batchSize: 256 * 1024, digester: "blake3" })
  ).layer.blob!;
  assert.equal(chunks.count, 343);
  assert.deepEqual([...chunks.batches!.size], [79_361, 206_694]);
  assert.deepEqual([...chunks.flags.slice(6, 14)], [5, 5, 0x11, 0x11, 0x11, 0x11, 5, 5]);
  assert.deepEqual([...chunks.crc32.slice(8, 12)], [1_860_293_594, 3_677_138_382, 3_276_214_073, 3_925_211_728]);
  assert.deepEqual([...chunks.contextOffset.slice(12, 15)], [0, 102_400, 102_417]);
});

test("the fixture's layers come back as tars and as contents, with every compressor, chunk and batch size", async () => {
  const tars = fixtureLayers("tar");
  for (const [index, options] of VARIANTS.entries()) {
    const variant = ["gogz", "multizstd", "pigz", "tar"][index % 4]!;
    for (const [layer, { bytes }] of fixtureLayers(variant).entries())
      await checkRoundTrip(bytes, tars[layer]!.bytes, options);
  }
});

test("odd archives come back to the bit: no end, trailing bytes, GNU names, files replaced and linked", async () => {
  for (const variant of ["odd-dup-link", "odd-gnu", "odd-pax-global", "odd-no-end", "odd-trailing", "odd-names"]) {
    const { bytes } = fixtureLayers(variant)[0]!;
    await checkRoundTrip(bytes, gunzipSync(bytes), { chunkSize: 4096, batchSize: 4096 });
  }
});

test("a layer of more headers than one frame of its tar-split holds comes back to the bit", async () => {
  const entries = Array.from({ length: 6000 }, (_, at) => ({
    path: `d${at % 100}/file-${at}`,
    data: at % 2 ? `${at}` : "",
  }));
  const tar = Buffer.concat([writeTar(entries), Buffer.alloc(300_000, 1)]);
  await checkRoundTrip(tar, tar, {});
});

test("a directory that is named like a mark does not get in the way of the mark", async () => {
  const tar = writeTar([
    { path: ".wh.c/a", data: "in it" },
    { path: ".wh.c", data: "" },
    { path: "d/.wh..wh..opq/x", data: "odd" },
    { path: "d/.wh..wh..opq", data: "" },
  ]);
  const { layer } = await convertNative(tar, {}, { role: "upper" });
  assert.equal(layer.tree.hasMarks, true);
  await checkRoundTrip(tar, tar, {});
});

test("the same input gives the same blob, however it is cut", async () => {
  const { bytes } = fixtureLayers("gogz")[0]!;
  const digests = new Set<string>();
  for (const pieces of [777, 65_536, 10_000_000]) digests.add((await convertNative(bytes, {}, { pieces })).blob.digest);
  assert.equal(digests.size, 1);
});

test("a layer without data has no blob of its own, but a bootstrap and its tar", async () => {
  const tar = writeTar([
    { path: "etc/" },
    { path: "etc/empty", data: "" },
    { path: "etc/link", type: "symlink", target: "empty" },
  ]);
  const converted = await convertNative(gzipSync(tar));
  assert.equal(converted.layer.blob, null);
  assert.deepEqual(
    converted.tail.parts.map(({ name }) => name),
    ["tar.split", "image.boot", "rafs.blob.toc"],
  );
  await checkRoundTrip(gzipSync(tar), tar, {});
  await checkRoundTrip(gzipSync(Buffer.alloc(1024)), Buffer.alloc(1024), {});
});

/** GNU sparse 0.1 in PAX records: `map` as offset, length pairs. */
function sparse(path: string, size: number, map: readonly number[], data: Uint8Array): TarEntry {
  const pax = {
    "GNU.sparse.numblocks": String(map.length / 2),
    "GNU.sparse.map": map.join(","),
    "GNU.sparse.size": String(size),
    "GNU.sparse.name": path,
    "GNU.sparse.major": "0",
    "GNU.sparse.minor": "1",
  };
  return { path: `GNUSparseFile/${path}`, data, pax };
}

test("sparse files are stored with their holes as zeros, which are stored once", async () => {
  const data = Buffer.alloc(9000, "x");
  const tar = writeTar([
    sparse("holes", 1_000_000, [10_000, 4000, 500_000, 5000, 1_000_000, 0], data),
    sparse("all-hole", 300_001, [], Buffer.alloc(0)),
    sparse("end", 100_000, [99_000, 1000], data.subarray(0, 1000)),
    sparse("begin", 100_000, [0, 9000], data),
  ]);
  for (const options of [{ chunkSize: 4096, batchSize: 0 }, { chunkSize: 65_536, batchSize: 65_536 }, {}])
    await checkRoundTrip(gzipSync(tar), tar, options);
  const { layer } = await convertNative(gzipSync(tar), { chunkSize: 4096, batchSize: 0 });
  assert.ok(layer.blob!.chunks.count < 20, `${layer.blob!.chunks.count} chunks`);
});

test("a file of holes that no image could hold is refused before anything is made of it", async () => {
  const tar = writeTar([sparse("huge", 2 ** 43, [], Buffer.alloc(0))]);
  await assert.rejects(convertNative(tar, { chunkSize: 4096, batchSize: 0 }), { code: "HS_NYDUS_LIMIT" });
  const withData = writeTar([sparse("huge", 2 ** 43, [2 ** 43 - 10, 10], Buffer.alloc(10))]);
  await assert.rejects(convertNative(withData, { chunkSize: 4096, batchSize: 0 }), { code: "HS_NYDUS_LIMIT" });
});

test("equal chunks of a layer are stored once, and those of a dictionary not at all", async () => {
  const data = Buffer.from(Array.from({ length: 20_000 }, (_, line) => `line ${line}\n`).join(""));
  const same = { chunkSize: 65_536, batchSize: 65_536 };
  const base = await convertNative(
    gzipSync(
      writeTar([
        { path: "a", data },
        { path: "b", data },
      ]),
    ),
    same,
  );
  assert.equal(base.layer.blob!.chunks.count, Math.ceil(data.length / 65_536));
  const dictionary = openDictionary(writeBootstrap(mergeLayers([base.layer])), { ...NYDUS_DEFAULTS, ...same });
  const tar = writeTar([
    { path: "c", data },
    { path: "d", data: Buffer.concat([data.subarray(0, 131_072), Buffer.from("other")]) },
  ]);
  const next = await convertNative(gzipSync(tar), same, { dictionary });
  assert.equal(next.layer.blob!.chunks.count, 1);
  assert.deepEqual(
    next.layer.dictionary.map(({ facts }) => facts.id),
    [base.layer.blob!.facts.id],
  );
  assert.ok((await tarOf(next, [base])).equals(tar));
  const stored = new Map([base, next].map(({ layer, bytes }) => [layer.blob!.facts.id, { data: bytes, meta: bytes }]));
  const contents = await contentsOf(next.layer, stored);
  assert.deepEqual([...contents.sha256.values()].sort(), await sourceContents(gzipSync(tar)));
});

test("random layers come back to the bit, and their contents with them", async () => {
  const name = fc.stringMatching(/^[a-z]{1,3}$/);
  const data = fc
    .tuple(fc.integer({ min: 0, max: 60_000 }), fc.nat(20))
    .map(([length, kind]) =>
      Buffer.from(
        Uint8Array.from({ length }, (_, at) =>
          kind < 4 ? 0 : kind < 12 ? at >> 8 : Math.imul(at + kind, 2_654_435_761) >>> 24,
        ),
      ),
    );
  const entry: fc.Arbitrary<TarEntry> = fc.oneof(
    fc.record({ path: name, data }),
    fc.record({ path: name, data, xattrs: fc.constant({ "user.x": "y" }) }),
    fc.record({ path: name.map((one) => `dir/${one}`), data }),
    fc.record({ path: name.map((one) => `${one}${"-long".repeat(60)}`.slice(0, 200)), data }),
    fc.record({ path: name.map((one) => `.wh.${one}`), data: fc.constant("") }),
  );
  const options = fc.record({
    compressor: fc.constantFrom("zstd" as const, "lz4_block" as const, "none" as const),
    chunkSize: fc.constantFrom(4096, 16_384, 1_048_576),
    batchSize: fc.constantFrom(0, 4096),
  });
  await fc.assert(
    fc.asyncProperty(fc.array(entry, { maxLength: 12 }), options, fc.boolean(), async (entries, chosen, zip) => {
      const tar = writeTar(entries);
      await checkRoundTrip(zip ? gzipSync(tar) : tar, tar, chosen);
    }),
    { numRuns: 60 },
  );
});

test("options that the format does not have are refused", async () => {
  const bad: Partial<NydusOptions>[] = [
    { chunkSize: 5000 },
    { chunkSize: 2048, batchSize: 0 },
    { chunkSize: 32 * 1024 * 1024 },
    { batchSize: 2 * 1024 * 1024 },
    { batchSize: 1000 },
    { chunkSize: 16 * 1024 * 1024 },
    { compressionLevel: 0 },
  ];
  for (const options of bad) await assert.rejects(convertNative(Buffer.alloc(1024), options), { code: "HS_USAGE" });
});

test("a source that is not the layer that was meant is told by its digest, size or diffID", async () => {
  const tar = writeTar([{ path: "a", data: "hello" }]);
  const stored = gzipSync(tar);
  const build = (bytes: Uint8Array, layer: { digest?: string; size?: number; diffID?: string }) =>
    buildNativeLayer({
      bytes: inPieces(bytes, 100),
      layer: { digest: sha256(stored), size: stored.byteLength, mediaType: LAYER_TYPE, ...(layer as object) },
      role: "lowest",
      options: NYDUS_DEFAULTS,
      dictionary: null,
      sink() {},
    });
  const changed = Buffer.from(stored);
  changed[20]! ^= 1;
  await assert.rejects(build(changed, {}), { code: "HS_DIGEST_MISMATCH" });
  await assert.rejects(build(stored.subarray(1), {}), { code: "HS_SIZE_MISMATCH" });
  await assert.rejects(build(stored, { size: 5 }), { code: "HS_SIZE_MISMATCH" });
  await assert.rejects(build(stored, { diffID: sha256(stored) }), { code: "HS_DIFFID_MISMATCH" });
  await assert.rejects(build(changed, { digest: sha256(changed) }), { code: "HS_LAYER_REFUSED" });
});

test("what the sink throws ends the conversion", async () => {
  const { bytes } = fixtureLayers("gogz")[0]!;
  const failing = buildNativeLayer({
    bytes: inPieces(bytes),
    layer: { digest: sha256(bytes), size: bytes.byteLength, mediaType: LAYER_TYPE },
    role: "lowest",
    options: NYDUS_DEFAULTS,
    dictionary: null,
    sink: () => Promise.reject(new Error("the registry hung up")),
  });
  await assert.rejects(failing, /hung up/);
});

test("the features say what is in the blob", async () => {
  const { bytes } = fixtureLayers("gogz")[0]!;
  const batched = (await convertNative(bytes)).layer.blob!.facts.features;
  assert.equal(batched, 0x7000_00a5);
  const plain = (await convertNative(bytes, { batchSize: 0 })).layer.blob!.facts.features;
  assert.equal(plain, 0x7000_0021);
  assert.equal(batched & BlobFeature.inlinedFsMeta, 0);
});
