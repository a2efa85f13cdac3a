/** What a tree's entries ask of ext4, and what ext4 cannot give (specs/warm-volume.md 7.5): each entry by itself, its blocks in runs. */

import { childName, type FileTree, FileType } from "../../erofs/file-tree.ts";
import { beyondExt4 } from "./failures.ts";
import type { Range } from "./geometry.ts";
import { BLOCK, LINKS_MAX } from "./ondisk.ts";

export const LOST_FOUND = Buffer.from("lost+found");
const FILE_BLOCKS_MAX = 2 ** 32 - 1;
const MAJOR_MAX = 0xfff;
const MINOR_MAX = 0xfffff;
const SECONDS_MIN = -(2 ** 31);
const SECONDS_MAX = 2 ** 34 - 2 ** 31 - 1;
const SYMLINK_MAX = 4095;

/** Throws HS_EXT4_LIMIT for times, devices, sizes and link counts that an inode has no room for. `where` names the entry. */
export function checkEntry(tree: FileTree, inode: number, where: () => string): void {
  const seconds = tree.mtimeSeconds[inode]!;
  if (!(seconds >= SECONDS_MIN && seconds <= SECONDS_MAX)) {
    throw beyondExt4(`${where()}: the time ${seconds} is outside of 1901 to 2446`);
  }
  switch (tree.type[inode] as FileType) {
    case FileType.char:
    case FileType.block:
      if (tree.rdevMajor[inode]! > MAJOR_MAX || tree.rdevMinor[inode]! > MINOR_MAX) {
        throw beyondExt4(
          `${where()}: device ${tree.rdevMajor[inode]}:${tree.rdevMinor[inode]}, at most ${MAJOR_MAX}:${MINOR_MAX} is possible`,
        );
      }
      break;
    case FileType.symlink: {
      const length = tree.size[inode]!;
      if (length === 0 || length > SYMLINK_MAX) throw beyondExt4(`${where()}: a link target of ${length} bytes`);
      break;
    }
    case FileType.regular:
      if (tree.size[inode]! > FILE_BLOCKS_MAX * BLOCK) {
        throw beyondExt4(`${where()}: ${tree.size[inode]} bytes, at most ${FILE_BLOCKS_MAX * BLOCK} are possible`);
      }
      break;
    default:
      break;
  }
  if (tree.type[inode] !== FileType.directory && tree.nlink[inode]! > LINKS_MAX) {
    throw beyondExt4(`${where()}: ${tree.nlink[inode]} hard links, at most ${LINKS_MAX} are possible`);
  }
}

/** Half-open runs of file blocks that any segment touches, ascending. */
export function* fileRuns(tree: FileTree, inode: number): Generator<Range> {
  let start = -1;
  let end = -1;
  for (let at = tree.segmentStart[inode]!; at < tree.segmentStart[inode + 1]!; at++) {
    const from = Math.floor(tree.segmentFileOffset[at]! / BLOCK);
    const to = Math.ceil((tree.segmentFileOffset[at]! + tree.segmentLength[at]!) / BLOCK);
    if (from <= end) end = Math.max(end, to);
    else {
      if (end > start) yield { start, end };
      start = from;
      end = to;
    }
  }
  if (end > start) yield { start, end };
}

/** The tree inode of /lost+found; -1: none. Throws HS_EXT4_LIMIT when something else has that name. */
export function findLostFound(tree: FileTree): number {
  for (let at = tree.childStart[0]!; at < tree.childStart[1]!; at++) {
    if (!LOST_FOUND.equals(childName(tree, at))) continue;
    const inode = tree.childInode[at]!;
    if (tree.type[inode] === FileType.directory) return inode;
    throw beyondExt4(`"/lost+found" must be a directory`);
  }
  return -1;
}
