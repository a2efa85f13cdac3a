/**
 * Answers to every request but READ and INIT: a flat read-only directory. The kernel asks each of these about once for a layer (specs/erofs-fuse.md 2), so this
 * is written for clarity; the hot path is reader.worker.ts.
 */

import type { FileTable, TableFile } from "./file-table.ts";
import {
  ATTR,
  ATTR_OUT,
  DIRENT,
  ENTRY_OUT,
  Errno,
  IN_HEADER,
  OPEN_OUT,
  Opcode,
  READ_IN,
  ROOT_NODEID,
  S_IFDIR,
  S_IFREG,
  STATFS_OUT,
  WRITING_OPCODES,
} from "./ondisk.ts";

/** `error` is a positive errno, 0 for success. Null: this request gets no reply. */
export type Answer = { readonly error: number; readonly body: Uint8Array } | null;

const EMPTY = new Uint8Array(0);
/** Nothing changes behind the kernel's back: a removed name is told by INVAL_ENTRY. */
const VALID_SECONDS = 86_400;
const BLOCK = 4096;

export function answer(request: Uint8Array, table: FileTable): Answer {
  const view = new DataView(request.buffer, request.byteOffset, request.byteLength);
  const opcode = view.getUint32(IN_HEADER.offsets.opcode, true);
  const nodeid = readNodeid(view);
  switch (opcode) {
    case Opcode.forget:
    case Opcode.batchForget:
    case Opcode.interrupt:
      return null;
    case Opcode.lookup:
      return lookup(nodeid, lookupName(request), table);
    case Opcode.getattr:
      return getattr(nodeid, table);
    case Opcode.statfs:
      return ok(statfs());
    case Opcode.opendir:
      return nodeid === ROOT_NODEID ? ok(new Uint8Array(OPEN_OUT.size)) : fail(Errno.EINVAL);
    case Opcode.readdir:
      return readdir(nodeid, view, table);
    case Opcode.release:
    case Opcode.releasedir:
    case Opcode.destroy:
      return ok(EMPTY);
    default:
      // the kernel remembers ENOSYS of OPEN, GETXATTR, LSEEK, ... and does not ask again
      return fail(WRITING_OPCODES.has(opcode) ? Errno.EROFS : Errno.ENOSYS);
  }
}

/** A node id is a u64, ours are below 2^53; anything larger is some unknown file. */
export function readNodeid(view: DataView): number {
  const at = IN_HEADER.offsets.nodeid;
  return view.getUint32(at + 4, true) * 2 ** 32 + view.getUint32(at, true);
}

/** The NUL-terminated name behind the header. */
export function lookupName(request: Uint8Array): string {
  const end = request.indexOf(0, IN_HEADER.size);
  return Buffer.from(request.subarray(IN_HEADER.size, end < 0 ? request.byteLength : end)).toString("latin1");
}

function ok(body: Uint8Array): Answer {
  return { error: 0, body };
}

function fail(error: number): Answer {
  return { error, body: EMPTY };
}

function lookup(parent: number, name: string, table: FileTable): Answer {
  const file = parent === ROOT_NODEID ? table.byName(name) : undefined;
  if (file === undefined) return fail(Errno.ENOENT);
  const out = new Uint8Array(ENTRY_OUT.size);
  const view = new DataView(out.buffer);
  view.setBigUint64(ENTRY_OUT.offsets.nodeid, BigInt(file.nodeid), true);
  view.setBigUint64(ENTRY_OUT.offsets.entry_valid, BigInt(VALID_SECONDS), true);
  view.setBigUint64(ENTRY_OUT.offsets.attr_valid, BigInt(VALID_SECONDS), true);
  writeAttr(view, ENTRY_OUT.offsets.attr, file);
  return ok(out);
}

function getattr(nodeid: number, table: FileTable): Answer {
  const file = nodeid === ROOT_NODEID ? null : table.byNodeid(nodeid);
  if (file === undefined) return fail(Errno.ESTALE);
  const out = new Uint8Array(ATTR_OUT.size);
  const view = new DataView(out.buffer);
  view.setBigUint64(ATTR_OUT.offsets.attr_valid, BigInt(VALID_SECONDS), true);
  writeAttr(view, ATTR_OUT.offsets.attr, file);
  return ok(out);
}

/** Null is the root. */
function writeAttr(view: DataView, start: number, file: TableFile | null): void {
  const at = ATTR.offsets;
  view.setBigUint64(start + at.ino, BigInt(file?.nodeid ?? ROOT_NODEID), true);
  view.setBigUint64(start + at.size, BigInt(file?.size ?? 0), true);
  view.setBigUint64(start + at.blocks, BigInt(Math.ceil((file?.size ?? 0) / 512)), true);
  view.setUint32(start + at.mode, file === null ? S_IFDIR | 0o500 : S_IFREG | 0o444, true);
  view.setUint32(start + at.nlink, file === null ? 2 : 1, true);
  view.setUint32(start + at.blksize, BLOCK, true);
}

function statfs(): Uint8Array {
  const out = new Uint8Array(STATFS_OUT.size);
  const view = new DataView(out.buffer);
  view.setUint32(STATFS_OUT.offsets.bsize, BLOCK, true);
  view.setUint32(STATFS_OUT.offsets.frsize, BLOCK, true);
  view.setUint32(STATFS_OUT.offsets.namelen, 255, true);
  return out;
}

function readdir(nodeid: number, view: DataView, table: FileTable): Answer {
  if (nodeid !== ROOT_NODEID || view.byteLength < IN_HEADER.size + READ_IN.size) return fail(Errno.EINVAL);
  const offset = Number(view.getBigUint64(IN_HEADER.size + READ_IN.offsets.offset, true));
  const size = Math.min(view.getUint32(IN_HEADER.size + READ_IN.offsets.size, true), 65_536);
  const out = new Uint8Array(size);
  const entries = new DataView(out.buffer);
  let used = 0;
  // `off` is the node id to go on behind: stable however files come and go
  for (const file of table.list()) {
    if (file.nodeid <= offset) continue;
    const name = Buffer.from(file.name, "latin1");
    const length = DIRENT.size + Math.ceil(name.byteLength / 8) * 8;
    if (used + length > size) break;
    entries.setBigUint64(used + DIRENT.offsets.ino, BigInt(file.nodeid), true);
    entries.setBigUint64(used + DIRENT.offsets.off, BigInt(file.nodeid), true);
    entries.setUint32(used + DIRENT.offsets.namelen, name.byteLength, true);
    entries.setUint32(used + DIRENT.offsets.type, S_IFREG >> 12, true);
    out.set(name, used + DIRENT.size);
    used += length;
  }
  return ok(out.subarray(0, used));
}
