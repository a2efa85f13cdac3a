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
import { ByteColumn, Column } from "../base/columns.ts";
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

const f64 = (length: number) => new Float64Array(length);
const u32 = (length: number) => new Uint32Array(length);
const u16 = (length: number) => new Uint16Array(length);
const u8 = (length: number) => new Uint8Array(length);

/**
 * Collects inodes and names, then lays out a FileTree and checks its invariants. Inode 0 is the root and is made by the constructor. Numbers of
 * inodes stay as returned; inodes that got no name (but the root) are an error.
 *
 * Takes what it is given apart at once, into columns: it keeps some 130 bytes an entry and no object, and none of the caller's arrays.
 */
export class FileTreeBuilder {
  readonly #type = new Column(u8);
  readonly #mode = new Column(u16);
  readonly #uid = new Column(u32);
  readonly #gid = new Column(u32);
  readonly #mtimeSeconds = new Column(f64);
  readonly #mtimeNanoseconds = new Column(u32);
  readonly #size = new Column(f64);
  readonly #rdevMajor = new Column(u32);
  readonly #rdevMinor = new Column(u32);
  readonly #flags = new Column(u8);
  /** Of inodes that have a target in #bytes; 0: none. */
  readonly #targetLength = new Column(u32);
  readonly #targetOffset = new Column(u32);
  /** Where the inode's segments and xattrs begin; they end where the next one's do. */
  readonly #segmentStart = new Column(u32);
  readonly #xattrStart = new Column(u32);
  readonly #segmentFileOffset = new Column(f64);
  readonly #segmentLength = new Column(f64);
  readonly #segmentAddress = new Column(f64);
  readonly #xattrNameOffset = new Column(u32);
  readonly #xattrNameLength = new Column(u32);
  readonly #xattrValueOffset = new Column(u32);
  readonly #xattrValueLength = new Column(u32);
  /** Names in the order in which they came. */
  readonly #nameDirectory = new Column(u32);
  readonly #nameInode = new Column(u32);
  readonly #nameOffset = new Column(u32);
  readonly #nameLength = new Column(u8);
  readonly #bytes = new ByteColumn();

  constructor(root: Omit<InodeFields, "type">) {
    this.addInode({ ...root, type: FileType.directory });
  }

  addInode(fields: InodeFields): number {
    const target = fields.target?.byteLength ?? 0;
    this.#type.push(fields.type);
    this.#mode.push(fields.mode & 0o7777);
    this.#uid.push(fields.uid);
    this.#gid.push(fields.gid);
    this.#mtimeSeconds.push(fields.mtimeSeconds);
    this.#mtimeNanoseconds.push(fields.mtimeNanoseconds);
    this.#size.push(fields.target === undefined ? (fields.size ?? 0) : target);
    this.#rdevMajor.push(fields.rdevMajor ?? 0);
    this.#rdevMinor.push(fields.rdevMinor ?? 0);
    this.#flags.push((fields.implied ? INODE_IMPLIED : 0) | (fields.impliedFirst ? INODE_IMPLIED_FIRST : 0));
    this.#targetLength.push(target);
    this.#targetOffset.push(fields.target === undefined ? 0 : this.#bytes.put(fields.target));
    this.#segmentStart.push(this.#segmentLength.length);
    for (const { fileOffset, length, address } of fields.segments ?? []) {
      this.#segmentFileOffset.push(fileOffset);
      this.#segmentLength.push(length);
      this.#segmentAddress.push(address);
    }
    this.#xattrStart.push(this.#xattrNameLength.length);
    for (const { name, value } of fields.xattrs ?? []) {
      this.#xattrNameOffset.push(this.#bytes.put(name));
      this.#xattrNameLength.push(name.byteLength);
      this.#xattrValueOffset.push(this.#bytes.put(value));
      this.#xattrValueLength.push(value.byteLength);
    }
    return this.#type.length - 1;
  }

  /** A second name for one inode is a hard link. Throws HS_MALFORMED on a bad name. */
  addName(directory: number, name: Uint8Array, inode: number): void {
    if (this.#type.at(directory) !== FileType.directory) {
      throw new HeadstartError("HS_INTERNAL", { what: `file tree: inode ${directory} is no directory` });
    }
    if (name.byteLength === 0 || name.byteLength > LIMITS.nameBytes || name.includes(0x2f) || name.includes(0)) {
      throw new HeadstartError("HS_MALFORMED", {
        what: `file tree: bad name ${JSON.stringify(Buffer.from(name).toString("latin1"))}`,
      });
    }
    this.#nameDirectory.push(directory);
    this.#nameInode.push(inode);
    this.#nameOffset.push(this.#bytes.put(name));
    this.#nameLength.push(name.byteLength);
  }

  finish(): FileTree {
    const count = this.#type.length;
    const tree = allocateTree(
      count,
      this.#nameInode.length,
      this.#segmentLength.length,
      this.#xattrNameLength.length,
      this.#bytes.length,
    );
    tree.type.set(this.#type.items);
    tree.mode.set(this.#mode.items);
    tree.uid.set(this.#uid.items);
    tree.gid.set(this.#gid.items);
    tree.mtimeSeconds.set(this.#mtimeSeconds.items);
    tree.mtimeNanoseconds.set(this.#mtimeNanoseconds.items);
    tree.size.set(this.#size.items);
    tree.rdevMajor.set(this.#rdevMajor.items);
    tree.rdevMinor.set(this.#rdevMinor.items);
    tree.flags.set(this.#flags.items);
    tree.segmentStart.set(this.#segmentStart.items);
    tree.segmentFileOffset.set(this.#segmentFileOffset.items);
    tree.segmentLength.set(this.#segmentLength.items);
    tree.segmentAddress.set(this.#segmentAddress.items);
    tree.xattrStart.set(this.#xattrStart.items);
    tree.segmentStart[count] = this.#segmentLength.length;
    tree.xattrStart[count] = this.#xattrNameLength.length;

    const pool = new Pool(tree.bytes);
    const byName = this.#namesByDirectory();
    const names = new Uint32Array(count);
    let nextDirent = 0;
    let hasMarks = false;
    for (let index = 0; index < count; index++) {
      const target = this.#targetLength.at(index)!;
      if (target > 0) tree.targetOffset[index] = pool.put(this.#piece(this.#targetOffset.at(index)!, target));
      if (tree.type[index] === FileType.char && tree.rdevMajor[index] === 0 && tree.rdevMinor[index] === 0) {
        hasMarks = true;
      }
      tree.childStart[index] = nextDirent;
      for (const end = byName.start[index + 1]!; nextDirent < end; nextDirent++) {
        const row = byName.rows[nextDirent]!;
        const inode = this.#nameInode.at(row)!;
        tree.childInode[nextDirent] = inode;
        tree.childNameLength[nextDirent] = this.#nameLength.at(row)!;
        tree.childNameOffset[nextDirent] = pool.put(this.#name(row));
        names[inode]!++;
        if (tree.type[inode] === FileType.directory) tree.parent[inode] = index;
      }
      checkSegments(tree, index);
      if (this.#putXattrs(tree, index, pool)) hasMarks = true;
    }
    tree.childStart[count] = nextDirent;
    countLinks(tree, names);
    return { ...tree, hasMarks };
  }

  /** Rows of the names, directory by directory, ascending by name: `rows` from `start[d]` on are those of directory d. */
  #namesByDirectory(): { readonly rows: Uint32Array; readonly start: Uint32Array } {
    const directories = this.#nameDirectory.items;
    const start = new Uint32Array(this.#type.length + 1);
    for (const directory of directories) start[directory + 1]!++;
    for (let index = 0; index < this.#type.length; index++) start[index + 1]! += start[index]!;
    const next = start.slice();
    const rows = new Uint32Array(directories.length);
    for (let row = 0; row < directories.length; row++) rows[next[directories[row]!]!++] = row;
    for (let directory = 0; directory < this.#type.length; directory++) {
      const own = rows.subarray(start[directory], start[directory + 1]);
      // most come sorted
      for (let at = 1; at < own.length; at++) {
        if (this.#compareNames(own[at - 1]!, own[at]!) < 0) continue;
        own.sort((a, b) => this.#compareNames(a, b));
        this.#refuseTwins(own);
        break;
      }
    }
    return { rows, start };
  }

  #refuseTwins(rows: Uint32Array): void {
    for (let at = 1; at < rows.length; at++) {
      if (this.#compareNames(rows[at - 1]!, rows[at]!) !== 0) continue;
      throw new HeadstartError("HS_INTERNAL", { what: `file tree: a name stands twice in one directory` });
    }
  }

  #compareNames(a: number, b: number): number {
    return compareBytes(this.#name(a), this.#name(b));
  }

  #name(row: number): Uint8Array {
    return this.#piece(this.#nameOffset.at(row)!, this.#nameLength.at(row)!);
  }

  #piece(offset: number, length: number): Uint8Array {
    return this.#bytes.bytes.subarray(offset, offset + length);
  }

  /** True if one of them is an opaque mark. */
  #putXattrs(tree: Allocated, inode: number, pool: Pool): boolean {
    const start = tree.xattrStart[inode]!;
    const end = tree.xattrStart[inode + 1]!;
    if (start === end) return false;
    const found: { readonly name: Uint8Array; readonly value: Uint8Array }[] = [];
    for (let row = start; row < end; row++) {
      found.push({
        name: this.#piece(this.#xattrNameOffset.at(row)!, this.#xattrNameLength.at(row)!),
        value: this.#piece(this.#xattrValueOffset.at(row)!, this.#xattrValueLength.at(row)!),
      });
    }
    let opaque = false;
    let row = start;
    for (const { name, value } of found.sort((a, b) => compareBytes(a.name, b.name))) {
      if (name.byteLength > LIMITS.nameBytes || value.byteLength > LIMITS.xattrValueBytes) {
        throw new HeadstartError("HS_EROFS_LIMIT", { what: `file tree: an xattr of inode ${inode} is too large` });
      }
      if (compareBytes(name, OPAQUE) === 0) opaque = true;
      tree.xattrNameOffset[row] = pool.put(name);
      tree.xattrNameLength[row] = name.byteLength;
      tree.xattrValueOffset[row] = pool.put(value);
      tree.xattrValueLength[row++] = value.byteLength;
    }
    return opaque;
  }
}

const OPAQUE = Buffer.from("trusted.overlay.opaque");

type Allocated = ReturnType<typeof allocateTree>;

/** Throws HS_MALFORMED. */
function checkSegments(tree: Allocated, inode: number): void {
  let end = 0;
  for (let at = tree.segmentStart[inode]!; at < tree.segmentStart[inode + 1]!; at++) {
    const start = tree.segmentFileOffset[at]!;
    const length = tree.segmentLength[at]!;
    if (!(start >= end && length > 0 && start + length <= tree.size[inode]!)) {
      throw new HeadstartError("HS_MALFORMED", {
        what: `file tree: segments of inode ${inode} overlap or exceed its size`,
      });
    }
    end = start + length;
  }
}

/** `names`: how often each inode is named. Throws HS_INTERNAL for one that is named too often or not at all. */
function countLinks(tree: Allocated, names: Uint32Array): void {
  for (let index = 0; index < tree.inodeCount; index++) {
    const directory = tree.type[index] === FileType.directory;
    if (index === 0 ? names[0] !== 0 : directory ? names[index] !== 1 : names[index] === 0) {
      throw new HeadstartError("HS_INTERNAL", { what: `file tree: inode ${index} has ${names[index]} names` });
    }
    tree.nlink[index] = directory ? 2 : names[index]!;
  }
  for (let index = 1; index < tree.inodeCount; index++) {
    if (tree.type[index] === FileType.directory) tree.nlink[tree.parent[index]!]!++;
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
