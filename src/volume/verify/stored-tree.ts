/**
 * A volume's files as one FileTree with their contents, whether they lie in a directory or in an ext4 image. Memory is that of the tree; contents are read piece by
 * piece into one buffer.
 */

import { createHash } from "node:crypto";
import { type BigIntStats, closeSync, constants, lstatSync, openSync, readdirSync, readlinkSync } from "node:fs";
import { setImmediate } from "node:timers/promises";
import { HeadstartError, isHeadstartError } from "../../base/errors.ts";
import { readFully } from "../../base/files.ts";
import { LIMITS, MiB } from "../../base/limits.ts";
import { type FileTree, FileTreeBuilder, FileType, findChild, type InodeFields } from "../../erofs/file-tree.ts";
import { getXattr, listXattrs } from "../../linux/xattr.ts";
import type { Ext4Reader } from "../ext4/read.ts";

/** A view that is valid until the next piece is asked for. */
export type Pieces = AsyncGenerator<Uint8Array, void, undefined>;

export interface StoredTree {
  readonly tree: FileTree;
  /** Link count as stored, which the names found need not agree with. */
  links(inode: number): number;
  /** Bytes of the blocks that it takes, as stat counts them. */
  allocated(inode: number): number;
  /** Content of a regular file: exactly its size. Throws HS_TRUNCATED. */
  read(inode: number): Pieces;
}

const PIECE = MiB;
/** After so many bytes the event loop turns: for interrupts and progress. */
const TURN_BYTES = 16 * MiB;

/** An ext4 file system that begins at byte `base` of an open file. Throws HS_EXT4_INVALID. */
export function ext4Tree(reader: Ext4Reader, fd: number, base: number): StoredTree {
  const { tree, inodeOf } = reader.toFileTree();
  return {
    tree,
    links: (inode) => reader.inode(inodeOf[inode]!).nlink,
    allocated: (inode) => reader.inode(inodeOf[inode]!).sectors * 512,
    read: (inode) => ext4Pieces(tree, inode, fd, base),
  };
}

async function* ext4Pieces(tree: FileTree, inode: number, fd: number, base: number): Pieces {
  const buffer = new Uint8Array(Math.min(PIECE, Math.max(tree.size[inode]!, 1)));
  const turn = new Turn();
  let done = 0;
  for (let at = tree.segmentStart[inode]!; at <= tree.segmentStart[inode + 1]!; at++) {
    const isEnd = at === tree.segmentStart[inode + 1]!;
    const start = isEnd ? tree.size[inode]! : tree.segmentFileOffset[at]!;
    if (start > done) buffer.fill(0);
    while (done < start) {
      const count = Math.min(buffer.byteLength, start - done);
      await turn.after(count);
      yield buffer.subarray(0, count);
      done += count;
    }
    if (isEnd) return;
    const end = start + tree.segmentLength[at]!;
    while (done < end) {
      const piece = buffer.subarray(0, Math.min(buffer.byteLength, end - done));
      readExactly(fd, piece, base + tree.segmentAddress[at]! + done - start);
      await turn.after(piece.byteLength);
      yield piece;
      done += piece.byteLength;
    }
  }
}

/** A directory of this machine. Takes root to see everything. Throws HS_NOT_FOUND, HS_SYSCALL. */
export function directoryTree(root: string): StoredTree {
  const stat = lstatSync(root, { throwIfNoEntry: false });
  if (stat === undefined) throw new HeadstartError("HS_NOT_FOUND", { what: root });
  const walk = new DirectoryWalk();
  const { tree, paths, nlinks, blocks } = walk.run(Buffer.from(root));
  return {
    tree,
    links: (inode) => nlinks[inode]!,
    allocated: (inode) => blocks[inode]! * 512,
    read: (inode) => filePieces(paths[inode]!, tree.size[inode]!),
  };
}

const SLASH = Buffer.from("/");
const TYPES: Readonly<Record<number, FileType>> = {
  [constants.S_IFREG]: FileType.regular,
  [constants.S_IFDIR]: FileType.directory,
  [constants.S_IFLNK]: FileType.symlink,
  [constants.S_IFCHR]: FileType.char,
  [constants.S_IFBLK]: FileType.block,
  [constants.S_IFIFO]: FileType.fifo,
  [constants.S_IFSOCK]: FileType.socket,
};
const NANOSECONDS = 1_000_000_000n;

class DirectoryWalk {
  readonly #paths: Buffer[] = [];
  readonly #nlinks: number[] = [];
  readonly #blocks: number[] = [];
  /** Inodes of several names, by device and number. */
  readonly #linked = new Map<string, number>();

  run(root: Buffer) {
    const builder = new FileTreeBuilder(this.#add(root, lstatSync(root, { bigint: true })));
    const stack = [{ path: root, inode: 0 }];
    for (let top = stack.pop(); top !== undefined; top = stack.pop()) {
      for (const name of readdirSync(top.path, { encoding: "buffer" })) {
        const path = Buffer.concat([top.path, SLASH, name]);
        const stat = lstatSync(path, { bigint: true });
        const key = stat.isDirectory() || stat.nlink < 2n ? null : `${stat.dev} ${stat.ino}`;
        const known = key === null ? undefined : this.#linked.get(key);
        if (known !== undefined) {
          builder.addName(top.inode, name, known);
          continue;
        }
        const fields = this.#add(path, stat);
        const inode = builder.addInode(fields);
        if (inode > LIMITS.layerEntries) {
          throw new HeadstartError("HS_LIMIT", { what: `${root}: more than ${LIMITS.layerEntries} files` });
        }
        if (key !== null) this.#linked.set(key, inode);
        builder.addName(top.inode, name, inode);
        if (fields.type === FileType.directory) stack.push({ path, inode });
      }
    }
    return { tree: builder.finish(), paths: this.#paths, nlinks: this.#nlinks, blocks: this.#blocks };
  }

  #add(path: Buffer, stat: BigIntStats): InodeFields {
    const type = TYPES[Number(stat.mode) & constants.S_IFMT]!;
    this.#paths.push(path);
    this.#nlinks.push(Number(stat.nlink));
    this.#blocks.push(Number(stat.blocks));
    const nanoseconds = ((stat.mtimeNs % NANOSECONDS) + NANOSECONDS) % NANOSECONDS;
    const common = {
      type,
      mode: Number(stat.mode) & 0o7777,
      uid: Number(stat.uid),
      gid: Number(stat.gid),
      mtimeSeconds: Number((stat.mtimeNs - nanoseconds) / NANOSECONDS),
      mtimeNanoseconds: Number(nanoseconds),
      xattrs: xattrsOf(path),
    };
    if (type === FileType.regular) return { ...common, size: Number(stat.size) };
    if (type === FileType.symlink) return { ...common, target: readlinkSync(path, { encoding: "buffer" }) };
    if (type !== FileType.char && type !== FileType.block) return common;
    // glibc gnu_dev_major, gnu_dev_minor
    const major = ((stat.rdev >> 8n) & 0xfffn) | ((stat.rdev >> 32n) & ~0xfffn);
    const minor = (stat.rdev & 0xffn) | ((stat.rdev >> 12n) & ~0xffn);
    return { ...common, rdevMajor: Number(major & 0xffff_ffffn), rdevMinor: Number(minor & 0xffff_ffffn) };
  }
}

function xattrsOf(path: Buffer): { name: Uint8Array; value: Uint8Array }[] {
  return listXattrs(path).flatMap((name) => {
    try {
      const value = getXattr(path, name);
      return value === null ? [] : [{ name, value }];
    } catch (error) {
      // a file capability of no bytes is listed and cannot be read
      if (isHeadstartError(error, "HS_SYSCALL") && error.details.errnoName === "EINVAL") {
        return [{ name, value: new Uint8Array(0) }];
      }
      throw error;
    }
  });
}

async function* filePieces(path: Buffer, size: number): Pieces {
  const buffer = new Uint8Array(Math.min(PIECE, Math.max(size, 1)));
  const turn = new Turn();
  const fd = openSync(path, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK);
  try {
    for (let done = 0; done < size; ) {
      const piece = buffer.subarray(0, Math.min(buffer.byteLength, size - done));
      readExactly(fd, piece, done);
      await turn.after(piece.byteLength);
      yield piece;
      done += piece.byteLength;
    }
  } finally {
    closeSync(fd);
  }
}

function readExactly(fd: number, into: Uint8Array, position: number): void {
  const count = readFully(fd, into, position);
  if (count === into.byteLength) return;
  throw new HeadstartError("HS_TRUNCATED", {
    what: `${into.byteLength} bytes at byte ${position} wanted, ${count} are there`,
  });
}

/** Lets the event loop turn now and then. */
class Turn {
  #bytes = 0;

  async after(bytes: number): Promise<void> {
    this.#bytes += bytes;
    if (this.#bytes < TURN_BYTES) return;
    this.#bytes = 0;
    await setImmediate();
  }
}

/** The inode at a path of names; null when there is none. No symlink is followed. */
export function findPath(tree: FileTree, from: number, path: string): number | null {
  let inode = from;
  for (const name of path.split("/")) {
    if (name === "") continue;
    if (tree.type[inode] !== FileType.directory) return null;
    const dirent = findChild(tree, inode, Buffer.from(name));
    if (dirent < 0) return null;
    inode = tree.childInode[dirent]!;
  }
  return inode;
}

/** Throws HS_LIMIT above `limit` bytes. */
export async function readAll(stored: StoredTree, inode: number, limit: number, what: string): Promise<Uint8Array> {
  const size = stored.tree.size[inode]!;
  if (size > limit) throw new HeadstartError("HS_LIMIT", { what: `${what}: ${size} bytes, at most ${limit} are read` });
  const bytes = new Uint8Array(size);
  let done = 0;
  for await (const piece of stored.read(inode)) {
    bytes.set(piece, done);
    done += piece.byteLength;
  }
  return bytes;
}

/** Hex. */
export async function hashContent(
  stored: StoredTree,
  inode: number,
  algorithm: "sha256" | "sha512",
  onBytes?: (count: number) => void,
): Promise<string> {
  const hash = createHash(algorithm);
  for await (const piece of stored.read(inode)) {
    hash.update(piece);
    onBytes?.(piece.byteLength);
  }
  return hash.digest("hex");
}
