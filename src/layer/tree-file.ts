/**
 * The file `tree` beside a layer: its FileTree, so that chains (implied directories), `image tree` and a seal need neither the index nor the blob again.
 */

import { HeadstartError } from "../base/errors.ts";
import type { FileTree } from "../erofs/file-tree.ts";
import { readSections, type SectionFormat, writeSections } from "./section-file.ts";

type ArrayClass = typeof Uint8Array | typeof Uint16Array | typeof Uint32Array | typeof Float64Array;

/** In file order. Lengths are checked on reading against the counts that the tree's own invariants give. */
const FIELDS = {
  type: Uint8Array,
  mode: Uint16Array,
  uid: Uint32Array,
  gid: Uint32Array,
  mtimeSeconds: Float64Array,
  mtimeNanoseconds: Uint32Array,
  size: Float64Array,
  nlink: Uint32Array,
  rdevMajor: Uint32Array,
  rdevMinor: Uint32Array,
  flags: Uint8Array,
  targetOffset: Uint32Array,
  parent: Uint32Array,
  childStart: Uint32Array,
  childInode: Uint32Array,
  childNameOffset: Uint32Array,
  childNameLength: Uint8Array,
  segmentStart: Uint32Array,
  segmentFileOffset: Float64Array,
  segmentLength: Float64Array,
  segmentAddress: Float64Array,
  xattrStart: Uint32Array,
  xattrNameOffset: Uint32Array,
  xattrNameLength: Uint8Array,
  xattrValueOffset: Uint32Array,
  xattrValueLength: Uint32Array,
  bytes: Uint8Array,
} as const satisfies { readonly [field in keyof FileTree]?: ArrayClass };

type Field = keyof typeof FIELDS;
const NAMES = Object.keys(FIELDS) as Field[];
const FORMAT: SectionFormat = { magic: "HSTREE\0\0", version: 1, sectionCount: NAMES.length + 1 };

export async function writeTree(path: string, tree: FileTree): Promise<void> {
  await writeSections(path, FORMAT, [Uint8Array.of(tree.hasMarks ? 1 : 0), ...treeArrays(tree)]);
}

export function sameTree(a: FileTree, b: FileTree): boolean {
  const others = treeArrays(b);
  return (
    a.hasMarks === b.hasMarks && treeArrays(a).every((bytes, index) => Buffer.compare(bytes, others[index]!) === 0)
  );
}

/** The arrays of a tree as bytes, in a fixed order. */
function treeArrays(tree: FileTree): Uint8Array[] {
  return NAMES.map((name) => {
    const array = tree[name];
    return new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
  });
}

/** Throws as readSections, and HS_MALFORMED when array lengths do not fit each other. */
export async function readTree(path: string): Promise<FileTree> {
  const [flags, ...sections] = await readSections(path, FORMAT);
  const malformed = (what: string) => new HeadstartError("HS_MALFORMED", { what: `${path}: ${what}` });
  const arrays: { [field: string]: unknown } = {};
  NAMES.forEach((name, index) => {
    const bytes = sections[index]!;
    const Class = FIELDS[name];
    if (bytes.byteLength % Class.BYTES_PER_ELEMENT !== 0) throw malformed(name);
    arrays[name] = new Class(bytes.buffer as ArrayBuffer, bytes.byteOffset, bytes.byteLength / Class.BYTES_PER_ELEMENT);
  });
  const tree = { ...arrays, hasMarks: flags![0] === 1 } as unknown as FileTree;
  const inodes = tree.type.length;
  const whole = { ...tree, inodeCount: inodes };
  const groups = [
    [tree.childStart, tree.childInode.length],
    [tree.segmentStart, tree.segmentLength.length],
    [tree.xattrStart, tree.xattrNameOffset.length],
  ] as const;
  if (inodes === 0 || tree.mode.length !== inodes || tree.size.length !== inodes) throw malformed("inodes");
  for (const [start, count] of groups) {
    if (start.length !== inodes + 1 || start[inodes] !== count) throw malformed("groups");
  }
  return whole;
}
