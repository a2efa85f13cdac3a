/** Chunk arrays that lie (specs/nydus.md N6 to N12), and the two forms in which they come. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { zstdCompressSync, zstdDecompressSync } from "node:zlib";
import fc from "fast-check";
import { nydusBlobFile, nydusBootstrap, storedChunkInfo } from "../../../test/suites/golden-nydus.ts";
import { HeadstartError, isHeadstartError } from "../../base/errors.ts";
import type { NydusBlob } from "./blob-table.ts";
import { readBootstrap } from "./bootstrap.ts";
import { type ChunkInfo, chunkInfoFromBlob, chunkInfoFromFile } from "./chunk-info.ts";
import { CI_HEADER_SIZE } from "./ondisk.ts";

interface Plain {
  readonly blob: NydusBlob;
  /** The chunk array, uncompressed, and its header: copies. */
  readonly array: Buffer<ArrayBuffer>;
  readonly header: Buffer<ArrayBuffer>;
}

function plain(variant: string, index: number): Plain {
  const blob = readBootstrap(nydusBootstrap(variant)).blobs[index]!;
  const stored = storedChunkInfo(blob)!;
  const array = stored.subarray(0, blob.chunkInfo!.compressedSize);
  return {
    blob,
    array: Buffer.from(blob.chunkInfo!.compressor === 0 ? array : zstdDecompressSync(array)),
    header: Buffer.from(stored.subarray(blob.chunkInfo!.compressedSize)),
  };
}

/** As `image/<blob>.blob.meta` has it. */
function asFile({ array, header }: Pick<Plain, "array" | "header">): Buffer {
  return Buffer.concat([array, Buffer.alloc((4096 - (array.length % 4096)) % 4096), header]);
}

const read = (one: Plain): ChunkInfo => chunkInfoFromFile(one.blob, asFile(one))!;
const refused = (one: Plain, name: string) =>
  assert.throws(
    () => read(one),
    (error) => isHeadstartError(error, "HS_NYDUS_INVALID"),
    name,
  );

const NATIVE = ["v6-zstd-1m", 1] as const;
const BATCH = ["v6-zstd-1m-batch", 1] as const;
const ZRAN = ["v6-zran", 1] as const;

test("a .blob.meta file and what the blob stores are the same chunk array", () => {
  for (const [variant, index] of [NATIVE, BATCH, ZRAN]) {
    const one = plain(variant, index);
    assert.deepEqual(read(one), chunkInfoFromBlob(one.blob, storedChunkInfo(one.blob)!));
  }
});

test("what nydusd keeps beside its cache is such a file", () => {
  const one = plain("v6-zstd-1m", 0);
  assert.deepEqual(chunkInfoFromFile(one.blob, nydusBlobFile("blob.meta")), read(one));
});

test("a .blob.meta of the header alone says that the array is in the blob", () => {
  const one = plain(...NATIVE);
  assert.equal(chunkInfoFromFile(one.blob, one.header), null);
});

test("a header that does not fit the blob table is refused", () => {
  for (const [name, at, value] of [
    ["the magic", 0, 1],
    ["the second magic", 4092, 1],
    ["the compressor", 8, 1],
    ["the number of entries", 12, 342],
    ["the offset", 16, 7],
    ["the compressed size", 24, 7],
    ["the uncompressed size", 32, 7],
  ] as const) {
    const one = plain(...NATIVE);
    one.header.writeUInt32LE(value, at);
    refused(one, name);
  }
  for (const [name, at, value] of [
    ["where the contexts are", 40, 0n],
    ["contexts beyond the array", 48, 2n ** 40n],
    ["more contexts than bytes", 56, 343n],
  ] as const) {
    const one = plain(...ZRAN);
    one.header.writeBigUInt64LE(value, at);
    refused(one, name);
  }
});

test("files and blobs of another length are refused", () => {
  const one = plain(...NATIVE);
  assert.throws(() => chunkInfoFromFile(one.blob, asFile(one).subarray(4096)), { code: "HS_NYDUS_INVALID" });
  assert.throws(() => chunkInfoFromBlob(one.blob, Buffer.alloc(CI_HEADER_SIZE)), { code: "HS_NYDUS_INVALID" });
});

test("an array that decompresses to more than the blob table says stops there", () => {
  const { blob, header } = plain(...NATIVE);
  const bomb = zstdCompressSync(Buffer.alloc(64 * 1024 * 1024));
  const place = { ...blob.chunkInfo!, compressedSize: bomb.length };
  assert.throws(() => chunkInfoFromBlob({ ...blob, chunkInfo: place }, Buffer.concat([bomb, header])), {
    code: "HS_UNIT_DECODE",
  });
});

/** Word of an entry: 0 U, 1 C, 2 D. */
const patchV2 = (one: Plain, chunk: number, word: number, change: (value: bigint) => bigint) => {
  const at = chunk * 24 + word * 8;
  one.array.writeBigUInt64LE(BigInt.asUintN(64, change(one.array.readBigUInt64LE(at))), at);
};
const patchV1 = (one: Plain, chunk: number, word: number, change: (value: bigint) => bigint) => {
  const at = chunk * 16 + word * 8;
  one.array.writeBigUInt64LE(BigInt.asUintN(64, change(one.array.readBigUInt64LE(at))), at);
};

test("native chunks that leave gaps, overlap, or lie outside of the data are refused", () => {
  for (const [name, chunk, word, change] of [
    ["a gap", 5, 0, (value: bigint) => value + (1n << 12n)],
    ["the same address twice", 5, 0, (value: bigint) => value - (1n << 12n)],
    ["beyond the address space", 342, 0, (value: bigint) => value | (0xfffffn << 44n)],
    ["stored beyond the data", 7, 1, (value: bigint) => value + 2n ** 30n],
    ["a stored size beyond the data", 342, 1, (value: bigint) => value | (0xfffffn << 44n)],
  ] as const) {
    const one = plain(...NATIVE);
    patchV1(one, chunk, word, change);
    refused(one, name);
  }
});

test("chunks of batches that lie outside of their batch are refused", () => {
  const { array } = plain(...BATCH);
  const batched = Array.from({ length: 343 }, (_, chunk) => chunk).filter(
    (chunk) => (array[chunk * 24 + 7]! & 4) !== 0,
  );
  assert.ok(batched.length > 100);
  const chunk = batched[3]!;
  for (const [name, word, change] of [
    ["an unknown batch", 2, (value: bigint) => value | (0xffffn << 32n)],
    ["an offset beyond it", 2, (value: bigint) => value | 0xffff_ffffn],
    ["another start than the batch's", 1, (value: bigint) => value + 1n],
    ["a zran chunk among them", 0, (value: bigint) => value | (2n << 56n)],
    ["an encrypted one among them", 0, (value: bigint) => value | (8n << 56n)],
  ] as const) {
    const one = plain(...BATCH);
    patchV2(one, chunk, word, change);
    refused(one, name);
  }
  const one = plain(...BATCH);
  const single = Array.from({ length: 343 }, (_, index) => index).find((index) => (array[index * 24 + 7]! & 4) === 0)!;
  assert.ok((array[single * 24 + 7]! & 0x10) !== 0, "chunks outside of batches have a CRC");
  patchV2(one, single, 2, () => 0n);
  refused(one, "a CRC of 0");
});

test("zran contexts that lie are refused", () => {
  const contexts = 343 * 24;
  for (const [name, at, value, size] of [
    ["8 bits", 37, 8, 1],
    ["nothing decoded", 28, 0, 4],
    ["more decoded than anybody may", 28, 2 ** 24 + 1, 4],
    ["no stored bytes", 24, 0, 4],
    ["stored beyond the layer", 24, 2 ** 31, 4],
    ["a dictionary of more than 32 KiB", 32, 32_769, 4],
  ] as const) {
    const one = plain(...ZRAN);
    one.array.writeUIntLE(value, contexts + 40 + at, size);
    refused(one, name);
  }
  const outside = plain(...ZRAN);
  outside.array.writeUInt32LE(2 ** 30, contexts + 40 + 16);
  refused(outside, "a dictionary outside");
  for (const [name, change] of [
    ["an unknown context", (value: bigint) => value | (0xffffn << 32n)],
    ["outside of its context", (value: bigint) => value | 0xffff_ffffn],
  ] as const) {
    const one = plain(...ZRAN);
    patchV2(one, 9, 2, change);
    refused(one, name);
  }
});

test("whatever bytes of a chunk array change, it is read or refused by a typed error", () => {
  for (const [variant, index] of [NATIVE, BATCH, ZRAN]) {
    const golden = plain(variant, index);
    fc.assert(
      fc.property(
        fc.array(fc.tuple(fc.integer({ min: 0, max: 12_000 }), fc.integer({ min: 0, max: 255 })), { maxLength: 6 }),
        fc.array(fc.tuple(fc.integer({ min: 0, max: 63 }), fc.integer({ min: 0, max: 255 })), { maxLength: 2 }),
        (inArray, inHeader) => {
          const one = { ...golden, array: Buffer.from(golden.array), header: Buffer.from(golden.header) };
          for (const [at, value] of inArray) if (at < one.array.length) one.array[at] = value;
          for (const [at, value] of inHeader) one.header[at] = value;
          try {
            read(one);
          } catch (error) {
            if (!(error instanceof HeadstartError) || error.code === "HS_INTERNAL") throw error;
          }
        },
      ),
      { numRuns: 100 },
    );
  }
});
