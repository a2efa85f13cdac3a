/**
 * Chunks as a bootstrap writes them: which chunk each piece of a file is (the index that lies behind an inode), and the chunk table, which `nydus-image check`,
 * `merge`, dictionaries and our own verification need (specs/nydus.md 2.5).
 *
 * One record for each chunk that the tree uses, in order of digest, blob, index. The stored place is informative (the chunk array decides), and that of a chunk in a
 * batch is zero.
 */

import { HeadstartError } from "../../../base/errors.ts";
import { lastAtMost } from "../../../base/ranges.ts";
import { ADDRESS_SPACE, type FileTree, FileType } from "../../../erofs/file-tree.ts";
import { inodeOrder } from "../../../erofs/write.ts";
import { ChunkFlag, RECORD_COMPRESSED, RECORD_CRC32, rafs_chunk } from "../ondisk.ts";
import type { ImageBlob } from "./model.ts";

/** File offset of a chunk that no file has. */
const UNUSED = -1;

/** A chunk: its blob, and its element in the blob's list. */
export interface ChunkPlace {
  readonly blob: number;
  readonly element: number;
}

/**
 * Finds the chunk that a piece of a file is. `address` as in the tree: blob `space`, offset. Throws HS_INTERNAL when it is no chunk's first byte or the chunk is
 * shorter or longer: then the builder's tree and its chunks do not belong together.
 */
export function findChunk(blobs: readonly ImageBlob[], address: number, length: number): ChunkPlace {
  const blob = Math.floor(address / ADDRESS_SPACE);
  const offset = address - blob * ADDRESS_SPACE;
  const chunks = blobs[blob]?.chunks;
  const element = chunks === undefined ? -1 : lastAtMost(chunks.offset, chunks.count, offset);
  if (chunks === undefined || element < 0 || chunks.offset[element] !== offset || chunks.size[element] !== length) {
    throw new HeadstartError("HS_INTERNAL", {
      what: `no chunk of ${length} bytes at ${offset} of blob ${blobs[blob]?.facts.id ?? blob}`,
    });
  }
  return { blob, element };
}

/** Position of a chunk in its blob's chunk array. */
export function chunkNumber(blob: ImageBlob, element: number): number {
  return blob.chunks.index === null ? element : blob.chunks.index[element]!;
}

/**
 * Pieces of a regular file, checked: each but the last is `chunkSize` long and none is missing. Calls `visit` with each piece's address, length and place in the file. Throws
 * HS_INTERNAL.
 */
export function visitPieces(
  tree: FileTree,
  inode: number,
  chunkSize: number,
  visit: (address: number, length: number, fileOffset: number) => void,
): void {
  const size = tree.size[inode]!;
  let at = 0;
  for (let segment = tree.segmentStart[inode]!; segment < tree.segmentStart[inode + 1]!; segment++) {
    const length = tree.segmentLength[segment]!;
    if (tree.segmentFileOffset[segment] !== at || length !== Math.min(chunkSize, size - at)) break;
    visit(tree.segmentAddress[segment]!, length, at);
    at += length;
  }
  if (at !== size) {
    throw new HeadstartError("HS_INTERNAL", {
      what: `inode ${inode}: its pieces end or are cut at byte ${at} of ${size}, chunks have ${chunkSize} bytes`,
    });
  }
}

/** The table's bytes, without padding. */
export function chunkTable(tree: FileTree, chunkSize: number, blobs: readonly ImageBlob[]): Uint8Array {
  const fileOffsets = blobs.map((blob) => new Float64Array(blob.chunks.count).fill(UNUSED));
  let count = 0;
  for (const inode of inodeOrder(tree)) {
    if (tree.type[inode] !== FileType.regular) continue;
    visitPieces(tree, inode, chunkSize, (address, length, fileOffset) => {
      const { blob, element } = findChunk(blobs, address, length);
      if (fileOffsets[blob]![element] === UNUSED) count++;
      fileOffsets[blob]![element] = fileOffset;
    });
  }
  const bytes = new Uint8Array(count * rafs_chunk.size);
  const view = new DataView(bytes.buffer);
  sortedPlaces(blobs, fileOffsets, count).forEach(({ blob, element }, record) => {
    const fileOffset = fileOffsets[blob]![element]!;
    emitRecord(view, record * rafs_chunk.size, blobs[blob]!, { blob, element, fileOffset });
  });
  return bytes;
}

function sortedPlaces(
  blobs: readonly ImageBlob[],
  fileOffsets: readonly Float64Array[],
  count: number,
): readonly ChunkPlace[] {
  const digests = blobs.map(({ chunks: { digest } }) =>
    Buffer.from(digest.buffer, digest.byteOffset, digest.byteLength),
  );
  // the first bytes decide nearly always, and a number compares ten times as fast
  const places: (ChunkPlace & { readonly head: number })[] = new Array(count);
  let next = 0;
  for (const [blob, elements] of fileOffsets.entries()) {
    for (let element = 0; element < elements.length; element++) {
      if (elements[element] !== UNUSED)
        places[next++] = { blob, element, head: digests[blob]!.readUInt32BE(element * 32) };
    }
  }
  return places.sort((a, b) => {
    if (a.head !== b.head) return a.head - b.head;
    const [atA, atB] = [a.element * 32, b.element * 32];
    const order = digests[a.blob]!.compare(digests[b.blob]!, atB, atB + 32, atA, atA + 32);
    return order || a.blob - b.blob || a.element - b.element;
  });
}

function emitRecord(
  view: DataView,
  at: number,
  blob: ImageBlob,
  place: ChunkPlace & { readonly fileOffset: number },
): void {
  const { chunks } = blob;
  const { element } = place;
  const offsets = rafs_chunk.offsets;
  const u64 = (offset: number, value: number) => view.setBigUint64(at + offset, BigInt(value), true);
  const inBatch = (chunks.flags[element]! & ChunkFlag.batch) !== 0;
  const crc = chunks.crc32[element]!;
  const compressed = !inBatch && (chunks.flags[element]! & ChunkFlag.compressed) !== 0;
  const digest = chunks.digest.subarray(element * 32, element * 32 + 32);
  new Uint8Array(view.buffer, view.byteOffset + at + offsets.digest, 32).set(digest);
  view.setUint32(at + offsets.blob_index, place.blob, true);
  view.setUint32(at + offsets.flags, (compressed ? RECORD_COMPRESSED : 0) | (crc === 0 ? 0 : RECORD_CRC32), true);
  view.setUint32(at + offsets.compressed_size, inBatch ? 0 : chunks.storedSize[element]!, true);
  view.setUint32(at + offsets.uncompressed_size, chunks.size[element]!, true);
  u64(offsets.compressed_offset, inBatch ? 0 : chunks.storedOffset[element]!);
  u64(offsets.uncompressed_offset, chunks.offset[element]!);
  // in the last file that has it: what the peer writes, and nobody reads
  u64(offsets.file_offset, place.fileOffset);
  view.setUint32(at + offsets.index, chunkNumber(blob, element), true);
  view.setUint32(at + offsets.crc32, crc, true);
}
