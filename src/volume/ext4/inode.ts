/** The 256 bytes of an inode (specs/warm-volume.md 7.5). All four times are the entry's mtime: nothing else is known, and nothing else is deterministic. */

import { FileType, symlinkTarget } from "../../erofs/file-tree.ts";
import { fileSystemSeed, inodeChecksum, inodeSeed, viewOf } from "./checksum.ts";
import { type Extent, encodeExtents } from "./extents.ts";
import type { Ext4Layout } from "./layout.ts";
import {
  BLOCK,
  EXTENTS_FL,
  ext4_inode,
  INDEX_FL,
  INODE_SIZE,
  JOURNAL_INODE,
  LOST_FOUND_INODE,
  MODE_OF_TYPE,
  RESIZE_INODE,
} from "./ondisk.ts";
import { treePath } from "./tree-path.ts";
import { fitsInode, putInodeXattrs, xattrEntries } from "./xattr.ts";

const EXTRA_ISIZE = 32;
const SECTORS_PER_BLOCK = BLOCK / 512;
/** What i_size of the resize inode is: direct, indirect and double indirect blocks of 1024 pointers. */
const RESIZE_SIZE = (12 + 1024 + 1024 * 1024) * BLOCK;
const DOUBLE_INDIRECT = 13;

interface Fields {
  readonly number: number;
  /** With the type bits. */
  readonly mode: number;
  readonly uid: number;
  readonly gid: number;
  readonly size: number;
  readonly links: number;
  readonly blocks: number;
  readonly flags: number;
  readonly seconds: number;
  readonly nanoseconds: number;
  readonly block: Uint8Array;
  readonly xattrBlock: number;
}

/** Inode of a tree entry; its seed is of generation 0. */
export function encodeTreeInode(layout: Ext4Layout, treeInode: number): Uint8Array {
  const { tree } = layout;
  const number = layout.inodeOf[treeInode]!;
  const type = tree.type[treeInode] as FileType;
  const seed = fileSystemSeed(layout.options.uuid);
  const extents = layout.extentsOf(treeInode);
  const nodes = layout.nodesOf(treeInode);
  const xattrBlock = layout.xattrBlockOf[treeInode]!;
  let blocks = nodes.length + (xattrBlock > 0 ? 1 : 0);
  for (const extent of extents) blocks += extent.length;
  let size = tree.size[treeInode]!;
  let flags = EXTENTS_FL;
  let block: Uint8Array;
  if (type === FileType.regular || type === FileType.directory || extents.length > 0) {
    block = encodeExtents(extents, nodes, inodeSeed(seed, number, 0)).root;
  } else {
    flags = 0;
    block = new Uint8Array(60);
    if (type === FileType.symlink) block.set(symlinkTarget(tree, treeInode));
    else if (type === FileType.char || type === FileType.block) {
      putDevice(block, tree.rdevMajor[treeInode]!, tree.rdevMinor[treeInode]!);
    }
  }
  if (type === FileType.directory) {
    size = blocksOf(extents) * BLOCK;
    if (layout.indexed[treeInode] === 1) flags |= INDEX_FL;
  }
  const bytes = encode({
    number,
    mode: MODE_OF_TYPE[type]! | tree.mode[treeInode]!,
    uid: tree.uid[treeInode]!,
    gid: tree.gid[treeInode]!,
    size,
    links: layout.linksOf[treeInode]!,
    blocks,
    flags,
    seconds: tree.mtimeSeconds[treeInode]!,
    nanoseconds: tree.mtimeNanoseconds[treeInode]!,
    block,
    xattrBlock,
  });
  if (xattrBlock === 0 && tree.xattrStart[treeInode] !== tree.xattrStart[treeInode + 1]) {
    const entries = xattrEntries(tree, treeInode, () => JSON.stringify(treePath(tree, treeInode)));
    if (entries.length > 0 && fitsInode(entries)) putInodeXattrs(bytes, entries);
  }
  return seal(bytes, seed, number);
}

/** Inodes 7, 8 and (made by us) 11; null when the file system has none. */
export function encodeSpecialInode(layout: Ext4Layout, number: number): Uint8Array | null {
  const { geometry, options } = layout;
  const seed = fileSystemSeed(options.uuid);
  const common = { number, uid: 0, gid: 0, seconds: options.time, nanoseconds: 0, xattrBlock: 0 };
  switch (number) {
    case RESIZE_INODE: {
      if (geometry.resizeBlock === 0) return null;
      const block = new Uint8Array(60);
      viewOf(block).setUint32(DOUBLE_INDIRECT * 4, geometry.resizeBlock, true);
      const blocks = 1 + geometry.reservedDescBlocks * (1 + geometry.backups.length);
      return seal(
        encode({ ...common, mode: MODE_OF_TYPE[1]! | 0o600, size: RESIZE_SIZE, links: 1, blocks, flags: 0, block }),
        seed,
        number,
      );
    }
    case JOURNAL_INODE: {
      const { start, end } = geometry.journal;
      if (start === end) return null;
      const extents = splitRun(start, end - start);
      return seal(
        encode({
          ...common,
          mode: MODE_OF_TYPE[1]! | 0o600,
          size: (end - start) * BLOCK,
          links: 1,
          blocks: end - start,
          flags: EXTENTS_FL,
          block: encodeExtents(extents, [], inodeSeed(seed, number, 0)).root,
        }),
        seed,
        number,
      );
    }
    case LOST_FOUND_INODE: {
      const extents = layout.regions[0]!.lostFound;
      const blocks = blocksOf(extents);
      return seal(
        encode({
          ...common,
          mode: MODE_OF_TYPE[2]! | 0o700,
          size: blocks * BLOCK,
          links: 2,
          blocks,
          flags: EXTENTS_FL,
          block: encodeExtents(extents, [], inodeSeed(seed, number, 0)).root,
        }),
        seed,
        number,
      );
    }
    default:
      return null;
  }
}

function blocksOf(extents: readonly Extent[]): number {
  return extents.reduce((sum, { length }) => sum + length, 0);
}

function splitRun(start: number, count: number): Extent[] {
  const extents: Extent[] = [];
  for (let done = 0; done < count; done += 32_768) {
    extents.push({ logical: done, physical: start + done, length: Math.min(32_768, count - done) });
  }
  return extents;
}

/** Small numbers in the old form, others in the new one, as the kernel does. */
function putDevice(block: Uint8Array, major: number, minor: number): void {
  const view = viewOf(block);
  if (major < 256 && minor < 256) view.setUint32(0, (major << 8) | minor, true);
  else view.setUint32(4, ((minor & 0xff) | (major << 8) | ((minor & ~0xff) << 12)) >>> 0, true);
}

function encode(fields: Fields): Uint8Array {
  const bytes = new Uint8Array(INODE_SIZE);
  const view = new DataView(bytes.buffer);
  const at = ext4_inode.offsets;
  const sectors = fields.blocks * SECTORS_PER_BLOCK;
  const seconds = fields.seconds >>> 0;
  const epoch = Math.floor((fields.seconds + 2 ** 31) / 2 ** 32) & 3;
  const extra = ((fields.nanoseconds << 2) | epoch) >>> 0;
  view.setUint16(at.i_mode, fields.mode, true);
  view.setUint16(at.i_uid, fields.uid & 0xffff, true);
  view.setUint16(at.i_uid_high, fields.uid >>> 16, true);
  view.setUint16(at.i_gid, fields.gid & 0xffff, true);
  view.setUint16(at.i_gid_high, fields.gid >>> 16, true);
  view.setUint32(at.i_size_lo, fields.size >>> 0, true);
  view.setUint32(at.i_size_high, Math.floor(fields.size / 2 ** 32), true);
  for (const field of ["i_atime", "i_ctime", "i_mtime", "i_crtime"] as const) view.setUint32(at[field], seconds, true);
  for (const field of ["i_atime_extra", "i_ctime_extra", "i_mtime_extra", "i_crtime_extra"] as const) {
    view.setUint32(at[field], extra, true);
  }
  view.setUint16(at.i_links_count, fields.links, true);
  view.setUint32(at.i_blocks_lo, sectors >>> 0, true);
  view.setUint16(at.i_blocks_high, Math.floor(sectors / 2 ** 32), true);
  view.setUint32(at.i_flags, fields.flags, true);
  bytes.set(fields.block, at.i_block);
  view.setUint32(at.i_file_acl_lo, fields.xattrBlock, true);
  view.setUint16(at.i_extra_isize, EXTRA_ISIZE, true);
  return bytes;
}

function seal(bytes: Uint8Array, seed: number, number: number): Uint8Array {
  const view = new DataView(bytes.buffer);
  const checksum = inodeChecksum(inodeSeed(seed, number, 0), bytes);
  view.setUint16(ext4_inode.offsets.i_checksum_lo, checksum & 0xffff, true);
  view.setUint16(ext4_inode.offsets.i_checksum_hi, checksum >>> 16, true);
  return bytes;
}
