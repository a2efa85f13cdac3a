/**
 * The kernel's FUSE structures and constants, as far as we use them (linux/fuse.h; specs/erofs-fuse.md 9). Field names are the kernel's. All integers are little
 * endian (the kernel speaks host order; both our architectures are little).
 */

import { struct } from "../base/bytes.ts";

export const IN_HEADER = struct("fuse_in_header", 40, {
  len: "u32",
  opcode: "u32",
  unique: "u64",
  nodeid: "u64",
  uid: "u32",
  gid: "u32",
  pid: "u32",
  total_extlen: 2,
  padding: 2,
});

export const OUT_HEADER = struct("fuse_out_header", 16, { len: "u32", error: "i32", unique: "u64" });

const ATTR_FIELDS = {
  ino: "u64",
  size: "u64",
  blocks: "u64",
  atime: "u64",
  mtime: "u64",
  ctime: "u64",
  atimensec: "u32",
  mtimensec: "u32",
  ctimensec: "u32",
  mode: "u32",
  nlink: "u32",
  uid: "u32",
  gid: "u32",
  rdev: "u32",
  blksize: "u32",
  flags: "u32",
} as const;
export const ATTR = struct("fuse_attr", 88, ATTR_FIELDS);

export const ENTRY_OUT = struct("fuse_entry_out", 128, {
  nodeid: "u64",
  generation: "u64",
  entry_valid: "u64",
  attr_valid: "u64",
  entry_valid_nsec: "u32",
  attr_valid_nsec: "u32",
  attr: 88,
});

export const ATTR_OUT = struct("fuse_attr_out", 104, {
  attr_valid: "u64",
  attr_valid_nsec: "u32",
  dummy: "u32",
  attr: 88,
});

export const OPEN_OUT = struct("fuse_open_out", 16, { fh: "u64", open_flags: "u32", padding: "u32" });

export const READ_IN = struct("fuse_read_in", 40, {
  fh: "u64",
  offset: "u64",
  size: "u32",
  read_flags: "u32",
  lock_owner: "u64",
  flags: "u32",
  padding: "u32",
});

export const STATFS_OUT = struct("fuse_statfs_out", 80, {
  blocks: "u64",
  bfree: "u64",
  bavail: "u64",
  files: "u64",
  ffree: "u64",
  bsize: "u32",
  namelen: "u32",
  frsize: "u32",
  padding: "u32",
  spare: 24,
});

/** Old kernels (minor < 36) send only the first 16 bytes. */
export const INIT_IN = struct("fuse_init_in", 64, {
  major: "u32",
  minor: "u32",
  max_readahead: "u32",
  flags: "u32",
  flags2: "u32",
  unused: 44,
});

export const INIT_OUT = struct("fuse_init_out", 64, {
  major: "u32",
  minor: "u32",
  max_readahead: "u32",
  flags: "u32",
  max_background: 2,
  congestion_threshold: 2,
  max_write: "u32",
  time_gran: "u32",
  max_pages: 2,
  map_alignment: 2,
  flags2: "u32",
  max_stack_depth: "u32",
  request_timeout: 2,
  unused: 22,
});

/** Followed by the name, padded to 8 bytes. */
export const DIRENT = struct("fuse_dirent", 24, { ino: "u64", off: "u64", namelen: "u32", type: "u32" });

/** Followed by the name and a NUL. */
export const NOTIFY_INVAL_ENTRY_OUT = struct("fuse_notify_inval_entry_out", 16, {
  parent: "u64",
  namelen: "u32",
  flags: "u32",
});
/** Followed by the data. */
export const NOTIFY_STORE_OUT = struct("fuse_notify_store_out", 24, {
  nodeid: "u64",
  offset: "u64",
  size: "u32",
  padding: "u32",
});

/** enum fuse_opcode */
export const Opcode = {
  lookup: 1,
  forget: 2,
  getattr: 3,
  setattr: 4,
  symlink: 6,
  mknod: 8,
  mkdir: 9,
  unlink: 10,
  rmdir: 11,
  rename: 12,
  link: 13,
  open: 14,
  read: 15,
  write: 16,
  statfs: 17,
  release: 18,
  setxattr: 21,
  removexattr: 24,
  init: 26,
  opendir: 27,
  readdir: 28,
  releasedir: 29,
  create: 35,
  interrupt: 36,
  destroy: 38,
  batchForget: 42,
  fallocate: 43,
  rename2: 45,
  copyFileRange: 47,
  tmpfile: 51,
} as const;

/** Requests that would change something: answered EROFS. */
export const WRITING_OPCODES: ReadonlySet<number> = new Set([
  Opcode.setattr,
  Opcode.symlink,
  Opcode.mknod,
  Opcode.mkdir,
  Opcode.unlink,
  Opcode.rmdir,
  Opcode.rename,
  Opcode.link,
  Opcode.write,
  Opcode.setxattr,
  Opcode.removexattr,
  Opcode.create,
  Opcode.fallocate,
  Opcode.rename2,
  Opcode.copyFileRange,
  Opcode.tmpfile,
]);

/** enum fuse_notify_code: written to the device with unique 0 and the code in place of the error. */
export const NotifyCode = { invalEntry: 3, store: 4, resend: 7 } as const;

/** INIT flags, 64 bits: `flags` and `flags2`. */
export const InitFlag = {
  asyncRead: 1n << 0n,
  bigWrites: 1n << 5n,
  asyncDio: 1n << 15n,
  noOpenSupport: 1n << 17n,
  parallelDirops: 1n << 18n,
  maxPages: 1n << 22n,
  initExt: 1n << 30n,
  hasResend: 1n << 39n,
} as const;

/** include/uapi/asm-generic/errno-base.h */
export const Errno = {
  ENOENT: 2,
  EIO: 5,
  EINVAL: 22,
  ENOSPC: 28,
  EROFS: 30,
  ENOSYS: 38,
  EPROTO: 71,
  ESTALE: 116,
} as const;

export const ROOT_NODEID = 1;
export const S_IFDIR = 0o040000;
export const S_IFREG = 0o100000;
/** read(2) of the device wants room for the largest request: FUSE_MIN_READ_BUFFER, since we accept no writes. */
export const REQUEST_BYTES_MAX = 8192;
/** 256 pages: the largest READ after our INIT. */
export const READ_BYTES_MAX = 1024 * 1024;
