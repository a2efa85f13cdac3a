/** Chunk arrays with the largest numbers that fit, through the strict reader. */

import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import type { NydusBlob } from "../blob-table.ts";
import { chunkInfoFromBlob } from "../chunk-info.ts";
import { BlobFeature, ChunkFlag, Compressor, NYDUS_LIMITS } from "../ondisk.ts";
import { ChunkArrayBuilder, encodeChunkArray, encodeChunkArrayHeader } from "./chunk-array.ts";

const DIGEST = new Uint8Array(32).fill(1);
const MAX = NYDUS_LIMITS.chunkSizeMax;
const FEATURES = BlobFeature.aligned | BlobFeature.capTarToc;

interface Chunk {
  readonly size: number;
  /** Stored bytes less than plain ones; 0: as it is. */
  readonly saved: number;
  /** Stored bytes that nobody refers to, before it. */
  readonly gap: number;
  readonly crc32: number;
}

const chunk: fc.Arbitrary<Chunk> = fc
  .record({
    size: fc.oneof(fc.integer({ min: 1, max: MAX - 1 }), fc.constantFrom(1, 4095, 4096, 4097, MAX - 1)),
    saved: fc.nat(),
    gap: fc.oneof(fc.constant(0), fc.integer({ min: 0, max: 2 ** 35 })),
    crc32: fc.oneof(fc.constantFrom(0, 0xffff_ffff), fc.integer({ min: 1, max: 0xffff_fffe })),
  })
  .map(({ saved, ...rest }) => ({ ...rest, saved: saved % rest.size }));

function build(chunks: readonly Chunk[], v2: boolean) {
  const array = new ChunkArrayBuilder("test");
  let at = 0;
  for (const { size, saved, gap, crc32 } of chunks) {
    const index = array.add(size, DIGEST, crc32);
    at += gap;
    array.stored(index, at, size - saved, saved === 0 ? 0 : ChunkFlag.compressed);
    at += size - saved;
  }
  const written = array.finish(v2, null, null);
  return { written, dataSize: at, end: array.end };
}

/** As a blob stores it, and reads it. */
function readBack({ written, dataSize, end }: ReturnType<typeof build>, v2: boolean) {
  const features = FEATURES | (v2 ? BlobFeature.chunkInfoV2 : 0);
  const encoded = encodeChunkArray(written, v2, null);
  const size = encoded.bytes.byteLength;
  const place = { compressor: Compressor.none, offset: dataSize, compressedSize: size, size };
  const header = encodeChunkArrayHeader(encoded, written.count, features, place);
  const blob: NydusBlob = {
    index: 0,
    id: "0".repeat(64),
    chunkCount: written.count,
    compressor: Compressor.zstd,
    digester: "sha256",
    features,
    compressedSize: dataSize,
    uncompressedSize: end,
    dataSize,
    isRef: false,
    chunkInfo: place,
    metaBlob: null,
    cipher: null,
    tocSize: 0,
    tocDigest: "0".repeat(64),
  };
  return chunkInfoFromBlob(blob, Buffer.concat([encoded.bytes, header]));
}

test("what is written is read again, in the short and the long form", () => {
  fc.assert(
    fc.property(fc.array(chunk, { minLength: 1, maxLength: 600 }), fc.boolean(), (chunks, v2) => {
      const built = build(chunks, v2);
      const { index: _, digest: __, crc32: ___, ...written } = built.written;
      assert.deepEqual(readBack(built, v2), written);
    }),
    { numRuns: 50 },
  );
});

test("addresses and places beyond 4 GiB, and chunks of 16 MiB, keep all their bits", () => {
  const chunks = Array.from({ length: 700 }, (_, at) => ({ size: MAX, saved: at % 3, gap: at * 2 ** 20, crc32: at }));
  const built = build(chunks, false);
  assert.ok(built.end > 2 ** 33 && built.dataSize > 2 ** 36);
  assert.deepEqual(readBack(built, false).storedOffset, built.written.storedOffset);
});

test("a CRC-32C of 0 is none", () => {
  const { written } = build([{ size: 5, saved: 0, gap: 0, crc32: 0 }], true);
  assert.equal(written.flags[0], 0);
});

test("a blob of more than 16 TiB, or more than 1 TiB stored, is refused", () => {
  const array = new ChunkArrayBuilder("test");
  const index = array.add(10, DIGEST, 1);
  assert.throws(() => array.stored(index, NYDUS_LIMITS.blobCompressedBytes, 10, 0), { code: "HS_NYDUS_LIMIT" });
  assert.throws(() => array.add(NYDUS_LIMITS.blobUncompressedBytes, DIGEST, 1), { code: "HS_NYDUS_LIMIT" });
});
