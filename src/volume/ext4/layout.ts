/**
 * Lays a FileTree out as an ext4 file system: inode numbers, blocks and extents of everything, as data. The first of two passes; write.ts emits. Pure: no clock, no
 * randomness, no contents; the same tree and options give the same layout.
 *
 * Placement is by region. A region is a list of the tree's inodes that lie together, begins and ends on 512 KiB and has a run of inode numbers of its own; no
 * other region's blocks lie in it. A region that is given the place an earlier layout reported lands on the same blocks and inodes again, whatever became of the others.
 * Within a region: xattr blocks, directories and long symlinks, then files in the order listed, each with its extent blocks behind it.
 *
 * What no segment of a file covers is a hole and costs nothing.
 */

import { createHash } from "node:crypto";
import { HeadstartError, isHeadstartError } from "../../base/errors.ts";
import { MiB } from "../../base/limits.ts";
import { alignUp } from "../../base/ranges.ts";
import { childName, type FileTree, FileType } from "../../erofs/file-tree.ts";
import { type DirectoryPlan, planDirectory } from "./directory.ts";
import { checkEntry, fileRuns, findLostFound, LOST_FOUND } from "./entries.ts";
import { type Extent, extentNodeCount } from "./extents.ts";
import { beyondExt4, regionTooSmall, tooSmall } from "./failures.ts";
import { type Geometry, geometryOf, type Range, REGION_ALIGN, SIZE_MAX } from "./geometry.ts";
import { hashState } from "./hash.ts";
import {
  BLOCK,
  BLOCKS_PER_GROUP,
  EXTENT_BLOCKS_MAX,
  FIRST_INODE,
  LINKS_MAX,
  LOST_FOUND_INODE,
  ROOT_INODE,
} from "./ondisk.ts";
import {
  assignInodes,
  BlockCursor,
  ExtentRows,
  frontRanges,
  placeRegions,
  type RegionNeeds,
  type RegionPlace,
} from "./place.ts";
import { treePath } from "./tree-path.ts";
import { fitsInode, xattrBlock, xattrEntries } from "./xattr.ts";

export interface RegionRequest {
  /** Inodes of the tree in the order of their data. None stands in two regions, and the root in none. */
  readonly inodes: ArrayLike<number>;
  /** Where an earlier layout put it. Without: the first free place that fits. */
  readonly place?: RegionPlace | undefined;
  /** What a new place has at least, so that the region may grow in it. */
  readonly blocksMin?: number | undefined;
  readonly inodesMin?: number | undefined;
}

export interface Ext4Options {
  /** Bytes of the image; or as many as are needed, plus `free`, rounded up to a multiple of `unit` less `margin`. */
  readonly size: number | { readonly free: number; readonly unit: number; readonly margin?: number };
  /** 16 bytes each. */
  readonly uuid: Uint8Array;
  readonly hashSeed: Uint8Array;
  /** Seconds since 1970: when the file system was made. */
  readonly time: number;
  readonly regions?: readonly RegionRequest[] | undefined;
  /** Place of what stands in no region: the root, and lost+found. */
  readonly restPlace?: RegionPlace | undefined;
  readonly inodesPerGroup?: number | undefined;
  /** Inodes that stay free at least; default 0. */
  readonly inodesFree?: number | undefined;
  readonly growthCeiling?: number | undefined;
  readonly journalBlocks?: number | undefined;
}

export interface XattrBlock {
  readonly block: number;
  /** Tree inode that shows what is in it. */
  readonly inode: number;
  refcount: number;
}

export interface Region {
  readonly place: RegionPlace;
  readonly inodes: ArrayLike<number>;
  readonly xattrBlocks: readonly XattrBlock[];
  /** Of the rest only: lost+found, when the tree has none. */
  readonly lostFound: readonly Extent[];
}

export interface Ext4Layout {
  readonly tree: FileTree;
  readonly options: Ext4Options;
  /** Bytes of the image; the file system may be a little shorter. */
  readonly size: number;
  readonly geometry: Geometry;
  /** The rest first, then the regions in the order of the request. */
  readonly regions: readonly Region[];
  /** Inode number of each tree inode. */
  readonly inodeOf: Uint32Array;
  /** Tree inode of each inode number, -1: none. Index 0 is not used. */
  readonly treeInodeOf: Int32Array;
  /** Block of the xattrs of each tree inode, 0: none or in the inode. */
  readonly xattrBlockOf: Uint32Array;
  /** Link count of each tree inode as ext4 says it. */
  readonly linksOf: Uint32Array;
  /** Tree inode 0 contains lost+found, as this tree inode; -1: we make one. */
  readonly lostFoundTreeInode: number;
  readonly hashStart: Int32Array;
  extentsOf(treeInode: number): readonly Extent[];
  /** Blocks of the extent tree beside the inode. */
  nodesOf(treeInode: number): readonly number[];
  namesOf(directory: number): Uint8Array[];
  directoryPlan(directory: number): DirectoryPlan;
  /** 1: the directory has an index by hash. */
  readonly indexed: Uint8Array;
  /** Blocks in use, ascending by first use: what the bitmaps say. */
  readonly used: readonly Range[];
}

const LOST_FOUND_BLOCKS = 4;
const FAST_SYMLINK_MAX = 59;

/**
 * Throws HS_EXT4_LIMIT for what ext4 cannot hold (with its path), HS_EXT4_FULL when it does not fit, HS_INTERNAL for a request that contradicts itself.
 */
export function layoutExt4(tree: FileTree, options: Ext4Options): Ext4Layout {
  const plan = new TreePlan(tree, options);
  const { size } = options;
  if (typeof size !== "number") return smallest(plan, size);
  try {
    return plan.place(size);
  } catch (error) {
    if (!isHeadstartError(error, "HS_EXT4_FULL") || options.regions?.some(({ place }) => place !== undefined))
      throw error;
    const least = smallest(plan, { free: 0, unit: MiB }).size;
    // what was asked for may fail for another reason than its size
    if (least <= size) throw error;
    throw tooSmall(`${size} bytes are too few, the least is ${least} (${least / MiB} MiB): ${error.details.what}`);
  }
}

/** Grows until it fits, then halves the step back. Throws HS_EXT4_FULL when no size will do. */
function smallest(plan: TreePlan, wanted: Exclude<Ext4Options["size"], number>): Ext4Layout {
  const { free, unit, margin = 0 } = wanted;
  const attempt = (units: number): Ext4Layout | HeadstartError => {
    const size = units * unit - margin;
    try {
      const layout = plan.place(size);
      return freeBytes(layout) >= free ? layout : tooSmall(`${size} bytes leave less than ${free} free`);
    } catch (error) {
      if (isHeadstartError(error, "HS_EXT4_FULL") && regionTooSmall(error) === null) return error;
      throw error;
    }
  };
  let refused = Math.ceil((plan.blocksAtLeast * BLOCK + free + margin) / unit) - 1;
  for (let step = 1; ; step *= 2) {
    let units = refused + step;
    let found = attempt(units);
    if (found instanceof HeadstartError) {
      if (units * unit > SIZE_MAX) throw found;
      refused = units;
      continue;
    }
    while (units - refused > 1) {
      const middle = Math.floor((refused + units) / 2);
      const closer = attempt(middle);
      if (closer instanceof HeadstartError) refused = middle;
      else {
        units = middle;
        found = closer;
      }
    }
    return found;
  }
}

function freeBytes(layout: Ext4Layout): number {
  let free = layout.geometry.blocks;
  for (const { start, end } of layout.used) free -= end - start;
  return free * BLOCK;
}

interface PlannedRegion extends RegionNeeds {
  /** Keeps all that it was given room for. */
  readonly growing: boolean;
  readonly inodes: ArrayLike<number>;
  readonly firstInode: number;
  readonly inodeCount: number;
  readonly xattrBlocks: readonly { readonly inode: number; readonly sharers: readonly number[] }[];
}

/** What does not depend on the size. */
class TreePlan {
  readonly #tree: FileTree;
  readonly #options: Ext4Options;
  readonly #hashStart: Int32Array;
  readonly #lostFound: number;
  readonly #inodeOf: Uint32Array;
  readonly #linksOf: Uint32Array;
  /** Content blocks of directories and long symlinks. */
  readonly #blocksOf: Uint32Array;
  readonly #indexed: Uint8Array;
  readonly #regions: PlannedRegion[];
  readonly #inodeMax: number;

  constructor(tree: FileTree, options: Ext4Options) {
    if (options.uuid.byteLength !== 16 || options.hashSeed.byteLength !== 16) {
      throw new HeadstartError("HS_INTERNAL", { what: "ext4: uuid and hash seed are 16 bytes each" });
    }
    this.#tree = tree;
    this.#options = options;
    this.#hashStart = hashState(options.hashSeed);
    this.#lostFound = findLostFound(tree);
    this.#blocksOf = new Uint32Array(tree.inodeCount);
    this.#indexed = new Uint8Array(tree.inodeCount);
    for (let inode = 0; inode < tree.inodeCount; inode++) {
      checkEntry(tree, inode, this.#where(inode));
      this.#planBlocks(inode);
    }
    this.#linksOf = this.#countLinks();
    const lists = this.#regionLists();
    const places = [options.restPlace, ...(options.regions ?? []).map(({ place }) => place)];
    const ranges = assignInodes(
      lists.map((list, index) => ({
        place: places[index],
        // the root and lost+found have numbers of their own
        count:
          index === 0
            ? list.length - 1 - (this.#lostFound < 0 ? 0 : 1)
            : Math.max(list.length, places[index] === undefined ? (options.regions![index - 1]!.inodesMin ?? 0) : 0),
        isRest: index === 0,
      })),
    );
    this.#inodeOf = new Uint32Array(tree.inodeCount);
    let inodeMax = FIRST_INODE;
    lists.forEach((list, index) => {
      let next = ranges[index]!.firstInode;
      for (let at = 0; at < list.length; at++) {
        const inode = list[at]!;
        this.#inodeOf[inode] = inode === 0 ? ROOT_INODE : inode === this.#lostFound ? LOST_FOUND_INODE : next++;
      }
      inodeMax = Math.max(inodeMax, ranges[index]!.firstInode + ranges[index]!.inodeCount - 1);
    });
    this.#inodeMax = inodeMax;
    this.#regions = lists.map((inodes, index) => {
      const xattrBlocks = this.#shareXattrs(inodes);
      return {
        inodes,
        place: places[index],
        blocksMax: Math.max(
          this.#blocksMax(inodes, xattrBlocks.length, index === 0),
          index === 0 ? 0 : (options.regions![index - 1]!.blocksMin ?? 0),
        ),
        growing: index > 0 && options.regions![index - 1]!.blocksMin !== undefined,
        ...ranges[index]!,
        xattrBlocks,
      };
    });
  }

  /** A lower bound: no size below has room for the blocks that are sure to be taken. */
  get blocksAtLeast(): number {
    return this.#regions.reduce((sum, region) => sum + region.blocksMax, 0);
  }

  place(size: number): Ext4Layout {
    const { inodesPerGroup, growthCeiling, journalBlocks } = this.#options;
    const inodeMax = this.#inodeMax + (this.#options.inodesFree ?? 0);
    const geometry = geometryOf({ size, inodeMax, inodesPerGroup, growthCeiling, journalBlocks });
    const tree = this.#tree;
    const starts = placeRegions(this.#regions, geometry);
    const rows = new ExtentRows(tree.inodeCount);
    const nodes = new Map<number, readonly number[]>();
    const xattrBlockOf = new Uint32Array(tree.inodeCount);
    const used: Range[] = [];
    const regions = this.#regions.map((region, index): Region => {
      const { start, limit } = starts[index]!;
      const cursor = new BlockCursor(geometry, start, limit, region.place === undefined ? undefined : index);
      const xattrBlocks = region.xattrBlocks.map(({ inode, sharers }) => {
        const block = cursor.one();
        for (const sharer of sharers) xattrBlockOf[sharer] = block;
        return { block, inode, refcount: sharers.length };
      });
      /** The rows from `first` on are those of `inode`. */
      const own = (inode: number, first: number) => {
        const count = extentNodeCount(rows.own(inode, first));
        if (count > 0)
          nodes.set(
            inode,
            Array.from({ length: count }, () => cursor.one()),
          );
      };
      const lostFound: Extent[] = [];
      if (index === 0 && this.#lostFound < 0) cursor.run(0, LOST_FOUND_BLOCKS, (extent) => lostFound.push(extent));
      for (let at = 0; at < region.inodes.length; at++) {
        const inode = region.inodes[at]!;
        const first = rows.length;
        if (this.#blocksOf[inode]! === 0) continue;
        cursor.run(0, this.#blocksOf[inode]!, (extent) => rows.push(extent));
        own(inode, first);
      }
      for (let at = 0; at < region.inodes.length; at++) {
        const inode = region.inodes[at]!;
        if (tree.type[inode] !== FileType.regular) continue;
        const first = rows.length;
        for (const { start, end } of fileRuns(tree, inode)) {
          cursor.run(start, end - start, (extent) => rows.push(extent));
        }
        if (rows.length > first) own(inode, first);
      }
      for (const range of cursor.used) used.push(range);
      const end = region.growing ? limit : Math.min(limit, alignUp(cursor.next, REGION_ALIGN));
      return {
        place: {
          startBlock: start,
          blockCount: region.place?.blockCount ?? end - start,
          firstInode: region.firstInode,
          inodeCount: region.inodeCount,
        },
        inodes: region.inodes,
        xattrBlocks,
        lostFound,
      };
    });
    const treeInodeOf = new Int32Array(this.#inodeMax + 1).fill(-1);
    for (let inode = 0; inode < tree.inodeCount; inode++) treeInodeOf[this.#inodeOf[inode]!] = inode;
    const namesOf = (directory: number) => this.#namesOf(directory);
    return {
      tree,
      options: this.#options,
      size,
      geometry,
      regions,
      inodeOf: this.#inodeOf,
      treeInodeOf,
      xattrBlockOf,
      linksOf: this.#linksOf,
      lostFoundTreeInode: this.#lostFound,
      hashStart: this.#hashStart,
      extentsOf: (inode) => rows.of(inode),
      nodesOf: (inode) => nodes.get(inode) ?? [],
      namesOf,
      directoryPlan: (directory) => this.#planDirectory(directory),
      indexed: this.#indexed,
      used: [...frontRanges(geometry), ...used],
    };
  }

  #where(inode: number): () => string {
    return () => JSON.stringify(treePath(this.#tree, inode));
  }

  /** Blocks of what does not come from a source. */
  #planBlocks(inode: number): void {
    const type = this.#tree.type[inode];
    if (type === FileType.symlink) this.#blocksOf[inode] = this.#tree.size[inode]! > FAST_SYMLINK_MAX ? 1 : 0;
    if (type !== FileType.directory) return;
    const plan = this.#planDirectory(inode);
    this.#blocksOf[inode] = plan.blocks;
    this.#indexed[inode] = plan.order === null ? 0 : 1;
  }

  #countLinks(): Uint32Array {
    const links = Uint32Array.from(this.#tree.nlink);
    if (this.#lostFound < 0) links[0]!++;
    for (let inode = 0; inode < links.length; inode++) {
      // more sub-directories than the field holds (dir_nlink)
      if (this.#tree.type[inode] === FileType.directory && links[inode]! >= LINKS_MAX) links[inode] = 1;
    }
    return links;
  }

  #namesOf(directory: number): Uint8Array[] {
    const names: Uint8Array[] = [];
    if (directory === 0 && this.#lostFound < 0) names.push(LOST_FOUND);
    for (let at = this.#tree.childStart[directory]!; at < this.#tree.childStart[directory + 1]!; at++) {
      names.push(childName(this.#tree, at));
    }
    return names;
  }

  #planDirectory(directory: number): DirectoryPlan {
    const blocksMin = directory === this.#lostFound ? LOST_FOUND_BLOCKS : 1;
    const plan = planDirectory(this.#namesOf(directory), this.#hashStart, blocksMin);
    if (plan === "too many names") throw beyondExt4(`${this.#where(directory)()}: too many names in one directory`);
    return plan;
  }

  /** The rest, then the regions of the request; every tree inode in exactly one. */
  #regionLists(): ArrayLike<number>[] {
    const tree = this.#tree;
    const taken = new Uint8Array(tree.inodeCount);
    const lists = (this.#options.regions ?? []).map(({ inodes }) => inodes);
    for (const inodes of lists) {
      for (let at = 0; at < inodes.length; at++) {
        const inode = inodes[at]!;
        if (!(inode > 0 && inode < tree.inodeCount) || inode === this.#lostFound || taken[inode] === 1) {
          throw new HeadstartError("HS_INTERNAL", { what: `ext4: a region with tree inode ${inode}` });
        }
        taken[inode] = 1;
      }
    }
    const rest: number[] = [];
    for (let inode = 0; inode < tree.inodeCount; inode++) if (taken[inode] === 0) rest.push(inode);
    return [Uint32Array.from(rest), ...lists];
  }

  /** Attributes that need a block; equal ones share it, within a region so that regions do not depend on each other. */
  #shareXattrs(inodes: ArrayLike<number>): { inode: number; sharers: number[] }[] {
    const blocks: { inode: number; sharers: number[] }[] = [];
    const open = new Map<string, { inode: number; sharers: number[] }>();
    for (let at = 0; at < inodes.length; at++) {
      const inode = inodes[at]!;
      if (this.#tree.xattrStart[inode] === this.#tree.xattrStart[inode + 1]) continue;
      const entries = xattrEntries(this.#tree, inode, this.#where(inode));
      if (fitsInode(entries)) continue;
      const key = createHash("sha256")
        .update(xattrBlock(entries, this.#where(inode)))
        .digest("latin1");
      let block = open.get(key);
      if (block === undefined || block.sharers.length >= XATTR_SHARERS_MAX) {
        block = { inode, sharers: [] };
        open.set(key, block);
        blocks.push(block);
      }
      block.sharers.push(inode);
    }
    return blocks;
  }

  #blocksMax(inodes: ArrayLike<number>, xattrBlocks: number, isRest: boolean): number {
    let blocks = xattrBlocks + (isRest ? LOST_FOUND_BLOCKS : 0);
    for (let at = 0; at < inodes.length; at++) {
      const inode = inodes[at]!;
      let own = this.#blocksOf[inode]!;
      let extents = 1;
      if (this.#tree.type[inode] === FileType.regular) {
        extents = 0;
        for (const { start, end } of fileRuns(this.#tree, inode)) {
          own += end - start;
          extents += Math.ceil((end - start) / EXTENT_BLOCKS_MAX);
        }
      }
      // a copy of the superblock may lie in the way once a group
      extents += Math.ceil(own / BLOCKS_PER_GROUP) + 1;
      blocks += own + (own > 0 ? extentNodeCount(extents) : 0);
    }
    return blocks;
  }
}

/** As the kernel: one block is shared by so many inodes at most. */
const XATTR_SHARERS_MAX = 1024;
