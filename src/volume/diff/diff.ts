/**
 * What two volumes differ in: images and layers, and for disks the blocks that a snapshot of the second costs after one of the first, by what lies in them
 * (specs/warm-volume.md 9, 13).
 */

import { readFully } from "../../base/files.ts";
import { BLOCK_BYTES, changedBlocks } from "../ebs/blocks.ts";
import { EBS_PRICES, estimatePush } from "../ebs/prices.ts";
import { BLOCK } from "../ext4/ondisk.ts";
import type { Owner } from "./owners.ts";
import { UNUSED } from "./owners.ts";
import { readSide, type SideDisk, type SideLayer, type VolumeSide } from "./side.ts";

export interface DiffRequest {
  readonly a: string;
  readonly b: string;
  readonly signal: AbortSignal;
  readonly onProgress?: ((bytes: number) => void) | undefined;
}

export interface VolumeDiff {
  readonly names: {
    readonly added: readonly NamedDigest[];
    readonly removed: readonly NamedDigest[];
    readonly changed: readonly { readonly name: string; readonly from: string; readonly to: string }[];
  };
  readonly layers: {
    readonly added: readonly DiffLayer[];
    readonly removed: readonly DiffLayer[];
    /** The same content on other blocks. */
    readonly moved: readonly DiffLayer[];
    readonly kept: number;
  };
  /** Null: at least one of them is no disk. */
  readonly blocks: BlockDiff | null;
}

export interface NamedDigest {
  readonly name: string;
  readonly digest: string;
}

export interface DiffLayer {
  readonly diffID: string;
  /** Unpacked. */
  readonly bytes: number | null;
  readonly snapshotIds: readonly number[];
}

export interface BlockDiff {
  readonly blockSize: number;
  /** Blocks of the second that are not zeros. */
  readonly used: number;
  readonly changed: number;
  /** Most first. */
  readonly causes: readonly {
    readonly cause: Owner["kind"];
    readonly digest: string | null;
    readonly blocks: number;
  }[];
  /** What putting the changed ones costs, by an example of a price. */
  readonly put: { readonly dollars: number; readonly dollarsPer1000: number; readonly secondsAtLeast: number };
}

/** Throws what reading either side throws. */
export async function diffVolumes(request: DiffRequest): Promise<VolumeDiff> {
  using stack = new DisposableStack();
  let done = 0;
  const onBytes = (count: number) => {
    done += count;
    request.onProgress?.(done);
  };
  const options = { signal: request.signal, onBytes };
  const a = await readSide(request.a, stack, options);
  const b = await readSide(request.b, stack, options);
  return {
    names: diffNames(a, b),
    layers: diffLayers(a, b),
    blocks: a.disk === null || b.disk === null ? null : diffBlocks(a.disk, b.disk, request.signal),
  };
}

function diffNames(a: VolumeSide, b: VolumeSide): VolumeDiff["names"] {
  const only = (one: VolumeSide, other: VolumeSide) =>
    [...one.names].filter(([name]) => !other.names.has(name)).map(([name, digest]) => ({ name, digest }));
  const changed = [...b.names].flatMap(([name, to]) => {
    const from = a.names.get(name);
    return from === undefined || from === to ? [] : [{ name, from, to }];
  });
  return { added: only(b, a), removed: only(a, b), changed };
}

function diffLayers(a: VolumeSide, b: VolumeSide): VolumeDiff["layers"] {
  const shown = ({ diffID, bytes, ids }: SideLayer): DiffLayer => ({ diffID, bytes, snapshotIds: ids });
  const only = (one: VolumeSide, other: VolumeSide) =>
    [...one.layers.values()].filter(({ diffID }) => !other.layers.has(diffID)).map(shown);
  const both = [...b.layers.values()].filter(({ diffID }) => a.layers.has(diffID));
  const isMoved = ({ diffID, at }: SideLayer) => {
    const before = a.layers.get(diffID)!.at;
    return before.length > 0 && at.some((now) => !before.some((old) => now.start < old.end && old.start < now.end));
  };
  const moved = both.filter(isMoved).map(shown);
  return { added: only(b, a), removed: only(a, b), moved, kept: both.length - moved.length };
}

function diffBlocks(a: SideDisk, b: SideDisk, signal: AbortSignal): BlockDiff {
  const changed = changedBlocks(b.blocks, a.blocks);
  const counts = new Map<string, { owner: Owner; blocks: number }>();
  for (const index of changed.keys()) {
    signal.throwIfAborted();
    const owner = causeOf(index, a, b);
    const key = `${owner.kind} ${owner.digest ?? ""}`;
    const known = counts.get(key);
    if (known === undefined) counts.set(key, { owner, blocks: 1 });
    else known.blocks++;
  }
  const { dollars, secondsAtLeast } = estimatePush(changed.size);
  const causes = [...counts.values()]
    .sort((x, y) => y.blocks - x.blocks)
    .map(({ owner, blocks }) => ({ cause: owner.kind, digest: owner.digest ?? null, blocks }));
  return {
    blockSize: BLOCK_BYTES,
    used: b.blocks.size,
    changed: changed.size,
    causes,
    put: { dollars, dollarsPer1000: EBS_PRICES.putPer1000, secondsAtLeast },
  };
}

/** What most of the changed bytes of a block belong to in the second volume; where that has nothing there any more, in the first. */
function causeOf(index: number, a: SideDisk, b: SideDisk): Owner {
  const parts = changedParts(index, a, b);
  const now = parts.map((byte) => b.owners.at(byte)).filter((owner) => owner !== UNUSED);
  return mostOf(now.length > 0 ? now : parts.map((byte) => a.owners.at(byte)));
}

function mostOf(owners: readonly Owner[]): Owner {
  const weights = new Map<Owner, number>();
  for (const owner of owners) weights.set(owner, (weights.get(owner) ?? 0) + 1);
  const [first] = [...weights].sort(([, x], [, y]) => y - x);
  return first?.[0] ?? UNUSED;
}

/** First bytes of the 4096-byte blocks that differ; of all where one of the disks is not at hand. */
function changedParts(index: number, a: SideDisk, b: SideDisk): number[] {
  const start = index * BLOCK_BYTES;
  const parts = Array.from({ length: BLOCK_BYTES / BLOCK }, (_, part) => part * BLOCK);
  if (a.file === null || b.file === null) return parts.map((part) => start + part);
  const [left, right] = [a.file, b.file].map((disk) => {
    const bytes = Buffer.alloc(BLOCK_BYTES);
    readFully(disk.fd, bytes, start);
    return bytes;
  });
  return parts
    .filter((part) => !left!.subarray(part, part + BLOCK).equals(right!.subarray(part, part + BLOCK)))
    .map((part) => start + part);
}
