/**
 * EROFS images as files and as mounts, for tests: a layout is written with data made from addresses, mounted, and walked by the kernel's own view.
 */

import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import {
  closeSync,
  constants,
  ftruncateSync,
  lstatSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readlinkSync,
  rmSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { readFully, writeFully } from "../../src/base/files.ts";
import {
  ADDRESS_SPACE,
  childName,
  type FileTree,
  FileType,
  symlinkTarget,
  xattrName,
  xattrValue,
} from "../../src/erofs/file-tree.ts";
import type { ErofsLayout } from "../../src/erofs/write.ts";
import { MountFlag, mount, unmount } from "../../src/linux/mount.ts";
import { fillFromAddress } from "./random-tree.ts";

const PIECE = 1 << 20;

/** A temporary folder that goes with the scope. */
export function temporaryFolder(prefix: string): { readonly path: string } & Disposable {
  const path = mkdtempSync(join(tmpdir(), prefix));
  return { path, [Symbol.dispose]: () => rmSync(path, { recursive: true, force: true }) };
}

/** The image as a sparse file: metadata, and the bytes of every placement row. */
export function writeImage(path: string, layout: ErofsLayout): void {
  const fd = openSync(path, "w");
  try {
    ftruncateSync(fd, layout.size);
    for (const part of layout.parts) writeFully(fd, part.bytes, part.offset);
    const { rowCount, address, length, fileOffset } = layout.placement;
    for (let row = 0; row < rowCount; row++) {
      writeFully(fd, fillFromAddress(new Uint8Array(length[row]!), address[row]!), fileOffset[row]!);
    }
  } finally {
    closeSync(fd);
  }
}

/** The data of one address space by identity, as a sparse file. */
export function writeDevice(path: string, tree: FileTree, space: number, size: number): void {
  const fd = openSync(path, "w");
  try {
    ftruncateSync(fd, size);
    for (let segment = 0; segment < tree.segmentAddress.length; segment++) {
      const address = tree.segmentAddress[segment]!;
      if (Math.floor(address / ADDRESS_SPACE) !== space) continue;
      const bytes = fillFromAddress(new Uint8Array(tree.segmentLength[segment]!), address);
      writeFully(fd, bytes, address - space * ADDRESS_SPACE);
    }
  } finally {
    closeSync(fd);
  }
}

/** Mounts the file read-only: by mount(2) of the file itself, or through a loop device as mount(8) makes it. */
export function mountImage(path: string, target: string, by: "file" | "loop"): Disposable {
  if (by === "loop") execFileSync("mount", ["-t", "erofs", "-o", "loop,ro", path, target]);
  else mount({ source: path, target, type: "erofs", flags: MountFlag.readOnly });
  return { [Symbol.dispose]: () => unmount(target) };
}

/** Every path with all that stat, readlink, getxattr and read say; both sides of a comparison have this form. */
export type Listing = Map<string, string>;

/** What the tree says a mount must show. */
export function listTree(tree: FileTree, nidOf: Uint32Array): Listing {
  const listing: Listing = new Map();
  const visit = (inode: number, path: Buffer) => {
    const type = tree.type[inode]!;
    const list: string[] = [];
    for (let index = tree.xattrStart[inode]!; index < tree.xattrStart[inode + 1]!; index++) {
      list.push(`${latin1(xattrName(tree, index))}=${latin1(xattrValue(tree, index), "hex")}`);
    }
    const device = type === FileType.char || type === FileType.block;
    listing.set(
      path.toString("latin1"),
      [
        `type=${type} mode=${tree.mode[inode]!.toString(8)} uid=${tree.uid[inode]} gid=${tree.gid[inode]} nlink=${tree.nlink[inode]}`,
        type === FileType.directory ? "" : `size=${tree.size[inode]}`,
        `mtime=${BigInt(tree.mtimeSeconds[inode]!) * 1_000_000_000n + BigInt(tree.mtimeNanoseconds[inode]!)}`,
        `ino=${nidOf[inode]} rdev=${device ? `${tree.rdevMajor[inode]}:${tree.rdevMinor[inode]}` : "0:0"}`,
        type === FileType.symlink ? `target=${latin1(symlinkTarget(tree, inode), "hex")}` : "",
        list.sort().join(","),
        type === FileType.regular ? hashTreeFile(tree, inode) : "",
      ].join(" "),
    );
    for (let child = tree.childStart[inode]!; child < tree.childStart[inode + 1]!; child++) {
      visit(tree.childInode[child]!, Buffer.concat([path, Buffer.from("/"), childName(tree, child)]));
    }
  };
  visit(0, Buffer.from("."));
  return listing;
}

/** What the kernel shows below `root`. */
export function listMount(root: string): Listing {
  const listing: Listing = new Map();
  const xattrs = dumpXattrs(root);
  const types = new Map<bigint, number>([
    [0o100000n, FileType.regular],
    [0o040000n, FileType.directory],
    [0o020000n, FileType.char],
    [0o060000n, FileType.block],
    [0o010000n, FileType.fifo],
    [0o140000n, FileType.socket],
    [0o120000n, FileType.symlink],
  ]);
  const visit = (path: Buffer) => {
    const real = Buffer.concat([Buffer.from(root), path.subarray(1)]);
    const stat = lstatSync(real, { bigint: true });
    const type = types.get(stat.mode & 0o170000n)!;
    const major = ((stat.rdev >> 8n) & 0xfffn) | ((stat.rdev >> 32n) & ~0xfffn);
    const minor = (stat.rdev & 0xffn) | ((stat.rdev >> 12n) & ~0xffn);
    const key = path.toString("latin1");
    listing.set(
      key,
      [
        `type=${type} mode=${(stat.mode & 0o7777n).toString(8)} uid=${stat.uid} gid=${stat.gid} nlink=${stat.nlink}`,
        type === FileType.directory ? "" : `size=${stat.size}`,
        `mtime=${stat.mtimeNs}`,
        `ino=${stat.ino} rdev=${major}:${minor}`,
        type === FileType.symlink ? `target=${readlinkSync(real, { encoding: "buffer" }).toString("hex")}` : "",
        (xattrs.get(key) ?? []).sort().join(","),
        type === FileType.regular ? hashFile(real, Number(stat.size)) : "",
      ].join(" "),
    );
    if (type !== FileType.directory) return;
    for (const name of readdirSync(real, { encoding: "buffer" })) {
      visit(Buffer.concat([path, Buffer.from("/"), name]));
    }
  };
  visit(Buffer.from("."));
  return listing;
}

/** The first few differences, readable; empty when both are equal. */
export function differences(expected: Listing, found: Listing): string[] {
  const list: string[] = [];
  for (const [path, line] of expected) {
    if (found.get(path) !== line) list.push(`${JSON.stringify(path)}\n  want ${line}\n  got  ${found.get(path)}`);
  }
  for (const path of found.keys()) if (!expected.has(path)) list.push(`${JSON.stringify(path)} should not be there`);
  return list.slice(0, 5);
}

/** getfattr's view of the whole mount: path below the root -> "name=hex" of each attribute. */
function dumpXattrs(root: string): Map<string, string[]> {
  const output = execFileSync("getfattr", ["-R", "-P", "-h", "-d", "-m", "-", "-e", "hex", "."], {
    cwd: root,
    maxBuffer: 1 << 30,
  });
  const found = new Map<string, string[]>();
  let list: string[] = [];
  for (const line of output.toString("latin1").split("\n")) {
    const file = /^# file: (.*)$/.exec(line);
    if (file !== null) {
      // getfattr writes odd bytes as \ooo and strips "./"
      const path = file[1]!.replace(/\\([0-7]{3})/g, (_, octal) => String.fromCharCode(Number.parseInt(octal, 8)));
      list = [];
      found.set(path === "." ? "." : `./${path.replace(/^\.\//, "")}`, list);
    } else if (line !== "") {
      list.push(line.replace(/=0x/, "=").replace(/^([^=]+)$/, "$1="));
    }
  }
  return found;
}

/** Content as one hash; of large files, only pieces at fixed places. */
function hashFile(path: Buffer, size: number): string {
  const fd = openSync(path, constants.O_RDONLY);
  try {
    return hashPieces(size, (offset, bytes) => {
      if (readFully(fd, bytes, offset) !== bytes.length) throw new Error(`${path}: short read at ${offset}`);
    });
  } finally {
    closeSync(fd);
  }
}

function hashTreeFile(tree: FileTree, inode: number): string {
  return hashPieces(tree.size[inode]!, (offset, bytes) => {
    bytes.fill(0);
    for (let segment = tree.segmentStart[inode]!; segment < tree.segmentStart[inode + 1]!; segment++) {
      const start = tree.segmentFileOffset[segment]!;
      const from = Math.max(start, offset);
      const to = Math.min(start + tree.segmentLength[segment]!, offset + bytes.length);
      if (from < to) {
        fillFromAddress(bytes.subarray(from - offset, to - offset), tree.segmentAddress[segment]! + from - start);
      }
    }
  });
}

function hashPieces(size: number, read: (offset: number, bytes: Uint8Array) => void): string {
  const hash = createHash("sha256");
  const offsets = size <= 4 * PIECE ? [0] : [0, 2 ** 32 - PIECE / 2, size - PIECE];
  for (const offset of offsets) {
    const bytes = new Uint8Array(Math.min(size <= 4 * PIECE ? size : PIECE, Math.max(0, size - offset)));
    read(offset, bytes);
    hash.update(bytes);
  }
  return hash.digest("hex").slice(0, 16);
}

function latin1(bytes: Uint8Array, encoding: "latin1" | "hex" = "latin1"): string {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString(encoding);
}
