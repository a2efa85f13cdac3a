/**
 * xattrs of ext4 (specs/warm-volume.md 7.7): a list in the inode behind its extra fields, or in one block of its own.
 *
 *   entry: u8 name length, u8 index, u16 value offset, u32 0, u32 value size, u32 hash, name without prefix, padding to 4; a zero u32 ends the list;
 *   values lie from the end backwards, each padded to 4
 *
 * ACLs have another form on disk than in system calls: ids only where somebody is named.
 */

import { compareBytes, Reader, Writer } from "../../base/bytes.ts";
import { parseAcl, serializeAcl } from "../../erofs/acl.ts";
import { type FileTree, xattrName, xattrValue } from "../../erofs/file-tree.ts";
import { viewOf, xattrChecksum } from "./checksum.ts";
import { beyondExt4, invalid } from "./failures.ts";
import { BLOCK, INODE_SIZE, XATTR_INODE_AT, XATTR_MAGIC } from "./ondisk.ts";

export interface Xattr {
  /** Whole: "user.x". */
  readonly name: Uint8Array;
  /** As getxattr(2) gives it. */
  readonly value: Uint8Array;
}

/** An attribute as it lies on disk. */
export interface XattrEntry {
  readonly index: number;
  readonly suffix: Uint8Array;
  readonly value: Uint8Array;
}

interface Prefix {
  readonly index: number;
  readonly text: Buffer;
  /** The name is the prefix itself. */
  readonly whole: boolean;
}

const ACL_ACCESS_INDEX = 2;
const ACL_DEFAULT_INDEX = 3;
const PREFIXES: readonly Prefix[] = [
  { index: 1, text: Buffer.from("user."), whole: false },
  { index: ACL_ACCESS_INDEX, text: Buffer.from("system.posix_acl_access"), whole: true },
  { index: ACL_DEFAULT_INDEX, text: Buffer.from("system.posix_acl_default"), whole: true },
  { index: 4, text: Buffer.from("trusted."), whole: false },
  { index: 6, text: Buffer.from("security."), whole: false },
];

const ENTRY = 16;
const END_MARK = 4;
const BLOCK_HEADER = 32;
const BLOCK_CHECKSUM_AT = 16;
const SUFFIX_MAX = 255;
const INODE_ROOM = INODE_SIZE - XATTR_INODE_AT - 4;
const ACL_VERSION = 1;
/** ACL tags that carry an id: user and group. */
const NAMED = new Set([2, 8]);
const NOBODY = 0xffff_ffff;

const align4 = (size: number): number => (size + 3) & ~3;
const isAcl = (index: number): boolean => index === ACL_ACCESS_INDEX || index === ACL_DEFAULT_INDEX;

/** The attributes of a tree's inode in the order of ext4: index, length, name. `where` names the entry in errors. Throws HS_EXT4_LIMIT. */
export function xattrEntries(tree: FileTree, inode: number, where: () => string): XattrEntry[] {
  const entries: XattrEntry[] = [];
  for (let at = tree.xattrStart[inode]!; at < tree.xattrStart[inode + 1]!; at++) {
    const name = Buffer.from(xattrName(tree, at));
    const known = PREFIXES.find(({ text, whole }) =>
      whole ? name.equals(text) : name.byteLength > text.byteLength && name.subarray(0, text.byteLength).equals(text),
    );
    const suffix = known === undefined ? name : name.subarray(known.text.byteLength);
    if (known === undefined || suffix.byteLength > SUFFIX_MAX) {
      throw beyondExt4(`${where()}: ext4 has no place for the xattr name ${JSON.stringify(name.toString("latin1"))}`);
    }
    const value = Uint8Array.from(xattrValue(tree, at));
    if (!isAcl(known.index)) entries.push({ index: known.index, suffix, value });
    else {
      const stored = aclToDisk(value, () => `${where()}: ${name.toString("latin1")}`);
      if (stored !== null) entries.push({ index: known.index, suffix, value: stored });
    }
  }
  return entries.sort(
    (a, b) => a.index - b.index || a.suffix.byteLength - b.suffix.byteLength || compareBytes(a.suffix, b.suffix),
  );
}

/** True when the list fits into the inode. */
export function fitsInode(entries: readonly XattrEntry[]): boolean {
  return listSize(entries) <= INODE_ROOM;
}

/** Writes the list into the 256 bytes of its inode. */
export function putInodeXattrs(inode: Uint8Array, entries: readonly XattrEntry[]): void {
  viewOf(inode).setUint32(XATTR_INODE_AT, XATTR_MAGIC, true);
  // hashes stay zero here, as the kernel writes them
  putList(inode.subarray(XATTR_INODE_AT + 4), 0, entries, false);
}

/** A block with the list, without its checksum. Throws HS_EXT4_LIMIT when it does not fit. */
export function xattrBlock(entries: readonly XattrEntry[], where: () => string): Uint8Array {
  const size = listSize(entries);
  if (BLOCK_HEADER + size > BLOCK) {
    throw beyondExt4(`${where()}: its xattrs take ${size} bytes, ext4 has ${BLOCK - BLOCK_HEADER}`);
  }
  const block = new Uint8Array(BLOCK);
  const view = viewOf(block);
  view.setUint32(0, XATTR_MAGIC, true);
  view.setUint32(4, 1, true);
  view.setUint32(8, 1, true);
  let hash = 0;
  for (const own of putList(block, BLOCK_HEADER, entries, true)) hash = (((hash << 16) | (hash >>> 16)) ^ own) >>> 0;
  view.setUint32(12, hash, true);
  return block;
}

/** Says how many inodes share the block and seals it for its place. */
export function sealXattrBlock(block: Uint8Array, seed: number, number: number, refcount: number): void {
  const view = viewOf(block);
  view.setUint32(4, refcount, true);
  view.setUint32(BLOCK_CHECKSUM_AT, xattrChecksum(seed, number, block), true);
}

function listSize(entries: readonly XattrEntry[]): number {
  let size = END_MARK;
  for (const { suffix, value } of entries) size += ENTRY + align4(suffix.byteLength) + align4(value.byteLength);
  return size;
}

/** Offsets count from the start of `bytes`. Returns the entries' hashes. */
function putList(bytes: Uint8Array, start: number, entries: readonly XattrEntry[], hashed: boolean): number[] {
  const view = viewOf(bytes);
  const hashes: number[] = [];
  let at = start;
  let end = bytes.byteLength;
  for (const { index, suffix, value } of entries) {
    end -= align4(value.byteLength);
    view.setUint8(at, suffix.byteLength);
    view.setUint8(at + 1, index);
    view.setUint16(at + 2, value.byteLength === 0 ? 0 : end, true);
    view.setUint32(at + 8, value.byteLength, true);
    bytes.set(suffix, at + ENTRY);
    bytes.set(value, end);
    const hash = entryHash(suffix, bytes.subarray(end, end + align4(value.byteLength)), false);
    if (hashed) view.setUint32(at + 12, hash, true);
    hashes.push(hash);
    at += ENTRY + align4(suffix.byteLength);
  }
  return hashes;
}

/** `value` is padded to whole words. Kernels before 6.2 took the bytes of the name as signed where char is. */
function entryHash(suffix: Uint8Array, value: Uint8Array, signed: boolean): number {
  let hash = 0;
  for (const byte of suffix) hash = (hash << 5) ^ (hash >>> 27) ^ (signed && byte > 127 ? byte - 256 : byte);
  const view = viewOf(value);
  for (let at = 0; at + 4 <= value.byteLength; at += 4) {
    hash = (hash << 16) ^ (hash >>> 16) ^ view.getUint32(at, true);
  }
  return hash >>> 0;
}

function aclToDisk(value: Uint8Array, where: () => string): Uint8Array | null {
  const acl = parseAcl(value);
  if (acl === "none") return null;
  if (typeof acl === "string")
    throw beyondExt4(`${where()}: the ACL is ${acl === "version" ? "of another version" : acl}`);
  const writer = new Writer(4 + 8 * acl.length).u32(ACL_VERSION);
  for (const { tag, permissions, id } of acl) {
    writer.u16(tag).u16(permissions);
    if (NAMED.has(tag)) writer.u32(id);
  }
  return writer.finish();
}

function aclFromDisk(value: Uint8Array, what: string): Uint8Array {
  const reader = new Reader(value, { what });
  if (reader.u32() !== ACL_VERSION) throw invalid(`${what} is of another version`);
  const acl: { tag: number; permissions: number; id: number }[] = [];
  while (reader.remaining > 0) {
    const tag = reader.u16();
    const permissions = reader.u16();
    acl.push({ tag, permissions, id: NAMED.has(tag) ? reader.u32() : NOBODY });
  }
  const bytes = serializeAcl(acl);
  if (typeof parseAcl(bytes) === "string") throw invalid(`${what} is not sound`);
  return bytes;
}

/** The attributes in an inode of 256 bytes whose extra fields take `extraSize`. Throws HS_EXT4_INVALID. */
export function readInodeXattrs(inode: Uint8Array, extraSize: number, what: string): Xattr[] {
  const at = 128 + extraSize;
  if (at + 8 > inode.byteLength || viewOf(inode).getUint32(at, true) !== XATTR_MAGIC) return [];
  return readList(inode.subarray(at + 4), 0, what, false);
}

/** The attributes in an xattr block, whose checksum the caller has verified. Throws HS_EXT4_INVALID. */
export function readXattrBlock(block: Uint8Array, what: string): { xattrs: Xattr[]; refcount: number } {
  const view = viewOf(block);
  const refcount = view.getUint32(4, true);
  if (view.getUint32(0, true) !== XATTR_MAGIC || view.getUint32(8, true) !== 1)
    throw invalid(`${what}: no xattr block`);
  return { xattrs: readList(block, BLOCK_HEADER, what, true), refcount };
}

export function xattrBlockChecksum(block: Uint8Array): number {
  return viewOf(block).getUint32(BLOCK_CHECKSUM_AT, true);
}

function readList(bytes: Uint8Array, start: number, what: string, hashed: boolean): Xattr[] {
  const view = viewOf(bytes);
  const found: Xattr[] = [];
  let at = start;
  let valuesAt = bytes.byteLength;
  for (;;) {
    if (at + END_MARK > bytes.byteLength) throw invalid(`${what}: an xattr list without an end`);
    if (view.getUint32(at, true) === 0) break;
    const nameEnd = at + ENTRY + bytes[at]!;
    if (nameEnd > bytes.byteLength) throw invalid(`${what}: an xattr entry exceeds its list`);
    const index = bytes[at + 1]!;
    const valueAt = view.getUint16(at + 2, true);
    const size = view.getUint32(at + 8, true);
    if (view.getUint32(at + 4, true) !== 0) throw invalid(`${what}: an xattr value in an inode of its own`);
    if (size > 0 && (valueAt > bytes.byteLength || align4(size) > bytes.byteLength - valueAt)) {
      throw invalid(`${what}: an xattr value exceeds its list`);
    }
    if (size > 0) valuesAt = Math.min(valuesAt, valueAt);
    const suffix = bytes.subarray(at + ENTRY, nameEnd);
    const value = size === 0 ? new Uint8Array(0) : Uint8Array.from(bytes.subarray(valueAt, valueAt + size));
    const hash = view.getUint32(at + 12, true);
    if (hash !== 0 || hashed) {
      const words = size === 0 ? value : bytes.subarray(valueAt, valueAt + align4(size));
      if (hash !== entryHash(suffix, words, false) && hash !== entryHash(suffix, words, true)) {
        throw invalid(`${what}: an xattr hash is wrong`);
      }
    }
    const known = PREFIXES.find((prefix) => prefix.index === index);
    if (known === undefined || known.whole !== (suffix.byteLength === 0) || suffix.includes(0)) {
      throw invalid(`${what}: an xattr of index ${index} with ${suffix.byteLength} bytes of name`);
    }
    const name = Buffer.concat([known.text, suffix]);
    found.push({ name, value: isAcl(index) ? aclFromDisk(value, `${what}: ${known.text}`) : value });
    at = align4(nameEnd);
  }
  if (at + END_MARK > valuesAt) throw invalid(`${what}: xattr values overlap their entries`);
  return found;
}
