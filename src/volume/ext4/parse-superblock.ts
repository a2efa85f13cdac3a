/** Superblock and group descriptors of any ext4 that we can read (specs/warm-volume.md 7.2 to 7.4, 7.10). Nothing in them is trusted. */

import { HeadstartError } from "../../base/errors.ts";
import { descriptorChecksum, fileSystemSeed, superblockChecksum, viewOf } from "./checksum.ts";
import { invalid } from "./failures.ts";
import {
  BLOCK,
  BLOCKS_PER_GROUP,
  COMPAT,
  DESC_SIZE,
  DESCS_PER_BLOCK,
  EXT4_MAGIC,
  ext4_group_desc,
  ext4_super_block,
  FIRST_INODE,
  hasSuper,
  INCOMPAT,
  INODE_SIZE,
  INODES_PER_BLOCK,
  RO_COMPAT,
  SUPER_OFFSET,
  SUPER_SIZE,
} from "./ondisk.ts";

/** The bytes of a file system: a file, a part of a disk, memory. */
export interface ImageSource {
  readonly size: number;
  /** Exactly `length` bytes; the caller has checked that they lie inside of `size`. Not to be changed; stays valid. */
  readAt(offset: number, length: number): Uint8Array;
}

export interface Ext4Superblock {
  /** The 1024 raw bytes. */
  readonly bytes: Uint8Array;
  readonly blocks: number;
  readonly inodes: number;
  readonly freeBlocks: number;
  readonly freeInodes: number;
  readonly groups: number;
  readonly inodesPerGroup: number;
  readonly descBlocks: number;
  readonly reservedDescBlocks: number;
  /** First descriptor block that lies in its own meta group; Infinity without meta_bg. */
  readonly firstMetaBlock: number;
  readonly compat: number;
  readonly incompat: number;
  readonly roCompat: number;
  readonly uuid: Uint8Array;
  readonly hashSeed: Uint8Array;
  /** Bytes of names are hashed as unsigned. */
  readonly unsignedHash: boolean;
  readonly journalInode: number;
  /** What checksums start from; null: there are none. */
  readonly seed: number | null;
}

export interface Ext4Group {
  readonly blockBitmap: number;
  readonly inodeBitmap: number;
  readonly inodeTable: number;
  readonly freeBlocks: number;
  readonly freeInodes: number;
  readonly directories: number;
  readonly unusedInodes: number;
  readonly flags: number;
  readonly blockBitmapChecksum: number;
  readonly inodeBitmapChecksum: number;
}

const KNOWN_COMPAT = COMPAT.hasJournal | COMPAT.extAttr | COMPAT.resizeInode | COMPAT.dirIndex;
const KNOWN_INCOMPAT = INCOMPAT.filetype | INCOMPAT.metaBg | INCOMPAT.extents | INCOMPAT.bit64 | INCOMPAT.flexBg;
const NEEDED_INCOMPAT = INCOMPAT.filetype | INCOMPAT.extents | INCOMPAT.bit64;
const KNOWN_RO_COMPAT =
  RO_COMPAT.sparseSuper |
  RO_COMPAT.largeFile |
  RO_COMPAT.hugeFile |
  RO_COMPAT.dirNlink |
  RO_COMPAT.extraIsize |
  RO_COMPAT.metadataCsum;
const HASH_HALF_MD4 = 1;
const FLAG_UNSIGNED_HASH = 2;
const STATE_VALID = 1;
const RESERVED_MAX = 1024;

/** Throws HS_EXT4_INVALID, or HS_FORMAT_UNSUPPORTED for an ext4 with features that this reader does not know. */
export function parseSuperblock(source: ImageSource): Ext4Superblock {
  if (source.size < SUPER_OFFSET + SUPER_SIZE) throw invalid(`${source.size} bytes have no superblock`);
  const bytes = Uint8Array.from(source.readAt(SUPER_OFFSET, SUPER_SIZE));
  const view = viewOf(bytes);
  const at = ext4_super_block.offsets;
  const u16 = (field: keyof typeof at) => view.getUint16(at[field], true);
  const u32 = (field: keyof typeof at) => view.getUint32(at[field], true);
  if (u16("s_magic") !== EXT4_MAGIC) throw invalid("no ext4 superblock");
  const roCompat = u32("s_feature_ro_compat");
  const hasChecksums = (roCompat & RO_COMPAT.metadataCsum) !== 0;
  if (hasChecksums && u32("s_checksum") !== superblockChecksum(bytes)) {
    throw invalid("the checksum of the superblock is wrong");
  }
  const compat = u32("s_feature_compat");
  const incompat = u32("s_feature_incompat");
  if ((incompat & INCOMPAT.recover) !== 0) throw invalid("its journal was not replayed: mount it once, or run e2fsck");
  refuseUnknown("compatible", compat & ~KNOWN_COMPAT);
  refuseUnknown("incompatible", incompat & ~KNOWN_INCOMPAT);
  refuseUnknown("read-only compatible", roCompat & ~KNOWN_RO_COMPAT);
  const isOfOurKind =
    (incompat & NEEDED_INCOMPAT) === NEEDED_INCOMPAT &&
    (roCompat & RO_COMPAT.sparseSuper) !== 0 &&
    u32("s_rev_level") === 1 &&
    u32("s_log_block_size") === 2 &&
    u32("s_log_cluster_size") === 2 &&
    u32("s_blocks_per_group") === BLOCKS_PER_GROUP &&
    u32("s_clusters_per_group") === BLOCKS_PER_GROUP &&
    u16("s_inode_size") === INODE_SIZE &&
    u16("s_desc_size") === DESC_SIZE &&
    u32("s_first_ino") === FIRST_INODE;
  if (!isOfOurKind) {
    throw new HeadstartError("HS_FORMAT_UNSUPPORTED", {
      what: "ext4 image: only 4096-byte blocks, 256-byte inodes, 64-bit descriptors, extents and sparse superblocks are read",
    });
  }
  if ((u16("s_state") & STATE_VALID) === 0 || u32("s_error_count") !== 0) throw invalid("it is marked as damaged");
  if (hasChecksums && bytes[at.s_checksum_type] !== 1) throw invalid(`checksum type ${bytes[at.s_checksum_type]}`);
  if (u32("s_first_data_block") !== 0 || u16("s_block_group_nr") !== 0) throw invalid("not the first superblock");
  if (u32("s_last_orphan") !== 0) throw invalid("it has inodes that wait for deletion");

  const blocks = u32("s_blocks_count_hi") * 2 ** 32 + u32("s_blocks_count_lo");
  if (!(blocks > 0 && blocks <= Math.floor(source.size / BLOCK))) {
    throw invalid(`${blocks} blocks, the image has ${source.size} bytes`);
  }
  const groups = Math.ceil(blocks / BLOCKS_PER_GROUP);
  const inodesPerGroup = u32("s_inodes_per_group");
  const inodes = u32("s_inodes_count");
  const inodesFit = inodesPerGroup > 0 && inodesPerGroup % INODES_PER_BLOCK === 0 && inodesPerGroup <= BLOCK * 8;
  if (!inodesFit || inodes !== groups * inodesPerGroup) {
    throw invalid(`${inodes} inodes in ${groups} groups of ${inodesPerGroup}`);
  }
  const descBlocks = Math.ceil(groups / DESCS_PER_BLOCK);
  const reservedDescBlocks = u16("s_reserved_gdt_blocks");
  const firstMetaBlock = (incompat & INCOMPAT.metaBg) === 0 ? Number.POSITIVE_INFINITY : u32("s_first_meta_bg");
  if (reservedDescBlocks > RESERVED_MAX || Math.min(descBlocks, firstMetaBlock) >= blocks) {
    throw invalid(`${reservedDescBlocks} reserved descriptor blocks`);
  }
  const freeBlocks = u32("s_free_blocks_count_hi") * 2 ** 32 + u32("s_free_blocks_count_lo");
  if (bytes[at.s_def_hash_version] !== HASH_HALF_MD4) {
    throw new HeadstartError("HS_FORMAT_UNSUPPORTED", { what: "ext4 image: another directory hash than half MD4" });
  }
  const uuid = bytes.subarray(at.s_uuid, at.s_uuid + 16);
  return {
    bytes,
    blocks,
    inodes,
    freeBlocks,
    freeInodes: u32("s_free_inodes_count"),
    groups,
    inodesPerGroup,
    descBlocks,
    reservedDescBlocks,
    firstMetaBlock,
    compat,
    incompat,
    roCompat,
    uuid,
    hashSeed: bytes.subarray(at.s_hash_seed, at.s_hash_seed + 16),
    unsignedHash: (u32("s_flags") & FLAG_UNSIGNED_HASH) !== 0,
    journalInode: (compat & COMPAT.hasJournal) === 0 ? 0 : u32("s_journal_inum"),
    seed: hasChecksums ? fileSystemSeed(uuid) : null,
  };
}

function refuseUnknown(kind: string, bits: number): void {
  if (bits === 0) return;
  throw new HeadstartError("HS_FORMAT_UNSUPPORTED", {
    what: `ext4 image: unknown ${kind} features 0x${(bits >>> 0).toString(16)}`,
  });
}

/** Block of descriptor block `index`: behind the superblock, or at the start of its own meta group. */
export function descriptorBlock(superblock: Ext4Superblock, index: number): number {
  if (index < superblock.firstMetaBlock) return 1 + index;
  const group = index * DESCS_PER_BLOCK;
  return group * BLOCKS_PER_GROUP + (hasSuper(group) ? 1 : 0);
}

/** Throws HS_EXT4_INVALID. */
export function parseGroups(source: ImageSource, superblock: Ext4Superblock): Ext4Group[] {
  const groups: Ext4Group[] = [];
  const tableBlocks = superblock.inodesPerGroup / INODES_PER_BLOCK;
  for (let index = 0; index < superblock.descBlocks; index++) {
    const number = descriptorBlock(superblock, index);
    if (number >= superblock.blocks) throw invalid(`descriptor block ${index} lies outside`);
    const block = source.readAt(number * BLOCK, BLOCK);
    const count = Math.min(DESCS_PER_BLOCK, superblock.groups - groups.length);
    for (let own = 0; own < count; own++) {
      const group = groups.length;
      const bytes = block.subarray(own * DESC_SIZE, (own + 1) * DESC_SIZE);
      const parsed = parseDescriptor(bytes);
      if (superblock.seed !== null) {
        const want = descriptorChecksum(superblock.seed, group, bytes);
        if (viewOf(bytes).getUint16(ext4_group_desc.offsets.bg_checksum, true) !== want) {
          throw invalid(`the checksum of group ${group} is wrong`);
        }
      }
      const inside = (start: number, blocks: number) => start > 0 && start + blocks <= superblock.blocks;
      if (!inside(parsed.blockBitmap, 1) || !inside(parsed.inodeBitmap, 1) || !inside(parsed.inodeTable, tableBlocks)) {
        throw invalid(`metadata of group ${group} lie outside`);
      }
      if (parsed.unusedInodes > superblock.inodesPerGroup) throw invalid(`group ${group} has too many unused inodes`);
      groups.push(parsed);
    }
  }
  return groups;
}

function parseDescriptor(bytes: Uint8Array): Ext4Group {
  const view = viewOf(bytes);
  const at = ext4_group_desc.offsets;
  const wide = (low: keyof typeof at, high: keyof typeof at) =>
    view.getUint32(at[high], true) * 2 ** 32 + view.getUint32(at[low], true);
  const narrow = (low: keyof typeof at, high: keyof typeof at) =>
    view.getUint16(at[high], true) * 2 ** 16 + view.getUint16(at[low], true);
  return {
    blockBitmap: wide("bg_block_bitmap_lo", "bg_block_bitmap_hi"),
    inodeBitmap: wide("bg_inode_bitmap_lo", "bg_inode_bitmap_hi"),
    inodeTable: wide("bg_inode_table_lo", "bg_inode_table_hi"),
    freeBlocks: narrow("bg_free_blocks_count_lo", "bg_free_blocks_count_hi"),
    freeInodes: narrow("bg_free_inodes_count_lo", "bg_free_inodes_count_hi"),
    directories: narrow("bg_used_dirs_count_lo", "bg_used_dirs_count_hi"),
    unusedInodes: narrow("bg_itable_unused_lo", "bg_itable_unused_hi"),
    flags: view.getUint16(at.bg_flags, true),
    blockBitmapChecksum: narrow("bg_block_bitmap_csum_lo", "bg_block_bitmap_csum_hi"),
    inodeBitmapChecksum: narrow("bg_inode_bitmap_csum_lo", "bg_inode_bitmap_csum_hi"),
  };
}
