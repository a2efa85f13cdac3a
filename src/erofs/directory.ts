/**
 * Directory data of EROFS (specs/erofs-fuse.md 3.5): blocks of 4096 bytes, each with N entries of 12 bytes and then their N names.
 *
 *   | nid nameoff type 0 | nid nameoff type 0 | ... | name name ... |      N = first nameoff / 12
 *
 * Names ascend as unsigned bytes over the whole directory, "." and ".." in their places ("!" and "-" sort before "."). Blocks are filled greedily, so
 * measuring and emitting cut at the same entries.
 */

import { LIMITS } from "../base/limits.ts";
import { type FileTree, FileType } from "./file-tree.ts";
import { erofs_dirent } from "./ondisk.ts";
import { BLOCK_SIZE } from "./placement.ts";

const DOT = 0x2e;
/** What `visitEntries` calls "." and "..": dirent indexes are >= 0. */
const SELF = -1;
const PARENT = -2;

/** Entries of one block at most: names have at least one byte. */
const BLOCK_ENTRIES_MAX = Math.floor(BLOCK_SIZE / (erofs_dirent.size + 1));

/** i_size of a directory: (blocks - 1) * 4096 + the used bytes of the last block. */
export function directorySize(tree: FileTree, directory: number): number {
  let full = 0;
  let used = 0;
  visitEntries(tree, directory, (entry) => {
    const size = erofs_dirent.size + nameLength(tree, entry);
    if (used + size > BLOCK_SIZE) {
      full += BLOCK_SIZE;
      used = 0;
    }
    used += size;
  });
  return full + used;
}

/**
 * Writes the directory's data: block k goes to `blocksAt + k * 4096`, but the last one to `tailAt` if that is not -1. The bytes there are zeros.
 */
export class DirectoryEmitter {
  readonly #tree: FileTree;
  readonly #nidOf: Uint32Array;
  readonly #bytes: Uint8Array;
  readonly #view: DataView;
  readonly #entries = new Int32Array(BLOCK_ENTRIES_MAX);

  constructor(tree: FileTree, nidOf: Uint32Array, bytes: Uint8Array, view: DataView) {
    this.#tree = tree;
    this.#nidOf = nidOf;
    this.#bytes = bytes;
    this.#view = view;
  }

  emit(directory: number, size: number, blocksAt: number, tailAt: number): void {
    const tree = this.#tree;
    const last = Math.ceil(size / BLOCK_SIZE) - 1;
    let block = 0;
    let count = 0;
    let used = 0;
    visitEntries(tree, directory, (entry) => {
      const entrySize = erofs_dirent.size + nameLength(tree, entry);
      if (used + entrySize > BLOCK_SIZE) {
        this.#flush(directory, count, blocksAt + block * BLOCK_SIZE);
        block++;
        count = 0;
        used = 0;
      }
      this.#entries[count++] = entry;
      used += entrySize;
    });
    this.#flush(directory, count, tailAt >= 0 && block === last ? tailAt : blocksAt + block * BLOCK_SIZE);
  }

  #flush(directory: number, count: number, at: number): void {
    const tree = this.#tree;
    const bytes = this.#bytes;
    const view = this.#view;
    const names = tree.bytes;
    let nameoff = count * erofs_dirent.size;
    for (let index = 0; index < count; index++) {
      const entry = this.#entries[index]!;
      const inode = entry >= 0 ? tree.childInode[entry]! : entry === SELF ? directory : tree.parent[directory]!;
      const position = at + index * erofs_dirent.size;
      // the high half of the nid stays zero: a nid is below 2^32
      view.setUint32(position, this.#nidOf[inode]!, true);
      view.setUint16(position + erofs_dirent.offsets.nameoff, nameoff, true);
      bytes[position + erofs_dirent.offsets.file_type] = tree.type[inode]!;
      let to = at + nameoff;
      if (entry < 0) {
        bytes[to++] = DOT;
        if (entry === PARENT) bytes[to++] = DOT;
      } else {
        let from = tree.childNameOffset[entry]!;
        const end = from + tree.childNameLength[entry]!;
        while (from < end) bytes[to++] = names[from++]!;
      }
      nameoff = to - at;
    }
  }
}

function nameLength(tree: FileTree, entry: number): number {
  return entry >= 0 ? tree.childNameLength[entry]! : -entry;
}

/** All entries in byte order, with "." and ".." merged in. */
function visitEntries(tree: FileTree, directory: number, visit: (entry: number) => void): void {
  const end = tree.childStart[directory + 1]!;
  let next = tree.childStart[directory]!;
  while (next < end && tree.bytes[tree.childNameOffset[next]!]! < DOT) visit(next++);
  visit(SELF);
  // a name that begins with "." has a second byte: "." itself is no child
  while (next < end && tree.bytes[tree.childNameOffset[next]!]! === DOT) {
    if (tree.bytes[tree.childNameOffset[next]! + 1]! >= DOT) break;
    visit(next++);
  }
  visit(PARENT);
  while (next < end) visit(next++);
}

/**
 * Calls `visit` for each entry of one directory block, in order; names are views. Returns what is wrong with the block, or null. Order among names is
 * the caller's to check, since it spans blocks.
 */
export function parseDirectoryBlock(
  block: Uint8Array,
  visit: (name: Uint8Array, nid: number, type: FileType) => void,
): string | null {
  if (block.length < erofs_dirent.size) return `a directory block of ${block.length} bytes`;
  const view = new DataView(block.buffer, block.byteOffset, block.byteLength);
  const namesAt = view.getUint16(erofs_dirent.offsets.nameoff, true);
  if (namesAt === 0 || namesAt % erofs_dirent.size !== 0 || namesAt > block.length) {
    return `the first name offset is ${namesAt}`;
  }
  const count = namesAt / erofs_dirent.size;
  let start = namesAt;
  for (let index = 0; index < count; index++) {
    const at = index * erofs_dirent.size;
    let end: number;
    if (index + 1 < count) {
      end = view.getUint16(at + erofs_dirent.size + erofs_dirent.offsets.nameoff, true);
    } else {
      end = block.indexOf(0, start);
      if (end < 0) end = block.length;
    }
    if (!(end > start && end <= block.length && end - start <= LIMITS.nameBytes)) {
      return `entry ${index} has a name from byte ${start} to ${end}`;
    }
    const name = block.subarray(start, end);
    if (name.includes(0) || name.includes(0x2f)) {
      return `entry ${index} is named ${JSON.stringify(Buffer.from(name).toString("latin1"))}`;
    }
    const type = block[at + erofs_dirent.offsets.file_type]!;
    if (type < FileType.regular || type > FileType.symlink) return `entry ${index} has type ${type}`;
    if (view.getUint32(at + 4, true) !== 0) return `entry ${index} has a nid beyond 2^32`;
    if (block[at + erofs_dirent.offsets.reserved] !== 0) return `entry ${index} has a reserved byte set`;
    visit(name, view.getUint32(at, true), type as FileType);
    start = end;
  }
  return null;
}
