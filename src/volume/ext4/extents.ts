/**
 * Extent trees (specs/warm-volume.md 7.6): up to four entries in the inode, more in blocks of 340 entries and a checksum, level by level.
 *
 *   header: u16 magic, u16 entries, u16 max, u16 depth, u32 generation
 *   leaf:   u32 first logical block, u16 length, u16 start high, u32 start low
 *   index:  u32 first logical block, u32 child low, u16 child high, u16 0
 */

import { extentChecksum, viewOf } from "./checksum.ts";
import { BLOCK, EXTENT_ENTRY, EXTENT_MAGIC, EXTENTS_INLINE, EXTENTS_PER_BLOCK } from "./ondisk.ts";

export interface Extent {
  /** Blocks of the file. */
  readonly logical: number;
  /** Blocks of the file system. */
  readonly physical: number;
  readonly length: number;
}

interface Row {
  readonly logical: number;
  readonly place: number;
  /** 0 in index rows. */
  readonly length: number;
}

/** Blocks that a tree of so many extents takes beside the inode. */
export function extentNodeCount(extents: number): number {
  let nodes = 0;
  for (let rows = extents; rows > EXTENTS_INLINE; nodes += rows) rows = Math.ceil(rows / EXTENTS_PER_BLOCK);
  return nodes;
}

export interface ExtentTree {
  /** The 60 bytes of i_block. */
  readonly root: Uint8Array;
  /** One block each of `nodes`. */
  readonly blocks: readonly Uint8Array[];
}

/** `nodes` are the blocks that the tree may use, exactly extentNodeCount of them; the lowest level lies first. */
export function encodeExtents(extents: readonly Extent[], nodes: readonly number[], ownSeed: number): ExtentTree {
  const blocks: Uint8Array[] = [];
  let rows: Row[] = extents.map(({ logical, physical, length }) => ({ logical, place: physical, length }));
  let depth = 0;
  while (rows.length > EXTENTS_INLINE) {
    const above: Row[] = [];
    for (let from = 0; from < rows.length; from += EXTENTS_PER_BLOCK) {
      const block = new Uint8Array(BLOCK);
      putNode(block, rows.slice(from, from + EXTENTS_PER_BLOCK), EXTENTS_PER_BLOCK, depth);
      viewOf(block).setUint32(BLOCK - 4, extentChecksum(ownSeed, block, EXTENTS_PER_BLOCK), true);
      above.push({ logical: rows[from]!.logical, place: nodes[blocks.length]!, length: 0 });
      blocks.push(block);
    }
    rows = above;
    depth++;
  }
  const root = new Uint8Array(60);
  putNode(root, rows, EXTENTS_INLINE, depth);
  return { root, blocks };
}

function putNode(bytes: Uint8Array, rows: readonly Row[], max: number, depth: number): void {
  const view = viewOf(bytes);
  view.setUint16(0, EXTENT_MAGIC, true);
  view.setUint16(2, rows.length, true);
  view.setUint16(4, max, true);
  view.setUint16(6, depth, true);
  rows.forEach(({ logical, place, length }, index) => {
    const at = EXTENT_ENTRY * (index + 1);
    const high = Math.floor(place / 2 ** 32);
    view.setUint32(at, logical, true);
    if (depth === 0) {
      view.setUint16(at + 4, length, true);
      view.setUint16(at + 6, high, true);
      view.setUint32(at + 8, place >>> 0, true);
    } else {
      view.setUint32(at + 4, place >>> 0, true);
      view.setUint16(at + 8, high, true);
    }
  });
}
