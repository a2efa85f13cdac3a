/**
 * The skeleton of a file system of a given size (specs/warm-volume.md 7.1, 7.8): groups, superblock copies, and the metadata that lie packed at its front.
 *
 *   superblock, descriptors, reserved descriptors | all block bitmaps | all inode bitmaps | all inode tables | resize block | journal | data
 *
 * The journal lies before the data: its place then follows from the size alone and stays the same in the next build.
 */

import { GiB } from "../../base/limits.ts";
import { alignUp } from "../../base/ranges.ts";
import { tooSmall } from "./failures.ts";
import { BLOCK, BLOCKS_PER_GROUP, DESCS_PER_BLOCK, hasSuper, INODES_PER_BLOCK } from "./ondisk.ts";

/** Blocks of 512 KiB: what a snapshot stores, and what every region begins and ends on. */
export const REGION_ALIGN = 128;
/** Descriptor blocks that the resize inode can name; 8 TiB. */
const DESC_BLOCKS_MAX = 1024;
export const SIZE_MAX = DESC_BLOCKS_MAX * DESCS_PER_BLOCK * BLOCKS_PER_GROUP * BLOCK;
const INODES_PER_GROUP_MAX = 32_768;
/** Beyond its own overhead a last group has at least so many blocks, else it is left out (mke2fs). */
const LAST_GROUP_MIN = 50;
const BYTES_PER_INODE = 16_384;

export interface GeometryOptions {
  /** Bytes; the file system has the whole blocks in it. */
  readonly size: number;
  /** Highest inode number in use. */
  readonly inodeMax: number;
  /** A multiple of 16; the default is one inode per 16 KiB or what inodeMax needs. */
  readonly inodesPerGroup?: number | undefined;
  /** Bytes up to which it can grow online by its reserved descriptors. Default: 1 TiB, less where that is more than 1024 times the size. */
  readonly growthCeiling?: number | undefined;
  /** Default 16384 from 1 GiB on (specs/warm-volume.md 7.8), less below; 0: none. */
  readonly journalBlocks?: number | undefined;
}

export interface Range {
  readonly start: number;
  readonly end: number;
}

export interface Geometry {
  readonly blocks: number;
  readonly groups: number;
  readonly inodesPerGroup: number;
  readonly descBlocks: number;
  readonly reservedDescBlocks: number;
  /** Superblock copies with their descriptors, ascending, without group 0. */
  readonly backups: readonly Range[];
  readonly blockBitmaps: Uint32Array;
  readonly inodeBitmaps: Uint32Array;
  readonly inodeTables: Uint32Array;
  /** The double indirect block of inode 7; 0: no growth. */
  readonly resizeBlock: number;
  /** Empty without a journal. */
  readonly journal: Range;
  /** First block for data. */
  readonly dataStart: number;
}

/** Throws HS_EXT4_FULL when not even this skeleton fits. */
export function geometryOf(options: GeometryOptions): Geometry {
  const { size, inodeMax } = options;
  if (!(Number.isSafeInteger(size) && size > 0 && size <= SIZE_MAX)) {
    throw tooSmall(`a file system of ${size} bytes: at most ${SIZE_MAX} bytes are possible`);
  }
  let blocks = Math.floor(size / BLOCK);
  const growth = options.growthCeiling ?? Math.min(1024 * GiB, size * 1024);
  const ceiling = Math.min(SIZE_MAX, Math.max(size, growth));
  const descBlocksOf = (groups: number) => Math.ceil(groups / DESCS_PER_BLOCK);
  const ceilingDescBlocks = descBlocksOf(Math.ceil(ceiling / BLOCK / BLOCKS_PER_GROUP));
  const overheadOf = (groups: number) => 1 + Math.max(descBlocksOf(groups), ceilingDescBlocks);
  let groups = Math.ceil(blocks / BLOCKS_PER_GROUP);
  const rest = blocks - (groups - 1) * BLOCKS_PER_GROUP;
  if (groups > 1 && rest < LAST_GROUP_MIN + (hasSuper(groups - 1) ? overheadOf(groups) : 0)) {
    groups--;
    blocks = groups * BLOCKS_PER_GROUP;
  }
  const descBlocks = descBlocksOf(groups);
  const reservedDescBlocks = Math.max(0, ceilingDescBlocks - descBlocks);
  const overhead = 1 + descBlocks + reservedDescBlocks;
  const backups: Range[] = [];
  for (let group = 1; group < groups; group++) {
    const start = group * BLOCKS_PER_GROUP;
    if (hasSuper(group)) backups.push({ start, end: start + overhead });
  }
  const inodesPerGroup = chooseInodesPerGroup(options, blocks, groups);
  if (groups * inodesPerGroup < inodeMax) {
    throw tooSmall(`${inodeMax} inodes do not fit: ${groups} groups of ${inodesPerGroup}`);
  }

  let next = overhead;
  const take = (count: number): number => {
    const start = clearOf(backups, next, count);
    next = start + count;
    if (next > blocks) throw tooSmall(`a file system of ${size} bytes has no room for its own metadata`);
    return start;
  };
  const each = (count: number) => Uint32Array.from({ length: groups }, () => take(count));
  const blockBitmaps = each(1);
  const inodeBitmaps = each(1);
  const inodeTables = each(inodesPerGroup / INODES_PER_BLOCK);
  const resizeBlock = reservedDescBlocks > 0 ? take(1) : 0;
  const journalBlocks = options.journalBlocks ?? defaultJournalBlocks(blocks);
  let journal: Range = { start: 0, end: 0 };
  if (journalBlocks > 0) {
    next = alignUp(next, REGION_ALIGN);
    // in one piece: step from one aligned place to the next until no copy lies inside
    let start = next;
    while (clearOf(backups, start, journalBlocks) !== start) {
      start = alignUp(clearOf(backups, start, journalBlocks), REGION_ALIGN);
    }
    next = start;
    take(journalBlocks);
    journal = { start, end: start + journalBlocks };
  }
  return {
    blocks,
    groups,
    inodesPerGroup,
    descBlocks,
    reservedDescBlocks,
    backups,
    blockBitmaps,
    inodeBitmaps,
    inodeTables,
    resizeBlock,
    journal,
    dataStart: Math.min(blocks, alignUp(next, REGION_ALIGN)),
  };
}

/** The first block from `start` on where `count` blocks in a row meet no superblock copy. */
function clearOf(backups: readonly Range[], start: number, count: number): number {
  let at = start;
  for (const backup of backups) {
    if (backup.end <= at) continue;
    if (backup.start >= at + count) break;
    at = backup.end;
  }
  return at;
}

function chooseInodesPerGroup(options: GeometryOptions, blocks: number, groups: number): number {
  const { inodeMax, inodesPerGroup } = options;
  if (inodesPerGroup !== undefined) {
    const fits =
      inodesPerGroup % INODES_PER_BLOCK === 0 && inodesPerGroup > 0 && inodesPerGroup <= INODES_PER_GROUP_MAX;
    if (!fits)
      throw tooSmall(`${inodesPerGroup} inodes a group: a multiple of 16 up to ${INODES_PER_GROUP_MAX} is needed`);
    return inodesPerGroup;
  }
  const usual = (Math.min(blocks, BLOCKS_PER_GROUP) * BLOCK) / BYTES_PER_INODE;
  const wanted = alignUp(Math.max(usual, Math.ceil(inodeMax / groups)), INODES_PER_BLOCK);
  return Math.min(INODES_PER_GROUP_MAX, wanted);
}

/** From 1 GiB on what online growth needs; below as mke2fs. */
function defaultJournalBlocks(blocks: number): number {
  if (blocks < 2048) return 0;
  if (blocks < 32_768) return 1024;
  return blocks < 262_144 ? 4096 : 16_384;
}
