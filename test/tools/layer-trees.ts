/** Layer trees for tests: built from tar bytes, looked at by path. */

import {
  type FileTree,
  FileType,
  findChild,
  INODE_IMPLIED,
  symlinkTarget,
  xattrName,
  xattrValue,
} from "../../src/erofs/file-tree.ts";
import type { LayerRole } from "../../src/formats/format.ts";
import { LayerTreeBuilder } from "../../src/formats/tar/apply.ts";
import { TarReader } from "../../src/formats/tar/records.ts";

export interface BuiltLayer {
  readonly tree: FileTree;
  readonly bytes: Uint8Array;
  readonly contested: readonly string[];
}

export function buildLayer(role: LayerRole, bytes: Uint8Array, lowers?: readonly FileTree[]): BuiltLayer {
  const builder = new LayerTreeBuilder(role, "test", lowers === undefined ? {} : { lowers });
  const reader = new TarReader({ entry: (entry) => builder.add(entry).dataWanted, data() {} }, { layer: "test" });
  reader.push(bytes);
  reader.finish();
  const tree = builder.finish();
  return { tree, bytes, contested: [...builder.contested] };
}

export interface Looked {
  readonly inode: number;
  readonly type: FileType;
  /** Octal. */
  readonly mode: string;
  /** "uid:gid". */
  readonly owner: string;
  readonly mtime: number;
  readonly nanoseconds: number;
  readonly nlink: number;
  readonly size: number;
  /** "major:minor". */
  readonly device: string;
  readonly target: string;
  readonly implied: boolean;
  /** Values with one char a byte. */
  readonly xattrs: Record<string, string>;
}

/** What stands at a path, null if nothing does. */
export function look(tree: FileTree, path: string): Looked | null {
  let inode = 0;
  for (const name of path.split("/").filter((part) => part !== "")) {
    if (tree.type[inode] !== FileType.directory) return null;
    const dirent = findChild(tree, inode, Buffer.from(name, "latin1"));
    if (dirent < 0) return null;
    inode = tree.childInode[dirent]!;
  }
  const xattrs: Record<string, string> = {};
  for (let index = tree.xattrStart[inode]!; index < tree.xattrStart[inode + 1]!; index++) {
    xattrs[latin1(xattrName(tree, index))] = latin1(xattrValue(tree, index));
  }
  return {
    inode,
    type: tree.type[inode]! as FileType,
    mode: tree.mode[inode]!.toString(8),
    owner: `${tree.uid[inode]}:${tree.gid[inode]}`,
    mtime: tree.mtimeSeconds[inode]!,
    nanoseconds: tree.mtimeNanoseconds[inode]!,
    nlink: tree.nlink[inode]!,
    size: tree.size[inode]!,
    device: `${tree.rdevMajor[inode]}:${tree.rdevMinor[inode]}`,
    target: tree.type[inode] === FileType.symlink ? latin1(symlinkTarget(tree, inode)) : "",
    implied: (tree.flags[inode]! & INODE_IMPLIED) !== 0,
    xattrs,
  };
}

const LETTERS: Readonly<Record<FileType, string>> = {
  [FileType.regular]: "f",
  [FileType.directory]: "d",
  [FileType.char]: "c",
  [FileType.block]: "b",
  [FileType.fifo]: "p",
  [FileType.socket]: "s",
  [FileType.symlink]: "l",
};

/**
 * All names but the root, ascending: "d a", "f a/b", "w a/c" for a whiteout, "D a" for an opaque directory.
 */
export function names(tree: FileTree): string[] {
  const found: [string, string][] = [];
  const stack = [{ inode: 0, path: "" }];
  for (let top = stack.pop(); top !== undefined; top = stack.pop()) {
    for (let dirent = tree.childStart[top.inode]!; dirent < tree.childStart[top.inode + 1]!; dirent++) {
      const offset = tree.childNameOffset[dirent]!;
      const path = `${top.path}${latin1(tree.bytes.subarray(offset, offset + tree.childNameLength[dirent]!))}`;
      const inode = tree.childInode[dirent]!;
      const at = look(tree, path)!;
      let letter = LETTERS[at.type];
      if (letter === "c" && at.device === "0:0") letter = "w";
      if (at.xattrs["trusted.overlay.opaque"] !== undefined) letter = "D";
      found.push([path, letter]);
      if (at.type === FileType.directory) stack.push({ inode, path: `${path}/` });
    }
  }
  return found.sort(([a], [b]) => (a < b ? -1 : 1)).map(([path, letter]) => `${letter} ${path}`);
}

/** Content of a regular file, from the tar that the tree was built of. */
export function content(tree: FileTree, path: string, tar: Uint8Array): string {
  const { inode, size } = look(tree, path)!;
  const bytes = Buffer.alloc(size);
  for (let index = tree.segmentStart[inode]!; index < tree.segmentStart[inode + 1]!; index++) {
    const from = tree.segmentAddress[index]!;
    bytes.set(tar.subarray(from, from + tree.segmentLength[index]!), tree.segmentFileOffset[index]!);
  }
  return latin1(bytes);
}

function latin1(bytes: Uint8Array): string {
  return Buffer.from(bytes).toString("latin1");
}
