/**
 * Where everything of a disk lies: the tree of a plan (layout/disk.ts, graft.ts) cut into regions and laid out. Pure: no file is touched, no time asked.
 *
 *   rest: skeleton | hot files | stores: both databases | records: indexes, manifests, configurations | one region a layer's blob | one region a snapshot
 *
 * A layer's region holds its snapshot's directory and all that is in it, its files in the order of the tar, so that filling it is one ascending write. After a former
 * volume (former.ts) regions get their places again; one that no longer fits its place moves; when that is not possible all is placed anew.
 */

import { createHash } from "node:crypto";
import { type Digest, digestHex } from "../base/digest.ts";
import { HeadstartError, isHeadstartError } from "../base/errors.ts";
import { GiB, MiB } from "../base/limits.ts";
import { alignUp } from "../base/ranges.ts";
import { type FileTree, FileType } from "../erofs/file-tree.ts";
import { regionTooSmall } from "./ext4/failures.ts";
import { type Ext4Layout, type Ext4Options, layoutExt4, type RegionRequest } from "./ext4/layout.ts";
import { BLOCK } from "./ext4/ondisk.ts";
import type { RegionPlace } from "./ext4/place.ts";
import type { FillRows } from "./fill.ts";
import type { FormerVolume } from "./former.ts";
import { graftTrees } from "./graft.ts";
import { CACHE_LABEL, type DiskSkeleton, type DiskTarget } from "./layout/disk.ts";
import type { PlanSnapshot, VolumePlan } from "./plan.ts";

/** Before a partition, and behind it. */
export const PARTITION_MARGIN = MiB;
/** Below this a kernel that grows the file system online can run out of journal (specs/warm-volume.md 7.8). */
const JOURNAL_BLOCKS = 16_384;
/** What a node needs before it has grown the file system. */
const FREE_BYTES_MIN = 64 * MiB;
const FREE_SHARE = 0.05;
const FREE_INODES_MIN = 8192;
const FREE_INODES_SHARE = 0.25;

/** What tells a file system from all others; derived, never random. */
export interface DiskIdentity {
  /** 16 bytes each. */
  readonly uuid: Uint8Array;
  readonly hashSeed: Uint8Array;
  /** As text; used where there is a partition table. */
  readonly diskGuid: string;
}

/** From the digest of what is asked for: the same plan gives the same file system. */
export function identityOf(planDigest: Digest): DiskIdentity {
  const bytes = (label: string) => {
    const hash = createHash("sha256")
      .update(`headstart ${label}\0${digestHex(planDigest)}`)
      .digest()
      .subarray(0, 16);
    // RFC 9562, version 8: made in one's own way
    hash[6] = (hash[6]! & 0x0f) | 0x80;
    hash[8] = (hash[8]! & 0x3f) | 0x80;
    return hash;
  };
  return { uuid: bytes("uuid"), hashSeed: bytes("hash seed"), diskGuid: uuidText(bytes("disk guid")) };
}

export function formerIdentity(former: FormerVolume, own: DiskIdentity): DiskIdentity {
  return {
    uuid: Buffer.from(former.uuid, "hex"),
    hashSeed: Buffer.from(former.hashSeed, "hex"),
    diskGuid: former.diskGuid ?? own.diskGuid,
  };
}

export function uuidText(bytes: Uint8Array): string {
  const hex = Buffer.from(bytes).toString("hex");
  return [hex.slice(0, 8), hex.slice(8, 12), hex.slice(12, 16), hex.slice(16, 20), hex.slice(20)].join("-");
}

export interface DiskLayoutRequest {
  readonly plan: VolumePlan;
  readonly target: DiskTarget;
  readonly skeleton: DiskSkeleton;
  readonly selinux: boolean;
  /** The tree of each snapshot, by id. */
  readonly trees: ReadonlyMap<number, FileTree>;
  /** Inodes of those trees whose data come first, in this order. */
  readonly hot: readonly { readonly id: number; readonly inode: number }[];
  /** Whole GiB of the disk, or as few as will do. */
  readonly sizeGib: number | "auto";
  readonly identity: DiskIdentity;
  readonly former: FormerVolume | null;
}

export interface DiskLayout {
  readonly ext4: Ext4Layout;
  readonly identity: DiskIdentity;
  /** Bytes. */
  readonly diskSize: number;
  /** Where the file system begins. */
  readonly base: number;
  /** Null: there was none to follow; else what became of its places. */
  readonly followed: Followed | null;
  readonly placeOf: {
    readonly rest: RegionPlace;
    readonly stores: RegionPlace;
    readonly records: RegionPlace;
    readonly hot: RegionPlace | null;
    readonly blob: (digest: Digest) => RegionPlace | null;
    readonly snapshot: (id: number) => RegionPlace;
  };
  /** Where the bytes of a snapshot's layer go. */
  snapshotRows(snapshot: PlanSnapshot): FillRows;
  blobRows(digest: Digest): FillRows;
}

export type Followed =
  | { readonly kept: true; readonly moved: number }
  /** Everything has a new place. */
  | { readonly kept: false; readonly reason: string };

interface NamedRegion {
  readonly name: string;
  readonly request: Omit<RegionRequest, "place">;
  readonly former: RegionPlace | undefined;
}

/** Throws HS_EXT4_FULL with the least size, HS_EXT4_LIMIT. */
export function layoutDisk(request: DiskLayoutRequest): DiskLayout {
  const { plan, skeleton, target } = request;
  const snapshots = plan.snapshots;
  const grafts = snapshots.map(({ id }) => ({
    at: skeleton.snapshots.get(id)!.files,
    tree: request.trees.get(id)!,
  }));
  const { tree, firstInodes } = graftTrees(skeleton.tree, grafts, request.selinux ? CACHE_LABEL : null);
  const firstOf = new Map(snapshots.map(({ id }, index) => [id, firstInodes[index]!]));
  const hot = request.hot.map(({ id, inode }) => firstOf.get(id)! + inode - 1);

  const regions = regionsOf(request, firstOf, hot);
  const base = target.partition === null ? 0 : PARTITION_MARGIN;
  const { ext4, followed } = place(tree, regions, request, 2 * base);
  const places = new Map(regions.map(({ name }, index) => [name, ext4.regions[index + 1]!.place]));
  const rowsOf = (inodes: ArrayLike<number>) => fillRows(ext4, base, inodes);
  return {
    ext4,
    identity: followed?.kept ? formerIdentity(request.former!, request.identity) : request.identity,
    diskSize: ext4.size + 2 * base,
    base,
    followed,
    placeOf: {
      rest: ext4.regions[0]!.place,
      stores: places.get(STORES)!,
      records: places.get(RECORDS)!,
      hot: places.get(HOT) ?? null,
      blob: (digest) => places.get(digest) ?? null,
      snapshot: (id) => places.get(snapshotRegion(id))!,
    },
    snapshotRows: ({ id }) =>
      rowsOf(filesByAddress(request.trees.get(id)!).map((inode) => firstOf.get(id)! + inode - 1)),
    blobRows: (digest) => rowsOf([skeleton.blobs.get(digest)!]),
  };
}

const STORES = "stores";
const RECORDS = "records";
const HOT = "hot";
const snapshotRegion = (id: number) => `snapshot ${id}`;

function regionsOf(
  request: DiskLayoutRequest,
  firstOf: ReadonlyMap<number, number>,
  hot: readonly number[],
): NamedRegion[] {
  const { plan, skeleton, former } = request;
  const regions: NamedRegion[] = [];
  const add = (name: string, wanted: Omit<RegionRequest, "place">, place: RegionPlace | undefined) =>
    regions.push({ name, request: wanted, former: place });
  if (hot.length > 0) add(HOT, { inodes: Uint32Array.from(hot) }, former?.regions[HOT]);
  const blocksOf = (inodes: readonly number[]) =>
    inodes.reduce((sum, inode) => sum + Math.ceil(skeleton.tree.size[inode]! / BLOCK), 0);
  const stores = [skeleton.metaDatabase, skeleton.snapshotDatabase];
  add(STORES, { inodes: stores, blocksMin: 2 * blocksOf(stores) }, former?.regions[STORES]);
  const kept = plan.blobs.filter(({ descriptor }) => skeleton.blobs.has(descriptor.digest));
  const records = kept
    .filter(({ kind }) => kind !== "layer")
    .map(({ descriptor }) => skeleton.blobs.get(descriptor.digest)!);
  const room = { blocksMin: 2 * blocksOf(records), inodesMin: 2 * records.length };
  add(RECORDS, { inodes: records, ...room }, former?.regions[RECORDS]);
  for (const { kind, descriptor } of kept) {
    if (kind !== "layer") continue;
    add(descriptor.digest, { inodes: [skeleton.blobs.get(descriptor.digest)!] }, former?.blobs.get(descriptor.digest));
  }
  const isHot = new Set(hot);
  const formerLayers = new Map(former?.layers.map((layer) => [layer.id, layer.place]));
  for (const { id } of plan.snapshots.toSorted((a, b) => a.id - b.id)) {
    const first = firstOf.get(id)!;
    const own = skeleton.snapshots.get(id)!;
    const tree = request.trees.get(id)!;
    const inodes = [own.directory, own.files, own.work];
    for (let inode = 1; inode < tree.inodeCount; inode++) {
      if (tree.type[inode] !== FileType.regular || isEmpty(tree, inode)) inodes.push(first + inode - 1);
    }
    for (const inode of filesByAddress(tree)) {
      if (!isHot.has(first + inode - 1)) inodes.push(first + inode - 1);
    }
    add(snapshotRegion(id), { inodes: Uint32Array.from(inodes) }, formerLayers.get(id));
  }
  return regions;
}

function isEmpty(tree: FileTree, inode: number): boolean {
  return tree.segmentStart[inode] === tree.segmentStart[inode + 1];
}

/** Regular files with data, in the order of the tar. */
function filesByAddress(tree: FileTree): number[] {
  const files: number[] = [];
  for (let inode = 1; inode < tree.inodeCount; inode++) {
    if (tree.type[inode] === FileType.regular && !isEmpty(tree, inode)) files.push(inode);
  }
  const address = (inode: number) => tree.segmentAddress[tree.segmentStart[inode]!]!;
  return files.sort((a, b) => address(a) - address(b));
}

function place(
  tree: FileTree,
  regions: readonly NamedRegion[],
  request: DiskLayoutRequest,
  margin: number,
): { readonly ext4: Ext4Layout; readonly followed: Followed | null } {
  const { plan, former, sizeGib, identity } = request;
  const common = { time: plan.time, journalBlocks: JOURNAL_BLOCKS };
  let reason = "";
  if (former !== null && sizeGib !== "auto" && sizeGib * GiB !== former.size) {
    reason = `it has ${former.size / GiB} GiB, asked for are ${sizeGib}`;
  } else if (former !== null) {
    const own = formerIdentity(former, identity);
    const options = { ...common, ...own, inodesPerGroup: former.inodesPerGroup, size: former.size - margin };
    const found = placeAgain(tree, regions, options, former);
    if (!(found instanceof HeadstartError)) return found;
    reason = found.details.what;
  }
  const followed = former === null ? null : { kept: false as const, reason };
  const requests = regions.map(({ request: each }) => each);
  const inodesFree = Math.max(FREE_INODES_MIN, Math.ceil(tree.inodeCount * FREE_INODES_SHARE));
  const options = { ...common, uuid: identity.uuid, hashSeed: identity.hashSeed, regions: requests, inodesFree };
  const auto = { free: freeBytes(tree), unit: GiB, margin };
  if (sizeGib === "auto") return { ext4: layoutExt4(tree, { ...options, size: auto }), followed };
  try {
    return { ext4: layoutExt4(tree, { ...options, size: sizeGib * GiB - margin }), followed };
  } catch (error) {
    if (!isHeadstartError(error, "HS_EXT4_FULL")) throw error;
    const least = layoutExt4(tree, { ...options, size: { ...auto, free: 0 } }).size + margin;
    throw new HeadstartError("HS_EXT4_FULL", {
      what: `a disk of ${sizeGib} GiB is too small for these images: the least is ${least / GiB} GiB`,
      cause: error,
    });
  }
}

/** Gives up the place of a region that no longer fits there, one by one. Returns the error when there is no room for what moved. */
function placeAgain(
  tree: FileTree,
  regions: readonly NamedRegion[],
  options: Omit<Ext4Options, "regions">,
  former: FormerVolume,
): { readonly ext4: Ext4Layout; readonly followed: Followed } | HeadstartError {
  const places = [former.regions.rest, ...regions.map((region) => region.former)];
  for (let moved = 0; ; moved++) {
    const requests = regions.map(({ request }, index) => ({ ...request, place: places[index + 1] }));
    try {
      const ext4 = layoutExt4(tree, { ...options, restPlace: places[0], regions: requests });
      return { ext4, followed: { kept: true, moved } };
    } catch (error) {
      if (!isHeadstartError(error, "HS_EXT4_FULL")) throw error;
      const region = regionTooSmall(error);
      if (region === null || places[region] === undefined) return error;
      places[region] = undefined;
    }
  }
}

/** Of the whole: for the node's own files until it has grown the file system, and for the next build's. */
function freeBytes(tree: FileTree): number {
  let used = 0;
  for (let inode = 0; inode < tree.inodeCount; inode++) used += alignUp(tree.size[inode]!, BLOCK);
  return Math.max(FREE_BYTES_MIN, Math.ceil(used * FREE_SHARE));
}

/** The stretches of these inodes (numbers in the whole tree) on the disk; they ascend by address. */
function fillRows(ext4: Ext4Layout, base: number, inodes: ArrayLike<number>): FillRows {
  const { tree } = ext4;
  const address: number[] = [];
  const length: number[] = [];
  const offset: number[] = [];
  for (let index = 0; index < inodes.length; index++) {
    const inode = inodes[index]!;
    const extents = ext4.extentsOf(inode);
    let extent = 0;
    for (let at = tree.segmentStart[inode]!; at < tree.segmentStart[inode + 1]!; at++) {
      const start = tree.segmentFileOffset[at]!;
      const end = start + tree.segmentLength[at]!;
      for (let position = start; position < end; ) {
        while ((extents[extent]!.logical + extents[extent]!.length) * BLOCK <= position) extent++;
        const { logical, physical, length: blocks } = extents[extent]!;
        const count = Math.min(end, (logical + blocks) * BLOCK) - position;
        address.push(tree.segmentAddress[at]! + (position - start));
        length.push(count);
        offset.push(base + physical * BLOCK + (position - logical * BLOCK));
        position += count;
      }
    }
  }
  return { address: Float64Array.from(address), length: Float64Array.from(length), offset: Float64Array.from(offset) };
}
