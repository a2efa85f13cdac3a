/**
 * FileTree: the entries of one layer as overlayfs wants to see them. Read this first.
 *
 *   inode 0 (the root) .. inodeCount-1         typed arrays, one element an inode
 *   dirents, grouped by directory              childStart[d] .. childStart[d+1]  -> (name, inode)
 *   segments, grouped by regular file          segmentStart[i] .. segmentStart[i+1] -> (file offset, length, address)
 *   xattrs, grouped by inode                   xattrStart[i] .. xattrStart[i+1]  -> (name, value)
 *   bytes                                      one pool that names, link targets and xattrs point into
 *
 * Flat on purpose: 100 k entries cost little, and a tree crosses to a worker without a copy of objects.
 *
 * Invariants: a FileTree that exists is sound. Every directory but the root has exactly one dirent; non-directories have nlink dirents; dirents of
 * a directory ascend by unsigned name bytes and do not repeat; names are 1..255 bytes without "/" and NUL and are not "." or ".."; segments of a
 * file ascend, do not overlap and lie inside its size (what no segment covers is zeros); whiteouts are char devices 0:0, opaque marks
 * are the xattr trusted.overlay.opaque=y. Overlay conventions are already translated (specs/layer.md).
 *
 * Knows what a file system holds. Must not know where bytes come from.
 */

import { compareBytes } from "../base/bytes.ts";
import { HeadstartError } from "../base/errors.ts";
import { LIMITS } from "../base/limits.ts";

/** An address is `space * 2^44 + offset`: a place in one decoded stream (for a tar: the uncompressed tar, space 0). */
export const ADDRESS_SPACE = 2 ** 44;
/** Numbers as EROFS and d_type-like tables use them (erofs_fs.h, EROFS_FT_*). */
export const FileType = {
  regular: 1,
  directory: 2,
  char: 3,
  block: 4,
  fifo: 5,
  socket: 6,
  symlink: 7,
} as const;
export type FileType = (typeof FileType)[keyof typeof FileType];

/** The directory exists only because something in it has an entry; in a chain its attributes may come from the layers below (specs/layer.md 5). */
export const INODE_IMPLIED = 1;
/** The directory was implied before its own entry came: in a chain it also has the xattrs of the layers below (specs/layer.md 5, "An entry later"). */
export const INODE_IMPLIED_FIRST = 2;

export interface FileTree {
  readonly inodeCount: number;
  readonly type: Uint8Array;
  /** Low 12 bits: permissions, setuid, setgid, sticky. */
  readonly mode: Uint16Array;
  readonly uid: Uint32Array;
  readonly gid: Uint32Array;
  /** Whole seconds since 1970, may be negative. */
  readonly mtimeSeconds: Float64Array;
  readonly mtimeNanoseconds: Uint32Array;
  /** Bytes of a regular file or symlink target; 0 for all else. */
  readonly size: Float64Array;
  readonly nlink: Uint32Array;
  readonly rdevMajor: Uint32Array;
  readonly rdevMinor: Uint32Array;
  /** INODE_IMPLIED, INODE_IMPLIED_FIRST. */
  readonly flags: Uint8Array;
  /** Symlink target in `bytes` (length is `size`). */
  readonly targetOffset: Uint32Array;

  /** Parent directory of each directory inode (the root: itself); 0 for non-directories. */
  readonly parent: Uint32Array;
  /** inodeCount + 1 elements. */
  readonly childStart: Uint32Array;
  readonly childInode: Uint32Array;
  readonly childNameOffset: Uint32Array;
  readonly childNameLength: Uint8Array;

  /** inodeCount + 1 elements. */
  readonly segmentStart: Uint32Array;
  readonly segmentFileOffset: Float64Array;
  readonly segmentLength: Float64Array;
  readonly segmentAddress: Float64Array;

  /** inodeCount + 1 elements. Names are whole ("user.x"), sorted by name bytes within an inode. */
  readonly xattrStart: Uint32Array;
  readonly xattrNameOffset: Uint32Array;
  readonly xattrNameLength: Uint8Array;
  readonly xattrValueOffset: Uint32Array;
  readonly xattrValueLength: Uint32Array;

  readonly bytes: Uint8Array;
  /** True if any whiteout or opaque mark is in it: then the layer means another tree as an image's lowest layer. */
  readonly hasMarks: boolean;
}

export interface InodeFields {
  readonly type: FileType;
  readonly mode: number;
  readonly uid: number;
  readonly gid: number;
  readonly mtimeSeconds: number;
  readonly mtimeNanoseconds: number;
  readonly size?: number;
  readonly rdevMajor?: number;
  readonly rdevMinor?: number;
  readonly implied?: boolean;
  readonly impliedFirst?: boolean;
  readonly target?: Uint8Array;
  /** Whole names; any order. */
  readonly xattrs?: readonly { readonly name: Uint8Array; readonly value: Uint8Array }[];
  /** Ascending by fileOffset. */
  readonly segments?: readonly { readonly fileOffset: number; readonly length: number; readonly address: number }[];
}

interface BuiltInode extends InodeFields {
  readonly children: { name: Uint8Array; inode: number }[] | null;
}

/**
 * Collects inodes and names, then lays out a FileTree and checks its invariants. Inode 0 is the root and is made by the constructor. Numbers of
 * inodes stay as returned; inodes that got no name (but the root) are an error.
 */
export class FileTreeBuilder {
  readonly #inodes: BuiltInode[] = [];

  constructor(root: Omit<InodeFields, "type">) {
    this.#inodes.push({ ...root, type: FileType.directory, children: [] });
  }

  addInode(fields: InodeFields): number {
    this.#inodes.push({ ...fields, children: fields.type === FileType.directory ? [] : null });
    return this.#inodes.length - 1;
  }

  /** A second name for one inode is a hard link. Throws HS_MALFORMED on a bad name. */
  addName(directory: number, name: Uint8Array, inode: number): void {
    const children = this.#inodes[directory]?.children;
    if (!children) throw new HeadstartError("HS_INTERNAL", { what: `file tree: inode ${directory} is no directory` });
    if (name.byteLength === 0 || name.byteLength > LIMITS.nameBytes || name.includes(0x2f) || name.includes(0)) {
      throw new HeadstartError("HS_MALFORMED", {
        what: `file tree: bad name ${JSON.stringify(Buffer.from(name).toString("latin1"))}`,
      });
    }
    children.push({ name, inode });
  }

  finish(): FileTree {
    const inodes = this.#inodes;
    const count = inodes.length;
    let dirents = 0;
    let segments = 0;
    let xattrs = 0;
    let bytes = 0;
    for (const inode of inodes) {
      segments += inode.segments?.length ?? 0;
      bytes += inode.target?.byteLength ?? 0;
      for (const xattr of inode.xattrs ?? []) {
        xattrs++;
        bytes += xattr.name.byteLength + xattr.value.byteLength;
      }
      if (inode.children === null) continue;
      dirents += inode.children.length;
      for (const child of inode.children) bytes += child.name.byteLength;
    }
    const tree = allocateTree(count, dirents, segments, xattrs, bytes);
    const pool = new Pool(tree.bytes);
    const names = new Uint32Array(count);
    let nextDirent = 0;
    let nextSegment = 0;
    let nextXattr = 0;
    let hasMarks = false;
    for (let index = 0; index < count; index++) {
      const inode = inodes[index]!;
      tree.type[index] = inode.type;
      tree.mode[index] = inode.mode & 0o7777;
      tree.uid[index] = inode.uid;
      tree.gid[index] = inode.gid;
      tree.mtimeSeconds[index] = inode.mtimeSeconds;
      tree.mtimeNanoseconds[index] = inode.mtimeNanoseconds;
      tree.size[index] = inode.target?.byteLength ?? inode.size ?? 0;
      tree.rdevMajor[index] = inode.rdevMajor ?? 0;
      tree.rdevMinor[index] = inode.rdevMinor ?? 0;
      tree.flags[index] = (inode.implied ? INODE_IMPLIED : 0) | (inode.impliedFirst ? INODE_IMPLIED_FIRST : 0);
      if (inode.target) tree.targetOffset[index] = pool.put(inode.target);
      if (inode.type === FileType.char && tree.rdevMajor[index] === 0 && tree.rdevMinor[index] === 0) hasMarks = true;

      tree.childStart[index] = nextDirent;
      if (inode.children !== null) {
        inode.children.sort((a, b) => compareBytes(a.name, b.name));
        let previous: Uint8Array | null = null;
        for (const child of inode.children) {
          if (previous !== null && compareBytes(previous, child.name) === 0) {
            throw new HeadstartError("HS_INTERNAL", { what: `file tree: a name stands twice in one directory` });
          }
          previous = child.name;
          tree.childInode[nextDirent] = child.inode;
          tree.childNameLength[nextDirent] = child.name.byteLength;
          tree.childNameOffset[nextDirent] = pool.put(child.name);
          nextDirent++;
          names[child.inode]!++;
          if (inodes[child.inode]!.children !== null) tree.parent[child.inode] = index;
        }
      }

      tree.segmentStart[index] = nextSegment;
      let end = 0;
      for (const segment of inode.segments ?? []) {
        if (
          !(segment.fileOffset >= end && segment.length > 0 && segment.fileOffset + segment.length <= tree.size[index]!)
        ) {
          throw new HeadstartError("HS_MALFORMED", {
            what: `file tree: segments of inode ${index} overlap or exceed its size`,
          });
        }
        end = segment.fileOffset + segment.length;
        tree.segmentFileOffset[nextSegment] = segment.fileOffset;
        tree.segmentLength[nextSegment] = segment.length;
        tree.segmentAddress[nextSegment] = segment.address;
        nextSegment++;
      }

      tree.xattrStart[index] = nextXattr;
      const sorted = [...(inode.xattrs ?? [])].sort((a, b) => compareBytes(a.name, b.name));
      for (const xattr of sorted) {
        if (xattr.name.byteLength > LIMITS.nameBytes || xattr.value.byteLength > LIMITS.xattrValueBytes) {
          throw new HeadstartError("HS_EROFS_LIMIT", { what: `file tree: an xattr of inode ${index} is too large` });
        }
        if (Buffer.from(xattr.name).toString("latin1") === "trusted.overlay.opaque") hasMarks = true;
        tree.xattrNameOffset[nextXattr] = pool.put(xattr.name);
        tree.xattrNameLength[nextXattr] = xattr.name.byteLength;
        tree.xattrValueOffset[nextXattr] = pool.put(xattr.value);
        tree.xattrValueLength[nextXattr] = xattr.value.byteLength;
        nextXattr++;
      }
    }
    tree.childStart[count] = nextDirent;
    tree.segmentStart[count] = nextSegment;
    tree.xattrStart[count] = nextXattr;
    for (let index = 0; index < count; index++) {
      const directory = inodes[index]!.children !== null;
      if (index === 0 ? names[0] !== 0 : directory ? names[index] !== 1 : names[index] === 0) {
        throw new HeadstartError("HS_INTERNAL", { what: `file tree: inode ${index} has ${names[index]} names` });
      }
      tree.nlink[index] = directory ? 2 : names[index]!;
    }
    for (let index = 1; index < count; index++) {
      if (inodes[index]!.children !== null) tree.nlink[tree.parent[index]!]!++;
    }
    return { ...tree, hasMarks };
  }
}

class Pool {
  readonly #bytes: Uint8Array;
  #length = 0;

  constructor(bytes: Uint8Array) {
    this.#bytes = bytes;
  }

  put(bytes: Uint8Array): number {
    const offset = this.#length;
    this.#bytes.set(bytes, offset);
    this.#length += bytes.byteLength;
    return offset;
  }
}

/** Room for a tree of so many parts, all zero: for whoever makes a tree out of trees and keeps the invariants itself. */
export function allocateTree(inodes: number, dirents: number, segments: number, xattrs: number, bytes: number) {
  const f64 = (n: number) => new Float64Array(new SharedArrayBuffer(n * 8));
  const u32 = (n: number) => new Uint32Array(new SharedArrayBuffer(n * 4));
  const u16 = (n: number) => new Uint16Array(new SharedArrayBuffer(n * 2));
  const u8 = (n: number) => new Uint8Array(new SharedArrayBuffer(n));
  return {
    inodeCount: inodes,
    type: u8(inodes),
    mode: u16(inodes),
    uid: u32(inodes),
    gid: u32(inodes),
    mtimeSeconds: f64(inodes),
    mtimeNanoseconds: u32(inodes),
    size: f64(inodes),
    nlink: u32(inodes),
    rdevMajor: u32(inodes),
    rdevMinor: u32(inodes),
    flags: u8(inodes),
    targetOffset: u32(inodes),
    parent: u32(inodes),
    childStart: u32(inodes + 1),
    childInode: u32(dirents),
    childNameOffset: u32(dirents),
    childNameLength: u8(dirents),
    segmentStart: u32(inodes + 1),
    segmentFileOffset: f64(segments),
    segmentLength: f64(segments),
    segmentAddress: f64(segments),
    xattrStart: u32(inodes + 1),
    xattrNameOffset: u32(xattrs),
    xattrNameLength: u8(xattrs),
    xattrValueOffset: u32(xattrs),
    xattrValueLength: u32(xattrs),
    bytes: u8(bytes),
  };
}

/** An inode as `FileTreeBuilder.addInode` takes it: for trees that are made of other trees. Its flags are left out; names, targets and values are views. */
export function inodeFieldsOf(tree: FileTree, inode: number): InodeFields {
  const type = tree.type[inode]! as FileType;
  const segments: { fileOffset: number; length: number; address: number }[] = [];
  for (let index = tree.segmentStart[inode]!; index < tree.segmentStart[inode + 1]!; index++) {
    segments.push({
      fileOffset: tree.segmentFileOffset[index]!,
      length: tree.segmentLength[index]!,
      address: tree.segmentAddress[index]!,
    });
  }
  const xattrs: { name: Uint8Array; value: Uint8Array }[] = [];
  for (let index = tree.xattrStart[inode]!; index < tree.xattrStart[inode + 1]!; index++)
    xattrs.push({ name: xattrName(tree, index), value: xattrValue(tree, index) });
  return {
    type,
    mode: tree.mode[inode]!,
    uid: tree.uid[inode]!,
    gid: tree.gid[inode]!,
    mtimeSeconds: tree.mtimeSeconds[inode]!,
    mtimeNanoseconds: tree.mtimeNanoseconds[inode]!,
    size: tree.size[inode]!,
    rdevMajor: tree.rdevMajor[inode]!,
    rdevMinor: tree.rdevMinor[inode]!,
    segments,
    xattrs,
    ...(type === FileType.symlink ? { target: symlinkTarget(tree, inode) } : {}),
  };
}

/** Name of dirent `index`, a view. */
export function childName(tree: FileTree, index: number): Uint8Array {
  const offset = tree.childNameOffset[index]!;
  return tree.bytes.subarray(offset, offset + tree.childNameLength[index]!);
}

export function symlinkTarget(tree: FileTree, inode: number): Uint8Array {
  const offset = tree.targetOffset[inode]!;
  return tree.bytes.subarray(offset, offset + tree.size[inode]!);
}

export function xattrName(tree: FileTree, index: number): Uint8Array {
  const offset = tree.xattrNameOffset[index]!;
  return tree.bytes.subarray(offset, offset + tree.xattrNameLength[index]!);
}

export function xattrValue(tree: FileTree, index: number): Uint8Array {
  const offset = tree.xattrValueOffset[index]!;
  return tree.bytes.subarray(offset, offset + tree.xattrValueLength[index]!);
}

export function isWhiteout(tree: FileTree, inode: number): boolean {
  return tree.type[inode] === FileType.char && tree.rdevMajor[inode] === 0 && tree.rdevMinor[inode] === 0;
}

/** Dirent index of `name` in `directory`, or -1: a binary search. */
export function findChild(tree: FileTree, directory: number, name: Uint8Array): number {
  let low = tree.childStart[directory]!;
  let high = tree.childStart[directory + 1]!;
  while (low < high) {
    const middle = (low + high) >>> 1;
    const order = compareBytes(childName(tree, middle), name);
    if (order === 0) return middle;
    if (order < 0) low = middle + 1;
    else high = middle;
  }
  return -1;
}
