/** A FileTree by path: as what Resolver walks, and as a list. Paths are absolute, one char a byte. */

import { childName, type FileTree, FileType, findChild, symlinkTarget } from "../erofs/file-tree.ts";
import type { PathView } from "../erofs/root-path.ts";

const latin1 = (bytes: Uint8Array): string => Buffer.from(bytes).toString("latin1");

export function treeView(tree: FileTree): PathView<number> {
  return {
    root: 0,
    child: (directory, name) => {
      const dirent = findChild(tree, directory, Buffer.from(name, "latin1"));
      return dirent < 0 ? undefined : tree.childInode[dirent]!;
    },
    isDirectory: (inode) => tree.type[inode] === FileType.directory,
    symlinkTarget: (inode) => (tree.type[inode] === FileType.symlink ? latin1(symlinkTarget(tree, inode)) : null),
  };
}

/** Every name of everything that is no directory, ascending by directory, then by name. */
export function treePaths(tree: FileTree): { readonly path: string; readonly inode: number }[] {
  const found: { path: string; inode: number }[] = [];
  const stack = [{ inode: 0, path: "" }];
  for (let top = stack.pop(); top !== undefined; top = stack.pop()) {
    const below: typeof stack = [];
    for (let dirent = tree.childStart[top.inode]!; dirent < tree.childStart[top.inode + 1]!; dirent++) {
      const inode = tree.childInode[dirent]!;
      const path = `${top.path}/${latin1(childName(tree, dirent))}`;
      if (tree.type[inode] === FileType.directory) below.push({ inode, path });
      else found.push({ path, inode });
    }
    while (below.length > 0) stack.push(below.pop()!);
  }
  return found;
}
