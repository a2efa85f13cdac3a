/**
 * Writes a FileTree as an EROFS image, in two passes: lay out (pure arithmetic), then emit. Same tree and options, same bytes. What is written mounts on
 * every kernel since 5.4 (data in other files: 5.16): no incompatible feature else, compact or extended inodes, FLAT_PLAIN and FLAT_INLINE, inline xattrs.
 *
 *   lazy:   | block 0: superblock, root inode, ... | inodes | directory blocks | file data ...          |   the tree is known first
 *   eager:  | block 0: superblock | file data ...           | inodes | directory blocks                 |   the tree is known last
 *             metadata region = inodes + directory blocks; nids are the same in both forms
 *   devices: | block 0: superblock, device table, root inode, ... | inodes | directory blocks |           data lie in other files, which
 *             images share: files are chunk-based (5.15) over a device table (5.16), the only incompatible features that we write
 *
 * Inodes: the root, then directory by directory (depth first) all children together in name order, so that a lookup and the stat after it touch
 * neighbours. An inode with its xattrs and inline tail never crosses a block unless its xattrs alone do. Directories and symlinks
 * are FLAT_INLINE when their tail fits into a block with the inode, else FLAT_PLAIN.
 *
 * Throws HS_EROFS_LIMIT for what EROFS cannot represent; it never clamps (specs/erofs-fuse.md 5.7).
 */

import { crc32c } from "../base/crc32c.ts";
import { HeadstartError } from "../base/errors.ts";
import { GiB, LIMITS } from "../base/limits.ts";
import { alignUp, type Range } from "../base/ranges.ts";
import { type ChunkMap, type ErofsDevice, emitChunks, mapChunks } from "./chunks.ts";
import { DirectoryEmitter, directorySize } from "./directory.ts";
import { type FileTree, FileType, INODE_IMPLIED, type INODE_IMPLIED_FIRST } from "./file-tree.ts";
import {
  EROFS_BLOCK_BITS,
  EROFS_FEATURE_COMPAT_MTIME,
  EROFS_FEATURE_COMPAT_SB_CHKSUM,
  EROFS_FEATURE_COMPAT_XATTR_FILTER,
  EROFS_FEATURE_INCOMPAT_CHUNKED_FILE,
  EROFS_FEATURE_INCOMPAT_DEVICE_TABLE,
  EROFS_I_DATALAYOUT_BIT,
  EROFS_I_VERSION_EXTENDED,
  EROFS_INODE_CHUNK_BASED,
  EROFS_INODE_FLAT_INLINE,
  EROFS_INODE_FLAT_PLAIN,
  EROFS_NULL_ADDR,
  EROFS_SLOT_SIZE,
  EROFS_SUPER_MAGIC,
  EROFS_SUPER_OFFSET,
  encodeDevice,
  erofs_deviceslot,
  erofs_inode_compact,
  erofs_inode_extended,
  erofs_super_block,
  MODE_OF_TYPE,
} from "./ondisk.ts";
import { adoptFiles, IMAGE_BYTES_MAX, type PlacedFiles, placeFiles } from "./place-files.ts";
import { BLOCK_SIZE, makePlacement, type Placement } from "./placement.ts";
import { emitXattrs, xattrBodySize, xattrCount } from "./xattr.ts";

export interface ErofsOptions {
  /** 16 bytes, derived from the layer digest: the same layer always gives the same image. */
  readonly uuid: Uint8Array;
  /** Inodes of regular files whose data shall come first, in order (lazy form). */
  readonly dataOrder?: Uint32Array;
}

export interface ErofsLayout {
  /** Bytes of the whole image, a multiple of 4096. It never changes afterwards. */
  readonly size: number;
  /** All that is metadata, to be pwritten. They ascend and do not overlap; the bytes between them are file data or zeros. */
  readonly parts: readonly { readonly offset: number; readonly bytes: Uint8Array }[];
  readonly placement: Placement;
  /** Inodes and directory blocks; with the superblock in the lazy form. On blocks. */
  readonly metadataRange: Range;
  /** First byte that can hold file data, on a block. */
  readonly dataStart: number;
  /** nid (= st_ino in the mounted image) of each inode of the tree. */
  readonly nidOf: Uint32Array;
  /** The superblock's epoch: mtime of all compact inodes, whole seconds. */
  readonly epoch: number;
}

/** The first slot that the superblock leaves free. The eager form starts there too, so that nids do not depend on the form and no nid is 0. */
const FIRST_INODE_AT = EROFS_SUPER_OFFSET + erofs_super_block.size;
/** rootnid is a u16. */
const ROOT_NID_MAX = 0xffff;
const ID_INVALID = 0xffffffff;
/** The region is made in memory. 20 million entries with names of 30 bytes take about 2 GiB. */
const METADATA_BYTES_MAX = 4 * GiB;

/** Metadata first, file data behind it. Throws HS_EROFS_LIMIT. */
export function layoutLazy(tree: FileTree, options: ErofsOptions): ErofsLayout {
  const plan = planMetadata(tree);
  const files = placeFiles(tree, plan.size, options.dataOrder);
  const metadata = emitMetadata(tree, plan, files.startBlock, 0);
  emitSuperblock(metadata, tree, plan, { uuid: options.uuid, metaBlock: 0, size: files.end });
  return {
    size: files.end,
    parts: [{ offset: 0, bytes: metadata }],
    placement: files.placement,
    metadataRange: { start: 0, end: plan.size },
    dataStart: plan.size,
    nidOf: plan.nidOf,
    epoch: plan.epoch,
  };
}

/**
 * For a stream: file data were written from byte 4096 on while the tree was not known yet, metadata come behind them. `places[inode]` is the byte offset
 * of a regular file's data (on a block), -1 for none; room for the holes of sparse files is part of a place. `dataEnd` is the first byte behind all data.
 * Throws HS_EROFS_LIMIT, and HS_INTERNAL when the places are not sound.
 */
export function layoutEager(tree: FileTree, places: Float64Array, dataEnd: number, options: ErofsOptions): ErofsLayout {
  const plan = planMetadata(tree);
  const files: PlacedFiles = adoptFiles(tree, places, dataEnd);
  const size = files.end + plan.size;
  if (!(size <= IMAGE_BYTES_MAX)) throw new HeadstartError("HS_EROFS_LIMIT", { what: `the image takes ${size} bytes` });
  const metaBlock = files.end / BLOCK_SIZE;
  const metadata = emitMetadata(tree, plan, files.startBlock, metaBlock);
  const block0 = new Uint8Array(BLOCK_SIZE);
  emitSuperblock(block0, tree, plan, { uuid: options.uuid, metaBlock, size });
  return {
    size,
    parts: [
      { offset: 0, bytes: block0 },
      { offset: files.end, bytes: metadata },
    ],
    placement: files.placement,
    metadataRange: { start: files.end, end: size },
    dataStart: BLOCK_SIZE,
    nidOf: plan.nidOf,
    epoch: plan.epoch,
  };
}

/**
 * Metadata alone: the data of address space s lie in `devices[s]` by identity (address = byte offset there; null for a space that no file uses), one device slot each in that order.
 * The placement is empty. Throws HS_EROFS_LIMIT, also for segments that do not begin on a block or lie outside of their device.
 */
export function layoutDevices(
  tree: FileTree,
  devices: readonly (ErofsDevice | null)[],
  options: Pick<ErofsOptions, "uuid">,
): ErofsLayout {
  const chunks = mapChunks(tree, devices);
  const plan = planMetadata(tree, chunks);
  const metadata = emitMetadata(tree, plan, new Uint32Array(tree.inodeCount).fill(EROFS_NULL_ADDR), 0);
  emitDeviceTable(metadata, chunks.devices);
  emitSuperblock(metadata, tree, plan, { uuid: options.uuid, metaBlock: 0, size: plan.size });
  const none = () => new Float64Array(0);
  return {
    size: plan.size,
    parts: [{ offset: 0, bytes: metadata }],
    placement: makePlacement({ address: none(), length: none(), fileOffset: none() }),
    metadataRange: { start: 0, end: plan.size },
    dataStart: plan.size,
    nidOf: plan.nidOf,
    epoch: plan.epoch,
  };
}

/**
 * Directories with `flag` set; an image does not hold the flags. `layout.nidOf` maps them to nids, which can be kept beside the image and given to
 * `ErofsReader.toFileTree`.
 */
export function impliedInodes(
  tree: FileTree,
  flag: typeof INODE_IMPLIED | typeof INODE_IMPLIED_FIRST = INODE_IMPLIED,
): Uint32Array {
  const implied: number[] = [];
  for (let inode = 0; inode < tree.inodeCount; inode++) if (tree.flags[inode]! & flag) implied.push(inode);
  return Uint32Array.from(implied);
}

/** Pass 1 without file data. Offsets and blocks are relative to the metadata region. */
interface MetadataPlan {
  readonly epoch: number;
  /** Inodes in the order of their nids. */
  readonly order: Uint32Array;
  readonly nidOf: Uint32Array;
  readonly extended: Uint8Array;
  /** Bytes of each inode's xattr body. */
  readonly xattrSize: Uint32Array;
  /** i_size: of directories too. */
  readonly contentSize: Float64Array;
  /** 1: the last block of a directory or symlink lies behind its inode. */
  readonly inline: Uint8Array;
  /** First block of directories and symlinks with blocks of their own, else EROFS_NULL_ADDR. */
  readonly ownBlock: Uint32Array;
  /** Bytes of the region, a multiple of 4096. */
  readonly size: number;
  /** Null where file data lie in the image itself. */
  readonly chunks: ChunkMap | null;
}

function planMetadata(tree: FileTree, chunks: ChunkMap | null = null): MetadataPlan {
  const count = tree.inodeCount;
  const epoch = mostCommonTime(tree);
  const order = inodeOrder(tree);
  const nidOf = new Uint32Array(count);
  const extended = new Uint8Array(count);
  const xattrSize = new Uint32Array(count);
  const contentSize = new Float64Array(count);
  const inline = new Uint8Array(count);
  const ownBlock = new Uint32Array(count).fill(EROFS_NULL_ADDR);
  let at = FIRST_INODE_AT + (chunks?.devices.length ?? 0) * erofs_deviceslot.size;
  let ownBlocks = 0;
  for (const inode of order) {
    checkInode(tree, inode);
    const type = tree.type[inode]!;
    const content = type === FileType.directory ? directorySize(tree, inode) : tree.size[inode]!;
    contentSize[inode] = content;
    const xattrs = xattrBodySize(tree, inode);
    xattrSize[inode] = xattrs;
    const compact =
      tree.mtimeSeconds[inode] === epoch &&
      tree.mtimeNanoseconds[inode] === 0 &&
      tree.uid[inode]! <= 0xffff &&
      tree.gid[inode]! <= 0xffff &&
      tree.nlink[inode]! <= 0xffff &&
      content <= 0xffffffff;
    extended[inode] = compact ? 0 : 1;
    let size = (compact ? erofs_inode_compact.size : erofs_inode_extended.size) + xattrs;
    if (type === FileType.directory || type === FileType.symlink) {
      const blocks = Math.ceil(content / BLOCK_SIZE);
      const tail = content - (blocks - 1) * BLOCK_SIZE;
      const fits = size + tail <= BLOCK_SIZE;
      const own = fits ? blocks - 1 : blocks;
      if (fits) {
        inline[inode] = 1;
        size += tail;
      }
      if (own > 0) {
        ownBlock[inode] = ownBlocks;
        ownBlocks += own;
      }
    }
    if (chunks !== null) size = chunks.sizeWith(inode, size);
    const left = BLOCK_SIZE - (at % BLOCK_SIZE);
    if (size > left) at += left;
    nidOf[inode] = at / EROFS_SLOT_SIZE;
    at = alignUp(at + size, EROFS_SLOT_SIZE);
    if (at + ownBlocks * BLOCK_SIZE > METADATA_BYTES_MAX) {
      throw new HeadstartError("HS_EROFS_LIMIT", { what: `the layer's metadata exceed ${METADATA_BYTES_MAX} bytes` });
    }
  }
  if (nidOf[0]! > ROOT_NID_MAX) throw new HeadstartError("HS_INTERNAL", { what: `the root got nid ${nidOf[0]}` });
  // fsck.erofs 1.5 reads an xattr header behind every inode, also where there is none: the last inode is not the last thing in the image
  const inodesEnd = alignUp(at + EROFS_SLOT_SIZE, BLOCK_SIZE);
  for (let inode = 0; inode < count; inode++) {
    if (ownBlock[inode] !== EROFS_NULL_ADDR) ownBlock[inode]! += inodesEnd / BLOCK_SIZE;
  }
  const size = inodesEnd + ownBlocks * BLOCK_SIZE;
  return { epoch, order, nidOf, extended, xattrSize, contentSize, inline, ownBlock, size, chunks };
}

/** Whole seconds that most inodes share, so that most are compact; the earliest of several. Never negative: old kernels read it unsigned. */
function mostCommonTime(tree: FileTree): number {
  const counts = new Map<number, number>();
  for (let inode = 0; inode < tree.inodeCount; inode++) {
    const seconds = tree.mtimeSeconds[inode]!;
    if (tree.mtimeNanoseconds[inode] === 0 && seconds >= 0) counts.set(seconds, (counts.get(seconds) ?? 0) + 1);
  }
  let best = 0;
  let bestCount = 0;
  for (const [seconds, count] of counts) {
    if (count > bestCount || (count === bestCount && seconds < best)) {
      best = seconds;
      bestCount = count;
    }
  }
  return best;
}

/** The root, then depth first the children of each directory, together and in name order. */
export function inodeOrder(tree: FileTree): Uint32Array {
  const order = new Uint32Array(tree.inodeCount);
  const seen = new Uint8Array(tree.inodeCount);
  let count = 1;
  seen[0] = 1;
  const directories = [0];
  for (let directory = directories.pop(); directory !== undefined; directory = directories.pop()) {
    const first = count;
    const end = tree.childStart[directory + 1]!;
    for (let child = tree.childStart[directory]!; child < end; child++) {
      const inode = tree.childInode[child]!;
      if (seen[inode]) continue;
      seen[inode] = 1;
      order[count++] = inode;
    }
    for (let index = count - 1; index >= first; index--) {
      if (tree.type[order[index]!] === FileType.directory) directories.push(order[index]!);
    }
  }
  if (count !== tree.inodeCount) {
    throw new HeadstartError("HS_INTERNAL", { what: `file tree: ${tree.inodeCount - count} inodes cannot be reached` });
  }
  return order;
}

/** Throws HS_EROFS_LIMIT for a single inode that cannot be written as it is. */
export function checkInode(tree: FileTree, inode: number): void {
  const refuse = (message: string): never => {
    throw new HeadstartError("HS_EROFS_LIMIT", { what: `inode ${inode}: EROFS cannot hold ${message}`, inode });
  };
  const type = tree.type[inode]!;
  const size = tree.size[inode]!;
  if (tree.uid[inode] === ID_INVALID || tree.gid[inode] === ID_INVALID) refuse("an owner of 4294967295");
  if (!Number.isSafeInteger(tree.mtimeSeconds[inode]!)) refuse(`the time ${tree.mtimeSeconds[inode]}`);
  if (tree.mtimeNanoseconds[inode]! >= 1e9) refuse(`${tree.mtimeNanoseconds[inode]} nanoseconds`);
  if (!(Number.isSafeInteger(size) && size >= 0)) refuse(`a size of ${size}`);
  if (type === FileType.symlink && !(size > 0 && size <= LIMITS.symlinkBytes)) refuse(`a link target of ${size} bytes`);
  if (type === FileType.char || type === FileType.block) {
    const major = tree.rdevMajor[inode]!;
    const minor = tree.rdevMinor[inode]!;
    if (major > 0xfff || minor > 0xfffff) refuse(`the device ${major}:${minor}`);
  }
}

/** Pass 2: the bytes of the metadata region, which begins at block `metaBlock` of the image. */
function emitMetadata(
  tree: FileTree,
  plan: MetadataPlan,
  startBlock: Uint32Array,
  metaBlock: number,
): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(plan.size);
  const view = new DataView(bytes.buffer);
  const directories = new DirectoryEmitter(tree, plan.nidOf, bytes, view);
  for (const inode of plan.order) {
    const type = tree.type[inode]!;
    const at = plan.nidOf[inode]! * EROFS_SLOT_SIZE;
    const own = plan.ownBlock[inode]!;
    let u: number;
    if (type === FileType.char || type === FileType.block) {
      u = encodeDevice(tree.rdevMajor[inode]!, tree.rdevMinor[inode]!);
    } else if (type === FileType.fifo || type === FileType.socket) {
      u = 0;
    } else if (plan.chunks?.isChunked(inode)) {
      u = plan.chunks.format(inode);
    } else {
      u = own === EROFS_NULL_ADDR ? startBlock[inode]! : metaBlock + own;
    }
    let end = emitInode(tree, plan, inode, u, view, at);
    if (plan.xattrSize[inode]! > 0) end = emitXattrs(tree, inode, bytes, view, end);
    if (plan.chunks?.isChunked(inode)) emitChunks(plan.chunks, inode, view, end);
    const content = plan.inline[inode] ? end : -1;
    if (type === FileType.directory) {
      directories.emit(inode, plan.contentSize[inode]!, own * BLOCK_SIZE, content);
    } else if (type === FileType.symlink) {
      const offset = tree.targetOffset[inode]!;
      bytes.set(tree.bytes.subarray(offset, offset + tree.size[inode]!), content < 0 ? own * BLOCK_SIZE : content);
    }
  }
  return bytes;
}

/** Returns where the inode ends. */
function emitInode(tree: FileTree, plan: MetadataPlan, inode: number, u: number, view: DataView, at: number): number {
  const extended = plan.extended[inode]!;
  const layout = plan.inline[inode]
    ? EROFS_INODE_FLAT_INLINE
    : plan.chunks?.isChunked(inode)
      ? EROFS_INODE_CHUNK_BASED
      : EROFS_INODE_FLAT_PLAIN;
  const size = plan.contentSize[inode]!;
  const nid = plan.nidOf[inode]!;
  const common = erofs_inode_compact.offsets;
  view.setUint16(
    at + common.i_format,
    (layout << EROFS_I_DATALAYOUT_BIT) | (extended ? EROFS_I_VERSION_EXTENDED : 0),
    true,
  );
  view.setUint16(at + common.i_xattr_icount, xattrCount(plan.xattrSize[inode]!), true);
  view.setUint16(at + common.i_mode, MODE_OF_TYPE[tree.type[inode]!]! | tree.mode[inode]!, true);
  view.setUint32(at + common.i_u, u, true);
  view.setUint32(at + common.i_ino, nid, true);
  if (!extended) {
    view.setUint16(at + common.i_nlink, tree.nlink[inode]!, true);
    view.setUint32(at + common.i_size, size, true);
    view.setUint16(at + common.i_uid, tree.uid[inode]!, true);
    view.setUint16(at + common.i_gid, tree.gid[inode]!, true);
    return at + erofs_inode_compact.size;
  }
  const offsets = erofs_inode_extended.offsets;
  setI64(view, at + offsets.i_size, size);
  view.setUint32(at + offsets.i_uid, tree.uid[inode]!, true);
  view.setUint32(at + offsets.i_gid, tree.gid[inode]!, true);
  setI64(view, at + offsets.i_mtime, tree.mtimeSeconds[inode]!);
  view.setUint32(at + offsets.i_mtime_nsec, tree.mtimeNanoseconds[inode]!, true);
  view.setUint32(at + offsets.i_nlink, tree.nlink[inode]!, true);
  return at + erofs_inode_extended.size;
}

/** Into block 0, and last of all: the checksum covers the whole rest of the block, inodes included. */
function emitSuperblock(
  block0: Uint8Array<ArrayBuffer>,
  tree: FileTree,
  plan: MetadataPlan,
  image: { uuid: Uint8Array; metaBlock: number; size: number },
): void {
  if (image.uuid.byteLength !== 16) {
    throw new HeadstartError("HS_INTERNAL", { what: `an EROFS uuid has 16 bytes, not ${image.uuid.byteLength}` });
  }
  const view = new DataView(block0.buffer);
  const at = EROFS_SUPER_OFFSET;
  const offsets = erofs_super_block.offsets;
  const xattrs = tree.xattrStart[tree.inodeCount]! > 0;
  view.setUint32(at + offsets.magic, EROFS_SUPER_MAGIC, true);
  view.setUint32(
    at + offsets.feature_compat,
    EROFS_FEATURE_COMPAT_SB_CHKSUM | EROFS_FEATURE_COMPAT_MTIME | (xattrs ? EROFS_FEATURE_COMPAT_XATTR_FILTER : 0),
    true,
  );
  view.setUint8(at + offsets.blkszbits, EROFS_BLOCK_BITS);
  view.setUint16(at + offsets.rootnid_2b, plan.nidOf[0]!, true);
  setI64(view, at + offsets.inos, tree.inodeCount);
  setI64(view, at + offsets.epoch, plan.epoch);
  view.setUint32(at + offsets.blocks_lo, image.size / BLOCK_SIZE, true);
  view.setUint32(at + offsets.meta_blkaddr, image.metaBlock, true);
  block0.set(image.uuid, at + offsets.uuid);
  const devices = plan.chunks?.devices.length ?? 0;
  if (devices > 0) {
    const features = EROFS_FEATURE_INCOMPAT_CHUNKED_FILE | EROFS_FEATURE_INCOMPAT_DEVICE_TABLE;
    view.setUint32(at + offsets.feature_incompat, features, true);
    view.setUint16(at + offsets.extra_devices, devices, true);
    view.setUint16(at + offsets.devt_slotoff, FIRST_INODE_AT / erofs_deviceslot.size, true);
  }
  view.setUint32(at + offsets.checksum, crc32c(block0.subarray(at, BLOCK_SIZE)), true);
}

/** Right behind the superblock. Without a flat address (uniaddr 0) each device is looked up by its number alone. */
function emitDeviceTable(bytes: Uint8Array<ArrayBuffer>, devices: readonly ErofsDevice[]): void {
  const view = new DataView(bytes.buffer);
  devices.forEach((device, index) => {
    const at = FIRST_INODE_AT + index * erofs_deviceslot.size;
    bytes.set(Buffer.from(device.tag, "latin1"), at + erofs_deviceslot.offsets.tag);
    view.setUint32(at + erofs_deviceslot.offsets.blocks_lo, device.size / BLOCK_SIZE, true);
  });
}

function setI64(view: DataView, at: number, value: number): void {
  const high = Math.floor(value / 2 ** 32);
  view.setUint32(at, value - high * 2 ** 32, true);
  view.setInt32(at + 4, high, true);
}
