/**
 * Everything on a volume that belongs to no layer (specs/warm-volume.md 4, 5.1): directories and files of containerd's stores and of the disk around them, each with its
 * mode and owner, and nothing beside them. What layers hold is compared with the layers (layers.ts).
 */

import { childName, type FileTree, FileType, xattrName } from "../../erofs/file-tree.ts";
import { bytesToText } from "../../erofs/tree-lines.ts";
import { CONTENT_BLOBS } from "./blobs.ts";
import type { Findings } from "./findings.ts";
import type { BlobRecord } from "./meta-db.ts";
import type { BackendRecord } from "./snapshots.ts";
import { findPath, type StoredTree } from "./stored-tree.ts";

export const META_DATABASE = "io.containerd.metadata.v1.bolt/meta.db";
export const BACKEND = "io.containerd.snapshotter.v1.overlayfs";
export const BACKEND_DATABASE = `${BACKEND}/metadata.db`;

export interface StoreOptions {
  readonly findings: Findings;
  /** True: nothing may be there that a build does not write. */
  readonly exact: boolean;
  /** Nanoseconds since 1970 of everything that belongs to no layer; null: any. */
  readonly time: bigint | null;
}

export interface ContainerdRoot {
  /** Below the volume's root, without a slash at its end; "" is the root itself. */
  readonly path: string;
  readonly inode: number;
}

const BOTTLEROCKET_ROOT = "var/lib/containerd";

/** Where containerd's root lies; null when there is none. */
export function findContainerdRoot(tree: FileTree): ContainerdRoot | null {
  for (const path of [BOTTLEROCKET_ROOT, ""]) {
    const inode = findPath(tree, 0, path);
    if (inode === null || tree.type[inode] !== FileType.directory) continue;
    const isRoot = [META_DATABASE, BACKEND_DATABASE, CONTENT_BLOBS].some(
      (name) => findPath(tree, inode, name) !== null,
    );
    if (isRoot) return { path, inode };
  }
  return null;
}

/** What a place has to be; an open directory holds a layer. */
type Wanted =
  | { readonly type: "directory"; readonly mode: number | readonly number[]; readonly open?: boolean }
  | { readonly type: "file"; readonly mode: number | readonly number[] };

const directory = (mode: number | readonly number[], open = false): Wanted => ({ type: "directory", mode, open });
const file = (mode: number | readonly number[]): Wanted => ({ type: "file", mode });

/** The containerd's root is 0711 until a containerd with the fix for it has started (specs/warm-volume.md 1.7). */
const ROOT_MODES = [0o700, 0o711];
/** Other plug-ins of a containerd that has run make folders of their own here. */
const PLUGIN = /^(io\.containerd\.[a-z0-9.-]+|tmpmounts|opt)$/;

export const ACTIVE_SNAPSHOTTER = "var/cache/containerd/active-snapshotter";

export function checkStore(
  stored: StoredTree,
  root: ContainerdRoot,
  contents: {
    readonly records: ReadonlyMap<string, BlobRecord>;
    readonly snapshots: readonly BackendRecord[];
  },
  options: StoreOptions,
): void {
  const wanted = new Map<string, Wanted>();
  const optional = new Set<string>();
  const at = (path: string) => (root.path === "" ? path : path === "" ? root.path : `${root.path}/${path}`);
  const isDisk = findPath(stored.tree, 0, "lost+found") !== null;
  if (isDisk) wanted.set("lost+found", directory(0o700));
  if (root.path !== "") addDisk(wanted, optional, options.exact);
  else addWarm(wanted, optional, WARM_FILES.al2023);
  wanted.set(at(""), directory(options.exact ? 0o700 : ROOT_MODES));
  addContent(wanted, at, contents);
  wanted.set(at("io.containerd.metadata.v1.bolt"), directory(0o711));
  wanted.set(at(META_DATABASE), file(options.exact ? 0o644 : [0o644, 0o600]));
  wanted.set(at(BACKEND), directory(0o700));
  wanted.set(at(BACKEND_DATABASE), file(options.exact ? 0o600 : [0o600, 0o644]));
  wanted.set(at(`${BACKEND}/snapshots`), directory(0o700));
  for (const { id } of contents.snapshots) {
    const path = at(`${BACKEND}/snapshots/${id}`);
    wanted.set(path, directory(0o700));

    wanted.set(`${path}/fs`, { type: "directory", mode: 0o755, open: true });
    wanted.set(`${path}/work`, directory(0o711));
  }
  new StoreCheck(stored, wanted, optional, at(""), options).run();
}

function addDisk(wanted: Map<string, Wanted>, optional: Set<string>, exact: boolean): void {
  for (const path of ["", "var", "var/lib", "var/cache", "var/cache/containerd", "opt", "mnt"]) {
    wanted.set(path, directory(0o755));
  }
  if (!exact) {
    for (const path of ["opt", "mnt", "var/cache", "var/cache/containerd", ACTIVE_SNAPSHOTTER]) optional.add(path);
  }
  wanted.set(ACTIVE_SNAPSHOTTER, file(0o644));
  addWarm(wanted, optional, WARM_FILES.bottlerocket);
}

/** Where a node finds what to read first. */
export const WARM_FILES = { bottlerocket: "var/lib/headstart/warm.json", al2023: "headstart/warm.json" } as const;

function addWarm(wanted: Map<string, Wanted>, optional: Set<string>, path: string): void {
  const folder = path.slice(0, path.lastIndexOf("/"));
  wanted.set(folder, directory(0o755));
  wanted.set(path, file(0o644));
  for (const each of [folder, path]) optional.add(each);
}

function addContent(
  wanted: Map<string, Wanted>,
  at: (path: string) => string,
  { records }: { readonly records: ReadonlyMap<string, BlobRecord> },
): void {
  wanted.set(at("io.containerd.content.v1.content"), directory(0o755));
  wanted.set(at(CONTENT_BLOBS), directory(0o755));
  wanted.set(at("io.containerd.content.v1.content/ingest"), directory(0o755));
  const algorithms = new Set(["sha256", ...[...records.keys()].map((digest) => digest.split(":")[0]!)]);
  for (const algorithm of algorithms) wanted.set(at(`${CONTENT_BLOBS}/${algorithm}`), directory(0o755));
  for (const digest of records.keys()) wanted.set(at(`${CONTENT_BLOBS}/${digest.replace(":", "/")}`), file(0o444));
}

class StoreCheck {
  readonly #stored: StoredTree;
  readonly #wanted: ReadonlyMap<string, Wanted>;
  readonly #optional: ReadonlySet<string>;
  readonly #rootPath: string;
  readonly #options: StoreOptions;
  readonly #seen = new Set<string>();

  constructor(
    stored: StoredTree,
    wanted: ReadonlyMap<string, Wanted>,
    optional: ReadonlySet<string>,
    rootPath: string,
    options: StoreOptions,
  ) {
    this.#stored = stored;
    this.#wanted = wanted;
    this.#optional = optional;
    this.#rootPath = rootPath;
    this.#options = options;
  }

  run(): void {
    const { tree } = this.#stored;
    const { findings, exact } = this.#options;
    const stack = [{ inode: 0, path: "" }];
    this.#check(0, "");
    for (let top = stack.pop(); top !== undefined; top = stack.pop()) {
      for (let dirent = tree.childStart[top.inode]!; dirent < tree.childStart[top.inode + 1]!; dirent++) {
        const inode = tree.childInode[dirent]!;
        const name = bytesToText(childName(tree, dirent));
        const path = top.path === "" ? name : `${top.path}/${name}`;
        const wanted = this.#wanted.get(path);
        if (wanted === undefined) this.#stray(top.path, name, path, inode);
        else if (this.#check(inode, path) && tree.type[inode] === FileType.directory && !isOpen(wanted)) {
          stack.push({ inode, path });
        }
      }
    }
    for (const path of this.#wanted.keys()) {
      if (!this.#seen.has(path) && !this.#optional.has(path)) findings.add("store", `/${path}`, "missing");
    }
    if (this.#wanted.has(ACTIVE_SNAPSHOTTER) && !this.#seen.has(ACTIVE_SNAPSHOTTER) && !exact) {
      findings.open(`/${ACTIVE_SNAPSHOTTER}`, "it is missing: newer versions of Bottlerocket may empty the store");
    }
  }

  #stray(parent: string, name: string, path: string, inode: number): void {
    const { findings, exact } = this.#options;
    const isPlugin =
      parent === this.#rootPath && PLUGIN.test(name) && this.#stored.tree.type[inode] === FileType.directory;
    if (isPlugin && !exact) findings.open("folders of other plug-ins", "a containerd has run on this root");
    else findings.add("stray-file", `/${path}`, "nothing that a volume holds has this name");
  }

  #check(inode: number, path: string): boolean {
    const wanted = this.#wanted.get(path);
    this.#seen.add(path);
    const place = `/${path}`;
    const { tree } = this.#stored;
    const { findings, time } = this.#options;
    if (wanted === undefined) return true;
    const type = wanted.type === "directory" ? FileType.directory : FileType.regular;
    if (tree.type[inode] !== type) {
      findings.add("store", place, `is no ${wanted.type}`);
      return false;
    }
    const modes = typeof wanted.mode === "number" ? [wanted.mode] : wanted.mode;
    if (!modes.includes(tree.mode[inode]!)) {
      findings.differs("store", place, "the mode", octal(tree.mode[inode]!), modes.map(octal).join(" or "));
    }
    if (tree.uid[inode] !== 0 || tree.gid[inode] !== 0) {
      findings.differs("store", place, "the owner", `${tree.uid[inode]}:${tree.gid[inode]}`, "0:0");
    }
    if (type === FileType.regular && this.#stored.links(inode) !== 1) {
      findings.differs("store", place, "the link count", this.#stored.links(inode), 1);
    }
    // labels are selinux.ts's; everything else belongs to no store
    for (let index = tree.xattrStart[inode]!; index < tree.xattrStart[inode + 1]!; index++) {
      const name = Buffer.from(xattrName(tree, index)).toString("latin1");
      if (name !== "security.selinux" && !isOpen(wanted)) findings.add("store", place, `has an xattr ${name}`);
    }
    const found = BigInt(tree.mtimeSeconds[inode]!) * 1_000_000_000n + BigInt(tree.mtimeNanoseconds[inode]!);
    if (time !== null && found !== time && !isOpen(wanted)) {
      findings.differs("store", place, "the time in ns", found, time);
    }
    return true;
  }
}

function isOpen(wanted: Wanted): boolean {
  return wanted.type === "directory" && wanted.open === true;
}

function octal(mode: number): string {
  return mode.toString(8).padStart(4, "0");
}
