/** Bitmaps and counts of each group, from the ranges and inodes that a layout uses (specs/warm-volume.md 7.4). */

import { crc32c } from "../../base/crc32c.ts";
import { HeadstartError } from "../../base/errors.ts";
import { FileType } from "../../erofs/file-tree.ts";
import { fileSystemSeed } from "./checksum.ts";
import type { Ext4Layout } from "./layout.ts";
import {
  BLOCK,
  BLOCK_UNINIT,
  BLOCKS_PER_GROUP,
  FIRST_INODE,
  hasSuper,
  INODE_UNINIT,
  INODE_ZEROED,
  LOST_FOUND_INODE,
} from "./ondisk.ts";

export interface GroupCount {
  readonly freeBlocks: number;
  readonly freeInodes: number;
  readonly directories: number;
  /** Inodes at the table's end that were never used. */
  readonly unusedInodes: number;
  readonly flags: number;
  readonly blockBitmapChecksum: number;
  readonly inodeBitmapChecksum: number;
  /** Null: not written (the group is uninitialised). */
  readonly blockBitmap: Uint8Array | null;
  readonly inodeBitmap: Uint8Array | null;
}

export interface GroupCounts {
  readonly groups: readonly GroupCount[];
  readonly freeBlocks: number;
  readonly freeInodes: number;
}

export function countGroups(layout: Ext4Layout): GroupCounts {
  const { geometry, options } = layout;
  const seed = fileSystemSeed(options.uuid);
  const blockBitmaps = markBlocks(layout);
  const inodes = markInodes(layout);
  const overhead = 1 + geometry.descBlocks + geometry.reservedDescBlocks;
  const groups: GroupCount[] = [];
  let freeBlocks = 0;
  let freeInodes = 0;
  for (let group = 0; group < geometry.groups; group++) {
    const isLast = group === geometry.groups - 1;
    const blocks = isLast ? geometry.blocks - group * BLOCKS_PER_GROUP : BLOCKS_PER_GROUP;
    const bitmap = blockBitmaps.get(group) ?? new Uint8Array(BLOCK);
    const used = popcount(bitmap);
    const own = hasSuper(group) ? overhead : 0;
    const blockUninit = group > 0 && !isLast && used === own;
    if (blocks < BLOCKS_PER_GROUP) setBits(bitmap, blocks, BLOCKS_PER_GROUP);
    const inodeSet = inodes.get(group);
    const count: GroupCount = {
      freeBlocks: blocks - used,
      freeInodes: geometry.inodesPerGroup - (inodeSet?.used ?? 0),
      directories: inodeSet?.directories ?? 0,
      unusedInodes: geometry.inodesPerGroup - (inodeSet?.highest ?? 0),
      flags: INODE_ZEROED | (inodeSet === undefined ? INODE_UNINIT : 0) | (blockUninit ? BLOCK_UNINIT : 0),
      blockBitmapChecksum: blockUninit ? 0 : crc32c(bitmap, seed),
      inodeBitmapChecksum:
        inodeSet === undefined ? 0 : crc32c(inodeSet.bitmap.subarray(0, geometry.inodesPerGroup / 8), seed),
      blockBitmap: blockUninit ? null : bitmap,
      inodeBitmap: inodeSet?.bitmap ?? null,
    };
    freeBlocks += count.freeBlocks;
    freeInodes += count.freeInodes;
    groups.push(count);
  }
  return { groups, freeBlocks, freeInodes };
}

/** Bitmaps of groups that have a used block: a terabyte of holes takes no memory. */
function markBlocks(layout: Ext4Layout): Map<number, Uint8Array> {
  const bitmaps = new Map<number, Uint8Array>();
  for (const { start, end } of layout.used) {
    for (let at = start; at < end; ) {
      const group = Math.floor(at / BLOCKS_PER_GROUP);
      const base = group * BLOCKS_PER_GROUP;
      const to = Math.min(end, base + BLOCKS_PER_GROUP);
      const bitmap = bitmaps.get(group) ?? new Uint8Array(BLOCK);
      bitmaps.set(group, bitmap);
      if (!setBits(bitmap, at - base, to - base)) {
        throw new HeadstartError("HS_INTERNAL", { what: `ext4: blocks ${at} to ${to} are laid out twice` });
      }
      at = to;
    }
  }
  return bitmaps;
}

interface InodeSet {
  readonly bitmap: Uint8Array;
  used: number;
  directories: number;
  highest: number;
}

function markInodes(layout: Ext4Layout): Map<number, InodeSet> {
  const { inodesPerGroup } = layout.geometry;
  const sets = new Map<number, InodeSet>();
  const mark = (number: number, isDirectory: boolean) => {
    const group = Math.floor((number - 1) / inodesPerGroup);
    const index = (number - 1) % inodesPerGroup;
    let set = sets.get(group);
    if (set === undefined) {
      set = { bitmap: new Uint8Array(BLOCK), used: 0, directories: 0, highest: 0 };
      setBits(set.bitmap, inodesPerGroup, BLOCK * 8);
      sets.set(group, set);
    }
    set.bitmap[index >> 3]! |= 1 << (index & 7);
    set.used++;
    set.highest = Math.max(set.highest, index + 1);
    if (isDirectory) set.directories++;
  };
  for (let number = 1; number < FIRST_INODE; number++) mark(number, number === 2);
  if (layout.lostFoundTreeInode < 0) mark(LOST_FOUND_INODE, true);
  for (let number = FIRST_INODE; number < layout.treeInodeOf.length; number++) {
    const inode = layout.treeInodeOf[number]!;
    if (inode >= 0) mark(number, layout.tree.type[inode] === FileType.directory);
  }
  return sets;
}

/** False when one of [start, end) was set before. */
export function setBits(bitmap: Uint8Array, start: number, end: number): boolean {
  let clear = true;
  for (let bit = start; bit < end; ) {
    if ((bit & 7) === 0 && end - bit >= 8) {
      if (bitmap[bit >> 3] !== 0) clear = false;
      bitmap[bit >> 3] = 0xff;
      bit += 8;
    } else {
      const mask = 1 << (bit & 7);
      if ((bitmap[bit >> 3]! & mask) !== 0) clear = false;
      bitmap[bit >> 3]! |= mask;
      bit++;
    }
  }
  return clear;
}

export function popcount(bytes: Uint8Array): number {
  let count = 0;
  for (let byte of bytes) for (; byte !== 0; byte &= byte - 1) count++;
  return count;
}
