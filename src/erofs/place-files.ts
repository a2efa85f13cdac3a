/**
 * Where the data of regular files lie in a layer file: one extent a file, each from a 4 KiB block on. Holes of a sparse file have room in its extent and
 * no placement row.
 */

import { HeadstartError } from "../base/errors.ts";
import { alignUp } from "../base/ranges.ts";
import { type FileTree, FileType } from "./file-tree.ts";
import { EROFS_NULL_ADDR } from "./ondisk.ts";
import { BLOCK_SIZE, makePlacement, type Placement } from "./placement.ts";

export interface PlacedFiles {
  /** First block of each regular file that has data; EROFS_NULL_ADDR for all other inodes. */
  readonly startBlock: Uint32Array;
  readonly placement: Placement;
  /** Byte after the last extent, a multiple of 4096. */
  readonly end: number;
}

/** Blocks have 32-bit numbers and the last number means "none": 16 TiB. */
export const IMAGE_BYTES_MAX = EROFS_NULL_ADDR * BLOCK_SIZE;

/**
 * Packs files one behind the other from `dataStart` on: those of `first` in that order, then the rest by their address, so that one decoded unit
 * scatters to one run of blocks. Files with equal segments share an extent. Throws HS_EROFS_LIMIT beyond 16 TiB.
 */
export function placeFiles(tree: FileTree, dataStart: number, first: Uint32Array | undefined): PlacedFiles {
  const startBlock = new Uint32Array(tree.inodeCount).fill(EROFS_NULL_ADDR);
  const files = filesByAddress(tree);
  const twinOf = findTwins(tree, files);
  const rows = new RowCollector(tree);
  let end = dataStart;
  const place = (inode: number) => {
    const owner = twinOf.get(inode) ?? inode;
    if (startBlock[owner] === EROFS_NULL_ADDR) {
      startBlock[owner] = end / BLOCK_SIZE;
      rows.add(owner, end);
      end += alignUp(tree.size[owner]!, BLOCK_SIZE);
      if (!(end <= IMAGE_BYTES_MAX)) {
        throw new HeadstartError("HS_EROFS_LIMIT", {
          what: `the layer's files take more than ${IMAGE_BYTES_MAX} bytes`,
        });
      }
    }
    startBlock[inode] = startBlock[owner]!;
  };
  for (const inode of first ?? []) {
    if (!(inode < tree.inodeCount && tree.type[inode] === FileType.regular)) {
      throw new HeadstartError("HS_INTERNAL", { what: `data order names inode ${inode}, which is no regular file` });
    }
    if (tree.size[inode]! > 0) place(inode);
  }
  for (const inode of files) place(inode);
  return { startBlock, placement: rows.finish(), end };
}

/**
 * Takes over places that were chosen while the data were written: `places[inode]` is the byte offset of its data, -1 for none. Throws HS_INTERNAL
 * when places are not on blocks, outside of [4096, dataEnd) or overlap, and HS_EROFS_LIMIT beyond 16 TiB.
 */
export function adoptFiles(tree: FileTree, places: Float64Array, dataEnd: number): PlacedFiles {
  if (places.length !== tree.inodeCount) {
    throw new HeadstartError("HS_INTERNAL", { what: `${places.length} data places for ${tree.inodeCount} inodes` });
  }
  const startBlock = new Uint32Array(tree.inodeCount).fill(EROFS_NULL_ADDR);
  const end = Math.max(BLOCK_SIZE, alignUp(dataEnd, BLOCK_SIZE));
  if (!(end <= IMAGE_BYTES_MAX)) {
    throw new HeadstartError("HS_EROFS_LIMIT", { what: `the layer's data end at byte ${dataEnd}` });
  }
  const rows = new RowCollector(tree);
  let before = BLOCK_SIZE;
  let previous = -1;
  for (const inode of sorted(regularFiles(tree), (a, b) => places[a]! - places[b]! || a - b)) {
    const place = places[inode]!;
    const shares = previous >= 0 && place === places[previous] && sameData(tree, inode, previous);
    if (!shares) {
      if (!(place % BLOCK_SIZE === 0 && place >= before && place + tree.size[inode]! <= end)) {
        throw new HeadstartError("HS_INTERNAL", {
          what: `the data of inode ${inode} (${tree.size[inode]} bytes) cannot lie at byte ${place}`,
        });
      }
      rows.add(inode, place);
      before = place + alignUp(tree.size[inode]!, BLOCK_SIZE);
      previous = inode;
    }
    startBlock[inode] = place / BLOCK_SIZE;
  }
  return { startBlock, placement: rows.finish(), end };
}

/** Regular files with at least one byte, by inode. */
function regularFiles(tree: FileTree): Uint32Array {
  const files = new Uint32Array(tree.inodeCount);
  let count = 0;
  for (let inode = 0; inode < tree.inodeCount; inode++) {
    if (tree.type[inode] === FileType.regular && tree.size[inode]! > 0) files[count++] = inode;
  }
  return files.subarray(0, count);
}

/** Files without any segment (all zeros) come last. */
function filesByAddress(tree: FileTree): Uint32Array {
  const key = (inode: number): number => {
    const segment = tree.segmentStart[inode]!;
    return segment < tree.segmentStart[inode + 1]! ? tree.segmentAddress[segment]! : Number.MAX_VALUE;
  };
  return sorted(regularFiles(tree), (a, b) => key(a) - key(b) || tree.size[a]! - tree.size[b]! || a - b);
}

/** Sorts in place; the usual case, a tree in stream order, costs one pass. */
function sorted(inodes: Uint32Array, compare: (a: number, b: number) => number): Uint32Array {
  for (let index = 1; index < inodes.length; index++) {
    if (compare(inodes[index - 1]!, inodes[index]!) > 0) return inodes.sort(compare);
  }
  return inodes;
}

/** Later files with the same bytes as the one before them in `files` -> that one. */
function findTwins(tree: FileTree, files: Uint32Array): Map<number, number> {
  const twinOf = new Map<number, number>();
  for (let index = 1; index < files.length; index++) {
    const before = twinOf.get(files[index - 1]!) ?? files[index - 1]!;
    if (sameData(tree, before, files[index]!)) twinOf.set(files[index]!, before);
  }
  return twinOf;
}

function sameData(tree: FileTree, a: number, b: number): boolean {
  if (tree.size[a] !== tree.size[b]) return false;
  const from = tree.segmentStart[a]!;
  const shift = tree.segmentStart[b]! - from;
  const count = tree.segmentStart[a + 1]! - from;
  if (tree.segmentStart[b + 1]! - tree.segmentStart[b]! !== count) return false;
  for (let segment = from; segment < from + count; segment++) {
    if (
      tree.segmentAddress[segment] !== tree.segmentAddress[segment + shift] ||
      tree.segmentLength[segment] !== tree.segmentLength[segment + shift] ||
      tree.segmentFileOffset[segment] !== tree.segmentFileOffset[segment + shift]
    ) {
      return false;
    }
  }
  return true;
}

/** Placement rows in the order in which files were placed; at most one a segment. */
class RowCollector {
  readonly #tree: FileTree;
  readonly #address: Float64Array;
  readonly #length: Float64Array;
  readonly #fileOffset: Float64Array;
  #count = 0;

  constructor(tree: FileTree) {
    this.#tree = tree;
    this.#address = new Float64Array(tree.segmentAddress.length);
    this.#length = new Float64Array(tree.segmentAddress.length);
    this.#fileOffset = new Float64Array(tree.segmentAddress.length);
  }

  add(inode: number, place: number): void {
    const tree = this.#tree;
    const end = tree.segmentStart[inode + 1]!;
    for (let segment = tree.segmentStart[inode]!; segment < end; segment++) {
      this.#address[this.#count] = tree.segmentAddress[segment]!;
      this.#length[this.#count] = tree.segmentLength[segment]!;
      this.#fileOffset[this.#count] = place + tree.segmentFileOffset[segment]!;
      this.#count++;
    }
  }

  finish(): Placement {
    return makePlacement({
      address: this.#address.subarray(0, this.#count),
      length: this.#length.subarray(0, this.#count),
      fileOffset: this.#fileOffset.subarray(0, this.#count),
    });
  }
}
