/**
 * Changes single things of an ext4 image in a file, and repairs whatever e2fsck would notice: checksums, bitmaps, counts, link counts. What remains is sound as a file system and
 * wrong in its meaning. Every change can be undone. For tests of whoever has to notice it.
 */

import { closeSync, fstatSync, openSync, readSync, writeSync } from "node:fs";
import { crc32c } from "../../src/base/crc32c.ts";
import { FileTreeBuilder, FileType } from "../../src/erofs/file-tree.ts";
import {
  descriptorChecksum,
  inodeChecksum,
  inodeSeed,
  sealDirectoryBlock,
  superblockChecksum,
  viewOf,
} from "../../src/volume/ext4/checksum.ts";
import {
  BLOCK,
  BLOCKS_PER_GROUP,
  DESC_SIZE,
  DIR_TAIL_AT,
  ext4_group_desc,
  ext4_inode,
  ext4_super_block,
  INODE_SIZE,
  SUPER_OFFSET,
  XATTR_INODE_AT,
} from "../../src/volume/ext4/ondisk.ts";
import { type Ext4Inode, type Ext4Reader, openExt4 } from "../../src/volume/ext4/read.ts";
import {
  fitsInode,
  putInodeXattrs,
  sealXattrBlock,
  type Xattr,
  xattrBlock,
  xattrEntries,
} from "../../src/volume/ext4/xattr.ts";

export type Change = (view: DataView, at: typeof ext4_inode.offsets) => void;

export class Ext4Patcher implements Disposable {
  readonly path: string;
  readonly #fd: number;
  readonly #base: number;
  readonly #size: number;
  /** Blocks as they were, by offset. */
  readonly #before = new Map<number, Uint8Array>();
  #reader: Ext4Reader | null = null;

  /** `base`: where the file system begins in the file. */
  constructor(path: string, base = 0) {
    this.path = path;
    this.#fd = openSync(path, "r+");
    this.#base = base;
    this.#size = fstatSync(this.#fd).size - 2 * base;
  }

  [Symbol.dispose](): void {
    closeSync(this.#fd);
  }

  /** Of the image as it is now. Throws for one that is damaged. */
  get reader(): Ext4Reader {
    this.#reader ??= openExt4({ size: this.#size, readAt: (offset, length) => this.read(offset, length) });
    return this.#reader;
  }

  read(offset: number, length: number): Uint8Array {
    const bytes = new Uint8Array(length);
    for (let done = 0; done < length; ) {
      const count = readSync(this.#fd, bytes, done, length - done, this.#base + offset + done);
      if (count === 0) throw new Error(`byte ${offset} lies outside`);
      done += count;
    }
    return bytes;
  }

  /** Nothing is repaired. */
  write(offset: number, bytes: Uint8Array): void {
    for (let block = Math.floor(offset / BLOCK) * BLOCK; block < offset + bytes.byteLength; block += BLOCK) {
      if (!this.#before.has(block)) this.#before.set(block, this.read(block, BLOCK));
    }
    writeSync(this.#fd, bytes, 0, bytes.byteLength, this.#base + offset);
    this.#reader = null;
  }

  undo(): void {
    for (const [offset, bytes] of this.#before) writeSync(this.#fd, bytes, 0, BLOCK, this.#base + offset);
    this.#before.clear();
    this.#reader = null;
  }

  get seed(): number {
    return this.reader.superblock.seed!;
  }

  inodeOffset(number: number): number {
    const { inodesPerGroup } = this.reader.superblock;
    const group = this.reader.groups[Math.floor((number - 1) / inodesPerGroup)]!;
    return group.inodeTable * BLOCK + ((number - 1) % inodesPerGroup) * INODE_SIZE;
  }

  /** `repair` false: its checksum stays as it was. */
  inode(number: number, change: Change, repair = true): void {
    const offset = this.inodeOffset(number);
    const bytes = this.read(offset, INODE_SIZE);
    const view = viewOf(bytes);
    const at = ext4_inode.offsets;
    change(view, at);
    if (repair) {
      const sum = inodeChecksum(inodeSeed(this.seed, number, view.getUint32(at.i_generation, true)), bytes);
      view.setUint16(at.i_checksum_lo, sum & 0xffff, true);
      view.setUint16(at.i_checksum_hi, sum >>> 16, true);
    }
    this.write(offset, bytes);
  }

  links(number: number, by: number): void {
    this.inode(number, (view, at) => {
      view.setUint16(at.i_links_count, view.getUint16(at.i_links_count, true) + by, true);
    });
  }

  /** The xattrs of an inode, as getxattr gives them. False when they do not fit where it has room. */
  xattrs(number: number, xattrs: readonly Xattr[]): boolean {
    const inode = this.reader.inode(number);
    const builder = new FileTreeBuilder({ mode: 0, uid: 0, gid: 0, mtimeSeconds: 0, mtimeNanoseconds: 0, xattrs });
    const entries = xattrEntries(builder.finish(), 0, () => `inode ${number}`);
    if (inode.xattrBlock > 0) {
      if (entries.length === 0) return false;
      const old = this.reader.readBlock(inode.xattrBlock);
      const block = xattrBlock(entries, () => `inode ${number}`);
      sealXattrBlock(block, this.seed, inode.xattrBlock, viewOf(old).getUint32(4, true));
      this.write(inode.xattrBlock * BLOCK, block);
      return true;
    }
    if (!fitsInode(entries)) return false;
    this.inode(number, (view) => {
      const bytes = new Uint8Array(view.buffer, view.byteOffset, INODE_SIZE);
      bytes.fill(0, XATTR_INODE_AT);
      if (entries.length > 0) putInodeXattrs(bytes, entries);
    });
    return true;
  }

  /** Bytes of a regular file, where it has blocks. False where it has none. */
  content(inode: Ext4Inode, offset: number, bytes: Uint8Array): boolean {
    const segment = this.reader
      .segments(inode)
      .find(({ fileOffset, length }) => offset >= fileOffset && offset + bytes.byteLength <= fileOffset + length);
    if (segment === undefined) return false;
    this.write(segment.imageOffset + offset - segment.fileOffset, bytes);
    return true;
  }

  /** Changes the record of a name; `change` gets its bytes from the inode number on. */
  dirent(directory: Ext4Inode, name: Uint8Array, change: (view: DataView) => void, repair = true): void {
    const { block, bytes, at } = this.#find(directory, name);
    change(new DataView(bytes.buffer, bytes.byteOffset + at, 8 + name.byteLength));
    this.#directoryBlock(directory, block, bytes, repair);
  }

  /** The name is gone; the inode is as it was. */
  removeName(directory: Ext4Inode, name: Uint8Array, repair = true): void {
    const { block, bytes, at, before } = this.#find(directory, name);
    const view = viewOf(bytes);
    if (before < 0) view.setUint32(at, 0, true);
    else view.setUint16(before + 4, view.getUint16(before + 4, true) + view.getUint16(at + 4, true), true);
    this.#directoryBlock(directory, block, bytes, repair);
  }

  #directoryBlock(directory: Ext4Inode, block: number, bytes: Uint8Array, repair: boolean): void {
    if (repair) sealDirectoryBlock(directory.seed!, bytes);
    this.write(block * BLOCK, bytes);
  }

  #find(directory: Ext4Inode, name: Uint8Array): { block: number; bytes: Uint8Array; at: number; before: number } {
    for (const { physical, length } of this.reader.extents(directory).extents) {
      for (let block = physical; block < physical + length; block++) {
        const bytes = this.read(block * BLOCK, BLOCK);
        const view = viewOf(bytes);
        let before = -1;
        for (let at = 0; at < DIR_TAIL_AT; ) {
          const size = view.getUint16(at + 4, true);
          const own = bytes.subarray(at + 8, at + 8 + bytes[at + 6]!);
          if (view.getUint32(at, true) !== 0 && Buffer.compare(own, name) === 0) return { block, bytes, at, before };
          if (size < 8) break;
          before = at;
          at += size;
        }
      }
    }
    throw new Error(`inode ${directory.number} has no name ${Buffer.from(name).toString("latin1")}`);
  }

  /** Takes one name away from what it names: the inode and its blocks are freed with the last one. A directory must be empty. */
  removeFile(directory: Ext4Inode, name: Uint8Array, inode: Ext4Inode): void {
    this.removeName(directory, name);
    if (inode.type === FileType.directory) this.links(directory.number, -1);
    this.dropLink(inode);
  }

  dropLink(inode: Ext4Inode): void {
    if (inode.type !== FileType.directory && inode.nlink > 1) {
      this.links(inode.number, -1);
      return;
    }
    const { extents, nodes } = this.reader.extents(inode);
    for (const { physical, length } of extents) this.#freeBlocks(physical, length);
    for (const node of nodes) this.#freeBlocks(node, 1);
    if (inode.xattrBlock > 0) this.#dropXattrBlock(inode.xattrBlock);
    this.write(this.inodeOffset(inode.number), new Uint8Array(INODE_SIZE));
    this.#freeInode(inode);
  }

  #dropXattrBlock(number: number): void {
    const block = this.read(number * BLOCK, BLOCK);
    const refcount = viewOf(block).getUint32(4, true) - 1;
    if (refcount === 0) {
      this.#freeBlocks(number, 1);
      return;
    }
    sealXattrBlock(block, this.seed, number, refcount);
    this.write(number * BLOCK, block);
  }

  #freeBlocks(start: number, count: number): void {
    for (let block = start; block < start + count; block++) {
      const group = Math.floor(block / BLOCKS_PER_GROUP);
      const bitmap = this.reader.groups[group]!.blockBitmap;
      this.#clear(bitmap, block % BLOCKS_PER_GROUP);
      this.group(group, (view, at) => {
        add16(view, at.bg_free_blocks_count_lo, 1);
        setSum(
          view,
          at.bg_block_bitmap_csum_lo,
          at.bg_block_bitmap_csum_hi,
          crc32c(this.read(bitmap * BLOCK, BLOCK), this.seed),
        );
      });
      this.superblock((view, at) => add32(view, at.s_free_blocks_count_lo, 1));
    }
  }

  #freeInode(inode: Ext4Inode): void {
    const { inodesPerGroup } = this.reader.superblock;
    const group = Math.floor((inode.number - 1) / inodesPerGroup);
    const bitmap = this.reader.groups[group]!.inodeBitmap;
    this.#clear(bitmap, (inode.number - 1) % inodesPerGroup);
    this.group(group, (view, at) => {
      add16(view, at.bg_free_inodes_count_lo, 1);
      if (inode.type === FileType.directory) add16(view, at.bg_used_dirs_count_lo, -1);
      const sum = crc32c(this.read(bitmap * BLOCK, inodesPerGroup / 8), this.seed);
      setSum(view, at.bg_inode_bitmap_csum_lo, at.bg_inode_bitmap_csum_hi, sum);
    });
    this.superblock((view, at) => add32(view, at.s_free_inodes_count, 1));
  }

  #clear(bitmap: number, bit: number): void {
    const offset = bitmap * BLOCK + (bit >> 3);
    this.write(offset, Uint8Array.of(this.read(offset, 1)[0]! & ~(1 << (bit & 7))));
  }

  /** For descriptors in front, as they are without meta_bg. */
  group(group: number, change: (view: DataView, at: typeof ext4_group_desc.offsets) => void): void {
    const offset = BLOCK + group * DESC_SIZE;
    const bytes = this.read(offset, DESC_SIZE);
    const view = viewOf(bytes);
    change(view, ext4_group_desc.offsets);
    view.setUint16(ext4_group_desc.offsets.bg_checksum, descriptorChecksum(this.seed, group, bytes), true);
    this.write(offset, bytes);
  }

  superblock(change: (view: DataView, at: typeof ext4_super_block.offsets) => void): void {
    const bytes = this.read(SUPER_OFFSET, ext4_super_block.size);
    const view = viewOf(bytes);
    change(view, ext4_super_block.offsets);
    view.setUint32(ext4_super_block.offsets.s_checksum, superblockChecksum(bytes), true);
    this.write(SUPER_OFFSET, bytes);
  }
}

function add16(view: DataView, at: number, by: number): void {
  view.setUint16(at, view.getUint16(at, true) + by, true);
}

function add32(view: DataView, at: number, by: number): void {
  view.setUint32(at, view.getUint32(at, true) + by, true);
}

function setSum(view: DataView, low: number, high: number, sum: number): void {
  view.setUint16(low, sum & 0xffff, true);
  view.setUint16(high, sum >>> 16, true);
}
