/**
 * What shall be fetched first, as the image's author says it (specs/nydus.md 2.5, "Prefetch table"): paths, one a line, as `nydus-image` takes them. A directory means
 * all that is in it; "/" means everything, so no order at all. The order of the lines is the order of the table.
 */

import { HeadstartError } from "../../../base/errors.ts";
import { LIMITS } from "../../../base/limits.ts";
import { type FileTree, FileType, findChild } from "../../../erofs/file-tree.ts";

/** A table longer than that is no order of anything: nydusd reads it whole at each mount. */
const PATTERNS_MAX = 1_000_000;

/**
 * Absolute paths from the lines of a file; empty lines and those that begin with "#" are left out. Names are bytes: `text` has one char a byte. Throws HS_USAGE for a
 * line that is no absolute path, HS_LIMIT for too many.
 */
export function parsePrefetchPatterns(text: string, what = "prefetch patterns"): string[] {
  const paths: string[] = [];
  for (const [index, raw] of text.split("\n").entries()) {
    const line = raw.replace(/\r$/, "");
    if (line === "" || line.startsWith("#")) continue;
    if (!line.startsWith("/") || line.length > LIMITS.symlinkBytes || line.includes("\0"))
      throw new HeadstartError("HS_USAGE", { what: `${what}: line ${index + 1} is no absolute path` });
    if (paths.length === PATTERNS_MAX)
      throw new HeadstartError("HS_LIMIT", { what: `${what}: more than ${PATTERNS_MAX} lines` });
    paths.push(line);
  }
  return paths;
}

/** Inodes of `tree` at `paths` (one char a byte), each once, in that order; paths that nothing has are left out. Symlinks are not followed. */
export function prefetchInodes(tree: FileTree, paths: readonly string[]): number[] {
  const inodes = new Set<number>();
  for (const path of paths) {
    let inode = 0;
    for (const name of path.split("/")) {
      if (name === "" || name === ".") continue;
      const dirent = tree.type[inode] === FileType.directory ? findChild(tree, inode, Buffer.from(name, "latin1")) : -1;
      inode = dirent < 0 ? -1 : tree.childInode[dirent]!;
      if (inode < 0) break;
    }
    if (inode >= 0) inodes.add(inode);
  }
  return [...inodes];
}

/** The table: the nid of each. The root makes all else needless, and nydusd takes it as the only entry. */
export function prefetchTable(inodes: readonly number[], nidOf: Uint32Array): Uint8Array {
  const wanted = inodes.includes(0) ? [0] : inodes;
  const bytes = new Uint8Array(wanted.length * 4);
  const view = new DataView(bytes.buffer);
  wanted.forEach((inode, index) => {
    view.setUint32(index * 4, nidOf[inode]!, true);
  });
  return bytes;
}
