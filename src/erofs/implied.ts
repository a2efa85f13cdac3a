/**
 * What an implied directory (a parent that has no entry in its layer) takes from the layers below, as containerd's sequential unpack takes it: the lower
 * layers are asked one by one, topmost first, each alone, its own symlinks followed (specs/layer.md 5, C7, C8, C9).
 *
 * A tree depends on its layer alone; a ChainLayer is the tree in one chain. `resolveChain` makes them for trees whose implied directories are flagged.
 */

import { ACL_ACCESS, ACL_DEFAULT, chmodAcl, parseAcl, serializeAcl } from "./acl.ts";
import {
  childName,
  type FileTree,
  FileType,
  findChild,
  INODE_IMPLIED,
  INODE_IMPLIED_FIRST,
  isWhiteout,
  symlinkTarget,
  xattrName,
  xattrValue,
} from "./file-tree.ts";
import { PathError, type PathView, Resolver } from "./root-path.ts";

export interface DirectoryAttributes {
  readonly mode: number;
  readonly uid: number;
  readonly gid: number;
  readonly mtimeSeconds: number;
  readonly mtimeNanoseconds: number;
  /** By whole name, without those that overlayfs keeps to itself. */
  readonly xattrs: ReadonlyMap<string, Uint8Array>;
}

export type ImpliedSource =
  | { readonly kind: "directory"; readonly attributes: DirectoryAttributes }
  /** No layer has it, or the first that has anything there has no directory: 0755, 0:0. */
  | { readonly kind: "none" }
  /** A lower layer has a non-directory or a symlink loop on the way: containerd refuses, ours is 0755, 0:0 (C7). */
  | { readonly kind: "blocked" };

/** One layer of a chain, with what its own implied directories took from the layers below it. */
export class ChainLayer {
  readonly tree: FileTree;
  /** Attributes of directories that are not those of the tree. */
  readonly taken = new Map<number, DirectoryAttributes>();
  /** Directories that are not there in this chain (C7). */
  readonly leftOut = new Set<number>();
  /** Where `taken` and `leftOut` are: absolute, one char a byte. */
  readonly changedPaths: string[] = [];
  readonly #resolver: Resolver<number>;

  constructor(tree: FileTree) {
    this.tree = tree;
    const view: PathView<number> = {
      root: 0,
      child: (directory, name) => {
        const dirent = findChild(tree, directory, Buffer.from(name, "latin1"));
        if (dirent < 0) return undefined;
        const inode = tree.childInode[dirent]!;
        return this.leftOut.has(inode) ? undefined : inode;
      },
      isDirectory: (inode) => tree.type[inode] === FileType.directory,
      symlinkTarget: (inode) =>
        tree.type[inode] === FileType.symlink ? Buffer.from(symlinkTarget(tree, inode)).toString("latin1") : null,
    };
    this.#resolver = new Resolver(view);
  }

  /** Inode at `path` (one char a byte) with symlinks followed, undefined if there is none. Throws PathError. */
  find(path: string): number | undefined {
    return this.#resolver.at(this.#resolver.resolve(path));
  }

  attributes(inode: number): DirectoryAttributes {
    return this.taken.get(inode) ?? ownAttributes(this.tree, inode);
  }
}

/** `trees` lowest first, each as it is for its own layer alone. */
export function resolveChain(trees: readonly FileTree[]): ChainLayer[] {
  const chain: ChainLayer[] = [];
  for (const tree of trees) {
    const layer = new ChainLayer(tree);
    if (chain.length > 0) takeFromBelow(layer, chain);
    chain.push(layer);
  }
  return chain;
}

/** `lowers` lowest first; `path` as resolved in the asking layer. */
export function askLowers(lowers: readonly ChainLayer[], path: string): ImpliedSource {
  for (let index = lowers.length - 1; index >= 0; index--) {
    const lower = lowers[index]!;
    let inode: number | undefined;
    try {
      inode = lower.find(path);
    } catch (error) {
      if (error instanceof PathError) return { kind: "blocked" };
      throw error;
    }
    if (inode === undefined) continue;
    if (lower.tree.type[inode] !== FileType.directory) return { kind: "none" };
    const attributes = lower.attributes(inode);
    const copied = [...attributes.xattrs].filter(([name]) => !name.startsWith("trusted."));
    return { kind: "directory", attributes: { ...attributes, xattrs: new Map(copied) } };
  }
  return { kind: "none" };
}

/** Attributes as the tree has them. */
export function ownAttributes(tree: FileTree, inode: number): DirectoryAttributes {
  return {
    mode: tree.mode[inode]!,
    uid: tree.uid[inode]!,
    gid: tree.gid[inode]!,
    mtimeSeconds: tree.mtimeSeconds[inode]!,
    mtimeNanoseconds: tree.mtimeNanoseconds[inode]!,
    xattrs: shownXattrs(tree, inode),
  };
}

/** All xattrs but trusted.overlay.*, which overlayfs does not show. */
export function shownXattrs(tree: FileTree, inode: number): Map<string, Uint8Array> {
  const xattrs = new Map<string, Uint8Array>();
  for (let index = tree.xattrStart[inode]!; index < tree.xattrStart[inode + 1]!; index++) {
    const name = Buffer.from(xattrName(tree, index)).toString("latin1");
    if (!name.startsWith("trusted.overlay.")) xattrs.set(name, xattrValue(tree, index));
  }
  return xattrs;
}

/**
 * Layers whose tree must be built anew for this chain (with `lowers`): a default ACL that one of their implied directories copies would be handed
 * to what the layer made in it (specs/layer.md 7.4). Indices into the chain.
 */
export function layersToRebuild(chain: readonly ChainLayer[]): number[] {
  const indices: number[] = [];
  for (const [index, { tree, taken }] of chain.entries()) {
    const reaches = [...taken].some(([inode, { xattrs }]) => {
      const copied = xattrs.get(ACL_DEFAULT);
      if (copied === undefined) return false;
      const own = shownXattrs(tree, inode).get(ACL_DEFAULT);
      if (own !== undefined && Buffer.compare(own, copied) === 0) return false;
      for (let dirent = tree.childStart[inode]!; dirent < tree.childStart[inode + 1]!; dirent++) {
        if (tree.type[tree.childInode[dirent]!] !== FileType.symlink) return true;
      }
      return false;
    });
    if (reaches) indices.push(index);
  }
  return indices;
}

function takeFromBelow(layer: ChainLayer, below: readonly ChainLayer[]): void {
  const { tree } = layer;
  if (!tree.flags.some((flags) => flags !== 0)) return;
  const stack: { inode: number; path: string }[] = [{ inode: 0, path: "" }];
  for (let top = stack.pop(); top !== undefined; top = stack.pop()) {
    for (let dirent = tree.childStart[top.inode]!; dirent < tree.childStart[top.inode + 1]!; dirent++) {
      const inode = tree.childInode[dirent]!;
      if (tree.type[inode] !== FileType.directory) continue;
      const path = `${top.path}/${Buffer.from(childName(tree, dirent)).toString("latin1")}`;
      const flags = tree.flags[inode]!;
      if (flags !== 0) {
        const source = askLowers(below, path);
        if (source.kind === "blocked" && (flags & INODE_IMPLIED) !== 0 && holdsOnlyMarks(tree, inode)) {
          layer.leftOut.add(inode);
          layer.changedPaths.push(path);
          continue;
        }
        const taken = takenAttributes(ownAttributes(tree, inode), flags, source, layer.taken.get(top.inode));
        if (taken !== null) {
          layer.taken.set(inode, taken);
          layer.changedPaths.push(path);
        }
      }
      stack.push({ inode, path });
    }
  }
}

/** Null: as the tree has them. `parent` is what the parent took, if it did. */
function takenAttributes(
  own: DirectoryAttributes,
  flags: number,
  source: ImpliedSource,
  parent: DirectoryAttributes | undefined,
): DirectoryAttributes | null {
  if (source.kind === "none") {
    // made in a directory that took setgid from below: the group is that one's (C10)
    const inherits = (flags & INODE_IMPLIED) !== 0 && parent !== undefined && (parent.mode & SETGID) !== 0;
    return inherits && parent.gid !== own.gid ? { ...own, gid: parent.gid } : null;
  }
  if (source.kind === "blocked") return (flags & INODE_IMPLIED) !== 0 && own.gid !== 0 ? { ...own, gid: 0 } : null;
  const implied = (flags & INODE_IMPLIED) !== 0;
  if (!implied && (flags & INODE_IMPLIED_FIRST) === 0) return null;
  const base = implied ? source.attributes : own;
  // copied over what was inherited; an entry that came later put its own over what was copied
  const xattrs = implied
    ? new Map([...own.xattrs, ...source.attributes.xattrs])
    : new Map([...source.attributes.xattrs, ...own.xattrs]);
  const access = xattrs.get(ACL_ACCESS);
  const acl = access === undefined ? "none" : parseAcl(access);
  if (typeof acl !== "string") xattrs.set(ACL_ACCESS, serializeAcl(chmodAcl(acl, base.mode)));
  const taken = { ...base, xattrs };
  return sameAttributes(own, taken) ? null : taken;
}

const SETGID = 0o2000;

function sameAttributes(a: DirectoryAttributes, b: DirectoryAttributes): boolean {
  return (
    a.mode === b.mode &&
    a.uid === b.uid &&
    a.gid === b.gid &&
    a.mtimeSeconds === b.mtimeSeconds &&
    a.mtimeNanoseconds === b.mtimeNanoseconds &&
    a.xattrs.size === b.xattrs.size &&
    [...a.xattrs].every(([name, value]) => {
      const other = b.xattrs.get(name);
      return other !== undefined && Buffer.compare(value, other) === 0;
    })
  );
}

function holdsOnlyMarks(tree: FileTree, directory: number): boolean {
  const stack = [directory];
  for (let top = stack.pop(); top !== undefined; top = stack.pop()) {
    for (let dirent = tree.childStart[top]!; dirent < tree.childStart[top + 1]!; dirent++) {
      const inode = tree.childInode[dirent]!;
      if (tree.type[inode] === FileType.directory) {
        if ((tree.flags[inode]! & INODE_IMPLIED) === 0) return false;
        stack.push(inode);
      } else if (!isWhiteout(tree, inode)) return false;
    }
  }
  return true;
}
