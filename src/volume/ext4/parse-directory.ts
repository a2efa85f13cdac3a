/** Directories as they are found (specs/warm-volume.md 7.8): every block's records and checksum, and the index over them with the hash range of each leaf. */

import { directoryChecksum, indexChecksum, viewOf } from "./checksum.ts";
import { invalid } from "./failures.ts";
import { hashName } from "./hash.ts";
import { BLOCK, DIR_TAIL_AT, DIR_TAIL_TYPE } from "./ondisk.ts";

export interface Ext4Dirent {
  /** A view. */
  readonly name: Uint8Array;
  readonly inode: number;
  /** FileType as the record says. */
  readonly type: number;
}

export interface FoundDirectory {
  readonly parent: number;
  /** Without "." and "..", as they lie. */
  readonly entries: readonly Ext4Dirent[];
}

export interface DirectoryContext {
  readonly what: string;
  readonly inode: number;
  readonly inodes: number;
  readonly indexed: boolean;
  /** inodeSeed; null: no checksums and no tails. */
  readonly seed: number | null;
  readonly hashStart: Int32Array;
  readonly unsignedHash: boolean;
  readonly blocks: number;
  /** Block `index` of the directory. */
  readBlock(index: number): Uint8Array;
}

const DIRECTORY_TYPE = 2;
const TYPE_MAX = 7;
const ROOT_PAIRS_AT = 0x20;
const NODE_PAIRS_AT = 8;
const HASH_END = 2 ** 32;

interface LeafRange {
  readonly block: number;
  /** Hashes [start, end): the last may go on in the next leaf. */
  readonly start: number;
  readonly end: number;
}

/** Throws HS_EXT4_INVALID. */
export function parseDirectory(context: DirectoryContext): FoundDirectory {
  const fail = (message: string) => invalid(`${context.what}: directory: ${message}`);
  if (context.blocks === 0) throw fail("no blocks");
  const entries: Ext4Dirent[] = [];
  const first = context.readBlock(0);
  const head = parseRecords(context, first, 0, context.indexed ? BLOCK : entriesEnd(context));
  const [self, up] = head;
  const dots =
    self !== undefined &&
    up !== undefined &&
    isText(self.name, ".") &&
    isText(up.name, "..") &&
    self.inode === context.inode &&
    self.type === DIRECTORY_TYPE &&
    up.type === DIRECTORY_TYPE;
  if (!dots) throw fail('it does not begin with "." and ".."');
  if (context.indexed) {
    if (head.length !== 2) throw fail("names in the root of its index");
    for (const leaf of leavesOf(context, first)) {
      for (const entry of parseLeaf(context, leaf.block)) {
        const { hash } = hashName(entry.name, context.hashStart, context.unsignedHash);
        if (hash < leaf.start || hash >= leaf.end) throw fail(`a name in block ${leaf.block} has hash ${hash}`);
        entries.push(entry);
      }
    }
  } else {
    checkTail(context, first, 0);
    entries.push(...head.slice(2));
    for (let block = 1; block < context.blocks; block++) {
      for (const entry of parseLeaf(context, block)) entries.push(entry);
    }
  }
  for (const { name } of entries) if (isText(name, ".") || isText(name, "..")) throw fail("a second dot entry");
  return { parent: up.inode, entries };
}

const isText = (name: Uint8Array, text: string): boolean => Buffer.from(text).equals(name);

function entriesEnd(context: DirectoryContext): number {
  return context.seed === null ? BLOCK : DIR_TAIL_AT;
}

function parseLeaf(context: DirectoryContext, index: number): Ext4Dirent[] {
  const block = context.readBlock(index);
  checkTail(context, block, index);
  return parseRecords(context, block, index, entriesEnd(context));
}

function checkTail(context: DirectoryContext, block: Uint8Array, index: number): void {
  if (context.seed === null) return;
  const view = viewOf(block);
  const isTail =
    view.getUint32(DIR_TAIL_AT, true) === 0 &&
    view.getUint16(DIR_TAIL_AT + 4, true) === 12 &&
    block[DIR_TAIL_AT + 6] === 0 &&
    block[DIR_TAIL_AT + 7] === DIR_TAIL_TYPE;
  if (!isTail || view.getUint32(DIR_TAIL_AT + 8, true) !== directoryChecksum(context.seed, block)) {
    throw invalid(`${context.what}: directory: the checksum of block ${index} is wrong`);
  }
}

/** Records from the block's start to `end`, which the last one must reach. In an index root ".." reaches over the pairs. */
function parseRecords(context: DirectoryContext, block: Uint8Array, index: number, end: number): Ext4Dirent[] {
  const view = viewOf(block);
  const found: Ext4Dirent[] = [];
  for (let at = 0; at < end; ) {
    const fail = (message: string) => invalid(`${context.what}: directory block ${index}, byte ${at}: ${message}`);
    if (at + 8 > end) throw fail("half a record");
    const inode = view.getUint32(at, true);
    const size = view.getUint16(at + 4, true);
    const nameLength = block[at + 6]!;
    const type = block[at + 7]!;
    if (size % 4 !== 0 || size < 8 || at + size > end || 8 + nameLength > size) throw fail(`a record of ${size} bytes`);
    if (inode !== 0) {
      const name = block.subarray(at + 8, at + 8 + nameLength);
      if (inode > context.inodes) throw fail(`inode ${inode}`);
      if (nameLength === 0 || name.includes(0) || name.includes(0x2f)) throw fail("a bad name");
      if (type === 0 || type > TYPE_MAX) throw fail(`type ${type}`);
      found.push({ name, inode, type });
    }
    at += size;
  }
  return found;
}

/** The leaves in hash order; each block of the directory is the root, one inner node or one leaf. */
function leavesOf(context: DirectoryContext, root: Uint8Array): LeafRange[] {
  const fail = (message: string) => invalid(`${context.what}: directory index: ${message}`);
  const [reserved, version, infoLength, levels, flags] = [
    viewOf(root).getUint32(0x18, true),
    ...root.subarray(0x1c, 0x20),
  ];
  // versions 0, 1 and 2 are legacy, half MD4 and TEA; the superblock has said half MD4
  if (reserved !== 0 || version !== 1 || infoLength !== 8 || flags !== 0) throw fail("its head");
  if (levels! > 1) throw fail(`${levels} levels`);
  const seen = new Set([0]);
  const visit = (block: Uint8Array, at: number, depth: number, start: number, end: number): LeafRange[] => {
    const pairs = parsePairs(context, block, at, start, end);
    return pairs.flatMap(({ block: child, start: from, end: to }) => {
      if (child === 0 || child >= context.blocks || seen.has(child)) throw fail(`block ${child}`);
      seen.add(child);
      if (depth === 0) return [{ block: child, start: from, end: to }];
      const node = context.readBlock(child);
      const view = viewOf(node);
      if (view.getUint32(0, true) !== 0 || view.getUint16(4, true) !== BLOCK)
        throw fail(`block ${child} is no inner node`);
      return visit(node, NODE_PAIRS_AT, depth - 1, from, to);
    });
  };
  const leaves = visit(root, ROOT_PAIRS_AT, levels!, 0, HASH_END);
  if (seen.size !== context.blocks) throw fail(`${seen.size} of ${context.blocks} blocks are in it`);
  return leaves;
}

function parsePairs(context: DirectoryContext, block: Uint8Array, at: number, start: number, end: number): LeafRange[] {
  const fail = (message: string) => invalid(`${context.what}: directory index: ${message}`);
  const view = viewOf(block);
  const room = Math.floor((BLOCK - at - (context.seed === null ? 0 : 8)) / 8);
  const limit = view.getUint16(at, true);
  const count = view.getUint16(at + 2, true);
  if (limit !== room || count === 0 || count > limit) throw fail(`${count} of ${limit} pairs`);
  if (context.seed !== null) {
    const sum = view.getUint32(at + limit * 8 + 4, true);
    if (sum !== indexChecksum(context.seed, block, at, limit, count)) throw fail("a checksum is wrong");
  }
  const found: LeafRange[] = [];
  let from = start;
  for (let index = 0; index < count; index++) {
    const to = index + 1 < count ? view.getUint32(at + 8 * (index + 1), true) : end;
    // keys ascend; the low bit only says that the hash goes on from the leaf before
    if (to < from || to > end) throw fail("keys out of order");
    found.push({ block: view.getUint32(at + 8 * index + 4, true) & 0x0fffffff, start: from - (from & 1), end: to });
    from = to;
  }
  return found;
}
