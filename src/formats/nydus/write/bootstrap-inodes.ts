/**
 * Inodes, directories and chunk indexes of a RAFS v6 bootstrap (specs/nydus.md 2.5), in two passes as erofs/write.ts does it: lay out, then emit.
 *
 *   metadata region:   4096 zeros | root (nid 128), inodes ... | directory and symlink blocks that do not fit behind their inode
 *   one inode:         64 bytes (always extended) | xattrs | inline tail, or for a file at a multiple of 8: 8 bytes a piece
 *
 * An inode with its xattrs and tail never crosses a block unless its xattrs alone do; the indexes of a file may.
 */

import { HeadstartError } from "../../../base/errors.ts";
import { alignUp } from "../../../base/ranges.ts";
import { DirectoryEmitter, directorySize } from "../../../erofs/directory.ts";
import { type FileTree, FileType } from "../../../erofs/file-tree.ts";
import {
  EROFS_I_DATALAYOUT_BIT,
  EROFS_I_VERSION_EXTENDED,
  EROFS_INODE_FLAT_INLINE,
  EROFS_INODE_FLAT_PLAIN,
  EROFS_SLOT_SIZE,
  encodeDevice,
  erofs_inode_extended,
  erofs_xattr_ibody_header,
  MODE_OF_TYPE,
} from "../../../erofs/ondisk.ts";
import { checkInode, inodeOrder } from "../../../erofs/write.ts";
import { emitXattrs, xattrBodySize, xattrCount } from "../../../erofs/xattr.ts";
import {
  CHUNK_BASED,
  CHUNK_FORMAT_INDEXES,
  CHUNK_INDEX_SIZE,
  NYDUS_LIMITS,
  RAFS_BLOCK_SIZE,
  RAFS_V6_ROOT_NID,
} from "../ondisk.ts";
import { chunkNumber, findChunk, visitPieces } from "./chunk-table.ts";
import type { ImageBlob } from "./model.ts";

export interface InodePlan {
  /** Inodes in the order of their nids. */
  readonly order: Uint32Array;
  readonly nidOf: Uint32Array;
  /** Bytes of each inode's xattr body. */
  readonly xattrSize: Uint32Array;
  /** i_size, of directories too. */
  readonly contentSize: Float64Array;
  /** 1: the last block of a directory or symlink lies behind its inode. */
  readonly inline: Uint8Array;
  /** First block of directories and symlinks with blocks of their own, relative to the region; 0 for none. */
  readonly ownBlock: Uint32Array;
  /** Bytes of the region, a multiple of 4096. */
  readonly size: number;
  readonly hasXattrs: boolean;
}

/** Pass 1. Throws HS_EROFS_LIMIT for what EROFS cannot hold, HS_NYDUS_LIMIT for more metadata than a bootstrap can have. */
export function planInodes(tree: FileTree, chunkSize: number): InodePlan {
  const count = tree.inodeCount;
  const order = inodeOrder(tree);
  const nidOf = new Uint32Array(count);
  const xattrSize = new Uint32Array(count);
  const contentSize = new Float64Array(count);
  const inline = new Uint8Array(count);
  const ownBlock = new Uint32Array(count);
  let at = RAFS_V6_ROOT_NID * EROFS_SLOT_SIZE;
  let ownBlocks = 0;
  let hasXattrs = false;
  for (const inode of order) {
    checkInode(tree, inode);
    const type = tree.type[inode]!;
    const content = type === FileType.directory ? directorySize(tree, inode) : tree.size[inode]!;
    contentSize[inode] = content;
    xattrSize[inode] = xattrBodySize(tree, inode);
    if (xattrSize[inode] !== 0) hasXattrs = true;
    const core = erofs_inode_extended.size + xattrSize[inode]!;
    let together = core;
    if (type === FileType.directory || type === FileType.symlink) {
      const blocks = Math.ceil(content / RAFS_BLOCK_SIZE);
      const tail = content - (blocks - 1) * RAFS_BLOCK_SIZE;
      const fits = core + tail <= RAFS_BLOCK_SIZE;
      if (fits) {
        inline[inode] = 1;
        together += tail;
      }
      const own = fits ? blocks - 1 : blocks;
      if (own > 0) {
        // one more than its place: 0 is none
        ownBlock[inode] = ownBlocks + 1;
        ownBlocks += own;
      }
    }
    const left = RAFS_BLOCK_SIZE - (at % RAFS_BLOCK_SIZE);
    if (together > left) at += left;
    nidOf[inode] = at / EROFS_SLOT_SIZE;
    let end = at + together;
    if (type === FileType.regular && content > 0)
      end = alignUp(end, CHUNK_INDEX_SIZE) + Math.ceil(content / chunkSize) * CHUNK_INDEX_SIZE;
    at = alignUp(end, EROFS_SLOT_SIZE);
    if (at + ownBlocks * RAFS_BLOCK_SIZE > NYDUS_LIMITS.bootstrapBytes) {
      throw new HeadstartError("HS_NYDUS_LIMIT", {
        what: `the bootstrap has more than ${NYDUS_LIMITS.bootstrapBytes} bytes`,
      });
    }
  }
  // fsck.erofs 1.5 reads an xattr header behind every inode, also where there is none: the last inode is not the last thing in the region
  const inodesEnd = alignUp(at + EROFS_SLOT_SIZE, RAFS_BLOCK_SIZE);
  for (let inode = 0; inode < count; inode++) {
    if (ownBlock[inode] !== 0) ownBlock[inode]! += inodesEnd / RAFS_BLOCK_SIZE - 1;
  }
  return {
    order,
    nidOf,
    xattrSize,
    contentSize,
    inline,
    ownBlock,
    size: inodesEnd + ownBlocks * RAFS_BLOCK_SIZE,
    hasXattrs,
  };
}

export interface InodeInput {
  readonly tree: FileTree;
  readonly plan: InodePlan;
  readonly chunkSize: number;
  readonly blobs: readonly ImageBlob[];
  /** Block of the file where the region begins. */
  readonly metaBlock: number;
}

/** Pass 2: writes the region to `bytes` (zeros, plan.size of them). */
export function emitInodes(input: InodeInput, bytes: Uint8Array): void {
  const { tree, plan, metaBlock } = input;
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const directories = new DirectoryEmitter(tree, plan.nidOf, bytes, view);
  plan.order.forEach((inode, place) => {
    const type = tree.type[inode]!;
    const at = plan.nidOf[inode]! * EROFS_SLOT_SIZE;
    const bodyAt = at + erofs_inode_extended.size;
    const bodyEnd = bodyAt + plan.xattrSize[inode]!;
    const own = plan.ownBlock[inode]!;
    let u = 0;
    if (type === FileType.char || type === FileType.block) {
      u = encodeDevice(tree.rdevMajor[inode]!, tree.rdevMinor[inode]!);
    } else if (type === FileType.regular) {
      u = emitIndexes(input, inode, view, alignUp(bodyEnd, CHUNK_INDEX_SIZE));
    } else if (type === FileType.directory || type === FileType.symlink) {
      // where nothing but a tail is there, builders name the block of the inode
      u = metaBlock + (own === 0 ? Math.floor(at / RAFS_BLOCK_SIZE) : own);
    }
    emitInode(input, inode, { u, number: place + 1 }, view, at);
    if (plan.xattrSize[inode] !== 0) {
      emitXattrs(tree, inode, bytes, view, bodyAt);
      // the name filter is a feature that RAFS does not have
      view.setUint32(bodyAt + erofs_xattr_ibody_header.offsets.h_name_filter, 0, true);
    }
    const tailAt = plan.inline[inode] ? bodyEnd : -1;
    if (type === FileType.directory) {
      directories.emit(inode, plan.contentSize[inode]!, own * RAFS_BLOCK_SIZE, tailAt);
    } else if (type === FileType.symlink) {
      const offset = tree.targetOffset[inode]!;
      const target = tree.bytes.subarray(offset, offset + tree.size[inode]!);
      bytes.set(target, tailAt < 0 ? own * RAFS_BLOCK_SIZE : tailAt);
    }
  });
}

function emitInode(
  { tree, plan }: InodeInput,
  inode: number,
  { u, number }: { readonly u: number; readonly number: number },
  view: DataView,
  at: number,
): void {
  const offsets = erofs_inode_extended.offsets;
  const type = tree.type[inode]!;
  let layout = EROFS_INODE_FLAT_PLAIN;
  if (type === FileType.regular) layout = CHUNK_BASED;
  else if (plan.inline[inode]) layout = EROFS_INODE_FLAT_INLINE;
  view.setUint16(at + offsets.i_format, (layout << EROFS_I_DATALAYOUT_BIT) | EROFS_I_VERSION_EXTENDED, true);
  view.setUint16(at + offsets.i_xattr_icount, xattrCount(plan.xattrSize[inode]!), true);
  view.setUint16(at + offsets.i_mode, MODE_OF_TYPE[type]! | tree.mode[inode]!, true);
  view.setBigUint64(at + offsets.i_size, BigInt(plan.contentSize[inode]!), true);
  view.setUint32(at + offsets.i_u, u, true);
  view.setUint32(at + offsets.i_ino, number, true);
  view.setUint32(at + offsets.i_uid, tree.uid[inode]!, true);
  view.setUint32(at + offsets.i_gid, tree.gid[inode]!, true);
  view.setBigInt64(at + offsets.i_mtime, BigInt(tree.mtimeSeconds[inode]!), true);
  view.setUint32(at + offsets.i_mtime_nsec, tree.mtimeNanoseconds[inode]!, true);
  view.setUint32(at + offsets.i_nlink, tree.nlink[inode]!, true);
}

/** Writes one index a piece and returns i_u: how far the pieces of one mapping reach. */
function emitIndexes({ tree, chunkSize, blobs }: InodeInput, inode: number, view: DataView, start: number): number {
  let at = start;
  let first = -1;
  let consecutive = true;
  visitPieces(tree, inode, chunkSize, (address, length) => {
    const { blob, element } = findChunk(blobs, address, length);
    const number = chunkNumber(blobs[blob]!, element);
    if (first < 0) first = address;
    if (address !== first + ((at - start) / CHUNK_INDEX_SIZE) * chunkSize) consecutive = false;
    view.setUint16(at, number & 0xffff, true);
    view.setUint16(at + 2, ((blob + 1) & 0xff) | ((number >>> 16) << 8), true);
    view.setUint32(at + 4, blobs[blob]!.chunks.offset[element]! / RAFS_BLOCK_SIZE, true);
    at += CHUNK_INDEX_SIZE;
  });
  let mapped = chunkSize;
  // one mapping for the whole file, where its pieces lie behind each other
  if (consecutive) while (mapped < tree.size[inode]!) mapped *= 2;
  return CHUNK_FORMAT_INDEXES | Math.log2(mapped / RAFS_BLOCK_SIZE);
}
