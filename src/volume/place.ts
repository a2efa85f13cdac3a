/**
 * A layer's tree as files of a directory, as containerd's own unpack leaves it under `fs/` of a snapshot (specs/warm-volume.md 5.2): one inode for every inode, with
 * owner, mode, mtime to the nanosecond, xattrs, devices, hard links. Needs root. Data were staged (stage.ts) and are moved into place.
 *
 * Everything is made in directories that are still 0700 and root's, and a directory gets its attributes after all that is in it: nothing is inherited from a
 * setgid bit or a default ACL, and no later change touches its mtime.
 */

import {
  chmodSync,
  closeSync,
  constants,
  ftruncateSync,
  lchownSync,
  linkSync,
  mkdirSync,
  openSync,
  renameSync,
  symlinkSync,
} from "node:fs";
import { HeadstartError } from "../base/errors.ts";
import { childName, type FileTree, FileType, symlinkTarget, xattrName, xattrValue } from "../erofs/file-tree.ts";
import { makeNode } from "../linux/node.ts";
import { setTimes } from "../linux/times.ts";
import { setXattr } from "../linux/xattr.ts";
import { stagedPath } from "./stage.ts";

export interface PlaceRequest {
  readonly tree: FileTree;
  readonly staging: string;
  /** The directory to make: its parent is there, it is not. */
  readonly target: string;
}

const SLASH = Buffer.from("/");

/** Throws HS_SYSCALL, HS_DISK_FULL, and what node:fs throws. */
export function placeLayer(request: PlaceRequest): void {
  const { tree, target } = request;
  const place = new Placing(tree, request.staging);
  const root = Buffer.from(target);
  mkdirSync(root, { mode: 0o700 });
  place.directory(0, root);
}

class Placing {
  readonly #tree: FileTree;
  readonly #staging: string;
  /** Inodes of several names: where the first one is. */
  readonly #linked = new Map<number, Buffer>();

  constructor(tree: FileTree, staging: string) {
    this.#tree = tree;
    this.#staging = staging;
  }

  /** Depth first, without recursion: a layer may be 2000 directories deep. */
  directory(inode: number, path: Buffer): void {
    const tree = this.#tree;
    const stack = [{ inode, path, next: tree.childStart[inode]! }];
    for (let top = stack.at(-1); top !== undefined; top = stack.at(-1)) {
      if (top.next === tree.childStart[top.inode + 1]!) {
        this.#attributes(top.inode, top.path);
        stack.pop();
        continue;
      }
      const dirent = top.next++;
      const child = tree.childInode[dirent]!;
      const childPath = Buffer.concat([top.path, SLASH, childName(tree, dirent)]);
      if (tree.type[child] === FileType.directory) {
        mkdirSync(childPath, { mode: 0o700 });
        stack.push({ inode: child, path: childPath, next: tree.childStart[child]! });
      } else {
        this.#other(child, childPath);
      }
    }
  }

  #other(inode: number, path: Buffer): void {
    const tree = this.#tree;
    if (tree.nlink[inode]! > 1) {
      const first = this.#linked.get(inode);
      if (first !== undefined) {
        linkSync(first, path);
        return;
      }
      this.#linked.set(inode, path);
    }
    this.#make(inode, path);
    this.#attributes(inode, path);
  }

  #make(inode: number, path: Buffer): void {
    const tree = this.#tree;
    const device = { major: tree.rdevMajor[inode]!, minor: tree.rdevMinor[inode]! };
    switch (tree.type[inode]) {
      case FileType.regular: {
        const segment = tree.segmentStart[inode]!;
        if (segment < tree.segmentStart[inode + 1]!) {
          renameSync(stagedPath(this.#staging, tree.segmentAddress[segment]!), path);
          return;
        }
        const fd = openSync(path, constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL, 0o600);
        try {
          if (tree.size[inode]! > 0) ftruncateSync(fd, tree.size[inode]!);
        } finally {
          closeSync(fd);
        }
        return;
      }
      case FileType.symlink:
        symlinkSync(Buffer.from(symlinkTarget(tree, inode)), path);
        return;
      case FileType.fifo:
        makeNode(path, { kind: "fifo", mode: 0 });
        return;
      case FileType.socket:
        makeNode(path, { kind: "socket", mode: 0 });
        return;
      case FileType.char:
        makeNode(path, { kind: "char", mode: 0, ...device });
        return;
      case FileType.block:
        makeNode(path, { kind: "block", mode: 0, ...device });
        return;
      default:
        throw new HeadstartError("HS_INTERNAL", { what: `${path}: inode of type ${tree.type[inode]}` });
    }
  }

  /** The owner first: chown takes setuid bits and capabilities away. Then xattrs, then the mode, which an ACL has changed; the time last. */
  #attributes(inode: number, path: Buffer): void {
    const tree = this.#tree;
    lchownSync(path, tree.uid[inode]!, tree.gid[inode]!);
    for (let index = tree.xattrStart[inode]!; index < tree.xattrStart[inode + 1]!; index++) {
      // the tree is shared memory, which the C library does not get
      setXattr(path, xattrName(tree, index), xattrValue(tree, index).slice());
    }
    if (tree.type[inode] !== FileType.symlink) chmodSync(path, tree.mode[inode]!);
    setTimes(path, tree.mtimeSeconds[inode]!, tree.mtimeNanoseconds[inode]!);
  }
}
