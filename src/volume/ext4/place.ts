/**
 * Where things go: inode numbers and block ranges of regions, blocks of files inside a region. Knows ranges and superblock copies. Must not know trees.
 */

import { HeadstartError } from "../../base/errors.ts";
import { alignUp } from "../../base/ranges.ts";
import type { Extent } from "./extents.ts";
import { tooSmall } from "./failures.ts";
import { type Geometry, type Range, REGION_ALIGN } from "./geometry.ts";
import { EXTENT_BLOCKS_MAX, FIRST_INODE, INODES_PER_BLOCK } from "./ondisk.ts";

export interface RegionPlace {
  /** A multiple of 128. */
  readonly startBlock: number;
  readonly blockCount: number;
  readonly firstInode: number;
  readonly inodeCount: number;
}

export interface RegionNeeds {
  readonly place: RegionPlace | undefined;
  /** Blocks it takes at most when superblock copies are stepped over. */
  readonly blocksMax: number;
}

/** A region of more inodes than this begins on 512 KiB of inode table. */
const LARGE_REGION_INODES = 1000;
const INODES_PER_REGION_BLOCK = REGION_ALIGN * INODES_PER_BLOCK;

interface InodeRange {
  readonly firstInode: number;
  readonly inodeCount: number;
}

/** Given ranges stay; the others get the first free numbers, on whole blocks of the inode table. */
export function assignInodes(
  wanted: readonly { place: RegionPlace | undefined; count: number; isRest: boolean }[],
): InodeRange[] {
  const taken: Range[] = [];
  const reserve = (start: number, count: number) => {
    const end = start + count;
    if (taken.some((range) => start < range.end && range.start < end)) {
      throw new HeadstartError("HS_INTERNAL", { what: `ext4: inodes ${start} to ${end} are given to two regions` });
    }
    if (count > 0) taken.push({ start, end });
    taken.sort((a, b) => a.start - b.start);
  };
  for (const [index, { place, count }] of wanted.entries()) {
    if (place === undefined) continue;
    if (place.firstInode <= FIRST_INODE || place.inodeCount < count) {
      throw tooSmall(`a region of ${count} inodes has a place for ${place.inodeCount}`, index);
    }
    reserve(place.firstInode, place.inodeCount);
  }
  return wanted.map(({ place, count, isRest }) => {
    if (place !== undefined) return { firstInode: place.firstInode, inodeCount: place.inodeCount };
    const unit = count > LARGE_REGION_INODES ? INODES_PER_REGION_BLOCK : INODES_PER_BLOCK;
    const aligned = (number: number) => (isRest ? number : alignUp(number - 1, unit) + 1);
    let start = aligned(FIRST_INODE + 1);
    for (const range of taken) if (start + count > range.start && start < range.end) start = aligned(range.end);
    reserve(start, count);
    return { firstInode: start, inodeCount: count };
  });
}

/** Where each region begins and what it may not reach. */
export function placeRegions(regions: readonly RegionNeeds[], geometry: Geometry): { start: number; limit: number }[] {
  const taken: Range[] = [];
  const reserve = (start: number, end: number) => {
    taken.push({ start, end });
    taken.sort((a, b) => a.start - b.start);
  };
  for (const [index, { place }] of regions.entries()) {
    if (place === undefined || place.blockCount === 0) continue;
    const { startBlock, blockCount } = place;
    const end = startBlock + blockCount;
    const clash = taken.some((range) => startBlock < range.end && range.start < end);
    if (clash || startBlock % REGION_ALIGN !== 0) {
      throw new HeadstartError("HS_INTERNAL", { what: `ext4: blocks ${startBlock} to ${end} cannot be a region` });
    }
    if (startBlock < geometry.dataStart || end > geometry.blocks) {
      throw tooSmall(
        `a region at blocks ${startBlock} to ${end} lies outside of a file system of ${geometry.blocks} blocks`,
        index,
      );
    }
    reserve(startBlock, end);
  }
  return regions.map(({ place, blocksMax }) => {
    if (place !== undefined) return { start: place.startBlock, limit: place.startBlock + place.blockCount };
    if (blocksMax === 0) return { start: geometry.dataStart, limit: geometry.dataStart };
    let start = geometry.dataStart;
    for (const range of [...taken, { start: geometry.blocks, end: geometry.blocks }]) {
      const end = spanEnd(geometry, start, blocksMax);
      if (end <= range.start) {
        const limit = Math.min(range.start, alignUp(end, REGION_ALIGN));
        reserve(start, limit);
        return { start, limit };
      }
      start = Math.max(start, alignUp(range.end, REGION_ALIGN));
    }
    throw tooSmall(
      `${blocksMax} blocks of 4096 bytes in one region do not fit into a file system of ${geometry.blocks} blocks`,
    );
  });
}

/** Where `count` blocks from `start` on end when superblock copies are stepped over. */
function spanEnd(geometry: Geometry, start: number, count: number): number {
  let end = start + count;
  for (const backup of geometry.backups) {
    if (backup.start >= end) break;
    if (backup.end > start) end += backup.end - Math.max(start, backup.start);
  }
  return end;
}

/** Extents of all inodes, flat: a hundred thousand files have as many. */
export class ExtentRows {
  readonly #logical: number[] = [];
  readonly #physical: number[] = [];
  readonly #length: number[] = [];
  readonly #first: Uint32Array;
  readonly #count: Uint32Array;

  constructor(inodes: number) {
    this.#first = new Uint32Array(inodes);
    this.#count = new Uint32Array(inodes);
  }

  get length(): number {
    return this.#length.length;
  }

  push({ logical, physical, length }: Extent): void {
    this.#logical.push(logical);
    this.#physical.push(physical);
    this.#length.push(length);
  }

  /** What was pushed from row `first` on belongs to `inode`. Returns how many they are. */
  own(inode: number, first: number): number {
    this.#first[inode] = first;
    this.#count[inode] = this.length - first;
    return this.#count[inode]!;
  }

  of(inode: number): Extent[] {
    const extents: Extent[] = [];
    const first = this.#first[inode]!;
    for (let row = first; row < first + this.#count[inode]!; row++) {
      extents.push({ logical: this.#logical[row]!, physical: this.#physical[row]!, length: this.#length[row]! });
    }
    return extents;
  }
}

/** Hands out blocks in ascending order, around superblock copies. */
export class BlockCursor {
  next: number;
  readonly used: { start: number; end: number }[] = [];
  readonly #limit: number;
  readonly #region: number | undefined;
  readonly #backups: readonly Range[];
  #backup = 0;

  /** `region`: named in the error when a given place is too small. */
  constructor(geometry: Geometry, start: number, limit: number, region?: number) {
    this.next = start;
    this.#limit = limit;
    this.#region = region;
    this.#backups = geometry.backups;
  }

  one(): number {
    let block = 0;
    this.run(0, 1, ({ physical }) => {
      block = physical;
    });
    return block;
  }

  /** Extents for `count` blocks of a file from `logical` on. */
  run(logical: number, count: number, put: (extent: Extent) => void): void {
    let done = 0;
    while (done < count) {
      while (this.#backup < this.#backups.length && this.#backups[this.#backup]!.end <= this.next) this.#backup++;
      const backup = this.#backups[this.#backup];
      if (backup !== undefined && backup.start <= this.next) {
        this.next = backup.end;
        continue;
      }
      const room = (backup?.start ?? Number.POSITIVE_INFINITY) - this.next;
      const length = Math.min(count - done, EXTENT_BLOCKS_MAX, room);
      if (this.next + length > this.#limit) {
        throw tooSmall(`a region does not fit its place, which ends at block ${this.#limit}`, this.#region);
      }
      put({ logical: logical + done, physical: this.next, length });
      this.#take(length);
      done += length;
    }
  }

  #take(length: number): void {
    const last = this.used.at(-1);
    if (last !== undefined && last.end === this.next) last.end += length;
    else this.used.push({ start: this.next, end: this.next + length });
    this.next += length;
  }
}

/** What the skeleton itself takes. */
export function frontRanges(geometry: Geometry): Range[] {
  const { descBlocks, reservedDescBlocks, inodesPerGroup, journal, resizeBlock } = geometry;
  const ranges: Range[] = [{ start: 0, end: 1 + descBlocks + reservedDescBlocks }, ...geometry.backups];
  for (const block of geometry.blockBitmaps) ranges.push({ start: block, end: block + 1 });
  for (const block of geometry.inodeBitmaps) ranges.push({ start: block, end: block + 1 });
  for (const block of geometry.inodeTables)
    ranges.push({ start: block, end: block + inodesPerGroup / INODES_PER_BLOCK });
  if (resizeBlock > 0) ranges.push({ start: resizeBlock, end: resizeBlock + 1 });
  if (journal.end > journal.start) ranges.push(journal);
  return ranges;
}
