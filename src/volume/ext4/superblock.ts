/** Superblock, group descriptors, the journal's superblock and the resize inode's blocks: their bytes (specs/warm-volume.md 7.2, 7.4, 7.8). */

import { descriptorChecksum, fileSystemSeed, superblockChecksum, viewOf } from "./checksum.ts";
import type { Geometry } from "./geometry.ts";
import type { GroupCounts } from "./groups.ts";
import type { Ext4Layout } from "./layout.ts";
import {
  BLOCK,
  BLOCKS_PER_GROUP,
  COMPAT,
  DESC_SIZE,
  EXT4_MAGIC,
  ext4_group_desc,
  ext4_super_block,
  FIRST_INODE,
  INCOMPAT,
  INODE_SIZE,
  JOURNAL_INODE,
  JOURNAL_MAGIC,
  RO_COMPAT,
  SUPER_SIZE,
} from "./ondisk.ts";

const WORDS_PER_BLOCK = BLOCK / 4;
/** user_xattr and acl. */
const DEFAULT_MOUNT_OPTIONS = 0x0c;
const EXTRA_ISIZE = 32;

/** The 1024 bytes of the copy in `group`. `journalInode`: the 256 bytes of inode 8, which is kept here once more. */
export function encodeSuperblock(
  layout: Ext4Layout,
  counts: GroupCounts,
  group: number,
  journalInode: Uint8Array | null,
): Uint8Array {
  const { geometry, options } = layout;
  const bytes = new Uint8Array(SUPER_SIZE);
  const view = viewOf(bytes);
  const at = ext4_super_block.offsets;
  const u16 = (field: keyof typeof at, value: number) => view.setUint16(at[field], value, true);
  const u32 = (field: keyof typeof at, value: number) => view.setUint32(at[field], value, true);
  u32("s_inodes_count", geometry.groups * geometry.inodesPerGroup);
  u32("s_blocks_count_lo", geometry.blocks);
  u32("s_free_blocks_count_lo", counts.freeBlocks);
  u32("s_free_inodes_count", counts.freeInodes);
  u32("s_log_block_size", 2);
  u32("s_log_cluster_size", 2);
  u32("s_blocks_per_group", BLOCKS_PER_GROUP);
  u32("s_clusters_per_group", BLOCKS_PER_GROUP);
  u32("s_inodes_per_group", geometry.inodesPerGroup);
  u32("s_wtime", options.time);
  u16("s_max_mnt_count", 0xffff);
  u16("s_magic", EXT4_MAGIC);
  u16("s_state", 1);
  u16("s_errors", 1);
  u32("s_lastcheck", options.time);
  u32("s_rev_level", 1);
  u32("s_first_ino", FIRST_INODE);
  u16("s_inode_size", INODE_SIZE);
  u16("s_block_group_nr", group);
  const hasResize = geometry.reservedDescBlocks > 0;
  u32(
    "s_feature_compat",
    COMPAT.extAttr |
      COMPAT.dirIndex |
      (journalInode === null ? 0 : COMPAT.hasJournal) |
      (hasResize ? COMPAT.resizeInode : 0),
  );
  u32("s_feature_incompat", INCOMPAT.filetype | INCOMPAT.extents | INCOMPAT.bit64 | INCOMPAT.flexBg);
  u32(
    "s_feature_ro_compat",
    RO_COMPAT.sparseSuper |
      RO_COMPAT.largeFile |
      RO_COMPAT.hugeFile |
      RO_COMPAT.dirNlink |
      RO_COMPAT.extraIsize |
      RO_COMPAT.metadataCsum,
  );
  bytes.set(options.uuid, at.s_uuid);
  u16("s_reserved_gdt_blocks", geometry.reservedDescBlocks);
  bytes.set(options.hashSeed, at.s_hash_seed);
  bytes[at.s_def_hash_version] = 1;
  u16("s_desc_size", DESC_SIZE);
  u32("s_default_mount_opts", DEFAULT_MOUNT_OPTIONS);
  u32("s_mkfs_time", options.time);
  if (journalInode !== null) {
    u32("s_journal_inum", JOURNAL_INODE);
    bytes[at.s_jnl_backup_type] = 1;
    bytes.set(journalInode.subarray(0x28, 0x28 + 60), at.s_jnl_blocks);
    const size = (geometry.journal.end - geometry.journal.start) * BLOCK;
    view.setUint32(at.s_jnl_blocks + 60, Math.floor(size / 2 ** 32), true);
    view.setUint32(at.s_jnl_blocks + 64, size >>> 0, true);
  }
  u16("s_min_extra_isize", EXTRA_ISIZE);
  u16("s_want_extra_isize", EXTRA_ISIZE);
  u32("s_flags", 1); // directory hashes of signed bytes
  bytes[at.s_log_groups_per_flex] = 4;
  bytes[at.s_checksum_type] = 1;
  u32("s_checksum", superblockChecksum(bytes));
  return bytes;
}

/** All descriptors, in whole blocks. */
export function encodeDescriptors(layout: Ext4Layout, counts: GroupCounts): Uint8Array {
  const { geometry, options } = layout;
  const seed = fileSystemSeed(options.uuid);
  const bytes = new Uint8Array(geometry.descBlocks * BLOCK);
  const at = ext4_group_desc.offsets;
  for (let group = 0; group < geometry.groups; group++) {
    const own = bytes.subarray(group * DESC_SIZE, (group + 1) * DESC_SIZE);
    const view = viewOf(own);
    const count = counts.groups[group]!;
    // places are below 2^32, counts at most 32768: of the upper halves only the checksums' are not zero
    view.setUint32(at.bg_block_bitmap_lo, geometry.blockBitmaps[group]!, true);
    view.setUint32(at.bg_inode_bitmap_lo, geometry.inodeBitmaps[group]!, true);
    view.setUint32(at.bg_inode_table_lo, geometry.inodeTables[group]!, true);
    view.setUint16(at.bg_free_blocks_count_lo, count.freeBlocks, true);
    view.setUint16(at.bg_free_inodes_count_lo, count.freeInodes, true);
    view.setUint16(at.bg_used_dirs_count_lo, count.directories, true);
    view.setUint16(at.bg_flags, count.flags, true);
    view.setUint16(at.bg_itable_unused_lo, count.unusedInodes, true);
    view.setUint16(at.bg_block_bitmap_csum_lo, count.blockBitmapChecksum & 0xffff, true);
    view.setUint16(at.bg_block_bitmap_csum_hi, count.blockBitmapChecksum >>> 16, true);
    view.setUint16(at.bg_inode_bitmap_csum_lo, count.inodeBitmapChecksum & 0xffff, true);
    view.setUint16(at.bg_inode_bitmap_csum_hi, count.inodeBitmapChecksum >>> 16, true);
    view.setUint16(at.bg_checksum, descriptorChecksum(seed, group, own), true);
  }
  return bytes;
}

/** The first block of the journal, big endian: clean and empty. */
export function encodeJournalSuperblock(blocks: number, uuid: Uint8Array): Uint8Array {
  const bytes = new Uint8Array(BLOCK);
  const view = viewOf(bytes);
  // magic, superblock v2, -, block size, blocks, first log block, first sequence
  [JOURNAL_MAGIC, 4, 0, BLOCK, blocks, 1, 1].forEach((value, index) => void view.setUint32(index * 4, value));
  bytes.set(uuid, 0x30);
  view.setUint32(0x40, 1); // one user
  return bytes;
}

/** The double indirect block of inode 7: which reserved descriptor blocks there are. */
export function encodeResizeBlock(geometry: Geometry): Uint8Array {
  const bytes = new Uint8Array(BLOCK);
  const view = viewOf(bytes);
  for (let index = 0; index < geometry.reservedDescBlocks; index++) {
    const number = geometry.descBlocks + index;
    view.setUint32((number % WORDS_PER_BLOCK) * 4, 1 + number, true);
  }
  return bytes;
}

/** Reserved descriptor block `index` of group 0: its copies in the backup groups. */
export function encodeReservedDescBlock(geometry: Geometry, index: number): Uint8Array {
  const bytes = new Uint8Array(BLOCK);
  const view = viewOf(bytes);
  geometry.backups.forEach(({ start }, backup) => {
    view.setUint32(backup * 4, start + 1 + geometry.descBlocks + index, true);
  });
  return bytes;
}
