/**
 * The self-check of an image that we wrote, before the kernel sees it (specs/erofs-fuse.md 5.9): the kernel checks little, and what it does not check fails
 * at use (ibid. 6). Reads the bytes back with read.ts, never with the writer's memory, and holds them to what write.ts promises.
 */

import { compareBytes } from "../base/bytes.ts";
import { FileType } from "./file-tree.ts";
import {
  EROFS_FEATURE_COMPAT_MTIME,
  EROFS_FEATURE_COMPAT_SB_CHKSUM,
  EROFS_FEATURE_COMPAT_XATTR_FILTER,
  EROFS_SUPER_OFFSET,
  erofs_deviceslot,
  erofs_inode_compact,
  erofs_inode_extended,
  erofs_super_block,
} from "./ondisk.ts";
import { BLOCK_SIZE } from "./placement.ts";
import { type ErofsInode, type ErofsReader, invalid } from "./read.ts";

/** Superblock fields that are zero in every image of ours. */
const ZERO_FIELDS = [
  "sb_extslots",
  "fixed_nsec",
  "xattr_blkaddr",
  "volume_name",
  "available_compr_algs",
  "xattr_prefix_count",
  "xattr_prefix_start",
  "packed_nid",
  "xattr_filter_reserved",
  "ishare_xattr_prefix_id",
  "reserved",
  "build_time",
  "rootnid_8b",
  "reserved2",
] as const satisfies readonly (keyof typeof erofs_super_block.offsets)[];

/**
 * Walks the whole image: superblock and checksum, every inode, xattr body, name and link count; all that is in use lies inside the image and nothing
 * overlaps, but files that share one extent. Throws HS_EROFS_INVALID with the first thing found.
 */
export function checkErofs(reader: ErofsReader): void {
  checkSuperblock(reader);
  const used = new UsedRanges();
  const links = new Map<number, { inode: ErofsInode; found: number }>();
  let xattrs = false;
  used.add(EROFS_SUPER_OFFSET, EROFS_SUPER_OFFSET + erofs_super_block.size, false);
  const { devices, devicesAt } = reader.superblock;
  if (devices.length > 0) used.add(devicesAt, devicesAt + devices.length * erofs_deviceslot.size, false);
  reader.walk({
    inode(inode) {
      checkInode(reader, inode);
      if (inode.xattrSize > 0) {
        xattrs = true;
        const list = reader.xattrs(inode);
        for (let index = 1; index < list.length; index++) {
          if (compareBytes(list[index - 1]!.name, list[index]!.name) > 0) {
            throw invalid(`inode ${inode.nid}: xattrs out of order`);
          }
        }
      }
      if (inode.type === FileType.symlink) reader.readlink(inode);
      if (inode.type === FileType.regular && inode.tailAt >= 0) throw invalid(`inode ${inode.nid}: a file with a tail`);
      used.add(inode.at, inode.at + inode.bodySize, false);
      if (inode.chunkBits > 0) reader.extents(inode);
      else if (devices.length > 0 && inode.type === FileType.regular && inode.size > 0)
        throw invalid(`inode ${inode.nid}: its data lie in the image`);
      if (inode.blocksAt >= 0) {
        const inBlocks = inode.tailAt < 0 ? inode.size : inode.size - 1;
        const blocks = inode.tailAt < 0 ? Math.ceil(inBlocks / BLOCK_SIZE) : Math.floor(inBlocks / BLOCK_SIZE);
        used.add(inode.blocksAt, inode.blocksAt + blocks * BLOCK_SIZE, inode.type === FileType.regular);
      }
      links.set(inode.nid, { inode, found: inode.type === FileType.directory ? 2 : 0 });
    },
    name(directory, _name, inode) {
      if (inode.type === FileType.directory) links.get(directory.nid)!.found++;
      else links.get(inode.nid)!.found++;
    },
  });
  for (const { inode, found } of links.values()) {
    // a file of a merged tree may have names that a layer above hides, and overlayfs counts them
    const fits = inode.type === FileType.directory ? inode.nlink === found : inode.nlink >= found;
    if (!fits) throw invalid(`inode ${inode.nid}: nlink is ${inode.nlink}, names say ${found}`);
  }
  if (links.size !== reader.superblock.inodeCount) {
    throw invalid(`${links.size} inodes, the superblock says ${reader.superblock.inodeCount}`);
  }
  if (((reader.superblock.featureCompat & EROFS_FEATURE_COMPAT_XATTR_FILTER) !== 0) !== xattrs) {
    throw invalid("the name filter feature does not fit the xattrs");
  }
  used.check();
}

function checkSuperblock(reader: ErofsReader): void {
  const { bytes, featureCompat, blocks } = reader.superblock;
  const always = EROFS_FEATURE_COMPAT_SB_CHKSUM | EROFS_FEATURE_COMPAT_MTIME;
  if ((featureCompat & ~EROFS_FEATURE_COMPAT_XATTR_FILTER) !== always) {
    throw invalid(`compatible features 0x${featureCompat.toString(16)}`);
  }
  if (blocks * BLOCK_SIZE !== reader.source.size) {
    throw invalid(`${blocks} blocks do not fit ${reader.source.size} bytes`);
  }
  const { devices, devicesAt } = reader.superblock;
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const extra = view.getUint16(erofs_super_block.offsets.extra_devices, true);
  if (extra !== devices.length) throw invalid(`superblock field extra_devices is ${extra}, without the feature`);
  if (devicesAt !== (devices.length === 0 ? 0 : EROFS_SUPER_OFFSET + erofs_super_block.size))
    throw invalid(`superblock field devt_slotoff: a device table at byte ${devicesAt}`);
  const starts = Object.values(erofs_super_block.offsets).sort((a, b) => a - b);
  for (const field of ZERO_FIELDS) {
    const start = erofs_super_block.offsets[field];
    const end = starts.find((other) => other > start) ?? erofs_super_block.size;
    if (bytes.subarray(start, end).some((byte) => byte !== 0)) throw invalid(`superblock field ${field} is not zero`);
  }
}

/** Fields that read.ts passes over: they must be what write.ts puts there. */
function checkInode(reader: ErofsReader, inode: ErofsInode): void {
  const size = inode.extended ? erofs_inode_extended.size : erofs_inode_compact.size;
  const bytes = reader.source.readAt(inode.at, size);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const compact = erofs_inode_compact.offsets;
  const extended = erofs_inode_extended.offsets;
  if (view.getUint32(compact.i_ino, true) !== inode.nid) throw invalid(`inode ${inode.nid}: another i_ino`);
  const reserved = inode.extended
    ? view.getUint16(extended.i_reserved, true) !== 0 || bytes.subarray(extended.i_reserved2).some((byte) => byte !== 0)
    : view.getUint32(compact.i_reserved, true) !== 0 || view.getUint32(compact.i_mtime, true) !== 0;
  if (reserved) throw invalid(`inode ${inode.nid}: reserved bytes are set`);
  if (inode.uid === 0xffffffff || inode.gid === 0xffffffff) throw invalid(`inode ${inode.nid}: owner 4294967295`);
  // what fits into a block with its inode stays in that block, so that one page read gives all of it
  const crosses = Math.floor(inode.at / BLOCK_SIZE) !== Math.floor((inode.at + inode.bodySize - 1) / BLOCK_SIZE);
  if (crosses && inode.bodySize <= BLOCK_SIZE) throw invalid(`inode ${inode.nid} crosses a block`);
}

/** Byte ranges in use; files may share one extent, nothing else may overlap. */
class UsedRanges {
  readonly #starts: number[] = [];
  readonly #ends: number[] = [];
  readonly #shareable: boolean[] = [];

  add(start: number, end: number, shareable: boolean): void {
    this.#starts.push(start);
    this.#ends.push(end);
    this.#shareable.push(shareable);
  }

  check(): void {
    const starts = Float64Array.from(this.#starts);
    const ends = Float64Array.from(this.#ends);
    const order = Uint32Array.from(this.#starts, (_, index) => index);
    order.sort((a, b) => starts[a]! - starts[b]! || ends[a]! - ends[b]!);
    for (let index = 1; index < order.length; index++) {
      const before = order[index - 1]!;
      const range = order[index]!;
      if (starts[range]! >= ends[before]!) continue;
      const same =
        this.#shareable[before] &&
        this.#shareable[range] &&
        starts[range] === starts[before] &&
        ends[range] === ends[before];
      if (!same) throw invalid(`bytes ${starts[range]} to ${ends[before]} are used twice`);
    }
  }
}
