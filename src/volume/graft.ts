/**
 * One tree out of a skeleton and the trees of layers: each layer's tree takes the place of one empty directory of the skeleton. Flat to flat, without an object per
 * entry: a volume of 100 000 files costs what its arrays cost. Segments keep the addresses that they have in their layer: who asks for contents goes by inode.
 */

import { compareBytes } from "../base/bytes.ts";
import { allocateTree, type FileTree, xattrName } from "../erofs/file-tree.ts";

export interface Graft {
  /** The skeleton's inode that becomes the root of `tree`: a directory without entries. */
  readonly at: number;
  readonly tree: FileTree;
}

/** An attribute that every inode of every graft gets, in place of what it has under that name. */
export interface Label {
  readonly name: Uint8Array;
  readonly value: Uint8Array;
}

export interface GraftedTree {
  /** The skeleton's inodes keep their numbers. */
  readonly tree: FileTree;
  /** For each graft the number of its tree's inode 1; the following ones follow. */
  readonly firstInodes: readonly number[];
}

interface Part {
  readonly tree: FileTree;
  /** Where the part's bytes begin in the pool. */
  readonly pool: number;
  readonly numberOf: (inode: number) => number;
  readonly label: Label | null;
}

export function graftTrees(skeleton: FileTree, grafts: readonly Graft[], label: Label | null): GraftedTree {
  const trees = [skeleton, ...grafts.map(({ tree }) => tree)];
  const sum = (of: (tree: FileTree) => number) => trees.reduce((total, tree) => total + of(tree), 0);
  const inodes = sum((tree) => tree.inodeCount) - grafts.length;
  const labels = label === null ? 0 : inodes;
  const poolBytes = sum((tree) => tree.bytes.byteLength);
  const tree = allocateTree(
    inodes,
    sum((each) => each.childInode.length),
    sum((each) => each.segmentLength.length),
    sum((each) => each.xattrNameLength.length) + labels,
    poolBytes + (label === null ? 0 : label.name.byteLength + label.value.byteLength),
  );
  const writer = new GraftWriter(tree, label, poolBytes);

  const own: Part = { tree: skeleton, pool: 0, numberOf: (inode) => inode, label: null };
  tree.bytes.set(skeleton.bytes, 0);
  let pool = skeleton.bytes.byteLength;
  let next = skeleton.inodeCount;
  const firstInodes: number[] = [];
  const parts = new Map<number, Part>();
  for (const { at, tree: grafted } of grafts) {
    const first = next;
    parts.set(at, { tree: grafted, pool, numberOf: (inode) => (inode === 0 ? at : first + inode - 1), label });
    firstInodes.push(first);
    tree.bytes.set(grafted.bytes, pool);
    pool += grafted.bytes.byteLength;
    next += grafted.inodeCount - 1;
  }
  for (let inode = 0; inode < skeleton.inodeCount; inode++) {
    const part = parts.get(inode);
    writer.inode(part ?? own, part === undefined ? inode : 0, skeleton.parent[inode]!);
  }
  for (const part of parts.values()) {
    for (let inode = 1; inode < part.tree.inodeCount; inode++) {
      writer.inode(part, inode, part.numberOf(part.tree.parent[inode]!));
    }
  }
  return { tree: { ...tree, hasMarks: trees.some((each) => each.hasMarks) }, firstInodes };
}

/** Appends inode after inode, each with its names, segments and xattrs. */
class GraftWriter {
  readonly #to: ReturnType<typeof allocateTree>;
  readonly #label: { readonly name: Uint8Array; readonly nameAt: number; readonly valueAt: number } | null;
  readonly #labelValueLength: number;
  #inode = 0;
  #dirent = 0;
  #segment = 0;
  #xattr = 0;

  constructor(to: ReturnType<typeof allocateTree>, label: Label | null, labelAt: number) {
    this.#to = to;
    this.#label = null;
    this.#labelValueLength = label?.value.byteLength ?? 0;
    if (label === null) return;
    to.bytes.set(label.name, labelAt);
    to.bytes.set(label.value, labelAt + label.name.byteLength);
    this.#label = { name: label.name, nameAt: labelAt, valueAt: labelAt + label.name.byteLength };
  }

  inode(part: Part, inode: number, parent: number): void {
    const { tree: from, pool } = part;
    const to = this.#to;
    const at = this.#inode++;
    to.type[at] = from.type[inode]!;
    to.mode[at] = from.mode[inode]!;
    to.uid[at] = from.uid[inode]!;
    to.gid[at] = from.gid[inode]!;
    to.mtimeSeconds[at] = from.mtimeSeconds[inode]!;
    to.mtimeNanoseconds[at] = from.mtimeNanoseconds[inode]!;
    to.size[at] = from.size[inode]!;
    to.nlink[at] = from.nlink[inode]!;
    to.rdevMajor[at] = from.rdevMajor[inode]!;
    to.rdevMinor[at] = from.rdevMinor[inode]!;
    to.flags[at] = from.flags[inode]!;
    to.targetOffset[at] = from.targetOffset[inode]! + pool;
    to.parent[at] = parent;
    for (let index = from.childStart[inode]!; index < from.childStart[inode + 1]!; index++) {
      to.childInode[this.#dirent] = part.numberOf(from.childInode[index]!);
      to.childNameOffset[this.#dirent] = from.childNameOffset[index]! + pool;
      to.childNameLength[this.#dirent++] = from.childNameLength[index]!;
    }
    to.childStart[at + 1] = this.#dirent;
    for (let index = from.segmentStart[inode]!; index < from.segmentStart[inode + 1]!; index++) {
      to.segmentFileOffset[this.#segment] = from.segmentFileOffset[index]!;
      to.segmentLength[this.#segment] = from.segmentLength[index]!;
      to.segmentAddress[this.#segment++] = from.segmentAddress[index]!;
    }
    to.segmentStart[at + 1] = this.#segment;
    this.#xattrs(part, inode);
    to.xattrStart[at + 1] = this.#xattr;
  }

  /** Ascending by name, the label among them. */
  #xattrs({ tree: from, pool, label }: Part, inode: number): void {
    let labelled = label === null;
    for (let index = from.xattrStart[inode]!; index < from.xattrStart[inode + 1]!; index++) {
      const order = label === null ? -1 : compareBytes(xattrName(from, index), label.name);
      if (order === 0) continue;
      if (order > 0 && !labelled) {
        this.#putLabel();
        labelled = true;
      }
      const to = this.#to;
      to.xattrNameOffset[this.#xattr] = from.xattrNameOffset[index]! + pool;
      to.xattrNameLength[this.#xattr] = from.xattrNameLength[index]!;
      to.xattrValueOffset[this.#xattr] = from.xattrValueOffset[index]! + pool;
      to.xattrValueLength[this.#xattr++] = from.xattrValueLength[index]!;
    }
    if (!labelled) this.#putLabel();
  }

  #putLabel(): void {
    const { name, nameAt, valueAt } = this.#label!;
    const to = this.#to;
    to.xattrNameOffset[this.#xattr] = nameAt;
    to.xattrNameLength[this.#xattr] = name.byteLength;
    to.xattrValueOffset[this.#xattr] = valueAt;
    to.xattrValueLength[this.#xattr++] = this.#labelValueLength;
  }
}
