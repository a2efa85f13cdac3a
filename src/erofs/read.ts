/**
 * Reads an EROFS image of our kind back (write.ts): for `image`, `check`, `inspect`, the chain computation and tests. Never for foreign metadata: compression
 * and shared xattrs are errors, not features; chunks and devices are read as `layoutDevices` writes them.
 *
 * The bytes are not trusted. Whatever they are, each call ends in a value whose parts lie inside the image or in HS_EROFS_INVALID; a walk visits every
 * inode once and reads no more names, targets and xattrs than the image has bytes. What is sound but not what we would have written is check.ts's business.
 */

import { compareBytes } from "../base/bytes.ts";
import { crc32c } from "../base/crc32c.ts";
import { HeadstartError } from "../base/errors.ts";
import { GiB, LIMITS } from "../base/limits.ts";
import { alignUp } from "../base/ranges.ts";
import { parseDirectoryBlock } from "./directory.ts";
import { ADDRESS_SPACE, type FileTree, FileTreeBuilder, FileType, type InodeFields } from "./file-tree.ts";
import {
  deviceMajor,
  deviceMinor,
  EROFS_BLOCK_BITS,
  EROFS_CHUNK_FORMAT_BLKBITS_MASK,
  EROFS_CHUNK_FORMAT_INDEXES,
  EROFS_FEATURE_COMPAT_SB_CHKSUM,
  EROFS_FEATURE_INCOMPAT_CHUNKED_FILE,
  EROFS_FEATURE_INCOMPAT_DEVICE_TABLE,
  EROFS_I_DATALAYOUT_BIT,
  EROFS_I_FORMAT_KNOWN,
  EROFS_I_VERSION_EXTENDED,
  EROFS_INODE_CHUNK_BASED,
  EROFS_INODE_FLAT_INLINE,
  EROFS_INODE_FLAT_PLAIN,
  EROFS_NULL_ADDR,
  EROFS_SLOT_SIZE,
  EROFS_SUPER_MAGIC,
  EROFS_SUPER_OFFSET,
  erofs_deviceslot,
  erofs_inode_chunk_index,
  erofs_inode_compact,
  erofs_inode_extended,
  erofs_super_block,
  erofs_xattr_ibody_header,
  typeOfMode,
} from "./ondisk.ts";
import { BLOCK_SIZE } from "./placement.ts";
import type { ErofsSource } from "./source.ts";
import { parseXattrs, type Xattr } from "./xattr.ts";

export interface ErofsSuperblock {
  /** The 128 raw bytes (a view). */
  readonly bytes: Uint8Array;
  readonly featureCompat: number;
  readonly rootNid: number;
  readonly inodeCount: number;
  /** mtime of compact inodes, whole seconds. */
  readonly epoch: number;
  readonly blocks: number;
  readonly metaBlock: number;
  readonly uuid: Uint8Array;
  /** Device i + 1; empty for an image that holds its data itself. */
  readonly devices: readonly { readonly tag: string; readonly blocks: number }[];
  /** Byte of the device table. */
  readonly devicesAt: number;
}

export interface ErofsInode {
  readonly nid: number;
  readonly type: FileType;
  /** Low 12 bits. */
  readonly mode: number;
  readonly uid: number;
  readonly gid: number;
  readonly nlink: number;
  readonly size: number;
  readonly mtimeSeconds: number;
  readonly mtimeNanoseconds: number;
  readonly rdevMajor: number;
  readonly rdevMinor: number;
  readonly extended: boolean;
  /** First byte in the image of the content's blocks; -1 when it has none. */
  readonly blocksAt: number;
  /** Byte of the inline tail; -1 when there is none. */
  readonly tailAt: number;
  /** Byte of the inode itself, and the bytes that it, its xattrs and its tail take. */
  readonly at: number;
  readonly bodySize: number;
  /** log2 of the chunk size and byte of the first index of a chunk-based file; 0 for all others. */
  readonly chunkBits: number;
  readonly chunksAt: number;
  /** Byte and size of the xattr body; size 0 when there is none. */
  readonly xattrAt: number;
  readonly xattrSize: number;
}

export interface ErofsDirent {
  /** A view. */
  readonly name: Uint8Array;
  readonly nid: number;
  readonly type: FileType;
}

/** File bytes [fileOffset, + length) lie at bytes [imageOffset, + length) of the image, or of a device. */
export interface ErofsExtent {
  /** 0: the image itself. */
  readonly device: number;
  readonly fileOffset: number;
  readonly length: number;
  readonly imageOffset: number;
}

export interface ErofsVisitor {
  /** Once an inode, the root first, a directory before what is in it. */
  inode(inode: ErofsInode): void;
  /** Every name but "." and "..", after the inode that it names. */
  name(directory: ErofsInode, name: Uint8Array, inode: ErofsInode): void;
}

/** LIMITS.layerEntries names of 255 bytes are 5 GB. */
const WALK_BYTES_MAX = 8 * GiB;

/** Checks the superblock and its checksum. Throws HS_EROFS_INVALID. */
export function openErofs(source: ErofsSource): ErofsReader {
  return new ErofsReader(source);
}

export class ErofsReader {
  readonly source: ErofsSource;
  readonly superblock: ErofsSuperblock;
  readonly #metaAt: number;

  constructor(source: ErofsSource) {
    this.source = source;
    this.superblock = parseSuperblock(source);
    this.#metaAt = this.superblock.metaBlock * BLOCK_SIZE;
  }

  get root(): ErofsInode {
    const root = this.inode(this.superblock.rootNid);
    if (root.type !== FileType.directory) throw invalid(`the root (nid ${root.nid}) is no directory`);
    return root;
  }

  /** stat: what is at a nid. Throws HS_EROFS_INVALID. */
  inode(nid: number): ErofsInode {
    const at = this.#metaAt + nid * EROFS_SLOT_SIZE;
    // a compact inode may be the last thing in the image
    const there = Math.min(erofs_inode_extended.size, this.source.size - at);
    if (!(at >= 0 && there >= erofs_inode_compact.size)) throw badInode(nid, "lies outside of the image");
    const bytes = this.source.readAt(at, there);
    const view = new DataView(bytes.buffer, bytes.byteOffset, there);
    const common = erofs_inode_compact.offsets;
    const format = view.getUint16(common.i_format, true);
    if ((format & ~EROFS_I_FORMAT_KNOWN) !== 0) throw badInode(nid, `i_format is 0x${format.toString(16)}`);
    const layout = format >>> EROFS_I_DATALAYOUT_BIT;
    const chunked = layout === EROFS_INODE_CHUNK_BASED && this.superblock.devices.length > 0;
    if (layout !== EROFS_INODE_FLAT_PLAIN && layout !== EROFS_INODE_FLAT_INLINE && !chunked) {
      throw badInode(nid, `data layout ${layout}`);
    }
    const i_mode = view.getUint16(common.i_mode, true);
    const type = typeOfMode(i_mode);
    if (type === 0) throw badInode(nid, `i_mode is 0${i_mode.toString(8)}`);
    const u = view.getUint32(common.i_u, true);
    const xattrCount = view.getUint16(common.i_xattr_icount, true);
    if (xattrCount === 1) throw badInode(nid, "an xattr body without entries");
    const xattrSize = xattrCount === 0 ? 0 : erofs_xattr_ibody_header.size + 4 * (xattrCount - 1);

    const extended = (format & EROFS_I_VERSION_EXTENDED) !== 0;
    let uid: number;
    let gid: number;
    let nlink: number;
    let size: number;
    let mtimeSeconds: number;
    let mtimeNanoseconds = 0;
    if (extended) {
      if (there < erofs_inode_extended.size) throw badInode(nid, "lies outside of the image");
      const offsets = erofs_inode_extended.offsets;
      uid = view.getUint32(offsets.i_uid, true);
      gid = view.getUint32(offsets.i_gid, true);
      nlink = view.getUint32(offsets.i_nlink, true);
      size = getI64(view, offsets.i_size);
      mtimeSeconds = getI64(view, offsets.i_mtime);
      mtimeNanoseconds = view.getUint32(offsets.i_mtime_nsec, true);
    } else {
      uid = view.getUint16(common.i_uid, true);
      gid = view.getUint16(common.i_gid, true);
      nlink = view.getUint16(common.i_nlink, true);
      size = view.getUint32(common.i_size, true);
      mtimeSeconds = this.superblock.epoch + view.getUint32(common.i_mtime, true);
    }
    if (!(Number.isSafeInteger(size) && size >= 0)) throw badInode(nid, `i_size is ${size}`);
    if (!Number.isSafeInteger(mtimeSeconds) || mtimeNanoseconds >= 1e9) throw badInode(nid, "the time is out of range");
    if (chunked && (type !== FileType.regular || size === 0)) throw badInode(nid, "chunks of no data");
    const sized = type === FileType.regular || type === FileType.directory || type === FileType.symlink;
    if (!sized && (size !== 0 || layout !== EROFS_INODE_FLAT_PLAIN)) {
      throw badInode(nid, "a device, fifo or socket with data");
    }
    if (type === FileType.symlink && !(size > 0 && size <= LIMITS.symlinkBytes)) {
      throw badInode(nid, `a link target of ${size} bytes`);
    }

    const xattrAt = at + (extended ? erofs_inode_extended.size : erofs_inode_compact.size);
    let bodyEnd = xattrAt + xattrSize;
    let blocks = Math.ceil(size / BLOCK_SIZE);
    let tailAt = -1;
    let chunkBits = 0;
    let chunksAt = 0;
    if (chunked) {
      if ((u & ~(EROFS_CHUNK_FORMAT_BLKBITS_MASK | EROFS_CHUNK_FORMAT_INDEXES)) !== 0)
        throw badInode(nid, `chunk format 0x${u.toString(16)}`);
      if ((u & EROFS_CHUNK_FORMAT_INDEXES) === 0) throw badInode(nid, "chunks without indexes");
      chunkBits = EROFS_BLOCK_BITS + (u & EROFS_CHUNK_FORMAT_BLKBITS_MASK);
      chunksAt = alignUp(bodyEnd, erofs_inode_chunk_index.size);
      bodyEnd = chunksAt + Math.ceil(size / 2 ** chunkBits) * erofs_inode_chunk_index.size;
      blocks = 0;
    }
    if (layout === EROFS_INODE_FLAT_INLINE && blocks > 0) {
      blocks--;
      const tail = size - blocks * BLOCK_SIZE;
      tailAt = bodyEnd;
      bodyEnd += tail;
      if ((tailAt % BLOCK_SIZE) + tail > BLOCK_SIZE) throw badInode(nid, `its tail of ${tail} bytes crosses a block`);
    }
    if (bodyEnd > this.source.size) throw badInode(nid, "its xattrs, tail or chunks lie outside of the image");
    // the padding of the last block must be there too: the kernel reads whole blocks
    const blocksAt = sized && blocks > 0 ? u * BLOCK_SIZE : -1;
    if (blocksAt >= 0 && !(blocksAt + blocks * BLOCK_SIZE <= this.source.size)) {
      throw badInode(nid, `blocks ${u} to ${u + blocks} lie outside of the image`);
    }
    const device = type === FileType.char || type === FileType.block;
    return {
      nid,
      type,
      mode: i_mode & 0o7777,
      uid,
      gid,
      nlink,
      size,
      mtimeSeconds,
      mtimeNanoseconds,
      rdevMajor: device ? deviceMajor(u) : 0,
      rdevMinor: device ? deviceMinor(u) : 0,
      extended,
      blocksAt,
      tailAt,
      at,
      bodySize: bodyEnd - at,
      chunkBits,
      chunksAt,
      xattrAt,
      xattrSize,
    };
  }

  /** All entries, "." and ".." included, in order. Throws HS_EROFS_INVALID, also when they are not sorted. */
  readdir(directory: ErofsInode): ErofsDirent[] {
    const entries: ErofsDirent[] = [];
    for (let block = 0; block * BLOCK_SIZE < directory.size; block++) {
      this.#directoryBlock(directory, block, (name, nid, type) => entries.push({ name, nid, type }));
    }
    for (let index = 1; index < entries.length; index++) {
      if (compareBytes(entries[index - 1]!.name, entries[index]!.name) >= 0) {
        throw invalid(`directory ${directory.nid}: ${printable(entries[index]!.name)} is out of order`);
      }
    }
    return entries;
  }

  /** One name, found as the kernel finds it: a binary search over blocks. Null when there is none. Throws HS_EROFS_INVALID. */
  lookup(directory: ErofsInode, name: Uint8Array): ErofsDirent | null {
    if (directory.type !== FileType.directory) return null;
    let low = 0;
    let high = Math.ceil(directory.size / BLOCK_SIZE);
    while (low < high) {
      const middle = Math.floor((low + high) / 2);
      let first: number | null = null;
      let last = 0;
      let found: ErofsDirent | null = null;
      this.#directoryBlock(directory, middle, (candidate, nid, type) => {
        last = compareBytes(candidate, name);
        first ??= last;
        if (last === 0) found = { name: candidate, nid, type };
      });
      if (found !== null) return found;
      if (first !== null && first > 0) high = middle;
      else if (last < 0) low = middle + 1;
      else return null;
    }
    return null;
  }

  /** The target of a symlink (a view). Throws HS_EROFS_INVALID. */
  readlink(inode: ErofsInode): Uint8Array {
    if (inode.type !== FileType.symlink) throw invalid(`inode ${inode.nid} is no symlink`);
    const target = this.source.readAt(inode.tailAt >= 0 ? inode.tailAt : inode.blocksAt, inode.size);
    if (target.includes(0)) throw invalid(`inode ${inode.nid}: a NUL in the link target`);
    return target;
  }

  /** In the order in which they lie; views. Throws HS_EROFS_INVALID. */
  xattrs(inode: ErofsInode): readonly Xattr[] {
    if (inode.xattrSize === 0) return [];
    const found = parseXattrs(this.source.readAt(inode.xattrAt, inode.xattrSize));
    if (typeof found === "string") throw invalid(`inode ${inode.nid}: ${found}`);
    return found;
  }

  /** Where the bytes of a regular file lie, ascending; nothing for an empty one, and nothing for holes. Throws HS_EROFS_INVALID. */
  extents(inode: ErofsInode): readonly ErofsExtent[] {
    if (inode.type !== FileType.regular || inode.size === 0) return [];
    if (inode.chunkBits > 0) return this.#chunkExtents(inode);
    const inBlocks = inode.tailAt < 0 ? inode.size : alignDownToBlock(inode.size - 1);
    const extents: ErofsExtent[] = [];
    if (inBlocks > 0) extents.push({ device: 0, fileOffset: 0, length: inBlocks, imageOffset: inode.blocksAt });
    if (inode.tailAt >= 0) {
      extents.push({ device: 0, fileOffset: inBlocks, length: inode.size - inBlocks, imageOffset: inode.tailAt });
    }
    return extents;
  }

  /**
   * Visits the whole tree, depth first. Throws HS_EROFS_INVALID when it is none: a directory with two names, "." or ".." that are missing or point
   * elsewhere, an entry of another type than its inode, more than LIMITS.layerEntries names.
   */
  walk(visitor: ErofsVisitor): void {
    const root = this.root;
    const seen = new Map<number, ErofsInode | null>([[root.nid, null]]);
    // a damaged image can let many inodes claim the same bytes; in a sound one names, targets, xattrs and indexes have their own
    let budget = Math.min(this.source.size, WALK_BYTES_MAX);
    let names = 0;
    const spend = (bytes: number) => {
      budget -= bytes;
      if (budget < 0) throw invalid("inodes claim the same bytes over and over");
    };
    visitor.inode(root);
    const stack: { directory: ErofsInode; parentNid: number }[] = [{ directory: root, parentNid: root.nid }];
    for (let frame = stack.pop(); frame !== undefined; frame = stack.pop()) {
      const { directory, parentNid } = frame;
      spend(directory.size + directory.xattrSize);
      const children: { directory: ErofsInode; parentNid: number }[] = [];
      let dots = 0;
      for (const entry of this.readdir(directory)) {
        if (isDots(entry.name)) {
          if (entry.nid !== (entry.name.length === 1 ? directory.nid : parentNid)) {
            throw invalid(`directory ${directory.nid}: ${printable(entry.name)} is nid ${entry.nid}`);
          }
          dots++;
          continue;
        }
        if (++names > LIMITS.layerEntries) throw invalid(`more than ${LIMITS.layerEntries} names`);
        let inode = seen.get(entry.nid);
        if (inode === null) {
          throw invalid(`directory ${entry.nid} has a second name, ${printable(entry.name)} in ${directory.nid}`);
        }
        if (inode === undefined) {
          inode = this.inode(entry.nid);
          if (inode.type === FileType.directory) {
            seen.set(entry.nid, null);
            children.push({ directory: inode, parentNid: directory.nid });
          } else {
            const indexes = inode.chunkBits > 0 ? inode.at + inode.bodySize - inode.chunksAt : 0;
            spend(inode.xattrSize + indexes + (inode.type === FileType.symlink ? inode.size : 0));
            seen.set(entry.nid, inode);
          }
          visitor.inode(inode);
        }
        if (inode.type !== entry.type) {
          throw invalid(
            `directory ${directory.nid}: ${printable(entry.name)} has type ${entry.type}, not ${inode.type}`,
          );
        }
        visitor.name(directory, entry.name, inode);
      }
      if (dots !== 2) throw invalid(`directory ${directory.nid}: "." or ".." is missing`);
      while (children.length > 0) stack.push(children.pop()!);
    }
  }

  /**
   * The tree that the image holds. Each file with data is one segment whose address is its offset in the image (space 0), or segments in its devices (device d is space d). The options name the
   * directories that get INODE_IMPLIED and INODE_IMPLIED_FIRST, which an image does not hold (write.ts, `impliedInodes`). Throws HS_EROFS_INVALID.
   */
  toFileTree(
    options: { readonly impliedNids?: Iterable<number>; readonly impliedFirstNids?: Iterable<number> } = {},
  ): FileTree {
    const implied = new Set(options.impliedNids);
    const impliedFirst = new Set(options.impliedFirstNids);
    const indexOf = new Map<number, number>();
    let builder: FileTreeBuilder | null = null;
    const segments = (inode: ErofsInode) =>
      this.extents(inode).map(({ device, fileOffset, length, imageOffset }) => ({
        fileOffset,
        length,
        address: device * ADDRESS_SPACE + imageOffset,
      }));
    const fields = (inode: ErofsInode): InodeFields => ({
      type: inode.type,
      mode: inode.mode,
      uid: inode.uid,
      gid: inode.gid,
      mtimeSeconds: inode.mtimeSeconds,
      mtimeNanoseconds: inode.mtimeNanoseconds,
      size: inode.type === FileType.regular ? inode.size : 0,
      rdevMajor: inode.rdevMajor,
      rdevMinor: inode.rdevMinor,
      implied: inode.type === FileType.directory && implied.has(inode.nid),
      impliedFirst: inode.type === FileType.directory && impliedFirst.has(inode.nid),
      ...(inode.type === FileType.symlink ? { target: this.readlink(inode) } : {}),
      xattrs: this.xattrs(inode),
      segments: segments(inode),
    });
    this.walk({
      inode(inode) {
        if (builder === null) {
          builder = new FileTreeBuilder(fields(inode));
          indexOf.set(inode.nid, 0);
        } else {
          indexOf.set(inode.nid, builder.addInode(fields(inode)));
        }
      },
      name(directory, name, inode) {
        builder!.addName(indexOf.get(directory.nid)!, name, indexOf.get(inode.nid)!);
      },
    });
    return builder!.finish();
  }

  /** Neighbours that follow each other in one device are one extent. */
  #chunkExtents(inode: ErofsInode): ErofsExtent[] {
    const { devices } = this.superblock;
    const entry = erofs_inode_chunk_index;
    const chunkSize = 2 ** inode.chunkBits;
    const count = Math.ceil(inode.size / chunkSize);
    const bytes = this.source.readAt(inode.chunksAt, count * entry.size);
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    const extents: ErofsExtent[] = [];
    for (let chunk = 0; chunk < count; chunk++) {
      const bad = (message: string) => badInode(inode.nid, `chunk ${chunk}: ${message}`);
      const at = chunk * entry.size;
      const startblk = view.getUint32(at + entry.offsets.startblk, true);
      const device = view.getUint16(at + entry.offsets.device_id, true);
      if (view.getUint16(at + entry.offsets.startblk_hi, true) !== 0) throw bad("a block number of 48 bits");
      if (startblk === EROFS_NULL_ADDR) {
        if (device !== 0) throw bad(`a hole in device ${device}`);
        continue;
      }
      const fileOffset = chunk * chunkSize;
      const length = Math.min(chunkSize, inode.size - fileOffset);
      const imageOffset = startblk * BLOCK_SIZE;
      const slot = devices[device - 1];
      if (slot === undefined) throw bad(`device ${device} of ${devices.length}`);
      if (imageOffset + length > slot.blocks * BLOCK_SIZE) throw bad(`it lies outside of device ${device}`);
      const last = extents.at(-1);
      const follows =
        last !== undefined &&
        last.device === device &&
        last.fileOffset + last.length === fileOffset &&
        last.imageOffset + last.length === imageOffset;
      if (follows) extents[extents.length - 1] = { ...last, length: last.length + length };
      else extents.push({ device, fileOffset, length, imageOffset });
    }
    return extents;
  }

  #directoryBlock(
    directory: ErofsInode,
    block: number,
    visit: (name: Uint8Array, nid: number, type: FileType) => void,
  ): void {
    const start = block * BLOCK_SIZE;
    const length = Math.min(BLOCK_SIZE, directory.size - start);
    const at =
      directory.tailAt >= 0 && start + length === directory.size ? directory.tailAt : directory.blocksAt + start;
    const problem = parseDirectoryBlock(this.source.readAt(at, length), visit);
    if (problem !== null) throw invalid(`directory ${directory.nid}, block ${block}: ${problem}`);
  }
}

/** "." or "..". */
export function isDots(name: Uint8Array): boolean {
  return name[0] === 0x2e && (name.length === 1 || (name.length === 2 && name[1] === 0x2e));
}

function parseSuperblock(source: ErofsSource): ErofsSuperblock {
  if (source.size < BLOCK_SIZE) throw invalid(`${source.size} bytes are too few`);
  const block0 = source.readAt(0, BLOCK_SIZE);
  const bytes = block0.subarray(EROFS_SUPER_OFFSET, EROFS_SUPER_OFFSET + erofs_super_block.size);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const offsets = erofs_super_block.offsets;
  const magic = view.getUint32(offsets.magic, true);
  if (magic !== EROFS_SUPER_MAGIC) throw invalid(`the magic is 0x${magic.toString(16)}`);
  const incompat = view.getUint32(offsets.feature_incompat, true);
  const onDevices = EROFS_FEATURE_INCOMPAT_CHUNKED_FILE | EROFS_FEATURE_INCOMPAT_DEVICE_TABLE;
  if (incompat !== 0 && incompat !== onDevices) throw invalid(`incompatible features 0x${incompat.toString(16)}`);
  const blockBits = view.getUint8(offsets.blkszbits);
  if (blockBits !== EROFS_BLOCK_BITS) throw invalid(`blocks of 2^${blockBits} bytes`);
  const directoryBits = view.getUint8(offsets.dirblkbits);
  if (directoryBits !== 0) throw invalid(`directory blocks of 2^${directoryBits} blocks`);
  const featureCompat = view.getUint32(offsets.feature_compat, true);
  if ((featureCompat & EROFS_FEATURE_COMPAT_SB_CHKSUM) !== 0) {
    const stored = view.getUint32(offsets.checksum, true);
    const covered = block0.slice(EROFS_SUPER_OFFSET);
    covered.fill(0, offsets.checksum, offsets.checksum + 4);
    const computed = crc32c(covered);
    if (stored !== computed) {
      throw invalid(`the checksum is 0x${stored.toString(16)}, the bytes give 0x${computed.toString(16)}`);
    }
  }
  const inodeCount = getI64(view, offsets.inos);
  const epoch = getI64(view, offsets.epoch);
  if (!(Number.isSafeInteger(inodeCount) && inodeCount > 0)) throw invalid(`${inodeCount} inodes`);
  if (!Number.isSafeInteger(epoch)) throw invalid(`the epoch is ${epoch}`);
  const devicesAt = view.getUint16(offsets.devt_slotoff, true) * erofs_deviceslot.size;
  return {
    bytes,
    devices: incompat === 0 ? [] : parseDevices(source, devicesAt, view.getUint16(offsets.extra_devices, true)),
    devicesAt,
    featureCompat,
    rootNid: view.getUint16(offsets.rootnid_2b, true),
    inodeCount,
    epoch,
    blocks: view.getUint32(offsets.blocks_lo, true),
    metaBlock: view.getUint32(offsets.meta_blkaddr, true),
    uuid: bytes.subarray(offsets.uuid, offsets.uuid + 16),
  };
}

function parseDevices(source: ErofsSource, at: number, count: number): { tag: string; blocks: number }[] {
  if (!(count > 0 && at >= EROFS_SUPER_OFFSET && at + count * erofs_deviceslot.size <= source.size))
    throw invalid(`a table of ${count} devices at byte ${at}`);
  const { offsets, size } = erofs_deviceslot;
  return Array.from({ length: count }, (_, index) => {
    const bytes = source.readAt(at + index * size, size);
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    const blocks = view.getUint32(offsets.blocks_lo, true);
    if (blocks === 0 || bytes.subarray(offsets.uniaddr_lo).some((byte) => byte !== 0))
      throw invalid(`device ${index + 1}: another slot than ours`);
    const tag = Buffer.from(bytes.subarray(0, offsets.blocks_lo)).toString("latin1").replace(/\0+$/, "");
    return { tag, blocks };
  });
}

function getI64(view: DataView, at: number): number {
  return view.getInt32(at + 4, true) * 2 ** 32 + view.getUint32(at, true);
}

function alignDownToBlock(value: number): number {
  return alignUp(value + 1, BLOCK_SIZE) - BLOCK_SIZE;
}

export function printable(name: Uint8Array): string {
  return JSON.stringify(Buffer.from(name.buffer, name.byteOffset, name.byteLength).toString());
}

function badInode(nid: number, message: string): HeadstartError {
  return invalid(`inode ${nid}: ${message}`);
}

export function invalid(message: string): HeadstartError {
  return new HeadstartError("HS_EROFS_INVALID", { what: `EROFS image: ${message}` });
}
