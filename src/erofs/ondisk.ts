/**
 * EROFS on disk, the uncompressed part: structures and constants of the kernel's fs/erofs/erofs_fs.h, field names unchanged. All integers are
 * little endian. specs/erofs-fuse.md 3 tells what each field means and which values the kernel takes.
 *
 *   byte 1024   erofs_super_block
 *   nid n       inode at meta_blkaddr * 4096 + 32 n: erofs_inode_compact or _extended, then the xattr body, then the inline tail
 *   block b     directory block: N erofs_dirent, then N names; or file data
 */

import { struct } from "../base/bytes.ts";
import { FileType } from "./file-tree.ts";

export const EROFS_SUPER_OFFSET = 1024;
export const EROFS_SUPER_MAGIC = 0xe0f5e1e2;
/** log2 of the one block size that we write: 4096 works on every kernel since 5.4 with 4 KiB pages. */
export const EROFS_BLOCK_BITS = 12;
/** nid n lies at byte 32 n of the metadata region; every inode starts on such a slot. */
export const EROFS_SLOT_BITS = 5;
export const EROFS_SLOT_SIZE = 1 << EROFS_SLOT_BITS;

export const EROFS_FEATURE_COMPAT_SB_CHKSUM = 0x1;
export const EROFS_FEATURE_COMPAT_MTIME = 0x2;
export const EROFS_FEATURE_COMPAT_XATTR_FILTER = 0x4;

/** Superblock.feature_incompat, of images whose data lie in other files. */
export const EROFS_FEATURE_INCOMPAT_CHUNKED_FILE = 0x4;
export const EROFS_FEATURE_INCOMPAT_DEVICE_TABLE = 0x8;

/** i_u of an inode without blocks, and the start block that no file can have. */
export const EROFS_NULL_ADDR = 0xffffffff;

/** i_format bit 0. */
export const EROFS_I_VERSION_EXTENDED = 1;
/** i_format bits 1-3. */
export const EROFS_I_DATALAYOUT_BIT = 1;
export const EROFS_INODE_FLAT_PLAIN = 0;
export const EROFS_INODE_FLAT_INLINE = 2;
export const EROFS_INODE_CHUNK_BASED = 4;
/** i_u of a chunk-based inode: bits 0-4 are log2 of blocks a chunk; 8-byte indexes. */
export const EROFS_CHUNK_FORMAT_BLKBITS_MASK = 0x1f;
export const EROFS_CHUNK_FORMAT_INDEXES = 0x20;
/** Every bit of i_format that we write. Bit 4 (6.15+) makes older kernels refuse the inode. */
export const EROFS_I_FORMAT_KNOWN = 0xf;

export const EROFS_XATTR_INDEX_USER = 1;
export const EROFS_XATTR_INDEX_POSIX_ACL_ACCESS = 2;
export const EROFS_XATTR_INDEX_POSIX_ACL_DEFAULT = 3;
export const EROFS_XATTR_INDEX_TRUSTED = 4;
export const EROFS_XATTR_INDEX_SECURITY = 6;
/** h_name_filter: seed of xxh32, and the value that says "no name at all" (a set bit means absent). */
export const EROFS_XATTR_FILTER_SEED = 0x25bbe08f;
export const EROFS_XATTR_FILTER_DEFAULT = 0xffffffff;

export const erofs_super_block = struct("erofs_super_block", 128, {
  magic: "u32",
  checksum: "u32",
  feature_compat: "u32",
  blkszbits: "u8",
  sb_extslots: "u8",
  rootnid_2b: "u16",
  inos: "u64",
  epoch: "u64",
  fixed_nsec: "u32",
  blocks_lo: "u32",
  meta_blkaddr: "u32",
  xattr_blkaddr: "u32",
  uuid: 16,
  volume_name: 16,
  feature_incompat: "u32",
  available_compr_algs: "u16",
  extra_devices: "u16",
  devt_slotoff: "u16",
  dirblkbits: "u8",
  xattr_prefix_count: "u8",
  xattr_prefix_start: "u32",
  packed_nid: "u64",
  xattr_filter_reserved: "u8",
  ishare_xattr_prefix_id: "u8",
  reserved: 2,
  build_time: "u32",
  rootnid_8b: "u64",
  reserved2: 8,
});

export const erofs_inode_compact = struct("erofs_inode_compact", 32, {
  i_format: "u16",
  i_xattr_icount: "u16",
  i_mode: "u16",
  i_nlink: "u16",
  i_size: "u32",
  i_mtime: "u32",
  i_u: "u32",
  i_ino: "u32",
  i_uid: "u16",
  i_gid: "u16",
  i_reserved: "u32",
});

export const erofs_inode_extended = struct("erofs_inode_extended", 64, {
  i_format: "u16",
  i_xattr_icount: "u16",
  i_mode: "u16",
  i_reserved: "u16",
  i_size: "u64",
  i_u: "u32",
  i_ino: "u32",
  i_uid: "u32",
  i_gid: "u32",
  i_mtime: "u64",
  i_mtime_nsec: "u32",
  i_nlink: "u32",
  i_reserved2: 16,
});

/** Where one chunk of a file lies; startblk EROFS_NULL_ADDR is a hole. */
export const erofs_inode_chunk_index = struct("erofs_inode_chunk_index", 8, {
  startblk_hi: "u16",
  device_id: "u16",
  startblk: "u32",
});

/** Slot i describes device i + 1; the table begins at byte 128 * devt_slotoff. */
export const erofs_deviceslot = struct("erofs_deviceslot", 128, {
  tag: 64,
  blocks_lo: "u32",
  uniaddr_lo: "u32",
  blocks_hi: "u16",
  uniaddr_hi: "u16",
  reserved: 52,
});

export const erofs_dirent = struct("erofs_dirent", 12, {
  nid: "u64",
  nameoff: "u16",
  file_type: "u8",
  reserved: "u8",
});

export const erofs_xattr_ibody_header = struct("erofs_xattr_ibody_header", 12, {
  h_name_filter: "u32",
  h_shared_count: "u8",
  h_reserved2: 7,
});

export const erofs_xattr_entry = struct("erofs_xattr_entry", 4, {
  e_name_len: "u8",
  e_name_index: "u8",
  e_value_size: "u16",
});

export const S_IFMT = 0o170000;

/** S_IF* bits by FileType. */
export const MODE_OF_TYPE: readonly number[] = [
  0, 0o100000, 0o040000, 0o020000, 0o060000, 0o010000, 0o140000, 0o120000,
];

/** FileType of an i_mode, or 0 for bits that no file has. */
export function typeOfMode(mode: number): FileType | 0 {
  switch (mode & S_IFMT) {
    case 0o100000:
      return FileType.regular;
    case 0o040000:
      return FileType.directory;
    case 0o020000:
      return FileType.char;
    case 0o060000:
      return FileType.block;
    case 0o010000:
      return FileType.fifo;
    case 0o140000:
      return FileType.socket;
    case 0o120000:
      return FileType.symlink;
    default:
      return 0;
  }
}

/** The kernel's new_encode_dev: 12 bits of major, 20 of minor. */
export function encodeDevice(major: number, minor: number): number {
  return ((minor & 0xff) | (major << 8) | ((minor & 0xfff00) << 12)) >>> 0;
}

export function deviceMajor(device: number): number {
  return (device >>> 8) & 0xfff;
}

export function deviceMinor(device: number): number {
  return (device & 0xff) | ((device >>> 12) & 0xfff00);
}
