/** One side of a comparison: a directory, a disk, or the manifest of one (PATH.json), whose disk need not be there. Reads names and places, not the contents of layers. */

import { closeSync, openSync, readSync, statSync } from "node:fs";
import { HeadstartError } from "../../base/errors.ts";
import { MiB } from "../../base/limits.ts";
import { readBolt } from "../bolt/read.ts";
import type { Range } from "../ext4/geometry.ts";
import { BLOCK } from "../ext4/ondisk.ts";
import { openExt4 } from "../ext4/read.ts";
import { type DescribedRegion, readVolumeDocument, type VolumeDocument } from "../provenance.ts";
import { StoredBlobs } from "../verify/blobs.ts";
import { diskBlocks } from "../verify/disk-blocks.ts";
import { Findings } from "../verify/findings.ts";
import { checkImages, type ImageGraph } from "../verify/graph.ts";
import { type ImageRecord, readMetaRecords } from "../verify/meta-db.ts";
import { fileSystemOf, type OpenDisk, openVolume } from "../verify/open-volume.ts";
import { type BackendRecord, readBackendRecords } from "../verify/snapshots.ts";
import { BACKEND, BACKEND_DATABASE, type ContainerdRoot, findContainerdRoot, META_DATABASE } from "../verify/store.ts";
import { directoryTree, ext4Tree, findPath, readAll, type StoredTree } from "../verify/stored-tree.ts";
import { type BlockOwners, ownersOfDisk, ownersOfDocument } from "./owners.ts";

export interface SideLayer {
  readonly diffID: string;
  /** Unpacked; null where it is not known. */
  readonly bytes: number | null;
  /** Snapshots that it is in, by number. */
  readonly ids: readonly number[];
  /** Blocks of the file system, one run a snapshot: of its region, or only where its data begin. Empty where nothing lies on blocks. */
  readonly at: readonly Range[];
}

export interface VolumeSide {
  readonly path: string;
  /** Targets by name; ids are left out. */
  readonly names: ReadonlyMap<string, string>;
  readonly layers: ReadonlyMap<string, SideLayer>;
  readonly disk: SideDisk | null;
}

export interface SideDisk {
  /** SHA-256 in hex of the blocks that are not zeros. */
  readonly blocks: ReadonlyMap<number, string>;
  /** Bytes. */
  readonly size: number;
  readonly owners: BlockOwners;
  /** Null: only its manifest is there. */
  readonly file: OpenDisk | null;
}

export interface SideOptions {
  readonly signal: AbortSignal;
  readonly onBytes: (count: number) => void;
}

const DATABASE_BYTES_MAX = 512 * MiB;

/** The disk stays open until `stack` is disposed. Throws HS_NOT_FOUND, HS_FORMAT_UNSUPPORTED, HS_MALFORMED, HS_EXT4_INVALID. */
export async function readSide(path: string, stack: DisposableStack, options: SideOptions): Promise<VolumeSide> {
  if (isDocument(path)) return sideOfDocument(readVolumeDocument(path), path);
  const volume = stack.use(openVolume(path));
  if (volume.kind === "directory") {
    const stored = directoryTree(path);
    return { path, disk: null, ...contents(await readContents(stored, path), () => []) };
  }
  const { source, base } = fileSystemOf(volume);
  const reader = openExt4(source);
  const stored = ext4Tree(reader, volume.fd, base);
  const found = await readContents(stored, path);
  const diffIDs = new Map(found.snapshots.map(({ record, diffID }) => [record.id, diffID]));
  const owners = ownersOfDisk(reader, base, { root: found.root.path, diffIDs, layers: found.graph.layers });
  const blocks = new Map<number, string>();
  for await (const { index, digest } of diskBlocks(volume, options)) {
    if (digest !== null) blocks.set(index, digest.toString("hex"));
  }
  return {
    path,
    ...contents(found, (id) => firstBlocks(stored, found.root, id)),
    disk: { blocks, size: volume.disk.size, owners, file: volume },
  };
}

/** A JSON object, not a disk. */
function isDocument(path: string): boolean {
  const known = statSync(path, { throwIfNoEntry: false });
  if (known === undefined) throw new HeadstartError("HS_NOT_FOUND", { what: path });
  if (!known.isFile()) return false;
  const fd = openSync(path, "r");
  try {
    const start = Buffer.alloc(16);
    return /^\s*\{/.test(start.subarray(0, readSync(fd, start)).toString("latin1"));
  } finally {
    closeSync(fd);
  }
}

function sideOfDocument(document: VolumeDocument, path: string): VolumeSide {
  const names = new Map(document.images.flatMap(({ refs, digest }) => refs.map((ref) => [ref, digest] as const)));
  const layers = new Map<string, SideLayer>();
  const seen = new Set<number>();
  for (const { diffID, bytes, snapshotId, region } of document.images.flatMap((image) => image.layers)) {
    if (seen.has(snapshotId)) continue;
    seen.add(snapshotId);
    addLayer(layers, { diffID, bytes, id: snapshotId, at: rangesOf(region) });
  }
  const owners = ownersOfDocument(document);
  const { blocks, size } = document;
  const disk =
    owners === null || blocks === null || size === null ? null : { blocks: blocks.sha256, size, owners, file: null };
  return { path, names, layers, disk };
}

function rangesOf(region: DescribedRegion | null): Range[] {
  return region === null ? [] : [{ start: region.startBlock, end: region.startBlock + region.blockCount }];
}

interface Contents {
  readonly root: ContainerdRoot;
  readonly images: readonly ImageRecord[];
  readonly graph: ImageGraph;
  readonly snapshots: readonly { readonly record: BackendRecord; readonly diffID: string }[];
}

/** What the databases and blobs say. Whether it is right is another question (verify.ts). */
async function readContents(stored: StoredTree, path: string): Promise<Contents> {
  const root = findContainerdRoot(stored.tree);
  if (root === null) throw new HeadstartError("HS_NOT_FOUND", { what: `${path}: no root of containerd` });
  const database = async (name: string) => {
    const inode = findPath(stored.tree, root.inode, name);
    if (inode === null) throw new HeadstartError("HS_NOT_FOUND", { what: `${path}: ${name}` });
    return readBolt(await readAll(stored, inode, DATABASE_BYTES_MAX, name), `${path}: ${name}`).root;
  };
  const findings = new Findings();
  const options = { findings, snapshotter: "overlayfs", time: null, exact: false, sequence: null };
  const records = readMetaRecords(await database(META_DATABASE), options);
  const backend = readBackendRecords(await database(BACKEND_DATABASE), options);
  const blobs = new StoredBlobs(stored, root.inode, findings, () => {});
  const graph = await checkImages(records, blobs, options);
  const byName = new Map(backend.map((record) => [record.name, record]));
  const snapshots = [...graph.chains.values()].flatMap(({ chainID, diffID }) => {
    const record = byName.get(records.snapshots.get(chainID)?.name ?? "");
    return record === undefined ? [] : [{ record, diffID }];
  });
  return { root, images: records.images, graph, snapshots };
}

function contents(found: Contents, placeOf: (id: number) => Range[]): Pick<VolumeSide, "names" | "layers"> {
  const layers = new Map<string, SideLayer>();
  for (const { record, diffID } of found.snapshots) {
    addLayer(layers, { diffID, bytes: record.size, id: record.id, at: placeOf(record.id) });
  }
  const names = found.images
    .filter(({ name }) => !/^sha\d+:/.test(name))
    .map(({ name, target }) => [name, target.digest] as const);
  return { names: new Map(names), layers };
}

function addLayer(
  layers: Map<string, SideLayer>,
  one: { readonly diffID: string; readonly bytes: number | null; readonly id: number; readonly at: readonly Range[] },
): void {
  const { diffID, bytes, id, at } = one;
  const known = layers.get(diffID);
  layers.set(diffID, { diffID, bytes, ids: [...(known?.ids ?? []), id], at: [...(known?.at ?? []), ...at] });
}

/** Where the data of a snapshot's files begin. */
function firstBlocks(stored: StoredTree, root: ContainerdRoot, id: number): Range[] {
  const { tree } = stored;
  const folder = findPath(tree, root.inode, `${BACKEND}/snapshots/${id}`);
  let first = Number.POSITIVE_INFINITY;
  const stack = folder === null ? [] : [folder];
  for (let top = stack.pop(); top !== undefined; top = stack.pop()) {
    const segment = tree.segmentStart[top]!;
    if (segment < tree.segmentStart[top + 1]!) first = Math.min(first, tree.segmentAddress[segment]!);
    for (let dirent = tree.childStart[top]!; dirent < tree.childStart[top + 1]!; dirent++) {
      stack.push(tree.childInode[dirent]!);
    }
  }
  return Number.isFinite(first) ? [{ start: first / BLOCK, end: first / BLOCK + 1 }] : [];
}
