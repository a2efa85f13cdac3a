/**
 * What only the whole of an ext4 shows (read.ts checks each part as it is read): every block belongs to one thing, bitmaps and counts say what can be reached, link counts
 * are the names found, sectors are the blocks found, superblock copies are sound. The question of e2fsck -fn, answered by our own reader, for `volume verify` and tests.
 */

import { crc32c } from "../../base/crc32c.ts";
import { FileType } from "../../erofs/file-tree.ts";
import { superblockChecksum, viewOf } from "./checksum.ts";
import { invalid } from "./failures.ts";
import { popcount, setBits } from "./groups.ts";
import {
  BLOCK,
  BLOCK_UNINIT,
  BLOCKS_PER_GROUP,
  COMPAT,
  DESCS_PER_BLOCK,
  ext4_inode,
  ext4_super_block,
  FIRST_INODE,
  hasSuper,
  INODE_UNINIT,
  INODES_PER_BLOCK,
  LINKS_MAX,
  RESIZE_INODE,
  ROOT_INODE,
} from "./ondisk.ts";
import { descriptorBlock } from "./parse-superblock.ts";
import type { Ext4Inode, Ext4Reader } from "./read.ts";
import { readXattrBlock } from "./xattr.ts";

const SECTORS_PER_BLOCK = BLOCK / 512;
const WORDS_PER_BLOCK = BLOCK / 4;
const DIRECT_BLOCKS = 12;
const DOUBLE_INDIRECT = 13;

/** Throws HS_EXT4_INVALID with the first thing found. */
export function checkExt4(reader: Ext4Reader): void {
  const { superblock } = reader;
  const used = new UsedBlocks(superblock.blocks);
  useSkeleton(reader, used);
  const inodes = new UsedInodes();
  const links = new Map<number, { readonly stored: number; readonly isDirectory: boolean; found: number }>();
  const xattrBlocks = new Map<number, number>();
  reader.walk({
    inode(inode) {
      useInode(reader, inode, used, xattrBlocks);
      inodes.add(inode.number, inode.type === FileType.directory);
      const isDirectory = inode.type === FileType.directory;
      links.set(inode.number, { stored: inode.nlink, isDirectory, found: isDirectory ? 2 : 0 });
    },
    name(directory, _name, inode) {
      if (inode.type === FileType.directory) links.get(directory.number)!.found++;
      else links.get(inode.number)!.found++;
    },
  });
  for (const [number, { stored, isDirectory, found }] of links) {
    const isMany = isDirectory && found >= LINKS_MAX && stored === 1;
    if (stored !== found && !isMany) {
      throw invalid(`inode ${number}: ${stored} links are stored, ${found} names are there`);
    }
  }
  for (const [block, found] of xattrBlocks) {
    const { refcount } = readXattrBlock(reader.readBlock(block), `xattr block ${block}`);
    if (refcount !== found) throw invalid(`xattr block ${block}: used by ${found} inodes, says ${refcount}`);
  }
  if (superblock.journalInode !== 0) {
    if (superblock.journalInode >= FIRST_INODE) throw invalid(`the journal is inode ${superblock.journalInode}`);
    useInode(reader, reader.inode(superblock.journalInode), used, xattrBlocks);
  }
  if ((superblock.compat & COMPAT.resizeInode) !== 0) useResizeInode(reader, used);
  checkBlockBitmaps(reader, used);
  checkInodeBitmaps(reader, inodes);
}

/** Copies of the superblock, descriptors, bitmaps and inode tables. */
function useSkeleton(reader: Ext4Reader, used: UsedBlocks): void {
  const { superblock, groups } = reader;
  const legacyDescBlocks = Math.min(superblock.descBlocks, superblock.firstMetaBlock);
  groups.forEach((group, index) => {
    const start = index * BLOCKS_PER_GROUP;
    if (hasSuper(index)) {
      // reserved blocks follow the descriptors that lie in front, and are named by inode 7
      used.add(start, 1 + legacyDescBlocks, `superblock of group ${index}`);
      if (index > 0) checkBackup(reader, index);
    }
    used.add(group.blockBitmap, 1, `block bitmap of group ${index}`);
    used.add(group.inodeBitmap, 1, `inode bitmap of group ${index}`);
    used.add(group.inodeTable, superblock.inodesPerGroup / INODES_PER_BLOCK, `inode table of group ${index}`);
  });
  for (let index = legacyDescBlocks; index < superblock.descBlocks; index++) {
    // three copies: the first, second and last group of the meta group
    for (const group of new Set([0, 1, DESCS_PER_BLOCK - 1].map((own) => index * DESCS_PER_BLOCK + own))) {
      if (group >= superblock.groups) continue;
      const isFirst = group === index * DESCS_PER_BLOCK;
      const block = isFirst ? descriptorBlock(superblock, index) : group * BLOCKS_PER_GROUP + (hasSuper(group) ? 1 : 0);
      used.add(block, 1, `descriptors of meta group ${index}`);
    }
  }
}

/** Counts in a copy are as old as the last e2fsck or growth: only what never changes is compared. */
function checkBackup(reader: Ext4Reader, group: number): void {
  const bytes = reader.readBlock(group * BLOCKS_PER_GROUP).subarray(0, ext4_super_block.size);
  const view = viewOf(bytes);
  const at = ext4_super_block.offsets;
  const own = reader.superblock.bytes;
  const same = (["s_magic", "s_uuid", "s_hash_seed", "s_inodes_per_group"] as const).every((field) => {
    const size = field === "s_magic" ? 2 : field === "s_inodes_per_group" ? 4 : 16;
    return Buffer.from(bytes.subarray(at[field], at[field] + size)).equals(own.subarray(at[field], at[field] + size));
  });
  const isSound = reader.superblock.seed === null || view.getUint32(at.s_checksum, true) === superblockChecksum(bytes);
  if (!same || !isSound || view.getUint16(at.s_block_group_nr, true) !== group) {
    throw invalid(`the copy of the superblock in group ${group} is wrong`);
  }
}

function useInode(reader: Ext4Reader, inode: Ext4Inode, used: UsedBlocks, xattrBlocks: Map<number, number>): void {
  const what = `inode ${inode.number}`;
  const { extents, nodes } = reader.extents(inode);
  let blocks = nodes.length;
  for (const node of nodes) used.add(node, 1, what);
  for (const { physical, length } of extents) {
    used.add(physical, length, what);
    blocks += length;
  }
  // all of them, so that every list is checked
  reader.xattrs(inode);
  if (inode.type === FileType.symlink) reader.readlink(inode);
  if (inode.xattrBlock > 0) {
    if (!xattrBlocks.has(inode.xattrBlock)) used.add(inode.xattrBlock, 1, what);
    xattrBlocks.set(inode.xattrBlock, (xattrBlocks.get(inode.xattrBlock) ?? 0) + 1);
    blocks++;
  }
  if (inode.sectors !== blocks * SECTORS_PER_BLOCK) {
    throw invalid(`${what}: ${inode.sectors} sectors are stored, ${blocks} blocks are there`);
  }
}

/** Inode 7: a double indirect block that names the reserved descriptor blocks, which name their copies. It stays when growing has used them up. */
function useResizeInode(reader: Ext4Reader, used: UsedBlocks): void {
  const { superblock, groups } = reader;
  const inode = reader.inode(RESIZE_INODE);
  const fail = (message: string) => invalid(`inode ${RESIZE_INODE}: ${message}`);
  const words = viewOf(inode.bytes.subarray(ext4_inode.offsets.i_block, ext4_inode.offsets.i_block + 60));
  const double = words.getUint32(DOUBLE_INDIRECT * 4, true);
  if (double === 0 && superblock.reservedDescBlocks === 0) return;
  for (let word = 0; word < 15; word++) {
    if (word !== DOUBLE_INDIRECT && words.getUint32(word * 4, true) !== 0)
      throw fail("more than a double indirect block");
  }
  if (double === 0 || double >= superblock.blocks) throw fail(`a double indirect block ${double}`);
  used.add(double, 1, "resize inode");
  const table = viewOf(reader.readBlock(double));
  const descBlocks = Math.min(superblock.descBlocks, superblock.firstMetaBlock);
  const backups = groups.flatMap((_, group) => (group > 0 && hasSuper(group) ? [group * BLOCKS_PER_GROUP] : []));
  let blocks = 1;
  for (let index = 0; index < superblock.reservedDescBlocks; index++) {
    const number = descBlocks + index;
    const block = table.getUint32((number % WORDS_PER_BLOCK) * 4, true);
    if (block !== 1 + number) throw fail(`reserved block ${index} is ${block}, not ${1 + number}`);
    used.add(block, 1, "resize inode");
    const copies = viewOf(reader.readBlock(block));
    backups.forEach((start, backup) => {
      const copy = copies.getUint32(backup * 4, true);
      if (copy !== start + 1 + number) throw fail(`a copy of reserved block ${index} is ${copy}`);
      used.add(copy, 1, "resize inode");
    });
    blocks += 1 + backups.length;
  }
  const size = (DIRECT_BLOCKS + WORDS_PER_BLOCK + WORDS_PER_BLOCK ** 2) * BLOCK;
  if (inode.size !== size || inode.sectors !== blocks * SECTORS_PER_BLOCK) throw fail("its size or sectors");
}

function checkBlockBitmaps(reader: Ext4Reader, used: UsedBlocks): void {
  const { superblock, groups } = reader;
  let free = 0;
  groups.forEach((group, index) => {
    const blocks = Math.min(BLOCKS_PER_GROUP, superblock.blocks - index * BLOCKS_PER_GROUP);
    const own = used.bitmap(index);
    const ownFree = blocks - popcount(own);
    if ((group.flags & BLOCK_UNINIT) === 0) {
      const stored = reader.readBlock(group.blockBitmap);
      if (superblock.seed !== null && crc32c(stored, superblock.seed) !== group.blockBitmapChecksum) {
        throw invalid(`the checksum of the block bitmap of group ${index} is wrong`);
      }
      setBits(own, blocks, BLOCKS_PER_GROUP);
      const at = own.findIndex((byte, byteIndex) => byte !== stored[byteIndex]);
      if (at >= 0) {
        const says = `0x${stored[at]!.toString(16)}, found are 0x${own[at]!.toString(16)}`;
        throw invalid(`the block bitmap of group ${index} says at byte ${at} ${says}`);
      }
    }
    if (group.freeBlocks !== ownFree)
      throw invalid(`group ${index}: ${group.freeBlocks} free blocks, found ${ownFree}`);
    free += ownFree;
  });
  if (superblock.freeBlocks !== free) throw invalid(`${superblock.freeBlocks} free blocks, found ${free}`);
}

function checkInodeBitmaps(reader: Ext4Reader, inodes: UsedInodes): void {
  const { superblock, groups } = reader;
  const { inodesPerGroup } = superblock;
  for (let number = 1; number < FIRST_INODE; number++) if (number !== ROOT_INODE) inodes.add(number, false);
  const byGroup = inodes.byGroup(inodesPerGroup);
  let free = 0;
  groups.forEach((group, index) => {
    const own = byGroup.get(index) ?? { bitmap: new Uint8Array(BLOCK), used: 0, directories: 0 };
    const ownFree = inodesPerGroup - own.used;
    if ((group.flags & INODE_UNINIT) === 0) {
      const stored = reader.readBlock(group.inodeBitmap);
      const sum = crc32c(stored.subarray(0, inodesPerGroup / 8), superblock.seed ?? 0);
      if (superblock.seed !== null && sum !== group.inodeBitmapChecksum) {
        throw invalid(`the checksum of the inode bitmap of group ${index} is wrong`);
      }
      setBits(own.bitmap, inodesPerGroup, BLOCK * 8);
      const at = own.bitmap.findIndex((byte, byteIndex) => byte !== stored[byteIndex]);
      if (at >= 0) throw invalid(`the inode bitmap of group ${index} is wrong at byte ${at}`);
    } else if (own.used > 0) throw invalid(`group ${index} has inodes and says that it has none`);
    if (group.freeInodes !== ownFree || group.directories !== own.directories) {
      throw invalid(`group ${index}: counts of inodes or directories are wrong`);
    }
    free += ownFree;
  });
  if (superblock.freeInodes !== free) throw invalid(`${superblock.freeInodes} free inodes, found ${free}`);
}

/** One bit a block, only for groups in which any is used. */
class UsedBlocks {
  readonly #bitmaps = new Map<number, Uint8Array>();
  readonly #blocks: number;

  constructor(blocks: number) {
    this.#blocks = blocks;
  }

  add(start: number, count: number, what: string): void {
    if (start + count > this.#blocks) throw invalid(`${what}: block ${start} lies outside`);
    for (let at = start; at < start + count; ) {
      const group = Math.floor(at / BLOCKS_PER_GROUP);
      const base = group * BLOCKS_PER_GROUP;
      const to = Math.min(start + count, base + BLOCKS_PER_GROUP);
      if (!setBits(this.bitmap(group), at - base, to - base)) {
        throw invalid(`${what}: a block from ${at} to ${to} is used twice`);
      }
      at = to;
    }
  }

  bitmap(group: number): Uint8Array {
    const bitmap = this.#bitmaps.get(group) ?? new Uint8Array(BLOCK);
    this.#bitmaps.set(group, bitmap);
    return bitmap;
  }
}

class UsedInodes {
  readonly #numbers: number[] = [];
  readonly #directories = new Set<number>();

  add(number: number, isDirectory: boolean): void {
    this.#numbers.push(number);
    if (isDirectory) this.#directories.add(number);
  }

  byGroup(inodesPerGroup: number): Map<number, { bitmap: Uint8Array; used: number; directories: number }> {
    const groups = new Map<number, { bitmap: Uint8Array; used: number; directories: number }>();
    for (const number of this.#numbers) {
      const group = Math.floor((number - 1) / inodesPerGroup);
      const index = (number - 1) % inodesPerGroup;
      const own = groups.get(group) ?? { bitmap: new Uint8Array(BLOCK), used: 0, directories: 0 };
      groups.set(group, own);
      own.bitmap[index >> 3]! |= 1 << (index & 7);
      own.used++;
      if (this.#directories.has(number)) own.directories++;
    }
    return groups;
  }
}
