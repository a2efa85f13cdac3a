/**
 * Inline xattr bodies of EROFS inodes (specs/erofs-fuse.md 3.6):
 *
 *   erofs_xattr_ibody_header | { erofs_xattr_entry, name without its prefix, value, padding to 4 } ...
 *
 * The header's name filter lets the kernel (6.6+) answer "no such attribute" without reading the entries; overlayfs asks for
 * trusted.overlay.* at every lower lookup.
 */

import { HeadstartError } from "../base/errors.ts";
import { LIMITS } from "../base/limits.ts";
import { type FileTree, xattrName, xattrValue } from "./file-tree.ts";
import {
  EROFS_XATTR_FILTER_DEFAULT,
  EROFS_XATTR_FILTER_SEED,
  EROFS_XATTR_INDEX_POSIX_ACL_ACCESS,
  EROFS_XATTR_INDEX_POSIX_ACL_DEFAULT,
  EROFS_XATTR_INDEX_SECURITY,
  EROFS_XATTR_INDEX_TRUSTED,
  EROFS_XATTR_INDEX_USER,
  erofs_xattr_entry,
  erofs_xattr_ibody_header,
} from "./ondisk.ts";
import { xxh32 } from "./xxh32.ts";

export interface Xattr {
  /** Whole: "user.x". */
  readonly name: Uint8Array;
  readonly value: Uint8Array;
}

interface Prefix {
  readonly index: number;
  readonly text: Uint8Array;
  /** The name is the prefix itself (ACLs); otherwise something must follow. */
  readonly whole: boolean;
}

const prefix = (index: number, text: string, whole = false): Prefix => ({ index, text: Buffer.from(text), whole });

const PREFIXES: readonly Prefix[] = [
  prefix(EROFS_XATTR_INDEX_USER, "user."),
  prefix(EROFS_XATTR_INDEX_SECURITY, "security."),
  prefix(EROFS_XATTR_INDEX_TRUSTED, "trusted."),
  prefix(EROFS_XATTR_INDEX_POSIX_ACL_ACCESS, "system.posix_acl_access", true),
  prefix(EROFS_XATTR_INDEX_POSIX_ACL_DEFAULT, "system.posix_acl_default", true),
];

/** i_xattr_icount is a u16 that counts units of 4 bytes after the header, plus one. */
const BODY_MAX = erofs_xattr_ibody_header.size + 4 * 65_534;

const align4 = (size: number): number => (size + 3) & ~3;

/** Bytes of the xattr body of `inode`, 0 when it has none. Throws HS_EROFS_LIMIT for names and sizes that EROFS cannot hold. */
export function xattrBodySize(tree: FileTree, inode: number): number {
  const start = tree.xattrStart[inode]!;
  const end = tree.xattrStart[inode + 1]!;
  if (start === end) return 0;
  let size: number = erofs_xattr_ibody_header.size;
  for (let index = start; index < end; index++) {
    const suffixLength = tree.xattrNameLength[index]! - prefixOf(tree, inode, index).text.length;
    const valueLength = tree.xattrValueLength[index]!;
    if (valueLength > 0xffff) throw limit(inode, `an xattr value of ${valueLength} bytes`);
    size += align4(erofs_xattr_entry.size + suffixLength + valueLength);
  }
  if (size > BODY_MAX) throw limit(inode, `${size} bytes of xattrs`);
  return size;
}

/** i_xattr_icount for a body of `size` bytes. */
export function xattrCount(size: number): number {
  return size === 0 ? 0 : (size - erofs_xattr_ibody_header.size) / 4 + 1;
}

/** Writes the body of `inode` at `position`; the bytes there are zeros. Returns where it ends. */
export function emitXattrs(tree: FileTree, inode: number, bytes: Uint8Array, view: DataView, position: number): number {
  const end = tree.xattrStart[inode + 1]!;
  const body = position;
  let filter = EROFS_XATTR_FILTER_DEFAULT;
  let at = body + erofs_xattr_ibody_header.size;
  for (let index = tree.xattrStart[inode]!; index < end; index++) {
    const known = prefixOf(tree, inode, index);
    const suffix = xattrName(tree, index).subarray(known.text.length);
    const value = xattrValue(tree, index);
    filter &= ~filterBit(known.index, suffix);
    view.setUint8(at + erofs_xattr_entry.offsets.e_name_len, suffix.length);
    view.setUint8(at + erofs_xattr_entry.offsets.e_name_index, known.index);
    view.setUint16(at + erofs_xattr_entry.offsets.e_value_size, value.length, true);
    bytes.set(suffix, at + erofs_xattr_entry.size);
    bytes.set(value, at + erofs_xattr_entry.size + suffix.length);
    at += align4(erofs_xattr_entry.size + suffix.length + value.length);
  }
  view.setUint32(body + erofs_xattr_ibody_header.offsets.h_name_filter, filter >>> 0, true);
  return at;
}

/** The filter bit of a name without its prefix; cleared in h_name_filter when the name is there. */
export function filterBit(index: number, suffix: Uint8Array): number {
  return 1 << (xxh32(suffix, (EROFS_XATTR_FILTER_SEED + index) >>> 0) & 31);
}

/**
 * The attributes in one xattr body, whole names (copies), in the order in which they lie. Returns what is wrong with the body as a string. Shared xattrs are not
 * read: our writer makes none. Nydus leaves the name filter zero, so its images are read with the filter ignored.
 */
export function parseXattrs(
  body: Uint8Array,
  options: { readonly filter?: "checked" | "ignored" } = {},
): Xattr[] | string {
  const view = new DataView(body.buffer, body.byteOffset, body.byteLength);
  const header = erofs_xattr_ibody_header;
  if (body.length <= header.size) return "an xattr body without entries";
  if (body[header.offsets.h_shared_count] !== 0) return "shared xattrs";
  const found: Xattr[] = [];
  const names = new Set<string>();
  let filter = EROFS_XATTR_FILTER_DEFAULT;
  let at: number = header.size;
  while (at < body.length) {
    if (at + erofs_xattr_entry.size > body.length) return `an xattr entry at byte ${at} exceeds the body`;
    const index = body[at + erofs_xattr_entry.offsets.e_name_index]!;
    const nameAt = at + erofs_xattr_entry.size;
    const valueAt = nameAt + body[at + erofs_xattr_entry.offsets.e_name_len]!;
    const end = valueAt + view.getUint16(at + erofs_xattr_entry.offsets.e_value_size, true);
    if (end > body.length) return `the xattr at byte ${at} exceeds the body`;
    const known = PREFIXES.find((candidate) => candidate.index === index);
    if (known === undefined || known.whole !== (valueAt === nameAt))
      return `the xattr at byte ${at} has index ${index}`;
    const suffix = body.subarray(nameAt, valueAt);
    if (suffix.includes(0)) return `the xattr at byte ${at} has a NUL in its name`;
    if (known.text.length + suffix.length > LIMITS.nameBytes) return `the xattr name at byte ${at} is too long`;
    const name = Buffer.concat([known.text, suffix]);
    const key = name.toString("latin1");
    if (names.has(key)) return `two xattrs ${JSON.stringify(key)}`;
    names.add(key);
    filter &= ~filterBit(index, suffix);
    found.push({ name, value: body.subarray(valueAt, end) });
    at = align4(end);
  }
  if (options.filter !== "ignored" && view.getUint32(header.offsets.h_name_filter, true) !== filter >>> 0)
    return "a wrong xattr name filter";
  return found;
}

function prefixOf(tree: FileTree, inode: number, index: number): Prefix {
  const offset = tree.xattrNameOffset[index]!;
  const length = tree.xattrNameLength[index]!;
  for (const known of PREFIXES) {
    const fits = known.whole ? length === known.text.length : length > known.text.length;
    if (fits && startsWith(tree.bytes, offset, known.text)) return known;
  }
  throw limit(inode, `the xattr name ${JSON.stringify(Buffer.from(xattrName(tree, index)).toString("latin1"))}`);
}

function startsWith(bytes: Uint8Array, offset: number, text: Uint8Array): boolean {
  for (let index = 0; index < text.length; index++) if (bytes[offset + index] !== text[index]) return false;
  return true;
}

function limit(inode: number, message: string): HeadstartError {
  return new HeadstartError("HS_EROFS_LIMIT", { what: `inode ${inode}: EROFS cannot hold ${message}`, inode });
}
