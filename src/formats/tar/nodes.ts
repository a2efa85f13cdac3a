/**
 * The tree of a layer while its entries are applied: nodes that are inodes, directories that hold names. Names and paths are strings of one char a byte.
 * An inode may stand under several names; a directory under one.
 */

import {
  ACL_ACCESS,
  ACL_DEFAULT,
  type Acl,
  chmodAcl,
  inheritedAccess,
  isOnlyMode,
  parseAcl,
  serializeAcl,
} from "../../erofs/acl.ts";
import { type FileTree, FileTreeBuilder, FileType } from "../../erofs/file-tree.ts";
import type { PathView } from "../../erofs/root-path.ts";
import { CAPABILITY } from "./xattrs.ts";

export interface Segment {
  readonly fileOffset: number;
  readonly length: number;
  readonly address: number;
}

const NO_SEGMENTS: readonly Segment[] = [];
const SETGID = 0o2000;
/** chown(2): this owner or group stays as it is. */
const LEAVE = 0xffff_ffff;

export class Node {
  readonly type: FileType;
  mode = 0;
  uid = 0;
  gid = 0;
  mtimeSeconds = 0;
  mtimeNanoseconds = 0;
  size = 0;
  rdevMajor = 0;
  rdevMinor = 0;
  target = "";
  segments = NO_SEGMENTS;
  xattrs: Map<string, Uint8Array> | null = null;
  readonly children: Map<string, Node> | null;
  /** Directory without an entry (yet). */
  implied = false;
  impliedFirst = false;
  /** Implied, and a lower layer has a non-directory on its way (C7). */
  blocked = false;
  /** Directory: an entry of its own path has made it, now or before it was removed. */
  made = false;
  opaque = false;
  /** In the tree that is made of it at the end; -1: not yet. */
  inode = -1;

  constructor(type: FileType) {
    this.type = type;
    this.children = type === FileType.directory ? new Map() : null;
  }

  get isWhiteout(): boolean {
    return this.type === FileType.char && this.rdevMajor === 0 && this.rdevMinor === 0;
  }

  /** What the kernel does when something is made in `parent`: the group of a setgid parent, its default ACL. */
  inherit(parent: Node, mode: number): void {
    if ((parent.mode & SETGID) !== 0) this.gid = parent.gid;
    const defaults = parent.xattrs?.get(ACL_DEFAULT);
    if (defaults !== undefined && this.type !== FileType.symlink) {
      if (this.type === FileType.directory) this.setXattr(ACL_DEFAULT, defaults);
      const access = inheritedAccess(soundAcl(defaults), mode);
      if (access !== null) this.setXattr(ACL_ACCESS, serializeAcl(access));
    }
    this.mode = mode;
  }

  /** chown drops the file capability, also when nothing changes. */
  chown(uid: number, gid: number): void {
    if (uid !== LEAVE) this.uid = uid;
    if (gid !== LEAVE) this.gid = gid;
    if (this.type !== FileType.directory) this.xattrs?.delete(CAPABILITY);
  }

  /** Rewrites the access ACL. */
  chmod(mode: number): void {
    this.mode = mode;
    const access = this.xattrs?.get(ACL_ACCESS);
    if (access !== undefined) this.setXattr(ACL_ACCESS, serializeAcl(chmodAcl(soundAcl(access), mode)));
  }

  /** As setxattr(2): an access ACL of three entries is only a mode, an ACL that says nothing removes what is there. The value must be sound. */
  setXattr(name: string, value: Uint8Array): void {
    if (name === ACL_ACCESS || name === ACL_DEFAULT) {
      const acl = parseAcl(value);
      if (acl === "none" || (typeof acl !== "string" && name === ACL_ACCESS && isOnlyMode(acl))) {
        this.xattrs?.delete(name);
        return;
      }
    }
    this.xattrs ??= new Map();
    this.xattrs.set(name, value);
  }
}

/** For values that were judged when they were set. */
function soundAcl(value: Uint8Array): Acl {
  const acl = parseAcl(value);
  return typeof acl === "string" ? [] : acl;
}

/** `hideWhiteouts`: to a path lookup a whiteout is as good as absent (C5). */
export function nodeView(root: Node, hideWhiteouts: boolean): PathView<Node> {
  return {
    root,
    child: (directory, name) => {
      const child = directory.children!.get(name);
      return child !== undefined && hideWhiteouts && child.isWhiteout ? undefined : child;
    },
    isDirectory: (node) => node.children !== null,
    symlinkTarget: (node) => (node.type === FileType.symlink ? node.target : null),
  };
}

/** Lays the nodes out, once, as a FileTree: inodes in the order of a walk, directories before what they hold, names ascending. */
export function toFileTree(root: Node): FileTree {
  const builder = new FileTreeBuilder(fields(root));
  root.inode = 0;
  const stack = [root];
  for (let top = stack.pop(); top !== undefined; top = stack.pop()) {
    const directories: Node[] = [];
    // one char a byte: the default order, of code units, is that of the bytes
    const names = [...top.children!.keys()].sort();
    for (const name of names) {
      const child = top.children!.get(name)!;
      if (child.inode < 0) {
        child.inode = builder.addInode(fields(child));
        if (child.children !== null) directories.push(child);
      }
      builder.addName(top.inode, Buffer.from(name, "latin1"), child.inode);
    }
    while (directories.length > 0) stack.push(directories.pop()!);
  }
  return builder.finish();
}

function fields(node: Node) {
  const xattrs = [...(node.xattrs ?? [])].map(([name, value]) => ({ name: Buffer.from(name, "latin1"), value }));
  if (node.opaque) xattrs.push(OPAQUE);
  return {
    type: node.type,
    mode: node.mode,
    uid: node.uid,
    gid: node.gid,
    mtimeSeconds: node.mtimeSeconds,
    mtimeNanoseconds: node.mtimeNanoseconds,
    size: node.size,
    rdevMajor: node.rdevMajor,
    rdevMinor: node.rdevMinor,
    implied: node.implied,
    impliedFirst: node.impliedFirst,
    segments: node.segments,
    xattrs,
    ...(node.type === FileType.symlink ? { target: Buffer.from(node.target, "latin1") } : {}),
  };
}

const OPAQUE = { name: Buffer.from("trusted.overlay.opaque"), value: Buffer.from("y") };
