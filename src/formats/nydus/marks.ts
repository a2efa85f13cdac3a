/**
 * Whiteouts and opaque marks in a layer's own bootstrap (specs/nydus.md 2.5): plain files `.wh.NAME` and `.wh..wh..opq`, which a merge carries out. A `FileTree` has
 * them as overlayfs does (char 0:0, trusted.overlay.opaque). This turns one into the other.
 */

import { LIMITS } from "../../base/limits.ts";
import {
  childName,
  type FileTree,
  FileTreeBuilder,
  FileType,
  findChild,
  type InodeFields,
  inodeFieldsOf,
  isWhiteout,
} from "../../erofs/file-tree.ts";
import type { LayerRole } from "../format.ts";
import { nydusInvalid } from "./ondisk.ts";

const PREFIX = Buffer.from(".wh.");
const OPAQUE_NAME = Buffer.from(".wh..wh..opq");
const OPAQUE_XATTR = { name: Buffer.from("trusted.overlay.opaque"), value: Buffer.from("y") };
const FILE_OF_MARK = { type: FileType.regular, mode: 0, mtimeSeconds: 0, mtimeNanoseconds: 0 } as const;

/**
 * Marks as files. A mark whose file would have a name of over 255 bytes, or one that a directory has (`.wh.a/b` makes such), stays as overlayfs has it, which no merge of the peer carries
 * out.
 */
export function namesOfMarks(tree: FileTree): FileTree {
  if (!tree.hasMarks) return tree;
  const isFree = (directory: number, name: Uint8Array) =>
    name.length <= LIMITS.nameBytes && findChild(tree, directory, name) < 0;
  return rebuild(tree, (directory) => {
    const children: Child[] = [];
    for (const { name, inode } of childrenOf(tree, directory)) {
      const mark = Buffer.concat([PREFIX, name]);
      if (!isWhiteout(tree, inode) || !isFree(directory, mark)) children.push({ name, inode });
      else children.push({ name: mark, inode, fields: { ...ownerOf(tree, inode), ...FILE_OF_MARK } });
    }
    const fields = inodeFieldsOf(tree, directory);
    const xattrs = isFree(directory, OPAQUE_NAME)
      ? fields.xattrs!.filter(({ name }) => OPAQUE_XATTR.name.compare(name) !== 0)
      : fields.xattrs!;
    if (xattrs.length < fields.xattrs!.length)
      children.push({ name: OPAQUE_NAME, inode: null, fields: { ...ownerOf(tree, directory), ...FILE_OF_MARK } });
    return { fields: { ...fields, xattrs }, children };
  }).tree;
}

/**
 * Marks as overlayfs has them; "lowest": nothing is below, so they are left out. A name that stands beside its own whiteout stays, and a directory is not opaque by
 * it: of the two orders in a tar, containerd takes only that (specs/layer.md C1, C2, C4). `inodeOf` has the new number of each inode, -1 for marks. Throws
 * HS_NYDUS_INVALID for `.wh.` and names of nothing.
 */
export function marksOfNames(
  tree: FileTree,
  role: LayerRole,
  what: string,
): { readonly tree: FileTree; readonly inodeOf: Int32Array } {
  return rebuild(tree, (directory) => {
    const children: Child[] = [];
    let opaque = false;
    for (const child of childrenOf(tree, directory)) {
      if (!isMark(child.name)) {
        children.push(child);
      } else if (OPAQUE_NAME.compare(child.name) === 0) {
        // of the root it has no effect (C11)
        opaque = role === "upper" && directory !== 0;
      } else {
        const name = child.name.subarray(PREFIX.length);
        if (["", ".", ".."].includes(Buffer.from(name).toString("latin1")))
          throw nydusInvalid(what, `a whiteout named ${JSON.stringify(Buffer.from(child.name).toString("latin1"))}`);
        if (role === "upper" && (isMark(name) || findChild(tree, directory, name) < 0)) {
          const fields = {
            ...ownerOf(tree, child.inode),
            type: FileType.char,
            mode: 0,
            mtimeSeconds: 0,
            mtimeNanoseconds: 0,
          };
          children.push({ name, inode: child.inode, fields });
        }
      }
    }
    const fields = inodeFieldsOf(tree, directory);
    return { fields: opaque ? { ...fields, xattrs: [...fields.xattrs!, OPAQUE_XATTR] } : fields, children };
  });
}

/** `inode` of the tree that it is made of; null for one that is new. Names of one inode stay names of one. */
interface Child {
  readonly name: Uint8Array;
  readonly inode: number | null;
  /** What is made in place of `inode`. */
  readonly fields?: InodeFields;
}

function rebuild(
  tree: FileTree,
  directoryOf: (inode: number) => { readonly fields: InodeFields; readonly children: readonly Child[] },
): { readonly tree: FileTree; readonly inodeOf: Int32Array } {
  const copies = new Int32Array(tree.inodeCount).fill(-1);
  const replacements = new Map<number, number>();
  const root = directoryOf(0);
  const builder = new FileTreeBuilder(root.fields);
  copies[0] = 0;
  const stack = [{ number: 0, children: root.children }];
  const copy = (inode: number): number => {
    if (tree.type[inode] !== FileType.directory) return builder.addInode(inodeFieldsOf(tree, inode));
    const directory = directoryOf(inode);
    const number = builder.addInode(directory.fields);
    stack.push({ number, children: directory.children });
    return number;
  };
  const numberOf = ({ inode, fields }: Child): number => {
    if (fields === undefined) {
      if (copies[inode!]! < 0) copies[inode!] = copy(inode!);
      return copies[inode!]!;
    }
    const known = inode === null ? undefined : replacements.get(inode);
    const number = known ?? builder.addInode(fields);
    if (inode !== null) replacements.set(inode, number);
    return number;
  };
  for (let top = stack.pop(); top !== undefined; top = stack.pop()) {
    for (const child of top.children) builder.addName(top.number, child.name, numberOf(child));
  }
  return { tree: builder.finish(), inodeOf: copies };
}

function* childrenOf(tree: FileTree, directory: number): Generator<{ name: Uint8Array; inode: number }> {
  for (let dirent = tree.childStart[directory]!; dirent < tree.childStart[directory + 1]!; dirent++)
    yield { name: childName(tree, dirent), inode: tree.childInode[dirent]! };
}

function isMark(name: Uint8Array): boolean {
  return PREFIX.compare(name.subarray(0, PREFIX.length)) === 0;
}

function ownerOf(tree: FileTree, inode: number): { readonly uid: number; readonly gid: number } {
  return { uid: tree.uid[inode]!, gid: tree.gid[inode]! };
}
