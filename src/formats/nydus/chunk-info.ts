/**
 * The chunk array of a blob ("compression information", "blob meta"; specs/nydus.md 2.3): which stored bytes hold each chunk, and how.
 *
 *   stored in the blob      [chunk array, compressed] [header 4096]         both encrypted in an encrypted blob
 *   beside the bootstrap    [chunk array] [zeros to a multiple of 4096] [header 4096]     `image/<blob>.blob.meta`
 *
 *   chunk array             entries (16 or 24 bytes) | contexts (40 bytes) of zran or batch | dictionaries of zran
 *
 * It is bound by nothing when it comes from a blob. A lie in it ends in an error: chunks are verified by the digests of the bootstrap.
 */

import { createDecipheriv } from "node:crypto";
import { zstdDecompressSync } from "node:zlib";
import { HeadstartError } from "../../base/errors.ts";
import type { NydusBlob } from "./blob-table.ts";
import { lz4Decompress } from "./lz4.ts";
import {
  alignBlock,
  BlobFeature,
  ChunkFlag,
  CI_CONTEXT_SIZE,
  CI_ENTRY_SIZE,
  CI_ENTRY_SIZE_V2,
  CI_HEADER_SIZE,
  CI_MAGIC,
  Compressor,
  NYDUS_LIMITS,
  nydusInvalid,
  rafs_ci_header,
} from "./ondisk.ts";

export interface ChunkInfo {
  readonly count: number;
  /** Within the blob's address space, ascending. */
  readonly offset: Float64Array;
  readonly size: Uint32Array;
  readonly storedOffset: Float64Array;
  readonly storedSize: Uint32Array;
  /** ChunkFlag. */
  readonly flags: Uint8Array;
  /** Of chunks of zran and batch: their context, and where in it they begin. */
  readonly context: Uint32Array;
  readonly contextOffset: Uint32Array;
  readonly batches: BatchContexts | null;
  readonly restarts: RestartPoints | null;
}

export interface BatchContexts {
  readonly count: number;
  readonly storedSize: Uint32Array;
  readonly size: Uint32Array;
}

/** zran contexts. */
export interface RestartPoints {
  readonly count: number;
  /** First full byte of the layer, and the bytes that are read from there. */
  readonly storedOffset: Float64Array;
  readonly storedSize: Uint32Array;
  readonly size: Uint32Array;
  /** Bits of the byte before that come first. */
  readonly bits: Uint8Array;
  readonly dictionaryStart: Float64Array;
  readonly dictionarySize: Uint32Array;
  readonly dictionaries: Uint8Array;
}

/** The bytes that a blob stores at `blob.chunkInfo`: array and header. Throws HS_NYDUS_INVALID, HS_UNIT_DECODE. */
export function chunkInfoFromBlob(blob: NydusBlob, stored: Uint8Array): ChunkInfo {
  const what = describe(blob);
  const place = blob.chunkInfo;
  if (place === null) throw nydusInvalid(what, "RAFS v5 has none");
  if (stored.byteLength !== place.compressedSize + CI_HEADER_SIZE)
    throw nydusInvalid(what, `${stored.byteLength} bytes, not ${place.compressedSize + CI_HEADER_SIZE}`);
  const array = decryptWith(blob.cipher, stored.subarray(0, place.compressedSize));
  const header = decryptWith(blob.cipher, stored.subarray(place.compressedSize));
  return parse(blob, decompress(place.compressor, array, place.size, what), header, what);
}

/** `image/<blob>.blob.meta`. Null when it has the header alone: then the array is in the blob (images with lz4). */
export function chunkInfoFromFile(blob: NydusBlob, file: Uint8Array): ChunkInfo | null {
  const what = describe(blob);
  const place = blob.chunkInfo;
  if (place === null) throw nydusInvalid(what, "RAFS v5 has none");
  if (file.byteLength === CI_HEADER_SIZE) return null;
  const padded = alignBlock(place.size);
  if (file.byteLength !== padded + CI_HEADER_SIZE)
    throw nydusInvalid(what, `a .blob.meta of ${file.byteLength} bytes for ${place.size}`);
  return parse(blob, file.subarray(0, place.size), file.subarray(padded), what);
}

/** What fewer than 16 bytes are padded to before they are encrypted: a cipher block and a magic. */
export const PADDED_SIZE = 18;

function describe(blob: NydusBlob): string {
  return `chunk array of blob ${blob.id}`;
}

/** AES-128-XTS, the whole range as one data unit (specs/nydus.md 2.2). */
export function decryptWith(cipher: NydusBlob["cipher"], bytes: Uint8Array): Uint8Array {
  if (cipher === null) return bytes;
  if (bytes.byteLength < 16) throw new HeadstartError("HS_UNIT_DECODE", { what: "less than one cipher block" });
  return createDecipheriv("aes-128-xts", cipher.key, cipher.iv).update(bytes);
}

/** Exactly `size` bytes. Throws HS_UNIT_DECODE. */
export function decompress(compressor: Compressor, stored: Uint8Array, size: number, what: string): Uint8Array {
  let plain: Uint8Array;
  switch (compressor) {
    case Compressor.none:
      plain = stored;
      break;
    case Compressor.lz4:
      plain = lz4Decompress(stored, size, what);
      break;
    case Compressor.zstd:
      try {
        plain = zstdDecompressSync(stored, { maxOutputLength: Math.max(size, 1) });
      } catch (cause) {
        throw new HeadstartError("HS_UNIT_DECODE", { what: `${what}: zstd data that do not decode`, cause });
      }
      break;
    case Compressor.gzip:
      throw new HeadstartError("HS_FORMAT_UNSUPPORTED", { what: `${what}: gzip outside of a ref` });
  }
  if (plain.byteLength !== size)
    throw new HeadstartError("HS_UNIT_DECODE", { what: `${what}: ${plain.byteLength} bytes instead of ${size}` });
  return plain;
}

/** What the header says of the contexts. */
interface ContextTable {
  readonly offset: number;
  readonly size: number;
  readonly count: number;
}

function parse(blob: NydusBlob, array: Uint8Array, header: Uint8Array, what: string): ChunkInfo {
  const v2 = (blob.features & BlobFeature.chunkInfoV2) !== 0;
  const isZran = (blob.features & BlobFeature.zran) !== 0;
  const isBatch = (blob.features & BlobFeature.batch) !== 0;
  const table = readHeader(blob, header, array.byteLength, what);
  const restarts = isZran ? readRestartPoints(blob, array, table, what) : null;
  const batches = isBatch ? readBatches(blob, array, table, what) : null;
  const count = blob.chunkCount;
  const info = {
    count,
    offset: new Float64Array(count),
    size: new Uint32Array(count),
    storedOffset: new Float64Array(count),
    storedSize: new Uint32Array(count),
    flags: new Uint8Array(count),
    context: new Uint32Array(count),
    contextOffset: new Uint32Array(count),
    batches,
    restarts,
  };
  const view = new DataView(array.buffer, array.byteOffset, array.byteLength);
  for (let chunk = 0; chunk < count; chunk++) {
    if (v2) readEntryV2(info, chunk, view, chunk * CI_ENTRY_SIZE_V2);
    else readEntryV1(info, chunk, view, chunk * CI_ENTRY_SIZE);
  }
  checkEntries(blob, info, what);
  return info;
}

function readHeader(blob: NydusBlob, header: Uint8Array, arraySize: number, what: string): ContextTable {
  const place = blob.chunkInfo!;
  const view = new DataView(header.buffer, header.byteOffset, header.byteLength);
  const at = rafs_ci_header.offsets;
  const u32 = (offset: number) => view.getUint32(offset, true);
  const u64 = (offset: number) => u32(offset + 4) * 2 ** 32 + u32(offset);
  const expect = (field: string, value: number, wanted: number) => {
    if (value !== wanted) throw nydusInvalid(what, `header: ${field} is ${value}, not ${wanted}`);
  };
  expect("the magic", u32(at.magic), CI_MAGIC);
  expect("the second magic", u32(CI_HEADER_SIZE - 4), CI_MAGIC);
  if ((blob.features & BlobFeature.chunkdictGenerated) === 0) expect("ci_entries", u32(at.ci_entries), blob.chunkCount);
  expect("ci_compressor", u32(at.ci_compressor), place.compressor);
  expect("ci_offset", u64(at.ci_offset), place.offset);
  expect("ci_compressed_size", u64(at.ci_compressed_size), place.compressedSize);
  expect("ci_uncompressed_size", u64(at.ci_uncompressed_size), place.size);
  const table = { offset: u64(at.context_offset), size: u64(at.context_size), count: u32(at.context_count) };
  const contexts = (blob.features & (BlobFeature.zran | BlobFeature.batch)) !== 0;
  if (!contexts) return { offset: 0, size: 0, count: 0 };
  const entries = blob.chunkCount * CI_ENTRY_SIZE_V2;
  expect("context_offset", table.offset, entries);
  if (!(table.offset + table.size <= arraySize)) throw nydusInvalid(what, `header: ${table.size} bytes of contexts`);
  if (table.count > blob.chunkCount) throw nydusInvalid(what, `header: ${table.count} contexts`);
  if (table.count * CI_CONTEXT_SIZE > table.size)
    throw nydusInvalid(what, `header: ${table.count} contexts in ${table.size} bytes`);
  return table;
}

function readRestartPoints(blob: NydusBlob, array: Uint8Array, table: ContextTable, what: string): RestartPoints {
  const { count } = table;
  const view = new DataView(array.buffer, array.byteOffset + table.offset, table.size);
  const dictionaries = array.subarray(table.offset + count * CI_CONTEXT_SIZE, table.offset + table.size);
  const points = {
    count,
    storedOffset: new Float64Array(count),
    storedSize: new Uint32Array(count),
    size: new Uint32Array(count),
    bits: new Uint8Array(count),
    dictionaryStart: new Float64Array(count),
    dictionarySize: new Uint32Array(count),
    dictionaries,
  };
  for (let context = 0; context < count; context++) {
    const at = context * CI_CONTEXT_SIZE;
    const u64 = (offset: number) => view.getUint32(at + offset + 4, true) * 2 ** 32 + view.getUint32(at + offset, true);
    const storedOffset = u64(0);
    const dictionaryStart = u64(16);
    const storedSize = view.getUint32(at + 24, true);
    const size = view.getUint32(at + 28, true);
    const dictionarySize = view.getUint32(at + 32, true);
    const bits = view.getUint8(at + 37);
    const bad = (message: string) => nydusInvalid(what, `context ${context}: ${message}`);
    if (bits > 7) throw bad(`${bits} bits`);
    if (bits > 0 && storedOffset === 0) throw bad("bits of a byte before the layer");
    if (!(size > 0 && size <= NYDUS_LIMITS.contextBytes)) throw bad(`it decodes to ${size} bytes`);
    if (!(storedSize > 0 && storedOffset + storedSize <= blob.compressedSize))
      throw bad(`bytes ${storedOffset} + ${storedSize} of a layer of ${blob.compressedSize}`);
    if (dictionarySize > NYDUS_LIMITS.dictionaryBytes) throw bad(`a dictionary of ${dictionarySize} bytes`);
    if (dictionarySize > 0 && !(dictionaryStart + dictionarySize <= dictionaries.byteLength))
      throw bad("its dictionary lies outside");
    points.storedOffset[context] = storedOffset;
    points.storedSize[context] = storedSize;
    points.size[context] = size;
    points.bits[context] = bits;
    points.dictionaryStart[context] = dictionaryStart;
    points.dictionarySize[context] = dictionarySize;
  }
  return points;
}

function readBatches(blob: NydusBlob, array: Uint8Array, table: ContextTable, what: string): BatchContexts {
  const { count } = table;
  const view = new DataView(array.buffer, array.byteOffset + table.offset, table.size);
  const storedSize = new Uint32Array(count);
  const size = new Uint32Array(count);
  for (let context = 0; context < count; context++) {
    storedSize[context] = view.getUint32(context * CI_CONTEXT_SIZE, true);
    size[context] = view.getUint32(context * CI_CONTEXT_SIZE + 4, true);
    const bad = (message: string) => nydusInvalid(what, `batch ${context}: ${message}`);
    if (!(size[context]! > 0 && size[context]! <= NYDUS_LIMITS.chunkSizeMax)) throw bad(`${size[context]} bytes`);
    // an encrypted one may be padded to a cipher block
    const room = blob.cipher === null ? 0 : PADDED_SIZE;
    if (!(storedSize[context]! > 0 && storedSize[context]! <= size[context]! + room))
      throw bad(`${storedSize[context]} stored bytes for ${size[context]}`);
  }
  return { count, storedSize, size };
}

interface Entries {
  readonly offset: Float64Array;
  readonly size: Uint32Array;
  readonly storedOffset: Float64Array;
  readonly storedSize: Uint32Array;
  readonly flags: Uint8Array;
  readonly context: Uint32Array;
  readonly contextOffset: Uint32Array;
}

/** specs/nydus.md 2.3, "Chunk info V1"; the 64-bit words by their halves. */
function readEntryV1(info: Entries, chunk: number, view: DataView, at: number): void {
  const low = view.getUint32(at, true);
  const high = view.getUint32(at + 4, true);
  // bits 12..43 are the block, 44..63 and 8..11 the size
  info.offset[chunk] = (high & 0xfff) * 2 ** 32 + ((low & 0xffff_f000) >>> 0);
  info.size[chunk] = (high >>> 12) + (((low >>> 8) & 0xf) << 20) + 1;
  const storedLow = view.getUint32(at + 8, true);
  const storedHigh = view.getUint32(at + 12, true);
  info.storedOffset[chunk] = (storedHigh & 0xff) * 2 ** 32 + storedLow;
  info.storedSize[chunk] = (storedHigh >>> 12) + (((storedHigh >>> 8) & 0xf) << 20) + 1;
  info.flags[chunk] = info.storedSize[chunk] === info.size[chunk] ? 0 : ChunkFlag.compressed;
}

function readEntryV2(info: Entries, chunk: number, view: DataView, at: number): void {
  const high = view.getUint32(at + 4, true);
  info.offset[chunk] = view.getUint32(at, true) * 4096;
  info.size[chunk] = (high & 0xff_ffff) + 1;
  info.flags[chunk] = high >>> 24;
  const storedHigh = view.getUint32(at + 12, true);
  info.storedOffset[chunk] = (storedHigh & 0xff) * 2 ** 32 + view.getUint32(at + 8, true);
  info.storedSize[chunk] = storedHigh >>> 8;
  info.contextOffset[chunk] = view.getUint32(at + 16, true);
  info.context[chunk] = view.getUint32(at + 20, true);
}

/** Every chunk, used or not (specs/nydus.md N10 to N12). */
function checkEntries(blob: NydusBlob, info: ChunkInfo, what: string): void {
  const encrypted = (blob.features & BlobFeature.encrypted) !== 0;
  const batchStart = new Map<number, number>();
  let end = 0;
  for (let chunk = 0; chunk < info.count; chunk++) {
    const offset = info.offset[chunk]!;
    const size = info.size[chunk]!;
    const flags = info.flags[chunk]!;
    const bad = (message: string) => nydusInvalid(what, `chunk ${chunk}: ${message}`);
    // native chunks follow each other without gaps, those of a ref only ascend
    if (info.restarts === null ? offset !== end : offset < end)
      throw bad(`at ${offset}, the one before ends at ${end}`);
    end = alignBlock(offset + size);
    if (offset + size > blob.uncompressedSize) throw bad(`beyond ${blob.uncompressedSize} bytes`);
    if (((flags & ChunkFlag.zran) !== 0) !== (info.restarts !== null)) throw bad("zran and other chunks are mixed");
    const contextOffset = info.contextOffset[chunk]!;
    const context = info.context[chunk]!;
    if (info.restarts !== null) {
      if (context >= info.restarts.count) throw bad(`context ${context} of ${info.restarts.count}`);
      if (contextOffset + size > info.restarts.size[context]!) throw bad(`outside of context ${context}`);
      continue;
    }
    // a ref without restart points is one to a plain tar
    if (blob.isRef && (flags & ChunkFlag.compressed) !== 0)
      throw new HeadstartError("HS_FORMAT_UNSUPPORTED", { what: `${what}: a ref without restart points (eStargz)` });
    const storedOffset = info.storedOffset[chunk]!;
    let storedSize = info.storedSize[chunk]!;
    if ((flags & ChunkFlag.batch) !== 0) {
      const { batches } = info;
      if (batches === null || context >= batches.count) throw bad(`batch ${context} of ${batches?.count ?? 0}`);
      if (contextOffset + size > batches.size[context]!) throw bad(`outside of batch ${context}`);
      if ((batchStart.get(context) ?? storedOffset) !== storedOffset) throw bad("its batch begins in two places");
      batchStart.set(context, storedOffset);
      storedSize = batches.storedSize[context]!;
    } else {
      if (storedSize === 0) throw bad("no stored bytes");
      if ((flags & ChunkFlag.hasCrc32) !== 0 && contextOffset === 0) throw bad("a CRC-32C of 0");
      if ((flags & ChunkFlag.compressed) === 0 && storedSize !== size && !encrypted)
        throw bad(`stored as it is in ${storedSize} bytes, it has ${size}`);
    }
    if (((flags & ChunkFlag.encrypted) !== 0) !== encrypted) throw bad("encryption is not that of the blob");
    if (storedOffset + storedSize > blob.dataSize)
      throw bad(`stored at ${storedOffset} + ${storedSize} in ${blob.dataSize} bytes of data`);
  }
}
