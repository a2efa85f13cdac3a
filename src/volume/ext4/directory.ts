/**
 * Directories (specs/warm-volume.md 7.8): linear up to two blocks, beyond that an index by name hash (htree), since a lookup in a linear one reads every block.
 * Names keep the order that they are given in (linear) or that of their hashes; the same names give the same bytes.
 *
 *   linear     [ entries, tail ] ...
 *   indexed    [ ".", "..", root pairs ] [ inner pairs ] ... [ entries, tail ] ...
 */

import { indexChecksum, sealDirectoryBlock, viewOf } from "./checksum.ts";
import { hashName } from "./hash.ts";
import { BLOCK, DIR_TAIL_AT, DX_NODE_LIMIT, DX_ROOT_LIMIT } from "./ondisk.ts";

export interface DirectoryName {
  readonly name: Uint8Array;
  readonly inode: number;
  /** FileType; 0 is not used. */
  readonly type: number;
}

const LINEAR_BLOCKS_MAX = 2;
const DIRECTORY_TYPE = 2;
/** "." and "..". */
const DOTS = 24;
const ROOT_PAIRS_AT = 0x20;
const NODE_PAIRS_AT = 8;

/** Where the entries of a directory go; names only by number. */
export interface DirectoryPlan {
  readonly blocks: number;
  /** Null: linear, in the order given. */
  readonly order: Uint32Array | null;
  /** The hash of each name, by number; empty for linear ones. */
  readonly hashes: Uint32Array;
  /** First position (in `order`) of each block of entries. */
  readonly starts: readonly number[];
}

const entrySize = (name: Uint8Array): number => (8 + name.byteLength + 3) & ~3;

/** "too many names": beyond what an index of two levels reaches; the caller knows the path. */
export function planDirectory(
  names: readonly Uint8Array[],
  hashStart: Int32Array,
  blocksMin = 1,
): DirectoryPlan | "too many names" {
  const linear = pack(names, null, DOTS);
  if (linear.length <= Math.max(LINEAR_BLOCKS_MAX, blocksMin)) {
    return { blocks: Math.max(linear.length, blocksMin), order: null, hashes: new Uint32Array(0), starts: linear };
  }
  const hashes = new Uint32Array(names.length);
  const minors = new Uint32Array(names.length);
  names.forEach((name, index) => {
    const { hash, minor } = hashName(name, hashStart);
    hashes[index] = hash;
    minors[index] = minor;
  });
  const order = Uint32Array.from(names, (_, index) => index);
  order.sort((a, b) => hashes[a]! - hashes[b]! || minors[a]! - minors[b]! || a - b);
  const starts = pack(names, order, 0);
  const nodes = innerNodes(starts.length);
  if (nodes > DX_ROOT_LIMIT) return "too many names";
  return { blocks: 1 + nodes + starts.length, order, hashes, starts };
}

/** Inner index blocks over so many leaves; none when the root holds them all. */
function innerNodes(leaves: number): number {
  return leaves <= DX_ROOT_LIMIT ? 0 : Math.ceil(leaves / DX_NODE_LIMIT);
}

function pack(names: readonly Uint8Array[], order: Uint32Array | null, used: number): number[] {
  const starts = [0];
  let fill = used;
  for (let position = 0; position < names.length; position++) {
    const size = entrySize(names[order === null ? position : order[position]!]!);
    if (fill + size > DIR_TAIL_AT) {
      starts.push(position);
      fill = 0;
    }
    fill += size;
  }
  return starts;
}

export interface DirectoryOwner {
  readonly inode: number;
  readonly parent: number;
  /** inodeSeed of the directory. */
  readonly seed: number;
}

/** The blocks of a planned directory; `entries` are the planned names in the same order. */
export function encodeDirectory(
  plan: DirectoryPlan,
  entries: readonly DirectoryName[],
  owner: DirectoryOwner,
): Uint8Array {
  const bytes = new Uint8Array(plan.blocks * BLOCK);
  const blockAt = (index: number) => bytes.subarray(index * BLOCK, (index + 1) * BLOCK);
  const at = (position: number) => entries[plan.order === null ? position : plan.order[position]!]!;
  const isIndexed = plan.order !== null;
  const leafBase = isIndexed ? 1 + innerNodes(plan.starts.length) : 0;
  for (let leaf = 0; leafBase + leaf < plan.blocks; leaf++) {
    const block = blockAt(leafBase + leaf);
    const from = plan.starts[leaf] ?? entries.length;
    const to = plan.starts[leaf + 1] ?? entries.length;
    const own: DirectoryName[] = [];
    if (leafBase + leaf === 0) own.push(...dots(owner));
    for (let position = from; position < to; position++) own.push(at(position));
    putEntries(block, own, DIR_TAIL_AT);
    sealDirectoryBlock(owner.seed, block);
  }
  if (isIndexed) putIndex(plan, owner, blockAt, leafBase);
  return bytes;
}

const dots = ({ inode, parent }: DirectoryOwner): DirectoryName[] => [
  { name: Buffer.from("."), inode, type: DIRECTORY_TYPE },
  { name: Buffer.from(".."), inode: parent, type: DIRECTORY_TYPE },
];

/** The last record reaches to `end`; without entries one empty record does. */
function putEntries(block: Uint8Array, entries: readonly DirectoryName[], end: number): void {
  const view = viewOf(block);
  let position = 0;
  entries.forEach(({ name, inode, type }, index) => {
    const size = index === entries.length - 1 ? end - position : entrySize(name);
    view.setUint32(position, inode, true);
    view.setUint16(position + 4, size, true);
    view.setUint8(position + 6, name.byteLength);
    view.setUint8(position + 7, type);
    block.set(name, position + 8);
    position += size;
  });
  if (entries.length === 0) view.setUint16(4, end, true);
}

interface Pair {
  readonly hash: number;
  readonly block: number;
}

function putIndex(
  plan: DirectoryPlan,
  owner: DirectoryOwner,
  blockAt: (index: number) => Uint8Array,
  leafBase: number,
): void {
  const hashAt = (position: number) => plan.hashes[plan.order![position]!]!;
  const leaves: Pair[] = plan.starts.map((start, leaf) => {
    const hash = hashAt(start);
    // the low bit says that names of this hash are in the block before as well
    return { hash: leaf > 0 && hashAt(start - 1) === hash ? hash + 1 : hash, block: leafBase + leaf };
  });
  const nodes = innerNodes(leaves.length);
  let rootPairs = leaves;
  if (nodes > 0) {
    rootPairs = [];
    for (let node = 0; node < nodes; node++) {
      const pairs = leaves.slice(node * DX_NODE_LIMIT, (node + 1) * DX_NODE_LIMIT);
      const block = blockAt(1 + node);
      viewOf(block).setUint16(4, BLOCK, true);
      putPairs(block, NODE_PAIRS_AT, DX_NODE_LIMIT, pairs, owner.seed);
      rootPairs.push({ hash: pairs[0]!.hash, block: 1 + node });
    }
  }
  const root = blockAt(0);
  putEntries(root, dots(owner), BLOCK);
  const view = viewOf(root);
  view.setUint8(0x1c, 1); // half MD4
  view.setUint8(0x1d, 8);
  view.setUint8(0x1e, nodes > 0 ? 1 : 0);
  putPairs(root, ROOT_PAIRS_AT, DX_ROOT_LIMIT, rootPairs, owner.seed);
}

/** Limit and count stand where the first pair's hash would: everything below the second key is the first child's. */
function putPairs(block: Uint8Array, at: number, limit: number, pairs: readonly Pair[], seed: number): void {
  const view = viewOf(block);
  pairs.forEach(({ hash, block: child }, index) => {
    view.setUint32(at + 8 * index, hash, true);
    view.setUint32(at + 8 * index + 4, child, true);
  });
  view.setUint16(at, limit, true);
  view.setUint16(at + 2, pairs.length, true);
  view.setUint32(at + 8 * limit + 4, indexChecksum(seed, block, at, limit, pairs.length), true);
}
