/**
 * Reads ext4: for `volume verify`, `inspect` and tests. Takes what we write, what mkfs.ext4 and the kernel make with the same features, with and without checksums, grown
 * with meta_bg or not, xattrs in the inode, in a block or both, unwritten extents (zeros).
 *
 * The bytes are not trusted. Whatever they are, each call ends in a value whose parts lie inside the image or in HS_EXT4_INVALID (HS_FORMAT_UNSUPPORTED for features that we do not
 * know), and every checksum on the way is verified. What only the whole shows (bitmaps, link counts, blocks used twice) is check.ts's business.
 */

import { LIMITS } from "../../base/limits.ts";
import { type FileTree, FileTreeBuilder, FileType, type InodeFields } from "../../erofs/file-tree.ts";
import { inodeChecksum, inodeSeed, viewOf, xattrChecksum } from "./checksum.ts";
import { invalid } from "./failures.ts";
import { hashState } from "./hash.ts";
import {
  BLOCK,
  EXTENTS_FL,
  ext4_inode,
  INDEX_FL,
  INODE_SIZE,
  INODE_UNINIT,
  MODE_OF_TYPE,
  ROOT_INODE,
  S_IFMT,
} from "./ondisk.ts";
import { type Ext4Dirent, parseDirectory } from "./parse-directory.ts";
import { type FoundExtents, parseExtents } from "./parse-extents.ts";
import {
  type Ext4Group,
  type Ext4Superblock,
  type ImageSource,
  parseGroups,
  parseSuperblock,
} from "./parse-superblock.ts";
import { readInodeXattrs, readXattrBlock, type Xattr, xattrBlockChecksum } from "./xattr.ts";

export interface Ext4Inode {
  readonly number: number;
  readonly type: FileType;
  /** Low 12 bits. */
  readonly mode: number;
  readonly uid: number;
  readonly gid: number;
  /** As stored: 1 for a directory of very many. */
  readonly nlink: number;
  readonly size: number;
  readonly mtimeSeconds: number;
  readonly mtimeNanoseconds: number;
  readonly rdevMajor: number;
  readonly rdevMinor: number;
  readonly flags: number;
  /** 512-byte sectors of all its blocks. */
  readonly sectors: number;
  /** Block of its xattrs, 0: none. */
  readonly xattrBlock: number;
  readonly extraSize: number;
  /** The 256 raw bytes. */
  readonly bytes: Uint8Array;
  /** What checksums of its blocks start from; null: there are none. */
  readonly seed: number | null;
}

/** File bytes [fileOffset, + length) lie at image bytes [imageOffset, + length). */
export interface ImageExtent {
  readonly fileOffset: number;
  readonly length: number;
  readonly imageOffset: number;
}

export interface Ext4Visitor {
  /** Once an inode, the root first, a directory before what is in it. */
  inode(inode: Ext4Inode): void;
  /** Every name but "." and "..", after the inode that it names. */
  name(directory: Ext4Inode, name: Uint8Array, inode: Ext4Inode): void;
}

/** Flags of features that the superblock does not have: inline data, encryption, verity, large xattrs, case folding. */
const UNKNOWN_FLAGS = 0x10000000 | 0x800 | 0x100000 | 0x200000 | 0x40000000;
const FAST_SYMLINK_MAX = 59;
const SYMLINK_MAX = 4095;
/** What one walk may read of names, targets and xattrs: a million entries with 1 KiB each. */
const WALK_BYTES_MAX = 2 ** 30;

/** Checks superblock and group descriptors. */
export function openExt4(source: ImageSource): Ext4Reader {
  return new Ext4Reader(source);
}

export class Ext4Reader {
  readonly source: ImageSource;
  readonly superblock: Ext4Superblock;
  readonly groups: readonly Ext4Group[];
  readonly #hashStart: Int32Array;

  constructor(source: ImageSource) {
    this.source = source;
    this.superblock = parseSuperblock(source);
    this.groups = parseGroups(source, this.superblock);
    this.#hashStart = hashState(this.superblock.hashSeed);
  }

  get root(): Ext4Inode {
    const root = this.inode(ROOT_INODE);
    if (root.type !== FileType.directory) throw invalid("the root is no directory");
    return root;
  }

  /** `block` is below superblock.blocks. */
  readBlock(block: number): Uint8Array {
    return this.source.readAt(block * BLOCK, BLOCK);
  }

  /** The 256 bytes at an inode's place. */
  inodeBytes(number: number): Uint8Array {
    const { inodes, inodesPerGroup } = this.superblock;
    if (!(Number.isInteger(number) && number > 0 && number <= inodes)) throw invalid(`inode ${number} is none`);
    const group = this.groups[Math.floor((number - 1) / inodesPerGroup)]!;
    const index = (number - 1) % inodesPerGroup;
    const isUnused = (group.flags & INODE_UNINIT) !== 0 || index >= inodesPerGroup - group.unusedInodes;
    // without checksums nobody keeps these up to date
    if (this.superblock.seed !== null && isUnused) throw invalid(`inode ${number} is said to be unused`);
    return this.source.readAt(group.inodeTable * BLOCK + index * INODE_SIZE, INODE_SIZE);
  }

  /** stat: what is in an inode. */
  inode(number: number): Ext4Inode {
    const bytes = this.inodeBytes(number);
    const what = `inode ${number}`;
    const view = viewOf(bytes);
    const at = ext4_inode.offsets;
    const u16 = (field: keyof typeof at) => view.getUint16(at[field], true);
    const u32 = (field: keyof typeof at) => view.getUint32(at[field], true);
    const mode = u16("i_mode");
    const type = MODE_OF_TYPE.indexOf(mode & S_IFMT);
    const extraSize = u16("i_extra_isize");
    if (extraSize % 4 !== 0 || extraSize < 32 || extraSize > INODE_SIZE - 128) {
      throw invalid(`${what}: ${extraSize} bytes of extra fields`);
    }
    let seed: number | null = null;
    if (this.superblock.seed !== null) {
      seed = inodeSeed(this.superblock.seed, number, u32("i_generation"));
      const sum = u16("i_checksum_hi") * 2 ** 16 + u16("i_checksum_lo");
      if (sum !== inodeChecksum(seed, bytes)) throw invalid(`${what}: its checksum is wrong`);
    }
    if (type <= 0) throw invalid(`${what} is not in use, or of no type`);
    const flags = u32("i_flags");
    if ((flags & UNKNOWN_FLAGS) !== 0) throw invalid(`${what}: flags 0x${flags.toString(16)}`);
    const size = u32("i_size_high") * 2 ** 32 + u32("i_size_lo");
    if (!Number.isSafeInteger(size)) throw invalid(`${what}: a size beyond 2^53`);
    const extra = u32("i_mtime_extra");
    const nanoseconds = extra >>> 2;
    if (nanoseconds > 999_999_999) throw invalid(`${what}: ${nanoseconds} nanoseconds`);
    const [rdevMajor, rdevMinor] =
      type === FileType.char || type === FileType.block ? device(view, at.i_block) : [0, 0];
    const xattrBlock = u16("i_file_acl_high") * 2 ** 32 + u32("i_file_acl_lo");
    if (xattrBlock >= this.superblock.blocks) throw invalid(`${what}: xattrs at block ${xattrBlock}`);
    return {
      number,
      type: type as FileType,
      mode: mode & 0o7777,
      uid: u16("i_uid_high") * 2 ** 16 + u16("i_uid"),
      gid: u16("i_gid_high") * 2 ** 16 + u16("i_gid"),
      nlink: u16("i_links_count"),
      size,
      mtimeSeconds: view.getInt32(at.i_mtime, true) + (extra & 3) * 2 ** 32,
      mtimeNanoseconds: nanoseconds,
      rdevMajor,
      rdevMinor,
      flags,
      sectors: u16("i_blocks_high") * 2 ** 32 + u32("i_blocks_lo"),
      xattrBlock,
      extraSize,
      bytes,
      seed,
    };
  }

  /** Of a regular file, a directory or a long symlink; nothing for what has no blocks. */
  extents(inode: Ext4Inode): FoundExtents {
    const what = `inode ${inode.number}`;
    if (!hasContent(inode)) return { extents: [], nodes: [] };
    if ((inode.flags & EXTENTS_FL) === 0) throw invalid(`${what} has no extents`);
    return parseExtents(inode.bytes.subarray(ext4_inode.offsets.i_block, ext4_inode.offsets.i_block + 60), {
      what,
      blocks: this.superblock.blocks,
      seed: inode.seed,
      readBlock: (block) => this.readBlock(block),
    });
  }

  /** Names as they lie on disk, and the inode that ".." names. */
  readdir(inode: Ext4Inode): { parent: number; entries: readonly Ext4Dirent[] } {
    const what = `inode ${inode.number}`;
    if (inode.type !== FileType.directory) throw invalid(`${what} is no directory`);
    const { extents } = this.extents(inode);
    let blocks = 0;
    for (const { logical, length, unwritten } of extents) {
      if (logical !== blocks || unwritten) throw invalid(`${what}: a directory with a hole`);
      blocks += length;
    }
    if (inode.size !== blocks * BLOCK) throw invalid(`${what}: a directory of ${inode.size} bytes in ${blocks} blocks`);
    let extent = 0;
    return parseDirectory({
      what,
      inode: inode.number,
      inodes: this.superblock.inodes,
      indexed: (inode.flags & INDEX_FL) !== 0,
      seed: inode.seed,
      hashStart: this.#hashStart,
      unsignedHash: this.superblock.unsignedHash,
      blocks,
      readBlock: (index) => {
        // mostly the same or the next one
        if (index < extents[extent]!.logical) extent = 0;
        while (index >= extents[extent]!.logical + extents[extent]!.length) extent++;
        return this.readBlock(extents[extent]!.physical + index - extents[extent]!.logical);
      },
    });
  }

  /** Those in the inode, then those in its block; names do not repeat. */
  xattrs(inode: Ext4Inode): Xattr[] {
    const what = `inode ${inode.number}`;
    const found = readInodeXattrs(inode.bytes, inode.extraSize, what);
    if (inode.xattrBlock > 0) {
      const block = this.readBlock(inode.xattrBlock);
      const { seed } = this.superblock;
      if (seed !== null && xattrBlockChecksum(block) !== xattrChecksum(seed, inode.xattrBlock, block)) {
        throw invalid(`${what}: the checksum of its xattr block is wrong`);
      }
      found.push(...readXattrBlock(block, what).xattrs);
    }
    const names = new Set(found.map(({ name }) => Buffer.from(name).toString("latin1")));
    if (names.size !== found.length) throw invalid(`${what}: two xattrs of one name`);
    return found;
  }

  readlink(inode: Ext4Inode): Uint8Array {
    const what = `inode ${inode.number}`;
    if (inode.type !== FileType.symlink) throw invalid(`${what} is no symbolic link`);
    if (inode.size === 0 || inode.size > SYMLINK_MAX) throw invalid(`${what}: a link target of ${inode.size} bytes`);
    let target: Uint8Array;
    if (inode.size <= FAST_SYMLINK_MAX) {
      target = inode.bytes.subarray(ext4_inode.offsets.i_block, ext4_inode.offsets.i_block + inode.size);
    } else {
      const { extents } = this.extents(inode);
      const [first] = extents;
      if (first === undefined || first.logical !== 0 || first.unwritten || first.length !== 1 || extents.length !== 1) {
        throw invalid(`${what}: a link target outside of one block`);
      }
      target = this.readBlock(first.physical).subarray(0, inode.size);
    }
    if (target.includes(0)) throw invalid(`${what}: a link target with NUL`);
    return target;
  }

  /** Where the content of a regular file lies, ascending; what is missing is zeros. */
  segments(inode: Ext4Inode): ImageExtent[] {
    const found: ImageExtent[] = [];
    for (const { logical, physical, length, unwritten } of this.extents(inode).extents) {
      const fileOffset = logical * BLOCK;
      const bytes = Math.min(length * BLOCK, inode.size - fileOffset);
      if (!unwritten && bytes > 0) found.push({ fileOffset, length: bytes, imageOffset: physical * BLOCK });
    }
    return found;
  }

  /** Bytes of a regular file; fewer at its end. */
  read(inode: Ext4Inode, offset: number, length: number): Uint8Array {
    const end = Math.min(inode.size, offset + length);
    const bytes = new Uint8Array(Math.max(0, end - offset));
    for (const segment of this.segments(inode)) {
      const from = Math.max(offset, segment.fileOffset);
      const to = Math.min(end, segment.fileOffset + segment.length);
      if (from >= to) continue;
      bytes.set(this.source.readAt(segment.imageOffset + from - segment.fileOffset, to - from), from - offset);
    }
    return bytes;
  }

  /** Visits what can be reached from the root: each inode once. Directories have one name and the right "..". */
  walk(visitor: Ext4Visitor): void {
    // numbers alone: the inodes of a large tree take a hundred megabytes
    const seen = new Set<number>();
    const root = this.root;
    seen.add(root.number);
    visitor.inode(root);
    const stack: { directory: Ext4Inode; parent: number }[] = [{ directory: root, parent: root.number }];
    let bytes = 0;
    for (let top = stack.pop(); top !== undefined; top = stack.pop()) {
      const { directory, parent } = top;
      const found = this.readdir(directory);
      if (found.parent !== parent) throw invalid(`inode ${directory.number}: ".." is ${found.parent}, not ${parent}`);
      for (const { name, inode: number, type } of found.entries) {
        bytes += name.byteLength;
        const inode = this.inode(number);
        if (!seen.has(number)) {
          seen.add(number);
          if (seen.size > LIMITS.layerEntries) throw invalid(`more than ${LIMITS.layerEntries} inodes`);
          visitor.inode(inode);
          if (inode.type === FileType.directory) stack.push({ directory: inode, parent: directory.number });
        } else if (inode.type === FileType.directory) throw invalid(`inode ${number}: a directory with two names`);
        if (inode.type !== type) throw invalid(`inode ${number}: its name says type ${type}, it is ${inode.type}`);
        if (bytes > WALK_BYTES_MAX) throw invalid("too many bytes of names");
        visitor.name(directory, name, inode);
      }
    }
  }

  /**
   * The whole as a FileTree: addresses of segments are bytes of the image. `inodeOf` says the inode number of each tree inode. lost+found is in it. Link counts
   * are those of the names; check.ts compares them with the stored ones.
   */
  toFileTree(): { tree: FileTree; inodeOf: Uint32Array } {
    const numbers = new Map<number, number>();
    const order: number[] = [];
    let builder: FileTreeBuilder | undefined;
    let bytes = 0;
    this.walk({
      inode: (inode) => {
        const fields = this.#fieldsOf(inode);
        for (const { name, value } of fields.xattrs ?? []) bytes += name.byteLength + value.byteLength;
        bytes += fields.target?.byteLength ?? 0;
        if (bytes > WALK_BYTES_MAX) throw invalid("too many bytes of xattrs and link targets");
        if (builder === undefined) builder = new FileTreeBuilder(fields);
        numbers.set(inode.number, order.length === 0 ? 0 : builder.addInode(fields));
        order.push(inode.number);
      },
      name: (directory, name, inode) => {
        builder!.addName(numbers.get(directory.number)!, name, numbers.get(inode.number)!);
      },
    });
    return { tree: this.#finish(builder!), inodeOf: Uint32Array.from(order) };
  }

  #fieldsOf(inode: Ext4Inode): InodeFields {
    const { type, mode, uid, gid, mtimeSeconds, mtimeNanoseconds, rdevMajor, rdevMinor } = inode;
    const common = { type, mode, uid, gid, mtimeSeconds, mtimeNanoseconds, rdevMajor, rdevMinor };
    const xattrs = this.xattrs(inode);
    if (type === FileType.symlink) return { ...common, xattrs, target: this.readlink(inode) };
    if (type !== FileType.regular) return { ...common, xattrs };
    const segments = this.segments(inode).map(({ fileOffset, length, imageOffset }) => ({
      fileOffset,
      length,
      address: imageOffset,
    }));
    return { ...common, xattrs, size: inode.size, segments };
  }

  #finish(builder: FileTreeBuilder): FileTree {
    try {
      return builder.finish();
    } catch (error) {
      // two equal names in one directory are all that a walk does not find itself
      throw invalid(error instanceof Error ? error.message : String(error));
    }
  }
}

/** Types that have blocks; a short symlink lies in the inode. */
function hasContent(inode: Ext4Inode): boolean {
  if (inode.type === FileType.symlink) return inode.size > FAST_SYMLINK_MAX;
  return inode.type === FileType.regular || inode.type === FileType.directory;
}

function device(view: DataView, at: number): [number, number] {
  const old = view.getUint32(at, true);
  if (old !== 0) return [(old >>> 8) & 0xff, old & 0xff];
  const value = view.getUint32(at + 4, true);
  return [(value >>> 8) & 0xfff, (value & 0xff) | ((value >>> 12) & 0xfff00)];
}
