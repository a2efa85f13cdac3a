/**
 * What lies in which block of a disk: by the file system itself where the disk is at hand, by the regions of its manifest where only that is. Answers why a block of a snapshot
 * is another one.
 */

import { FileType } from "../../erofs/file-tree.ts";
import { BLOCK, BLOCKS_PER_GROUP, hasSuper, INODES_PER_BLOCK } from "../ext4/ondisk.ts";
import { descriptorBlock } from "../ext4/parse-superblock.ts";
import type { Ext4Inode, Ext4Reader } from "../ext4/read.ts";
import type { DescribedRegion, VolumeDocument } from "../provenance.ts";
import { CONTENT_BLOBS } from "../verify/blobs.ts";
import { BACKEND, BACKEND_DATABASE, META_DATABASE } from "../verify/store.ts";

export const CAUSES = [
  "layer",
  "blob",
  "manifests",
  "databases",
  "directories",
  "hot files",
  "inode tables",
  "bitmaps",
  "descriptors",
  "journal",
  "metadata",
  "partition table",
  "unused",
] as const;

export interface Owner {
  readonly kind: (typeof CAUSES)[number];
  /** The diffID of a layer, the digest of a layer's blob. */
  readonly digest?: string;
}

interface Run {
  readonly start: number;
  readonly end: number;
  readonly owner: Owner;
}

export const PARTITION_TABLE: Owner = { kind: "partition table" };
export const UNUSED: Owner = { kind: "unused" };

/** Runs of file system blocks. */
export class BlockOwners {
  readonly #runs: Run[] = [];
  #sorted = true;
  /** First byte of the file system on the disk, and its length in blocks; beyond it lies the partition table. */
  readonly base: number;
  readonly blocks: number;

  constructor(base: number, blocks: number) {
    this.base = base;
    this.blocks = blocks;
  }

  add(start: number, count: number, owner: Owner): void {
    if (count === 0) return;
    this.#runs.push({ start, end: start + count, owner });
    this.#sorted = false;
  }

  /** Of the 4096 bytes at this byte of the disk. */
  at(byte: number): Owner {
    if (byte < this.base || byte >= this.base + this.blocks * BLOCK) return PARTITION_TABLE;
    if (!this.#sorted) this.#runs.sort((a, b) => a.start - b.start);
    this.#sorted = true;
    const block = Math.floor((byte - this.base) / BLOCK);
    let low = 0;
    let high = this.#runs.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (this.#runs[middle]!.end <= block) low = middle + 1;
      else high = middle;
    }
    const run = this.#runs[low];
    return run !== undefined && run.start <= block ? run.owner : UNUSED;
  }
}

export interface DiskNames {
  /** Where containerd's root lies, "" or without a slash at its end. */
  readonly root: string;
  /** The diffID of the layer in a snapshot's folder. */
  readonly diffIDs: ReadonlyMap<number, string>;
  /** Digests of layers' blobs. */
  readonly layers: ReadonlySet<string>;
}

/** Throws HS_EXT4_INVALID. */
export function ownersOfDisk(reader: Ext4Reader, base: number, names: DiskNames): BlockOwners {
  const { superblock, groups } = reader;
  const owners = new BlockOwners(base, superblock.blocks);
  const descriptors: Owner = { kind: "descriptors" };
  const front = Math.min(superblock.descBlocks, superblock.firstMetaBlock) + superblock.reservedDescBlocks;
  for (const [index, group] of groups.entries()) {
    if (hasSuper(index)) owners.add(index * BLOCKS_PER_GROUP, 1 + front, descriptors);
    owners.add(group.blockBitmap, 1, { kind: "bitmaps" });
    owners.add(group.inodeBitmap, 1, { kind: "bitmaps" });
    owners.add(group.inodeTable, superblock.inodesPerGroup / INODES_PER_BLOCK, { kind: "inode tables" });
  }
  for (let index = superblock.firstMetaBlock; index < superblock.descBlocks; index++) {
    owners.add(descriptorBlock(superblock, index), 1, descriptors);
  }
  if (superblock.journalInode !== 0)
    addInode(owners, reader, reader.inode(superblock.journalInode), { kind: "journal" });
  const paths = new Map<number, { path: string; owner: Owner }>();
  const directories: Owner = { kind: "directories" };
  addInode(owners, reader, reader.root, directories);
  paths.set(reader.root.number, { path: "", owner: directories });
  const seen = new Set([reader.root.number]);
  reader.walk({
    inode() {},
    name(directory, name, inode) {
      if (seen.has(inode.number)) return;
      seen.add(inode.number);
      const above = paths.get(directory.number)!;
      const path = above.path === "" ? latin1(name) : `${above.path}/${latin1(name)}`;
      // all of a layer has the owner of its folder
      const owner = above.owner.kind === "layer" ? above.owner : ownerOf(path, names);
      if (inode.type === FileType.directory) paths.set(inode.number, { path, owner });
      addInode(owners, reader, inode, owner);
    },
  });
  return owners;
}

function latin1(bytes: Uint8Array): string {
  return Buffer.from(bytes).toString("latin1");
}

function addInode(owners: BlockOwners, reader: Ext4Reader, inode: Ext4Inode, owner: Owner): void {
  const { extents, nodes } = reader.extents(inode);
  for (const { physical, length } of extents) owners.add(physical, length, owner);
  for (const node of nodes) owners.add(node, 1, owner);
  if (inode.xattrBlock > 0) owners.add(inode.xattrBlock, 1, owner);
}

function ownerOf(path: string, { root, diffIDs, layers }: DiskNames): Owner {
  const prefix = root === "" ? "" : `${root}/`;
  if (!path.startsWith(prefix)) return { kind: "directories" };
  const inside = path.slice(prefix.length);
  if (inside === META_DATABASE || inside === BACKEND_DATABASE) return { kind: "databases" };
  const [, algorithm, hex] = new RegExp(`^${CONTENT_BLOBS}/(\\w+)/(\\w+)$`).exec(inside) ?? [];
  if (hex !== undefined) {
    const digest = `${algorithm}:${hex}`;
    return layers.has(digest) ? { kind: "blob", digest } : { kind: "manifests" };
  }
  const [, id] = new RegExp(`^${BACKEND}/snapshots/(\\d+)$`).exec(inside) ?? [];
  const digest = id === undefined ? undefined : diffIDs.get(Number(id));
  return digest === undefined ? { kind: "directories" } : { kind: "layer", digest };
}

const REGION_KINDS: Readonly<Record<string, Owner["kind"]>> = {
  rest: "directories",
  stores: "databases",
  records: "manifests",
  hot: "hot files",
};

/** Null: it describes no disk. What lies before and between its regions is metadata. */
export function ownersOfDocument(document: VolumeDocument): BlockOwners | null {
  const { fs, size } = document;
  if (fs === null || size === null) return null;
  const owners = new BlockOwners(fs.offset, Math.floor((size - 2 * fs.offset) / BLOCK));
  const add = (region: DescribedRegion | null, owner: Owner) => {
    if (region !== null) owners.add(region.startBlock, region.blockCount, owner);
  };
  for (const [name, region] of document.regions) add(region, { kind: REGION_KINDS[name] ?? "metadata" });
  const seen = new Set<string>();
  for (const { diffID, digest, chainID, region, blobRegion } of document.images.flatMap((image) => image.layers)) {
    if (!seen.has(chainID)) add(region, { kind: "layer", digest: diffID });
    if (!seen.has(digest)) add(blobRegion, { kind: "blob", digest });
    seen.add(chainID).add(digest);
  }
  const first = document.regions.get("rest")?.startBlock ?? 0;
  owners.add(0, first, { kind: "metadata" });
  for (let group = 1; group * BLOCKS_PER_GROUP < owners.blocks; group++) {
    if (hasSuper(group)) owners.add(group * BLOCKS_PER_GROUP, 1, { kind: "metadata" });
  }
  return owners;
}
