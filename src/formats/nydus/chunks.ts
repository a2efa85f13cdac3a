/**
 * Chunks as a bootstrap knows them: the records that carry digests, and the uses that files make of chunks. Flat arrays, since an image has up to millions.
 */

import { ADDRESS_SPACE } from "../../erofs/file-tree.ts";
import { NYDUS_LIMITS, nydusInvalid, rafs_chunk } from "./ondisk.ts";

/** Chunk records (80 bytes each on disk), as they lie. */
export interface ChunkRecords {
  readonly count: number;
  /** 32 bytes a record, over the uncompressed chunk. */
  readonly digest: Uint8Array;
  readonly blob: Uint16Array;
  readonly flags: Uint32Array;
  readonly compressedSize: Uint32Array;
  readonly size: Uint32Array;
  readonly compressedOffset: Float64Array;
  /** Address within the blob's space. */
  readonly offset: Float64Array;
  readonly index: Uint32Array;
  /** CRC-32C of the plain chunk, where `flags` say that there is one. */
  readonly crc32: Uint32Array;
}

/** The chunks that files use, ascending by address, each once. */
export interface ChunkUses {
  readonly count: number;
  /** `blob * 2^44 + uncompressed offset`. */
  readonly address: Float64Array;
  readonly length: Uint32Array;
  /** Position in the blob's chunk array. */
  readonly chunk: Uint32Array;
  /** Index of the chunk's record, or -1: then no digest binds it. */
  readonly record: Int32Array;
}

/** `bytes` are whole records. Throws HS_NYDUS_INVALID for a blob that there is not, an empty or a huge chunk, an offset beyond its blob's space. */
export function readRecords(bytes: Uint8Array, blobCount: number, what: string): ChunkRecords {
  const count = bytes.byteLength / rafs_chunk.size;
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const records = {
    count,
    digest: new Uint8Array(count * 32),
    blob: new Uint16Array(count),
    flags: new Uint32Array(count),
    compressedSize: new Uint32Array(count),
    size: new Uint32Array(count),
    compressedOffset: new Float64Array(count),
    offset: new Float64Array(count),
    index: new Uint32Array(count),
    crc32: new Uint32Array(count),
  };
  const at = rafs_chunk.offsets;
  for (let record = 0; record < count; record++) {
    const start = record * rafs_chunk.size;
    const u64 = (offset: number) =>
      view.getUint32(start + offset + 4, true) * 2 ** 32 + view.getUint32(start + offset, true);
    const blob = view.getUint32(start + at.blob_index, true);
    const size = view.getUint32(start + at.uncompressed_size, true);
    const compressedSize = view.getUint32(start + at.compressed_size, true);
    const compressedOffset = u64(at.compressed_offset);
    const offset = u64(at.uncompressed_offset);
    const index = view.getUint32(start + at.index, true);
    const bad = (message: string) => nydusInvalid(what, `chunk record ${record}: ${message}`);
    if (blob >= blobCount) throw bad(`blob ${blob} of ${blobCount}`);
    if (!(size > 0 && size <= NYDUS_LIMITS.chunkSizeMax)) throw bad(`${size} bytes`);
    if (compressedSize > NYDUS_LIMITS.chunkSizeMax + 4096) throw bad(`${compressedSize} stored bytes`);
    if (!(compressedOffset <= NYDUS_LIMITS.blobCompressedBytes)) throw bad(`stored at ${compressedOffset}`);
    if (!(offset + size <= NYDUS_LIMITS.blobUncompressedBytes)) throw bad(`address ${offset}`);
    if (index >= NYDUS_LIMITS.chunksPerBlob) throw bad(`index ${index}`);
    records.digest.set(bytes.subarray(start + at.digest, start + at.digest + 32), record * 32);
    records.blob[record] = blob;
    records.flags[record] = view.getUint32(start + at.flags, true);
    records.compressedSize[record] = compressedSize;
    records.size[record] = size;
    records.compressedOffset[record] = compressedOffset;
    records.offset[record] = offset;
    records.index[record] = index;
    records.crc32[record] = view.getUint32(start + at.crc32, true);
  }
  return records;
}

/** Collects the uses while a tree is walked; files may share chunks. */
export class ChunkUseCollector {
  readonly #blob: number[] = [];
  readonly #offset: number[] = [];
  readonly #length: number[] = [];
  readonly #chunk: number[] = [];

  add(blob: number, offset: number, length: number, chunk: number): void {
    this.#blob.push(blob);
    this.#offset.push(offset);
    this.#length.push(length);
    this.#chunk.push(chunk);
  }

  /** `recordOf` says which record a chunk of a blob has. Throws HS_NYDUS_INVALID where two files say different things about one address. */
  finish(recordOf: (blob: number, chunk: number) => number, what: string): ChunkUses {
    const total = this.#blob.length;
    const addressOf = new Float64Array(total);
    for (let use = 0; use < total; use++) addressOf[use] = this.#blob[use]! * ADDRESS_SPACE + this.#offset[use]!;
    const order = new Uint32Array(total).map((_, use) => use).sort((a, b) => addressOf[a]! - addressOf[b]!);
    const address = new Float64Array(total);
    const length = new Uint32Array(total);
    const chunk = new Uint32Array(total);
    const record = new Int32Array(total);
    let count = 0;
    for (const use of order) {
      const last = count - 1;
      if (last >= 0 && address[last] === addressOf[use]) {
        if (length[last] !== this.#length[use] || chunk[last] !== this.#chunk[use]) {
          throw nydusInvalid(what, `files disagree about the chunk at ${this.#offset[use]} of blob ${this.#blob[use]}`);
        }
        continue;
      }
      if (last >= 0 && address[last]! + length[last]! > addressOf[use]!) {
        throw nydusInvalid(what, `chunks overlap at ${this.#offset[use]} of blob ${this.#blob[use]}`);
      }
      address[count] = addressOf[use]!;
      length[count] = this.#length[use]!;
      chunk[count] = this.#chunk[use]!;
      record[count] = recordOf(this.#blob[use]!, this.#chunk[use]!);
      count++;
    }
    return {
      count,
      address: address.subarray(0, count),
      length: length.subarray(0, count),
      chunk: chunk.subarray(0, count),
      record: record.subarray(0, count),
    };
  }
}
