/** The path of a tree's inode, for errors: a search, since inodes do not know their names. */

import { childName, type FileTree, FileType } from "../../erofs/file-tree.ts";
import { bytesToText } from "../../erofs/tree-lines.ts";

/** Absolute; of several names the first found. */
export function treePath(tree: FileTree, inode: number): string {
  const parts: string[] = [];
  let current = inode;
  while (current !== 0) {
    const found = findName(tree, current);
    if (found === null) break;
    parts.unshift(found.name);
    current = found.directory;
  }
  return `/${parts.join("/")}`;
}

function findName(tree: FileTree, inode: number): { name: string; directory: number } | null {
  for (let directory = 0; directory < tree.inodeCount; directory++) {
    if (tree.type[directory] !== FileType.directory) continue;
    for (let at = tree.childStart[directory]!; at < tree.childStart[directory + 1]!; at++) {
      if (tree.childInode[at] === inode) return { name: bytesToText(childName(tree, at)), directory };
    }
  }
  return null;
}
