/** The tree of a layer whose segments are places in its tar becomes one whose pieces are chunks (model.ts, BuiltLayer.tree). */

import { HeadstartError } from "../../../base/errors.ts";
import { type FileTree, FileType } from "../../../erofs/file-tree.ts";

/** Where the chunks of files are (FileCutter). */
export interface FileChunks {
  readonly addresses: readonly number[];
  /** Index into `addresses` of the first chunk of the file whose data begin at `dataOffset` of the tar. */
  firstOf(dataOffset: number): number | undefined;
  zeroFile(size: number): number;
}

/** Regular files that have bytes, in the order of inodes. */
function* filesOf(tree: FileTree): Generator<number> {
  for (let inode = 0; inode < tree.inodeCount; inode++) {
    if (tree.type[inode] === FileType.regular && tree.size[inode]! > 0) yield inode;
  }
}

/** Makes the chunks of files of which the tar stores no byte, so chunks must still be taken. Throws HS_NYDUS_LIMIT. */
export function chunkedTree(tree: FileTree, files: FileChunks, chunkSize: number): FileTree {
  const firsts = new Map<number, number>();
  let pieces = 0;
  for (const inode of filesOf(tree)) {
    firsts.set(inode, firstChunk(tree, inode, files));
    pieces += Math.ceil(tree.size[inode]! / chunkSize);
  }
  const segmentStart = new Uint32Array(new SharedArrayBuffer((tree.inodeCount + 1) * 4));
  const segmentFileOffset = new Float64Array(new SharedArrayBuffer(pieces * 8));
  const segmentLength = new Float64Array(new SharedArrayBuffer(pieces * 8));
  const segmentAddress = new Float64Array(new SharedArrayBuffer(pieces * 8));
  let next = 0;
  for (let inode = 0; inode < tree.inodeCount; inode++) {
    segmentStart[inode] = next;
    const first = firsts.get(inode);
    if (first === undefined) continue;
    const size = tree.size[inode]!;
    for (let offset = 0; offset < size; offset += chunkSize) {
      segmentFileOffset[next] = offset;
      segmentLength[next] = Math.min(chunkSize, size - offset);
      segmentAddress[next] = files.addresses[first + offset / chunkSize]!;
      next++;
    }
  }
  segmentStart[tree.inodeCount] = next;
  return { ...tree, segmentStart, segmentFileOffset, segmentLength, segmentAddress };
}

function firstChunk(tree: FileTree, inode: number, files: FileChunks): number {
  const segment = tree.segmentStart[inode]!;
  if (segment === tree.segmentStart[inode + 1]) return files.zeroFile(tree.size[inode]!);
  const first = files.firstOf(tree.segmentAddress[segment]!);
  if (first === undefined) throw new HeadstartError("HS_INTERNAL", { what: `inode ${inode} has no chunks` });
  return first;
}
