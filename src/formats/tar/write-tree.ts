/**
 * A FileTree as a tar: ustar headers, with a PAX header before them where ustar cannot say it (POSIX pax(1), "ustar Interchange Format"). Same tree, same bytes.
 *
 *   1. directories and all that has no data, by path, so that a directory comes before what is in it
 *   2. regular files in the order in which their data lie, each under its first path
 *   3. further names of either, as hard links, with all attributes: an unpack changes the owner again, and with that drops capabilities
 *   4. directories with a default ACL again, now with it: what is made below one takes its ACL from it
 *
 * A tar of a layer cannot hold sockets, and what containerd would take for a mark: names that begin with ".wh." and char devices 0:0. They are left out and told.
 */

import { childName, type FileTree, FileType, symlinkTarget, xattrName, xattrValue } from "../../erofs/file-tree.ts";
import { TAR_BLOCK } from "./header.ts";
import { TarType } from "./records.ts";

export interface TreeTar {
  readonly chunks: AsyncIterable<Uint8Array>;
  /** Paths that a layer cannot hold. */
  readonly leftOut: readonly Uint8Array[];
}

/** ustar fields of octal digits: 7 for ids and devices, 11 for sizes and times. */
const ID_MAX = 0o7777777;
const SIZE_MAX = 0o77777777777;
/** Type "x": records for the entry after it. */
const PAX_HEADER = 0x78;
const DEFAULT_ACL = "system.posix_acl_default";
const NAME_BYTES = 100;
const PREFIX_BYTES = 155;

interface Entry {
  readonly path: Uint8Array;
  readonly inode: number;
}

/** `content` gives the bytes of a regular file, exactly as many as it has. */
export function writeTreeTar(tree: FileTree, content: (inode: number) => AsyncIterable<Uint8Array>): TreeTar {
  const { entries, leftOut } = listEntries(tree);
  return { chunks: members(tree, entries, content), leftOut };
}

async function* members(
  tree: FileTree,
  entries: readonly Entry[],
  content: (inode: number) => AsyncIterable<Uint8Array>,
): AsyncGenerator<Uint8Array> {
  const first = new Map<number, Entry>();
  const files: Entry[] = [];
  const links: Entry[] = [];
  const again: Entry[] = [];
  for (const entry of entries) {
    if (first.has(entry.inode)) links.push(entry);
    else {
      first.set(entry.inode, entry);
      if (tree.type[entry.inode] === FileType.regular) files.push(entry);
      else yield member(tree, entry, (name) => name !== DEFAULT_ACL);
      if (hasDefaultAcl(tree, entry.inode)) again.push(entry);
    }
  }
  const place = ({ inode }: Entry) => {
    const segment = tree.segmentStart[inode]!;
    return segment < tree.segmentStart[inode + 1]! ? tree.segmentAddress[segment]! : -1;
  };
  for (const entry of files.sort((a, b) => place(a) - place(b))) {
    const size = tree.size[entry.inode]!;
    yield member(tree, entry, () => true);
    yield* content(entry.inode);
    if (size % TAR_BLOCK > 0) yield new Uint8Array(TAR_BLOCK - (size % TAR_BLOCK));
  }
  for (const entry of links) yield member(tree, entry, () => true, first.get(entry.inode)!.path);
  for (const entry of again) yield member(tree, entry, () => true);
  yield new Uint8Array(2 * TAR_BLOCK);
}

/** By path, without the root: containerd ignores an entry for it (specs/layer.md C18). */
function listEntries(tree: FileTree): { entries: Entry[]; leftOut: Uint8Array[] } {
  const entries: Entry[] = [];
  const leftOut: Uint8Array[] = [];
  const stack: Entry[] = [{ path: new Uint8Array(0), inode: 0 }];
  for (let top = stack.pop(); top !== undefined; top = stack.pop()) {
    if (top.inode !== 0) entries.push(top);
    if (tree.type[top.inode] !== FileType.directory) continue;
    for (let dirent = tree.childStart[top.inode + 1]! - 1; dirent >= tree.childStart[top.inode]!; dirent--) {
      const inode = tree.childInode[dirent]!;
      const name = childName(tree, dirent);
      const slash = tree.type[inode] === FileType.directory ? "/" : "";
      const path = Buffer.concat([top.path, name, Buffer.from(slash)]);
      if (canBeInLayer(tree, inode, name)) stack.push({ path, inode });
      else leftOut.push(path);
    }
  }
  return { entries, leftOut };
}

function canBeInLayer(tree: FileTree, inode: number, name: Uint8Array): boolean {
  if (Buffer.from(name.subarray(0, 4)).toString("latin1") === ".wh.") return false;
  if (tree.type[inode] === FileType.socket) return false;
  return !(tree.type[inode] === FileType.char && tree.rdevMajor[inode] === 0 && tree.rdevMinor[inode] === 0);
}

const FLAGS: Readonly<Record<FileType, number>> = {
  [FileType.regular]: TarType.regular,
  [FileType.directory]: TarType.directory,
  [FileType.char]: TarType.char,
  [FileType.block]: TarType.block,
  [FileType.fifo]: TarType.fifo,
  [FileType.symlink]: TarType.symlink,
  [FileType.socket]: TarType.regular,
};

function hasDefaultAcl(tree: FileTree, inode: number): boolean {
  for (let index = tree.xattrStart[inode]!; index < tree.xattrStart[inode + 1]!; index++)
    if (nameOf(tree, index) === DEFAULT_ACL) return true;
  return false;
}

function nameOf(tree: FileTree, xattr: number): string {
  return Buffer.from(xattrName(tree, xattr)).toString("latin1");
}

/** Headers of one entry, with those of its xattrs that are wanted. `linkTo`: a further name of what stands under that path. */
function member(
  tree: FileTree,
  { path, inode }: Entry,
  wanted: (xattr: string) => boolean,
  linkTo: Uint8Array | null = null,
): Uint8Array {
  const type = tree.type[inode]! as FileType;
  const target = linkTo ?? (type === FileType.symlink ? symlinkTarget(tree, inode) : new Uint8Array(0));
  const fields: HeaderFields = {
    path,
    target,
    flag: linkTo === null ? FLAGS[type] : TarType.hardLink,
    mode: tree.mode[inode]!,
    uid: tree.uid[inode]!,
    gid: tree.gid[inode]!,
    size: linkTo === null && type === FileType.regular ? tree.size[inode]! : 0,
    mtime: tree.mtimeSeconds[inode]!,
    major: tree.rdevMajor[inode]!,
    minor: tree.rdevMinor[inode]!,
  };
  const records = paxRecords(tree, inode, fields, wanted);
  if (records.byteLength === 0) return header(fields);
  const pax = { ...fields, path: Buffer.from("PaxHeaders/0"), target: new Uint8Array(0), flag: PAX_HEADER };
  return Buffer.concat([
    header({ ...pax, mode: 0o644, uid: 0, gid: 0, mtime: 0, major: 0, minor: 0, size: records.byteLength }),
    records,
    new Uint8Array((TAR_BLOCK - (records.byteLength % TAR_BLOCK)) % TAR_BLOCK),
    header(fields),
  ]);
}

function paxRecords(tree: FileTree, inode: number, fields: HeaderFields, wanted: (xattr: string) => boolean): Buffer {
  const records: Buffer[] = [];
  const add = (key: string | Uint8Array, value: string | Uint8Array) =>
    records.push(paxRecord(Buffer.from(key), Buffer.from(value)));
  if (splitPath(fields.path) === null) add("path", fields.path);
  if (!fitsField(fields.target, NAME_BYTES)) add("linkpath", fields.target);
  for (const key of ["uid", "gid"] as const) if (fields[key] > ID_MAX) add(key, String(fields[key]));
  if (fields.size > SIZE_MAX) add("size", String(fields.size));
  const nanoseconds = tree.mtimeNanoseconds[inode]!;
  if (nanoseconds > 0 || fields.mtime < 0 || fields.mtime > SIZE_MAX) add("mtime", paxTime(fields.mtime, nanoseconds));
  for (let index = tree.xattrStart[inode]!; index < tree.xattrStart[inode + 1]!; index++) {
    const name = nameOf(tree, index);
    // overlayfs's own marks mean nothing in a tree that is complete
    if (wanted(name) && !name.startsWith("trusted.overlay."))
      add(Buffer.from(`SCHILY.xattr.${name}`, "latin1"), xattrValue(tree, index));
  }
  return Buffer.concat(records);
}

/** "<length> <key>=<value>\n", where the length counts itself. */
function paxRecord(key: Uint8Array, value: Uint8Array): Buffer {
  const rest = key.byteLength + value.byteLength + 3;
  let length = rest + String(rest).length;
  length = rest + String(length).length;
  return Buffer.concat([Buffer.from(`${length} `), key, Buffer.from("="), value, Buffer.from("\n")]);
}

/** Decimal seconds; below zero the fraction counts away from it. */
function paxTime(seconds: number, nanoseconds: number): string {
  const total = BigInt(seconds) * 1_000_000_000n + BigInt(nanoseconds);
  const digits = (total < 0n ? -total : total).toString().padStart(10, "0");
  const fraction = digits.slice(-9).replace(/0+$/, "");
  return `${total < 0n ? "-" : ""}${digits.slice(0, -9)}${fraction === "" ? "" : `.${fraction}`}`;
}

function fitsField(bytes: Uint8Array, limit: number): boolean {
  return bytes.byteLength <= limit && bytes.every((byte) => byte >= 0x20 && byte < 0x7f);
}

/** ustar's name and prefix, or null when the path fits neither or is not ASCII. */
function splitPath(path: Uint8Array): { readonly name: Uint8Array; readonly prefix: Uint8Array } | null {
  if (!fitsField(path, NAME_BYTES + 1 + PREFIX_BYTES)) return null;
  if (path.byteLength <= NAME_BYTES) return { name: path, prefix: new Uint8Array(0) };
  for (let at = path.byteLength - NAME_BYTES - 1; at <= Math.min(PREFIX_BYTES, path.byteLength - 2); at++)
    if (at > 0 && path[at] === 0x2f) return { name: path.subarray(at + 1), prefix: path.subarray(0, at) };
  return null;
}

interface HeaderFields {
  readonly path: Uint8Array;
  readonly target: Uint8Array;
  readonly flag: number;
  readonly mode: number;
  readonly uid: number;
  readonly gid: number;
  readonly size: number;
  readonly mtime: number;
  readonly major: number;
  readonly minor: number;
}

function header(fields: HeaderFields): Uint8Array {
  const block = Buffer.alloc(TAR_BLOCK);
  const octal = (value: number, at: number, digits: number) =>
    block.write(value.toString(8).padStart(digits, "0"), at, digits, "latin1");
  const { name, prefix } = splitPath(fields.path) ?? { name: fields.path.slice(0, NAME_BYTES), prefix: null };
  block.set(name, 0);
  octal(fields.mode, 100, 7);
  octal(fields.uid > ID_MAX ? 0 : fields.uid, 108, 7);
  octal(fields.gid > ID_MAX ? 0 : fields.gid, 116, 7);
  octal(fields.size > SIZE_MAX ? 0 : fields.size, 124, 11);
  octal(Math.min(Math.max(0, fields.mtime), SIZE_MAX), 136, 11);
  block[156] = fields.flag;
  block.set(fields.target.subarray(0, NAME_BYTES), 157);
  block.write("ustar\x0000", 257, 8, "latin1");
  octal(fields.major, 329, 7);
  octal(fields.minor, 337, 7);
  if (prefix !== null) block.set(prefix, 345);
  block.fill(0x20, 148, 156); // the checksum counts itself as blanks
  let sum = 0;
  for (const byte of block) sum += byte;
  octal(sum, 148, 6);
  block[154] = 0;
  return block;
}
