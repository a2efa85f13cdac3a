/**
 * What an implied directory (a parent that has no entry in its layer) takes from the layers below, as containerd's sequential unpack takes it: the lower
 * layers are asked one by one, topmost first, each alone, its own symlinks followed (specs/layer.md 5, C7, C8, C9).
 */

import { childName, type FileTree, FileType, findChild, symlinkTarget, xattrName, xattrValue } from "./file-tree.ts";
import { PathError, type PathView, Resolver } from "./root-path.ts";

export interface DirectoryAttributes {
  readonly mode: number;
  readonly uid: number;
  readonly gid: number;
  readonly mtimeSeconds: number;
  readonly mtimeNanoseconds: number;
  /** By whole name; without trusted.*. */
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

/** Attributes as the tree has them; xattrs of trusted.* are left out: overlayfs keeps them to itself and containerd does not copy them. */
export function ownAttributes(tree: FileTree, inode: number): DirectoryAttributes {
  return {
    mode: tree.mode[inode]!,
    uid: tree.uid[inode]!,
    gid: tree.gid[inode]!,
    mtimeSeconds: tree.mtimeSeconds[inode]!,
    mtimeNanoseconds: tree.mtimeNanoseconds[inode]!,
    xattrs: ownXattrs(tree, inode),
  };
}

export function ownXattrs(tree: FileTree, inode: number): Map<string, Uint8Array> {
  const xattrs = new Map<string, Uint8Array>();
  for (let index = tree.xattrStart[inode]!; index < tree.xattrStart[inode + 1]!; index++) {
    const name = Buffer.from(xattrName(tree, index)).toString("latin1");
    if (!name.startsWith("trusted.")) xattrs.set(name, xattrValue(tree, index));
  }
  return xattrs;
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
    return { kind: "directory", attributes: lower.attributes(inode) };
  }
  return { kind: "none" };
}

/** Name of dirent `index` with one char a byte. */
export function childNameText(tree: FileTree, index: number): string {
  return Buffer.from(childName(tree, index)).toString("latin1");
}
