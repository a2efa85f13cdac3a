/**
 * ext4 on disk, the part that we write and read: structures and constants of the kernel's fs/ext4/ext4.h, ext4_extents.h and xattr.h, field names
 * unchanged. Little endian but for the journal's superblock. specs/warm-volume.md 7 tells what each field means.
 *
 *   block 0                superblock at byte 1024
 *   1 ..                   group descriptors, then blocks reserved for more of them (growth)
 *   packed behind          block bitmaps, inode bitmaps, inode tables of all groups
 *   backup groups          a copy of superblock and descriptors at the group's first block
 */

import { struct } from "../../base/bytes.ts";

/** The one block size that we write and read. */
export const BLOCK = 4096;
export const BLOCKS_PER_GROUP = 32_768;
export const INODE_SIZE = 256;
export const INODES_PER_BLOCK = BLOCK / INODE_SIZE;
export const DESC_SIZE = 64;
export const DESCS_PER_BLOCK = BLOCK / DESC_SIZE;
export const SUPER_OFFSET = 1024;
export const SUPER_SIZE = 1024;
export const EXT4_MAGIC = 0xef53;

export const ROOT_INODE = 2;
export const RESIZE_INODE = 7;
export const JOURNAL_INODE = 8;
export const LOST_FOUND_INODE = 11;
/** Inodes below count as used whatever they hold. */
export const FIRST_INODE = 11;

export const COMPAT = {
  hasJournal: 0x4,
  extAttr: 0x8,
  resizeInode: 0x10,
  dirIndex: 0x20,
} as const;
export const INCOMPAT = {
  filetype: 0x2,
  recover: 0x4,
  metaBg: 0x10,
  extents: 0x40,
  bit64: 0x80,
  flexBg: 0x200,
} as const;
export const RO_COMPAT = {
  sparseSuper: 0x1,
  largeFile: 0x2,
  hugeFile: 0x8,
  dirNlink: 0x20,
  extraIsize: 0x40,
  metadataCsum: 0x400,
} as const;

/** Group descriptor flags. */
export const INODE_UNINIT = 1;
export const BLOCK_UNINIT = 2;
export const INODE_ZEROED = 4;

/** Inode flags. */
export const EXTENTS_FL = 0x80000;
export const INDEX_FL = 0x1000;

export const S_IFMT = 0o170000;
/** S_IF* bits by FileType (1 regular .. 7 symlink: the numbers of directory entries too). */
export const MODE_OF_TYPE: readonly number[] = [
  0, 0o100000, 0o040000, 0o020000, 0o060000, 0o010000, 0o140000, 0o120000,
];

export const EXTENT_MAGIC = 0xf30a;
export const EXTENT_ENTRY = 12;
/** Extents in i_block, and in a block of their own. */
export const EXTENTS_INLINE = 4;
export const EXTENTS_PER_BLOCK = 340;
/** Blocks of one written extent; larger lengths mean unwritten ones of (length - 32768). */
export const EXTENT_BLOCKS_MAX = 32_768;
export const EXTENT_DEPTH_MAX = 5;

export const XATTR_MAGIC = 0xea020000;
/** Bytes behind the extra fields of an inode of 256 bytes: magic, entries, values. */
export const XATTR_INODE_AT = 0xa0;

/** Checksummed bytes of a directory block, and the tail's offset. */
export const DIR_TAIL_AT = BLOCK - 12;
export const DIR_TAIL_TYPE = 0xde;
/** (hash, block) pairs of the index root and of an inner index block, when they end in a checksum. */
export const DX_ROOT_LIMIT = 507;
export const DX_NODE_LIMIT = 510;
/** Longest chain of names to one inode, and sub-directories + 2 beyond which a directory says 1 (dir_nlink). */
export const LINKS_MAX = 65_000;

export const JOURNAL_MAGIC = 0xc03b3998;

export const ext4_super_block = struct("ext4_super_block", 1024, {
  s_inodes_count: "u32",
  s_blocks_count_lo: "u32",
  s_r_blocks_count_lo: "u32",
  s_free_blocks_count_lo: "u32",
  s_free_inodes_count: "u32",
  s_first_data_block: "u32",
  s_log_block_size: "u32",
  s_log_cluster_size: "u32",
  s_blocks_per_group: "u32",
  s_clusters_per_group: "u32",
  s_inodes_per_group: "u32",
  s_mtime: "u32",
  s_wtime: "u32",
  s_mnt_count: "u16",
  s_max_mnt_count: "u16",
  s_magic: "u16",
  s_state: "u16",
  s_errors: "u16",
  s_minor_rev_level: "u16",
  s_lastcheck: "u32",
  s_checkinterval: "u32",
  s_creator_os: "u32",
  s_rev_level: "u32",
  s_def_resuid: "u16",
  s_def_resgid: "u16",
  s_first_ino: "u32",
  s_inode_size: "u16",
  s_block_group_nr: "u16",
  s_feature_compat: "u32",
  s_feature_incompat: "u32",
  s_feature_ro_compat: "u32",
  s_uuid: 16,
  s_volume_name: 16,
  s_last_mounted: 64,
  s_algorithm_usage_bitmap: "u32",
  s_prealloc_blocks: "u8",
  s_prealloc_dir_blocks: "u8",
  s_reserved_gdt_blocks: "u16",
  s_journal_uuid: 16,
  s_journal_inum: "u32",
  s_journal_dev: "u32",
  s_last_orphan: "u32",
  s_hash_seed: 16,
  s_def_hash_version: "u8",
  s_jnl_backup_type: "u8",
  s_desc_size: "u16",
  s_default_mount_opts: "u32",
  s_first_meta_bg: "u32",
  s_mkfs_time: "u32",
  s_jnl_blocks: 68,
  s_blocks_count_hi: "u32",
  s_r_blocks_count_hi: "u32",
  s_free_blocks_count_hi: "u32",
  s_min_extra_isize: "u16",
  s_want_extra_isize: "u16",
  s_flags: "u32",
  s_raid_stride: "u16",
  s_mmp_update_interval: "u16",
  s_mmp_block: "u64",
  s_raid_stripe_width: "u32",
  s_log_groups_per_flex: "u8",
  s_checksum_type: "u8",
  s_reserved_pad: "u16",
  s_kbytes_written: "u64",
  s_snapshot: 20,
  s_error_count: "u32",
  s_errors_and_mount_opts: 0x248 - 0x198,
  s_overhead_clusters: "u32",
  s_later_features: 0x3fc - 0x24c,
  s_checksum: "u32",
});

export const ext4_group_desc = struct("ext4_group_desc", 64, {
  bg_block_bitmap_lo: "u32",
  bg_inode_bitmap_lo: "u32",
  bg_inode_table_lo: "u32",
  bg_free_blocks_count_lo: "u16",
  bg_free_inodes_count_lo: "u16",
  bg_used_dirs_count_lo: "u16",
  bg_flags: "u16",
  bg_exclude_bitmap_lo: "u32",
  bg_block_bitmap_csum_lo: "u16",
  bg_inode_bitmap_csum_lo: "u16",
  bg_itable_unused_lo: "u16",
  bg_checksum: "u16",
  bg_block_bitmap_hi: "u32",
  bg_inode_bitmap_hi: "u32",
  bg_inode_table_hi: "u32",
  bg_free_blocks_count_hi: "u16",
  bg_free_inodes_count_hi: "u16",
  bg_used_dirs_count_hi: "u16",
  bg_itable_unused_hi: "u16",
  bg_exclude_bitmap_hi: "u32",
  bg_block_bitmap_csum_hi: "u16",
  bg_inode_bitmap_csum_hi: "u16",
  bg_reserved: "u32",
});

export const ext4_inode = struct("ext4_inode", 160, {
  i_mode: "u16",
  i_uid: "u16",
  i_size_lo: "u32",
  i_atime: "u32",
  i_ctime: "u32",
  i_mtime: "u32",
  i_dtime: "u32",
  i_gid: "u16",
  i_links_count: "u16",
  i_blocks_lo: "u32",
  i_flags: "u32",
  i_version: "u32",
  i_block: 60,
  i_generation: "u32",
  i_file_acl_lo: "u32",
  i_size_high: "u32",
  i_obso_faddr: "u32",
  i_blocks_high: "u16",
  i_file_acl_high: "u16",
  i_uid_high: "u16",
  i_gid_high: "u16",
  i_checksum_lo: "u16",
  i_reserved: "u16",
  i_extra_isize: "u16",
  i_checksum_hi: "u16",
  i_ctime_extra: "u32",
  i_mtime_extra: "u32",
  i_atime_extra: "u32",
  i_crtime: "u32",
  i_crtime_extra: "u32",
  i_version_hi: "u32",
  i_projid: "u32",
});

/** Group 0, 1 and the powers of 3, 5 and 7 hold a superblock and descriptors (sparse_super). */
export function hasSuper(group: number): boolean {
  if (group <= 1) return true;
  for (const base of [3, 5, 7]) {
    let power = base;
    while (power < group) power *= base;
    if (power === group) return true;
  }
  return false;
}
