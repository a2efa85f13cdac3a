/**
 * What a volume holds, read from containerd's databases alone: no containerd, no mount, no root of ours. Takes directories and disks that we built and those that a
 * containerd has used. Throws HS_NOT_FOUND, HS_LIMIT, HS_MALFORMED, HS_TRUNCATED, HS_EXT4_INVALID, HS_GPT_INVALID, HS_FORMAT_UNSUPPORTED.
 */

import { readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { HeadstartError } from "../base/errors.ts";
import { MiB } from "../base/limits.ts";
import { type Bucket, isBucket } from "./bolt/ondisk.ts";
import { readBolt } from "./bolt/read.ts";
import { readUvarint } from "./containerd-db.ts";
import { uuidText } from "./disk-layout.ts";
import { BLOCK } from "./ext4/ondisk.ts";
import { type Ext4Reader, openExt4 } from "./ext4/read.ts";
import { readGpt } from "./gpt.ts";
import { ContainerdPaths } from "./layout/containerd.ts";
import { DISK_TARGETS } from "./layout/disk.ts";
import { fileSystemOf, type OpenDisk, openVolume } from "./verify/open-volume.ts";

export interface InspectedRoot {
  readonly kind: "containerd";
  readonly schemaVersion: number | null;
  readonly namespaces: readonly InspectedNamespace[];
  /** The overlayfs snapshotter's own records. */
  readonly overlayfs: readonly InspectedSnapshot[];
  /** Null: a directory. */
  readonly disk: InspectedDisk | null;
}

export interface InspectedDisk {
  /** Bytes. */
  readonly size: number;
  /** Name of its one partition; null: the file system is the whole disk. */
  readonly partition: string | null;
  readonly uuid: string;
  /** Bytes of the file system, and those that are free. */
  readonly bytes: number;
  readonly freeBytes: number;
  /** Where containerd's root is on it. */
  readonly root: string;
}

export interface InspectedNamespace {
  readonly name: string;
  readonly images: readonly InspectedImage[];
  readonly blobs: readonly { readonly digest: string; readonly size: number | null; readonly labels: Labels }[];
  readonly snapshots: readonly {
    readonly snapshotter: string;
    readonly key: string;
    readonly name: string;
    readonly parent: string | null;
  }[];
}

export interface InspectedImage {
  readonly name: string;
  readonly digest: string;
  readonly mediaType: string;
  readonly size: number | null;
  readonly pinned: boolean;
  readonly labels: Labels;
}

export interface InspectedSnapshot {
  readonly id: number | null;
  readonly name: string;
  readonly kind: "view" | "active" | "committed" | "unknown";
  readonly parent: string | null;
  readonly inodes: number | null;
  readonly size: number | null;
}

type Labels = Readonly<Record<string, string>>;

/** Databases of busy nodes with thousands of images have some 50 MB. */
const DATABASE_BYTES_MAX = 512 * MiB;

/** A directory or a disk. */
export function inspectVolume(path: string): InspectedRoot {
  using volume = openVolume(path);
  return volume.kind === "directory" ? inspectRoot(path) : inspectDisk(volume);
}

export function inspectRoot(root: string): InspectedRoot {
  const meta = readDatabase(join(root, ContainerdPaths.metaDatabase));
  return inspectDatabases(meta, readDatabase(join(root, ContainerdPaths.snapshotDatabase)), null);
}

function inspectDisk(disk: OpenDisk): InspectedRoot {
  const partition = disk.partitioned ? (readGpt(disk.disk).partitions[0]?.name ?? "") : null;
  const reader = openExt4(fileSystemOf(disk).source);
  const { uuid, blocks, freeBlocks } = reader.superblock;
  for (const { containerd } of Object.values(DISK_TARGETS)) {
    const [meta, snapshots] = [ContainerdPaths.metaDatabase, ContainerdPaths.snapshotDatabase].map((name) =>
      databaseOn(reader, `${containerd}${name}`, disk.path),
    );
    if (meta === undefined || snapshots === undefined || meta === null || snapshots === null) continue;
    return inspectDatabases(meta, snapshots, {
      size: disk.disk.size,
      partition,
      uuid: uuidText(uuid),
      bytes: blocks * BLOCK,
      freeBytes: freeBlocks * BLOCK,
      root: `/${containerd.replace(/\/$/, "")}`,
    });
  }
  throw new HeadstartError("HS_NOT_FOUND", { what: `${disk.path}: no root of containerd is on it` });
}

/** Null: there is no such file. */
function databaseOn(reader: Ext4Reader, path: string, disk: string): Bucket | null {
  let inode = reader.root;
  for (const name of path.split("/")) {
    const found = reader.readdir(inode).entries.find((entry) => Buffer.from(entry.name).equals(Buffer.from(name)));
    if (found === undefined) return null;
    inode = reader.inode(found.inode);
  }
  checkDatabaseSize(`${disk}: ${path}`, inode.size);
  return readBolt(reader.read(inode, 0, inode.size), `${disk}: ${path}`).root;
}

function inspectDatabases(meta: Bucket, overlay: Bucket, disk: InspectedDisk | null): InspectedRoot {
  const v1 = sub(meta, "v1");
  const version = leaf(v1, "version");
  return {
    kind: "containerd",
    schemaVersion: version === null ? null : half(readUvarint(version)),
    namespaces: buckets(v1).map(([name, namespace]) => inspectNamespace(name, namespace)),
    overlayfs: buckets(sub(sub(overlay, "v1"), "snapshots"))
      .map(([name, snapshot]) => inspectSnapshot(name, snapshot))
      .sort((a, b) => (a.id ?? 0) - (b.id ?? 0)),
    disk,
  };
}

export function readDatabase(path: string): Bucket {
  const known = statSync(path, { throwIfNoEntry: false });
  if (known === undefined) throw new HeadstartError("HS_NOT_FOUND", { what: `${path}: no root of containerd` });
  checkDatabaseSize(path, known.size);
  return readBolt(readFileSync(path), path).root;
}

function checkDatabaseSize(what: string, size: number): void {
  if (size <= DATABASE_BYTES_MAX) return;
  throw new HeadstartError("HS_LIMIT", { what: `${what}: ${size} bytes, at most ${DATABASE_BYTES_MAX} are read` });
}

function inspectNamespace(name: string, namespace: Bucket): InspectedNamespace {
  return {
    name,
    images: buckets(sub(namespace, "images")).map(([image, record]) => {
      const target = sub(record, "target");
      const labels = labelsOf(record);
      return {
        name: image,
        digest: text(target, "digest") ?? "",
        mediaType: text(target, "mediatype") ?? "",
        size: varintOf(target, "size"),
        pinned: labels["io.cri-containerd.pinned"] === "pinned",
        labels,
      };
    }),
    blobs: buckets(sub(sub(namespace, "content"), "blob")).map(([digest, record]) => ({
      digest,
      size: varintOf(record, "size"),
      labels: labelsOf(record),
    })),
    snapshots: buckets(sub(namespace, "snapshots")).flatMap(([snapshotter, records]) =>
      buckets(records).map(([key, record]) => ({
        snapshotter,
        key,
        name: text(record, "name") ?? "",
        parent: text(record, "parent"),
      })),
    ),
  };
}

const KINDS = ["unknown", "view", "active", "committed"] as const;

function inspectSnapshot(name: string, record: Bucket): InspectedSnapshot {
  const id = leaf(record, "id");
  return {
    id: id === null ? null : readUvarint(id),
    name,
    kind: KINDS[leaf(record, "kind")?.[0] ?? 0] ?? "unknown",
    parent: text(record, "parent"),
    inodes: varintOf(record, "inodes"),
    size: varintOf(record, "size"),
  };
}

const NONE: Bucket = { sequence: 0, entries: new Map() };

function sub(bucket: Bucket, name: string): Bucket {
  const value = bucket.entries.get(name);
  return isBucket(value) ? value : NONE;
}

function buckets(bucket: Bucket): [string, Bucket][] {
  return [...bucket.entries].filter((entry): entry is [string, Bucket] => isBucket(entry[1]));
}

function leaf(bucket: Bucket, name: string): Uint8Array | null {
  const value = bucket.entries.get(name);
  return value instanceof Uint8Array ? value : null;
}

function text(bucket: Bucket, name: string): string | null {
  const value = leaf(bucket, name);
  return value === null ? null : Buffer.from(value).toString();
}

/** Zig-zag: a number that is not negative is stored doubled. */
function half(value: number | null): number | null {
  return value === null || value % 2 !== 0 ? null : value / 2;
}

function varintOf(bucket: Bucket, name: string): number | null {
  const value = leaf(bucket, name);
  return value === null ? null : half(readUvarint(value));
}

function labelsOf(record: Bucket): Labels {
  return Object.fromEntries(
    [...sub(record, "labels").entries].flatMap(([name, value]) =>
      value instanceof Uint8Array ? [[name, Buffer.from(value).toString()]] : [],
    ),
  );
}
