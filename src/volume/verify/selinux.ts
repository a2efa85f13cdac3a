/**
 * SELinux labels of a Bottlerocket volume (specs/warm-volume.md 4): cache_t on containerd's three stores and everything in them, as its own file system gets them from
 * the policy, and no label anywhere else.
 */

import { childName, type FileTree, FileType, xattrName, xattrValue } from "../../erofs/file-tree.ts";
import { bytesToText } from "../../erofs/tree-lines.ts";
import { LABEL } from "./compare-layer.ts";
import type { Findings } from "./findings.ts";
import type { ContainerdRoot } from "./store.ts";

/** As the kernel stores it, with its NUL. */
const CACHE_LABEL = "system_u:object_r:cache_t:s0\0";
const STORES = [
  "io.containerd.content.v1.content",
  "io.containerd.metadata.v1.bolt",
  "io.containerd.snapshotter.v1.overlayfs",
];

/** `labelled` null: as the stores themselves have it, all or none. */
export function checkLabels(tree: FileTree, root: ContainerdRoot, labelled: boolean | null, findings: Findings): void {
  const stores = new Set<number>();
  for (let dirent = tree.childStart[root.inode]!; dirent < tree.childStart[root.inode + 1]!; dirent++) {
    if (STORES.includes(bytesToText(childName(tree, dirent)))) stores.add(tree.childInode[dirent]!);
  }
  const wanted = labelled ?? [...stores].some((inode) => labelOf(tree, inode) !== null);
  const stack = [{ inode: 0, path: "", inside: false }];
  check(tree, 0, "/", false, findings);
  for (let top = stack.pop(); top !== undefined; top = stack.pop()) {
    for (let dirent = tree.childStart[top.inode]!; dirent < tree.childStart[top.inode + 1]!; dirent++) {
      const inode = tree.childInode[dirent]!;
      const path = `${top.path}/${bytesToText(childName(tree, dirent))}`;
      const inside = top.inside || stores.has(inode);
      check(tree, inode, path, inside && wanted, findings);
      if (tree.type[inode] === FileType.directory) stack.push({ inode, path, inside });
    }
  }
}

function check(tree: FileTree, inode: number, path: string, wanted: boolean, findings: Findings): void {
  const label = labelOf(tree, inode);
  if (label === (wanted ? CACHE_LABEL : null)) return;
  const shown = (text: string | null) => text?.replace("\0", "") ?? "none";
  findings.differs("selinux", path, "the label", shown(label), wanted ? shown(CACHE_LABEL) : "none");
}

function labelOf(tree: FileTree, inode: number): string | null {
  for (let index = tree.xattrStart[inode]!; index < tree.xattrStart[inode + 1]!; index++) {
    if (Buffer.from(xattrName(tree, index)).toString("latin1") === LABEL) {
      return Buffer.from(xattrValue(tree, index)).toString("latin1");
    }
  }
  return null;
}
