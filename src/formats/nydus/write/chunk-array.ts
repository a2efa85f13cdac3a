/**
 * The chunk array of a blob that is being written (specs/nydus.md 2.3): collected chunk by chunk, then encoded with its header. The inverse of chunk-info.ts.
 *
 *   entries (16 bytes, or 24 with zran or batches, or for a ref) | contexts (40 bytes) | dictionaries of zran
 */

import { Writer } from "../../../base/bytes.ts";
import { HeadstartError } from "../../../base/errors.ts";
import { lastAtMost } from "../../../base/ranges.ts";
import type { ChunkInfoPlace } from "../blob-table.ts";
import type { BatchContexts, RestartPoints } from "../chunk-info.ts";
import { alignBlock, BlobFeature, ChunkFlag, CI_HEADER_SIZE, CI_MAGIC, NYDUS_LIMITS } from "../ondisk.ts";
import type { WrittenChunks } from "./model.ts";

/** One less than the format has room for: the peer's builder stops there, too. */
const CHUNKS_MAX = NYDUS_LIMITS.chunksPerBlob - 1;

export class ChunkArrayBuilder {
  readonly #layer: string;
  readonly #offset: number[] = [];
  readonly #size: number[] = [];
  readonly #storedOffset: number[] = [];
  readonly #storedSize: number[] = [];
  readonly #flags: number[] = [];
  readonly #context: number[] = [];
  readonly #contextOffset: number[] = [];
  readonly #crc32: number[] = [];
  readonly #digest = new Writer();
  #end = 0;

  /** `layer` names the layer in errors. */
  constructor(layer: string) {
    this.#layer = layer;
  }

  get count(): number {
    return this.#offset.length;
  }

  /** Bytes of the address space so far. */
  get end(): number {
    return this.#end;
  }

  /** A chunk at the end of the address space; its index. Throws HS_NYDUS_LIMIT when there are too many. */
  add(size: number, digest: Uint8Array, crc32: number): number {
    const index = this.#offset.length;
    const end = alignBlock(this.#end + size);
    if (index >= CHUNKS_MAX || end > NYDUS_LIMITS.blobUncompressedBytes) {
      throw new HeadstartError("HS_NYDUS_LIMIT", {
        what: `layer ${this.#layer}: more than ${CHUNKS_MAX} chunks, or more than ${NYDUS_LIMITS.blobUncompressedBytes} bytes, in one blob`,
      });
    }
    this.#offset.push(this.#end);
    this.#size.push(size);
    this.#storedOffset.push(0);
    this.#storedSize.push(0);
    this.#flags.push(0);
    this.#context.push(0);
    this.#contextOffset.push(0);
    this.#crc32.push(crc32);
    this.#digest.put(digest);
    this.#end = end;
    return index;
  }

  offsetOf(index: number): number {
    return this.#offset[index]!;
  }

  /** Index of the chunk at an offset of the address space, which has one. */
  indexOf(offset: number): number {
    return lastAtMost(this.#offset, this.#offset.length, offset);
  }

  /** Where the chunk is stored alone; `flags` may be ChunkFlag.compressed. */
  stored(index: number, offset: number, size: number, flags: number): void {
    this.#checkStored(offset + size);
    this.#storedOffset[index] = offset;
    this.#storedSize[index] = size;
    this.#flags[index] = flags;
  }

  /** The chunk is a part of a batch or of a zran context. `size` is 0 in a batch. */
  inContext(index: number, context: number, contextOffset: number, flags: number, offset: number, size: number): void {
    this.#checkStored(offset + size);
    this.#storedOffset[index] = offset;
    // it only informs, and has 24 bits
    this.#storedSize[index] = Math.min(size, 0xff_ffff);
    this.#flags[index] = flags;
    this.#context[index] = context;
    this.#contextOffset[index] = contextOffset;
  }

  /** The batch of the chunk is stored at `offset`. */
  moveContext(index: number, offset: number): void {
    this.#checkStored(offset);
    this.#storedOffset[index] = offset;
  }

  /** `v2` as the blob's features have it: then a chunk outside of a context carries its CRC-32C in the array. */
  finish(v2: boolean, batches: BatchContexts | null, restarts: RestartPoints | null): WrittenChunks {
    const count = this.count;
    const flags = Uint8Array.from(this.#flags);
    const contextOffset = Uint32Array.from(this.#contextOffset);
    for (let chunk = 0; v2 && chunk < count; chunk++) {
      // 0 means that there is none
      if ((flags[chunk]! & (ChunkFlag.zran | ChunkFlag.batch)) !== 0 || this.#crc32[chunk] === 0) continue;
      flags[chunk]! |= ChunkFlag.hasCrc32;
      contextOffset[chunk] = this.#crc32[chunk]!;
    }
    return {
      count,
      index: null,
      offset: Float64Array.from(this.#offset),
      size: Uint32Array.from(this.#size),
      storedOffset: Float64Array.from(this.#storedOffset),
      storedSize: Uint32Array.from(this.#storedSize),
      flags,
      context: Uint32Array.from(this.#context),
      contextOffset,
      batches,
      restarts,
      digest: this.#digest.finish(),
      crc32: Uint32Array.from(this.#crc32),
    };
  }

  #checkStored(end: number): void {
    if (end <= NYDUS_LIMITS.blobCompressedBytes) return;
    throw new HeadstartError("HS_NYDUS_LIMIT", {
      what: `layer ${this.#layer}: more than ${NYDUS_LIMITS.blobCompressedBytes} stored bytes in one blob`,
    });
  }
}

export interface EncodedChunkArray {
  readonly bytes: Uint8Array;
  /** Where the contexts begin in `bytes`; 0 without any. */
  readonly contextOffset: number;
  readonly contextSize: number;
  readonly contextCount: number;
}

/** Restart points with what only the array on disk has. */
export interface WrittenRestartPoints extends RestartPoints {
  /** Decoded bytes of the layer before each. */
  readonly outOffset: Float64Array;
  /** The byte whose bits come first; 0 for none. */
  readonly byte: Uint8Array;
}

/** `restarts` are those of `chunks`. */
export function encodeChunkArray(
  chunks: WrittenChunks,
  v2: boolean,
  restarts: WrittenRestartPoints | null,
): EncodedChunkArray {
  const writer = new Writer(chunks.count * 24 + 4096);
  for (let chunk = 0; chunk < chunks.count; chunk++) {
    if (v2) putEntryV2(writer, chunks, chunk);
    else putEntryV1(writer, chunks, chunk);
  }
  const { batches } = chunks;
  if (batches === null && restarts === null) {
    return { bytes: writer.finish(), contextOffset: 0, contextSize: 0, contextCount: 0 };
  }
  const contextOffset = writer.length;
  if (batches !== null) {
    for (let batch = 0; batch < batches.count; batch++) {
      writer.u32(batches.storedSize[batch]!).u32(batches.size[batch]!).zeros(32);
    }
  }
  if (restarts !== null) putRestartPoints(writer, restarts);
  const contextSize = writer.length - contextOffset;
  return {
    bytes: writer.finish(),
    contextOffset,
    contextSize,
    contextCount: batches?.count ?? restarts!.count,
  };
}

/** 64-bit words by their halves, as chunk-info.ts reads them. */
function putEntryV1(writer: Writer, chunks: WrittenChunks, chunk: number): void {
  const offset = chunks.offset[chunk]!;
  const size = chunks.size[chunk]! - 1;
  const storedOffset = chunks.storedOffset[chunk]!;
  const storedSize = chunks.storedSize[chunk]! - 1;
  // bits 12..43 are the block, 44..63 and 8..11 the size
  writer.u32((((offset % 2 ** 32) >>> 0) | ((size >>> 20) << 8)) >>> 0);
  writer.u32((Math.floor(offset / 2 ** 32) | ((size & 0xf_ffff) << 12)) >>> 0);
  writer.u32((storedOffset % 2 ** 32) >>> 0);
  writer.u32((Math.floor(storedOffset / 2 ** 32) | ((storedSize >>> 20) << 8) | ((storedSize & 0xf_ffff) << 12)) >>> 0);
}

function putEntryV2(writer: Writer, chunks: WrittenChunks, chunk: number): void {
  const storedOffset = chunks.storedOffset[chunk]!;
  writer.u32(chunks.offset[chunk]! / 4096);
  writer.u32(((chunks.size[chunk]! - 1) | (chunks.flags[chunk]! << 24)) >>> 0);
  writer.u32((storedOffset % 2 ** 32) >>> 0);
  writer.u32((Math.floor(storedOffset / 2 ** 32) | (chunks.storedSize[chunk]! << 8)) >>> 0);
  writer.u32(chunks.contextOffset[chunk]!);
  writer.u32(chunks.context[chunk]!);
}

function putRestartPoints(writer: Writer, points: WrittenRestartPoints): void {
  for (let point = 0; point < points.count; point++) {
    writer.u64(points.storedOffset[point]!).u64(points.outOffset[point]!).u64(points.dictionaryStart[point]!);
    writer.u32(points.storedSize[point]!).u32(points.size[point]!).u32(points.dictionarySize[point]!);
    writer.u8(points.byte[point]!).u8(points.bits[point]!).u16(0);
  }
  writer.put(points.dictionaries);
}

/** `features` of the blob, as the blob table will have them; the header says besides that the bootstrap is in the same blob. */
export function encodeChunkArrayHeader(
  array: EncodedChunkArray,
  count: number,
  features: number,
  place: ChunkInfoPlace,
): Uint8Array {
  const writer = new Writer(CI_HEADER_SIZE);
  writer.u32(CI_MAGIC);
  writer.u32((features | BlobFeature.inlinedFsMeta) >>> 0);
  writer.u32(place.compressor);
  writer.u32(count);
  writer.u64(place.offset).u64(place.compressedSize).u64(place.size);
  writer.u64(array.contextOffset).u64(array.contextSize).u32(array.contextCount);
  writer.zeros(CI_HEADER_SIZE - writer.length - 4);
  writer.u32(CI_MAGIC);
  return writer.finish();
}
