/** Extent trees as they are found (specs/warm-volume.md 7.6). Every number is checked; a tree is left in time that its blocks bound. */

import { extentChecksum, viewOf } from "./checksum.ts";
import type { Extent } from "./extents.ts";
import { invalid } from "./failures.ts";
import {
  BLOCK,
  EXTENT_BLOCKS_MAX,
  EXTENT_DEPTH_MAX,
  EXTENT_ENTRY,
  EXTENT_MAGIC,
  EXTENTS_INLINE,
  EXTENTS_PER_BLOCK,
} from "./ondisk.ts";

export interface FoundExtent extends Extent {
  /** Reads as zeros. */
  readonly unwritten: boolean;
}

export interface FoundExtents {
  readonly extents: readonly FoundExtent[];
  /** Blocks of the tree itself. */
  readonly nodes: readonly number[];
}

export interface ExtentContext {
  readonly what: string;
  readonly blocks: number;
  /** inodeSeed; null: no checksums. */
  readonly seed: number | null;
  readBlock(block: number): Uint8Array;
}

const LOGICAL_END = 2 ** 32;

/** Of the 60 bytes of i_block. Throws HS_EXT4_INVALID. */
export function parseExtents(root: Uint8Array, context: ExtentContext): FoundExtents {
  const extents: FoundExtent[] = [];
  const nodes: number[] = [];
  const seen = new Set<number>();
  let reached = 0;
  const fail = (message: string) => invalid(`${context.what}: extent tree: ${message}`);

  /** `end`: where the next node of the same level begins. */
  const visit = (bytes: Uint8Array, max: number, depth: number | null, start: number, end: number): void => {
    const view = viewOf(bytes);
    const entries = view.getUint16(2, true);
    const ownDepth = view.getUint16(6, true);
    if (view.getUint16(0, true) !== EXTENT_MAGIC) throw fail("no header");
    if (view.getUint16(4, true) !== max || entries > max) throw fail(`${entries} entries`);
    if (depth === null ? ownDepth > EXTENT_DEPTH_MAX : ownDepth !== depth) throw fail(`depth ${ownDepth}`);
    if (entries === 0 && (depth !== null || ownDepth > 0)) throw fail("an empty node");
    for (let index = 0; index < entries; index++) {
      const at = EXTENT_ENTRY * (index + 1);
      const logical = view.getUint32(at, true);
      if (logical < start || logical < reached || logical >= end) throw fail(`block ${logical} out of order`);
      if (ownDepth === 0) {
        const stored = view.getUint16(at + 4, true);
        const unwritten = stored > EXTENT_BLOCKS_MAX;
        const length = unwritten ? stored - EXTENT_BLOCKS_MAX : stored;
        const physical = view.getUint16(at + 6, true) * 2 ** 32 + view.getUint32(at + 8, true);
        if (length === 0 || logical + length > end) throw fail(`${length} blocks at block ${logical}`);
        if (physical === 0 || physical + length > context.blocks) throw fail(`block ${physical} lies outside`);
        extents.push({ logical, physical, length, unwritten });
        reached = logical + length;
        continue;
      }
      const child = view.getUint16(at + 8, true) * 2 ** 32 + view.getUint32(at + 4, true);
      if (child === 0 || child >= context.blocks || seen.has(child)) throw fail(`node at block ${child}`);
      seen.add(child);
      nodes.push(child);
      const next = index + 1 < entries ? view.getUint32(at + EXTENT_ENTRY, true) : end;
      if (next <= logical) throw fail(`block ${next} out of order`);
      const block = context.readBlock(child);
      if (context.seed !== null) {
        const sum = viewOf(block).getUint32(BLOCK - 4, true);
        if (sum !== extentChecksum(context.seed, block, EXTENTS_PER_BLOCK)) throw fail(`checksum of block ${child}`);
      }
      visit(block, EXTENTS_PER_BLOCK, ownDepth - 1, logical, Math.min(next, end));
    }
  };
  visit(root, EXTENTS_INLINE, null, 0, LOGICAL_END);
  return { extents, nodes };
}
