/**
 * What a containerd root holds, read from its databases alone: no containerd, no mount, no root of ours. Takes roots that we built and roots that a containerd has used.
 * Throws HS_NOT_FOUND, HS_LIMIT, HS_MALFORMED, HS_TRUNCATED.
 */

import { readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { HeadstartError } from "../base/errors.ts";
import { MiB } from "../base/limits.ts";
import { type Bucket, isBucket } from "./bolt/ondisk.ts";
import { readBolt } from "./bolt/read.ts";
import { readUvarint } from "./containerd-db.ts";
import { ContainerdPaths } from "./layout/containerd.ts";

export interface InspectedRoot {
  readonly kind: "containerd";
  readonly schemaVersion: number | null;
  readonly namespaces: readonly InspectedNamespace[];
  /** The overlayfs snapshotter's own records. */
  readonly overlayfs: readonly InspectedSnapshot[];
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

export function inspectRoot(root: string): InspectedRoot {
  const meta = readDatabase(join(root, ContainerdPaths.metaDatabase));
  const overlay = readDatabase(join(root, ContainerdPaths.snapshotDatabase));
  const v1 = sub(meta, "v1");
  const version = leaf(v1, "version");
  return {
    kind: "containerd",
    schemaVersion: version === null ? null : half(readUvarint(version)),
    namespaces: buckets(v1).map(([name, namespace]) => inspectNamespace(name, namespace)),
    overlayfs: buckets(sub(sub(overlay, "v1"), "snapshots"))
      .map(([name, snapshot]) => inspectSnapshot(name, snapshot))
      .sort((a, b) => (a.id ?? 0) - (b.id ?? 0)),
  };
}

export function readDatabase(path: string): Bucket {
  const known = statSync(path, { throwIfNoEntry: false });
  if (known === undefined) throw new HeadstartError("HS_NOT_FOUND", { what: `${path}: no root of containerd` });
  if (known.size > DATABASE_BYTES_MAX) {
    throw new HeadstartError("HS_LIMIT", {
      what: `${path}: ${known.size} bytes, at most ${DATABASE_BYTES_MAX} are read`,
    });
  }
  return readBolt(readFileSync(path), path).root;
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
