/**
 * What a layer takes as a snapshot, counted from its tree, not from a disk: the same on every host. As containerd counts on ext4 (specs/warm-volume.md 5.4): sum of
 * the blocks of distinct inodes, `fs/` itself included.
 */

import { childName, type FileTree, FileType } from "../erofs/file-tree.ts";

export interface SnapshotUsage {
  readonly inodes: number;
  /** Bytes. */
  readonly size: number;
}

const BLOCK = 4096;
/** A directory block's checksum tail; "." and "..". */
const DIRECTORY_TAIL = 12;
const DOTS = 24;
/** Shorter targets stand in the inode. */
const SYMLINK_INLINE_BYTES_MAX = 59;

export function snapshotUsage(tree: FileTree): SnapshotUsage {
  let blocks = 0;
  for (let inode = 0; inode < tree.inodeCount; inode++) {
    switch (tree.type[inode]) {
      case FileType.regular:
        blocks += dataBlocks(tree, inode);
        break;
      case FileType.directory:
        blocks += directoryBlocks(tree, inode);
        break;
      case FileType.symlink:
        if (tree.size[inode]! > SYMLINK_INLINE_BYTES_MAX) blocks++;
        break;
    }
  }
  return { inodes: tree.inodeCount, size: blocks * BLOCK };
}

/** Blocks that hold any byte of a segment. */
function dataBlocks(tree: FileTree, inode: number): number {
  let count = 0;
  let next = 0;
  for (let index = tree.segmentStart[inode]!; index < tree.segmentStart[inode + 1]!; index++) {
    const start = tree.segmentFileOffset[index]!;
    const end = Math.ceil((start + tree.segmentLength[index]!) / BLOCK);
    const first = Math.max(next, Math.floor(start / BLOCK));
    count += Math.max(0, end - first);
    next = Math.max(next, end);
  }
  return count;
}

/** A linear directory whose entries never cross a block. */
function directoryBlocks(tree: FileTree, inode: number): number {
  const room = BLOCK - DIRECTORY_TAIL;
  let blocks = 1;
  let used = DOTS;
  for (let index = tree.childStart[inode]!; index < tree.childStart[inode + 1]!; index++) {
    const length = (8 + childName(tree, index).byteLength + 3) & ~3;
    if (used + length > room) {
      blocks++;
      used = 0;
    }
    used += length;
  }
  return blocks;
}
