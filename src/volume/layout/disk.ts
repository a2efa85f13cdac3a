/**
 * The layouts that are disks (specs/warm-volume.md 2, 4, 5.1): which file system tree a node finds there, around the layers. `bottlerocket` is a GPT disk whose one
 * partition is mounted at /local, with the root of containerd below it; of `al2023` the whole disk is the root of containerd. Pure: a plan becomes a tree.
 */

import { type Digest, digestAlgorithm } from "../../base/digest.ts";
import { type FileTree, FileTreeBuilder, FileType, type InodeFields } from "../../erofs/file-tree.ts";
import { BOTTLEROCKET_DATA } from "../gpt.ts";
import type { Label } from "../graft.ts";
import type { VolumePlan } from "../plan.ts";
import { CONTAINERD_DIRECTORIES, CONTENT, ContainerdPaths, METADATA, OVERLAYFS } from "./containerd.ts";

export interface DiskTarget {
  readonly id: "bottlerocket" | "al2023";
  /** Null: the file system is the whole disk. */
  readonly partition: typeof BOTTLEROCKET_DATA | null;
  /** Where the root of containerd is: "" or a path with a slash at its end. */
  readonly containerd: string;
  /** Directories above and beside it, parents first. */
  readonly directories: readonly (readonly [path: string, mode: number])[];
  /** A real node labels its stores for SELinux. */
  readonly selinux: boolean;
  /** Newer Bottlerockets empty containerd's root when this file does not name the snapshotter that is set (chapter 4, 8a). */
  readonly activeSnapshotter: string | null;
  /** What was placed first, for whoever warms the volume on a node. */
  readonly warm: string;
}

export const DISK_TARGETS: Readonly<Record<DiskTarget["id"], DiskTarget>> = {
  bottlerocket: {
    id: "bottlerocket",
    partition: BOTTLEROCKET_DATA,
    containerd: "var/lib/containerd/",
    directories: [
      ["var", 0o755],
      ["var/lib", 0o755],
      ["var/cache", 0o755],
      ["var/cache/containerd", 0o755],
      ["opt", 0o755],
      ["mnt", 0o755],
    ],
    selinux: true,
    activeSnapshotter: "var/cache/containerd/active-snapshotter",
    warm: "var/lib/headstart/warm.json",
  },
  al2023: {
    id: "al2023",
    partition: null,
    containerd: "",
    directories: [],
    selinux: false,
    activeSnapshotter: null,
    warm: "headstart/warm.json",
  },
};

/** On the three stores and all in them; a container with a hostPath can then not change the cache. With the NUL that libselinux stores. */
export const CACHE_LABEL: Label = {
  name: Buffer.from("security.selinux"),
  value: Buffer.from("system_u:object_r:cache_t:s0\0"),
};

export interface DiskContents {
  readonly metaDatabase: Uint8Array;
  readonly snapshotDatabase: Uint8Array;
  /** Size of the file `warm`; 0: there is none. */
  readonly warmBytes: number;
}

export interface SnapshotInodes {
  /** The directory <id>. */
  readonly directory: number;
  /** Empty: where the layer's tree is grafted. */
  readonly files: number;
  readonly work: number;
}

export interface DiskSkeleton {
  readonly tree: FileTree;
  readonly blobs: ReadonlyMap<Digest, number>;
  /** By id. */
  readonly snapshots: ReadonlyMap<number, SnapshotInodes>;
  readonly metaDatabase: number;
  readonly snapshotDatabase: number;
  /** The inode of `warm`, -1: none. */
  readonly warm: number;
  /** Files whose bytes are known: all but blobs and `warm`. */
  readonly contents: ReadonlyMap<number, Uint8Array>;
}

/** `selinux`: label the stores; the caller labels what is grafted. */
export function diskSkeleton(
  plan: VolumePlan,
  target: DiskTarget,
  options: DiskContents & { readonly selinux: boolean },
): DiskSkeleton {
  const labels = options.selinux ? [CACHE_LABEL] : [];
  const stores = [CONTENT, METADATA, OVERLAYFS].map((name) => `${target.containerd}${name}`);
  const tree = new PathTree(plan.time, target.containerd === "" ? 0o700 : 0o755, (path) =>
    stores.some((store) => path === store || path.startsWith(`${store}/`)) ? labels : [],
  );
  const contents = new Map<number, Uint8Array>();
  const file = (path: string, mode: number, bytes: Uint8Array) => {
    const inode = tree.file(path, mode, bytes.byteLength);
    contents.set(inode, bytes);
    return inode;
  };

  for (const [path, mode] of target.directories) tree.directory(path, mode);
  for (const [path, mode] of CONTAINERD_DIRECTORIES) {
    const whole = `${target.containerd}${path}`.replace(/\/$/, "");
    if (whole !== "") tree.directory(whole, mode);
  }
  const blobs = new Map<Digest, number>();
  for (const algorithm of new Set(plan.blobs.map(({ descriptor }) => digestAlgorithm(descriptor.digest)))) {
    if (algorithm !== "sha256") tree.directory(`${target.containerd}${CONTENT}/blobs/${algorithm}`, 0o755);
  }
  for (const { descriptor, kept } of plan.blobs) {
    if (!kept) continue;
    const path = `${target.containerd}${ContainerdPaths.blob(descriptor.digest)}`;
    blobs.set(descriptor.digest, tree.file(path, 0o444, descriptor.size));
  }
  const snapshots = new Map<number, SnapshotInodes>();
  for (const { id } of plan.snapshots) {
    const path = `${target.containerd}${ContainerdPaths.snapshot(id)}`;
    const directory = tree.directory(path, 0o700);
    const work = tree.directory(`${path}/work`, 0o711);
    snapshots.set(id, { directory, files: tree.directory(`${path}/fs`, 0o755), work });
  }
  const metaDatabase = file(`${target.containerd}${ContainerdPaths.metaDatabase}`, 0o644, options.metaDatabase);
  const snapshotDatabase = file(
    `${target.containerd}${ContainerdPaths.snapshotDatabase}`,
    0o600,
    options.snapshotDatabase,
  );
  if (target.activeSnapshotter !== null) {
    file(target.activeSnapshotter, 0o644, Buffer.from(`ACTIVE_SNAPSHOTTER=${plan.snapshotter}\n`));
  }
  let warm = -1;
  if (options.warmBytes > 0) {
    tree.directory(target.warm.slice(0, target.warm.lastIndexOf("/")), 0o755);
    warm = tree.file(target.warm, 0o644, options.warmBytes);
  }
  return { tree: tree.finish(), blobs, snapshots, metaDatabase, snapshotDatabase, warm, contents };
}

/** A tree whose entries are named by whole paths; everything is root's and has one time. */
class PathTree {
  readonly #builder: FileTreeBuilder;
  readonly #directories = new Map<string, number>([["", 0]]);
  readonly #common: Pick<InodeFields, "uid" | "gid" | "mtimeSeconds" | "mtimeNanoseconds">;
  readonly #labels: (path: string) => readonly Label[];

  constructor(time: number, rootMode: number, labels: (path: string) => readonly Label[]) {
    this.#common = { uid: 0, gid: 0, mtimeSeconds: time, mtimeNanoseconds: 0 };
    this.#labels = labels;
    this.#builder = new FileTreeBuilder({ ...this.#common, mode: rootMode });
  }

  /** The directory above must be there. */
  directory(path: string, mode: number): number {
    const inode = this.#add(path, { ...this.#common, type: FileType.directory, mode, xattrs: this.#labels(path) });
    this.#directories.set(path, inode);
    return inode;
  }

  file(path: string, mode: number, size: number): number {
    const segments = size === 0 ? [] : [{ fileOffset: 0, length: size, address: 0 }];
    const xattrs = this.#labels(path);
    return this.#add(path, { ...this.#common, type: FileType.regular, mode, size, segments, xattrs });
  }

  finish(): FileTree {
    return this.#builder.finish();
  }

  #add(path: string, fields: InodeFields): number {
    const slash = path.lastIndexOf("/");
    const inode = this.#builder.addInode(fields);
    const parent = this.#directories.get(slash < 0 ? "" : path.slice(0, slash))!;
    this.#builder.addName(parent, Buffer.from(path.slice(slash + 1)), inode);
    return inode;
  }
}
