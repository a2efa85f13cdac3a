/** Where ext4's checksums start and what they cover (specs/warm-volume.md 7.9). All are crc32c without the final inversion. */

import { crc32c, crc32cWord } from "../../base/crc32c.ts";
import {
  BLOCK,
  DESC_SIZE,
  DIR_TAIL_AT,
  DIR_TAIL_TYPE,
  EXTENT_ENTRY,
  ext4_group_desc,
  ext4_inode,
  ext4_super_block,
  INODE_SIZE,
} from "./ondisk.ts";

const ZEROS = new Uint8Array(4);

export const viewOf = (bytes: Uint8Array): DataView => new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);

/** What every checksum of one file system starts from. */
export function fileSystemSeed(uuid: Uint8Array): number {
  return crc32c(uuid);
}

export function inodeSeed(seed: number, inode: number, generation: number): number {
  return crc32cWord(generation, crc32cWord(inode, seed));
}

/** Of the 1024 bytes of a superblock. */
export function superblockChecksum(bytes: Uint8Array): number {
  return crc32c(bytes.subarray(0, ext4_super_block.offsets.s_checksum));
}

/** 16 bits, of the descriptor of `group`. */
export function descriptorChecksum(seed: number, group: number, bytes: Uint8Array): number {
  const at = ext4_group_desc.offsets.bg_checksum;
  let crc = crc32cWord(group, seed);
  crc = crc32c(bytes.subarray(0, at), crc);
  crc = crc32c(ZEROS.subarray(0, 2), crc);
  return crc32c(bytes.subarray(at + 2, DESC_SIZE), crc) & 0xffff;
}

/** Of the 256 bytes of an inode; both halves of the field count as zero. `hasHigh`: the upper half exists. */
export function inodeChecksum(ownSeed: number, bytes: Uint8Array, hasHigh = true): number {
  const { i_checksum_lo, i_checksum_hi } = ext4_inode.offsets;
  let crc = crc32c(bytes.subarray(0, i_checksum_lo), ownSeed);
  crc = crc32c(ZEROS.subarray(0, 2), crc);
  if (!hasHigh) return crc32c(bytes.subarray(i_checksum_lo + 2, INODE_SIZE), crc) & 0xffff;
  crc = crc32c(bytes.subarray(i_checksum_lo + 2, i_checksum_hi), crc);
  crc = crc32c(ZEROS.subarray(0, 2), crc);
  return crc32c(bytes.subarray(i_checksum_hi + 2, INODE_SIZE), crc);
}

export function directoryChecksum(ownSeed: number, block: Uint8Array): number {
  return crc32c(block.subarray(0, DIR_TAIL_AT), ownSeed);
}

/** Writes the tail of a directory block whose entries end before it. */
export function sealDirectoryBlock(ownSeed: number, block: Uint8Array): void {
  const view = viewOf(block);
  view.setUint32(DIR_TAIL_AT, 0, true);
  view.setUint16(DIR_TAIL_AT + 4, 12, true);
  block[DIR_TAIL_AT + 6] = 0;
  block[DIR_TAIL_AT + 7] = DIR_TAIL_TYPE;
  view.setUint32(DIR_TAIL_AT + 8, directoryChecksum(ownSeed, block), true);
}

/** Of an index block whose limit field is at `at`: the pairs in use, the tail's reserved word as found, zeros for the sum itself. */
export function indexChecksum(ownSeed: number, block: Uint8Array, at: number, limit: number, count: number): number {
  const tail = at + limit * 8;
  let crc = crc32c(block.subarray(0, at + count * 8), ownSeed);
  crc = crc32c(block.subarray(tail, tail + 4), crc);
  return crc32c(ZEROS, crc);
}

export function extentChecksum(ownSeed: number, block: Uint8Array, max: number): number {
  return crc32c(block.subarray(0, EXTENT_ENTRY * (max + 1)), ownSeed);
}

/** Of an xattr block at block `number`; the checksum at byte 16 counts as zero. */
export function xattrChecksum(seed: number, number: number, block: Uint8Array): number {
  let crc = crc32cWord(Math.floor(number / 2 ** 32), crc32cWord(number >>> 0, seed));
  crc = crc32c(block.subarray(0, 16), crc);
  crc = crc32c(ZEROS, crc);
  return crc32c(block.subarray(20, BLOCK), crc);
}
