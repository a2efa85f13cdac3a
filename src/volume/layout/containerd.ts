/**
 * The layout `containerd`: a plain directory that a fresh containerd takes as its root (specs/warm-volume.md 5.1). Names, modes and times are here; what is in them is
 * the plan's.
 *
 *   <root>/io.containerd.content.v1.content/{blobs/sha256/<hex>, ingest/}
 *   <root>/io.containerd.metadata.v1.bolt/meta.db
 *   <root>/io.containerd.snapshotter.v1.overlayfs/{metadata.db, snapshots/<id>/{fs,work}/}
 */

import { chmodSync, mkdirSync, readdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { type Digest, digestAlgorithm, digestHex } from "../../base/digest.ts";
import { setTimes } from "../../linux/times.ts";

export const SNAPSHOTTER = "overlayfs";

export const CONTENT = "io.containerd.content.v1.content";
export const METADATA = "io.containerd.metadata.v1.bolt";
export const OVERLAYFS = "io.containerd.snapshotter.v1.overlayfs";

/** Paths from the root, with their modes. Parents first. */
export const CONTAINERD_DIRECTORIES: readonly (readonly [path: string, mode: number])[] = [
  ["", 0o700],
  [CONTENT, 0o755],
  [`${CONTENT}/blobs`, 0o755],
  [`${CONTENT}/blobs/sha256`, 0o755],
  [`${CONTENT}/ingest`, 0o755],
  [METADATA, 0o711],
  [OVERLAYFS, 0o700],
  [`${OVERLAYFS}/snapshots`, 0o700],
];

/** Of the places below a root. */
export const ContainerdPaths = {
  metaDatabase: `${METADATA}/meta.db`,
  snapshotDatabase: `${OVERLAYFS}/metadata.db`,
  blob: (digest: Digest) => `${CONTENT}/blobs/${digestAlgorithm(digest)}/${digestHex(digest)}`,
  snapshot: (id: number) => `${OVERLAYFS}/snapshots/${id}`,
  /** Where the layer's own files are. */
  files: (id: number) => `${OVERLAYFS}/snapshots/${id}/fs`,
} as const;

/** Makes what every root has. `root` itself must be there. */
export function makeSkeleton(root: string, algorithms: ReadonlySet<string>): void {
  for (const [path, mode] of CONTAINERD_DIRECTORIES) makeDirectory(join(root, path), mode, path !== "");
  for (const algorithm of algorithms) {
    if (algorithm !== "sha256") makeDirectory(join(root, CONTENT, "blobs", algorithm), 0o755);
  }
}

/** The snapshot's directory with its `work`; `fs` is the unpacker's. */
export function makeSnapshot(root: string, id: number): void {
  const path = join(root, ContainerdPaths.snapshot(id));
  makeDirectory(path, 0o700);
  makeDirectory(join(path, "work"), 0o711);
}

export function finishBlob(root: string, digest: Digest): void {
  chmodSync(join(root, ContainerdPaths.blob(digest)), 0o444);
}

export function writeDatabases(root: string, meta: Uint8Array, snapshots: Uint8Array): void {
  writeFile(join(root, ContainerdPaths.metaDatabase), meta, 0o644);
  writeFile(join(root, ContainerdPaths.snapshotDatabase), snapshots, 0o600);
}

/** Everything that belongs to no layer gets the plan's time. Last: nothing may be made after it. */
export function setStoreTimes(root: string, seconds: number): void {
  const set = (path: string) => setTimes(join(root, path), seconds, 0);
  const content = `${CONTENT}/blobs`;
  const algorithms = readdirSync(join(root, content));
  for (const algorithm of algorithms) {
    for (const name of readdirSync(join(root, content, algorithm))) set(`${content}/${algorithm}/${name}`);
  }
  for (const id of readdirSync(join(root, OVERLAYFS, "snapshots"))) {
    set(`${ContainerdPaths.snapshot(Number(id))}/work`);
    set(ContainerdPaths.snapshot(Number(id)));
  }
  set(ContainerdPaths.metaDatabase);
  set(ContainerdPaths.snapshotDatabase);
  for (const algorithm of algorithms) set(`${content}/${algorithm}`);
  for (const [path] of CONTAINERD_DIRECTORIES.toReversed()) set(path);
}

/** Exactly this mode, whatever the umask. */
function makeDirectory(path: string, mode: number, make = true): void {
  if (make) mkdirSync(path);
  chmodSync(path, mode);
}

function writeFile(path: string, bytes: Uint8Array, mode: number): void {
  writeFileSync(path, bytes, { flag: "wx" });
  chmodSync(path, mode);
}
