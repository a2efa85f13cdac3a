/**
 * RAFS on disk: structures, constants and limits of Nydus bootstraps and blobs (specs/nydus.md 2). All integers are little endian.
 *
 *   v6 bootstrap   byte 0 zeros | 1024 EROFS superblock | 1152 extended superblock | 1408 device slots | blob, prefetch, inode, chunk tables
 *   v5 bootstrap   superblock of 8192 bytes | inode, prefetch, blob, extended blob tables | inodes
 *   blob           [data][tar header] [blob.meta][tar header] ... : headers follow what they describe
 */

import { struct } from "../../base/bytes.ts";
import { HeadstartError } from "../../base/errors.ts";
import { GiB, MiB } from "../../base/limits.ts";

export const NYDUS_MEDIA_TYPES = {
  blob: "application/vnd.oci.image.layer.nydus.blob.v1",
  config: "application/vnd.nydus.image.config.v1+json",
  manifest: "application/vnd.nydus.image.manifest.v1+json",
} as const;

export const NYDUS_ANNOTATIONS = {
  blob: "containerd.io/snapshot/nydus-blob",
  bootstrap: "containerd.io/snapshot/nydus-bootstrap",
  fsVersion: "containerd.io/snapshot/nydus-fs-version",
  ref: "containerd.io/snapshot/nydus-ref",
  /** Of an image and, in an index, of an OCI image's entry: the manifest that was converted. */
  sourceDigest: "containerd.io/snapshot/nydus-source-digest",
  sourceReference: "containerd.io/snapshot/nydus-source-reference",
  builderVersion: "containerd.io/snapshot/nydus-builder-version",
  /** On the first layer of an OCI image that the peer rewrote for an index with both forms. */
  emptyLayer: "containerd.io/snapshot/nydus-empty-layer",
} as const;

/** Old marker of a Nydus entry in an index, in its platform's `os.features`; ECR refuses it, so it is only read. */
export const NYDUS_OS_FEATURE = "nydus.remoteimage.v1";

export const RAFS_BLOCK_SIZE = 4096;

/** What the compat field of every v6 superblock says, and the only incompat value there is: CHUNKED_FILE, DEVICE_TABLE. */
export const RAFS_V6_COMPAT = 0x4000_0000;
export const RAFS_V6_INCOMPAT = 0x0c;
export const RAFS_V6_EXT_OFFSET = 1152;
export const RAFS_V6_DEVICES_OFFSET = 1408;
/** devt_slotoff counts slots of 128 bytes. */
export const RAFS_V6_DEVT_SLOTOFF = 11;
/** The zero block that nid 0 would lie in is 128 slots long. */
export const RAFS_V6_ROOT_NID = 128;
/** Addresses of the flattened image: where each device would begin (specs/nydus.md 2.5). */
export const RAFS_V6_MAPPED_ALIGN = 512 * 1024;

/** Flags of the extended superblock, beside one compressor and one digester. */
export const RAFS_V6_FLAG = {
  explicitUidGid: 0x10,
  hasXattr: 0x20,
  inlinedChunkDigest: 0x100,
  tarfs: 0x200,
  cipherNone: 0x0100_0000,
} as const;
export const RAFS_COMPRESSOR_FLAGS = [0x1, 0x2, 0x40, 0x80] as const;
export const RAFS_DIGESTER_FLAGS = { blake3: 0x4, sha256: 0x8 } as const;

/** Data layout of a regular file: an array of indexes behind the inode; i_u has this bit and log2 of the mapped blocks. */
export const CHUNK_BASED = 4;
export const CHUNK_FORMAT_INDEXES = 0x20;
export const CHUNK_FORMAT_BITS = 0x1f;
export const CHUNK_INDEX_SIZE = 8;

export const rafs_v6_super_block_ext = struct("rafs_v6_super_block_ext", 256, {
  flags: "u64",
  blob_table_offset: "u64",
  blob_table_size: "u32",
  chunk_size: "u32",
  chunk_table_offset: "u64",
  chunk_table_size: "u64",
  prefetch_offset: "u64",
  prefetch_size: "u32",
  padding: "u32",
  reserved: 200,
});

export const rafs_v6_device = struct("rafs_v6_device", 128, {
  blob_id: 64,
  blocks: "u32",
  mapped_blkaddr: "u32",
  reserved: 56,
});

export const rafs_v6_blob = struct("rafs_v6_blob", 256, {
  blob_id: 64,
  blob_index: "u32",
  chunk_size: "u32",
  chunk_count: "u32",
  compression_algo: "u32",
  digest_algo: "u32",
  features: "u32",
  compressed_size: "u64",
  uncompressed_size: "u64",
  toc_size: "u32",
  ci_compressor: "u32",
  ci_offset: "u64",
  ci_compressed_size: "u64",
  ci_uncompressed_size: "u64",
  toc_digest: 32,
  blob_meta_digest: 32,
  blob_meta_size: 8,
  cipher_iv: 8,
  cipher_algo: "u32",
  reserved: 36,
});

/** A record of the v6 chunk table and of a v5 inode. */
export const rafs_chunk = struct("rafs_chunk", 80, {
  digest: 32,
  blob_index: "u32",
  flags: "u32",
  compressed_size: "u32",
  uncompressed_size: "u32",
  compressed_offset: "u64",
  uncompressed_offset: "u64",
  file_offset: "u64",
  index: "u32",
  crc32: "u32",
});

export const rafs_v5_super_block = struct("rafs_v5_super_block", 80, {
  magic: "u32",
  version: "u32",
  sb_size: "u32",
  chunk_size: "u32",
  flags: "u64",
  inodes: "u64",
  inode_table_offset: "u64",
  prefetch_table_offset: "u64",
  blob_table_offset: "u64",
  inode_table_entries: "u32",
  prefetch_table_entries: "u32",
  blob_table_size: "u32",
  extended_blob_table_entries: "u32",
  extended_blob_table_offset: "u64",
});
export const RAFS_V5_MAGIC = 0x5241_4653;
export const RAFS_V5_VERSION = 0x500;
export const RAFS_V5_SUPER_SIZE = 8192;
export const RAFS_V5_EXTENDED_BLOB_SIZE = 64;

export const rafs_v5_inode = struct("rafs_v5_inode", 128, {
  digest: 32,
  parent: "u64",
  ino: "u64",
  uid: "u32",
  gid: "u32",
  projid: "u32",
  mode: "u32",
  size: "u64",
  blocks: "u64",
  flags: "u64",
  nlink: "u32",
  child_index: "u32",
  child_count: "u32",
  name_size: "u16",
  symlink_size: "u16",
  rdev: "u32",
  mtime_nsec: "u32",
  mtime: "u64",
  reserved: 8,
});
export const RAFS_V5_INODE_SYMLINK = 1;
export const RAFS_V5_INODE_HARDLINK = 2;
export const RAFS_V5_INODE_XATTR = 4;

/** "blob meta": what follows the compressed chunk array. */
export const rafs_ci_header = struct("rafs_ci_header", 64, {
  magic: "u32",
  features: "u32",
  ci_compressor: "u32",
  ci_entries: "u32",
  ci_offset: "u64",
  ci_compressed_size: "u64",
  ci_uncompressed_size: "u64",
  context_offset: "u64",
  context_size: "u64",
  context_count: "u32",
  reserved: "u32",
});
export const CI_MAGIC = 0xb10b_b10b;
export const CI_HEADER_SIZE = 4096;
export const CI_ENTRY_SIZE = 16;
export const CI_ENTRY_SIZE_V2 = 24;
export const CI_CONTEXT_SIZE = 40;

/** Flags of a chunk in a V2 chunk array. */
export const ChunkFlag = { compressed: 1, zran: 2, batch: 4, encrypted: 8, hasCrc32: 0x10 } as const;
/** Flags of a chunk record. */
export const RECORD_COMPRESSED = 1;
export const RECORD_HOLE = 2;
export const RECORD_CRC32 = 0x10;

/** specs/nydus.md 2.4. */
export const BlobFeature = {
  aligned: 1,
  inlinedFsMeta: 2,
  chunkInfoV2: 4,
  zran: 8,
  separate: 0x10,
  inlinedChunkDigest: 0x20,
  tarfs: 0x40,
  batch: 0x80,
  encrypted: 0x100,
  chunkdictGenerated: 0x200,
  separatedWithPrefetch: 0x400,
  external: 0x800,
  hasTarHeader: 0x1000_0000,
  hasToc: 0x2000_0000,
  capTarToc: 0x4000_0000,
  v5NoExtBlobTable: 0x8000_0000,
} as const;
/** Not defined: an image that needs them cannot be read. */
export const BLOB_FEATURES_UNKNOWN = 0xf000;

export const toc_entry = struct("toc_entry", 128, {
  flags: "u32",
  reserved: "u32",
  name: 16,
  digest: 32,
  compressed_offset: "u64",
  compressed_size: "u64",
  uncompressed_size: "u64",
  reserved2: 48,
});
export const TOC_NAME = "rafs.blob.toc";
export const TOC_ENTRIES_MAX = 28;

export const Compressor = { none: 0, lz4: 1, gzip: 2, zstd: 3 } as const;
export type Compressor = (typeof Compressor)[keyof typeof Compressor];
export const COMPRESSOR_NAMES = ["none", "lz4_block", "gzip", "zstd"] as const;

export type DigestAlgorithm = "blake3" | "sha256";
export const DIGESTERS: readonly DigestAlgorithm[] = ["blake3", "sha256"];

export const NYDUS_LIMITS = {
  /** One bootstrap: the format ends at 2 GiB; what is above this has more than ten million files. */
  bootstrapBytes: GiB,
  blobs: 254,
  chunksPerBlob: 2 ** 24,
  /** 40 bit and 44 bit fields. */
  blobCompressedBytes: 2 ** 40,
  blobUncompressedBytes: 2 ** 44,
  chunkSizeMin: 4096,
  chunkSizeMax: 16 * MiB,
  /** What nydusd decodes at most for one restart point. */
  contextBytes: 16 * MiB,
  chunkInfoBytes: GiB,
  dictionaryBytes: 32 * 1024,
  directoryDepth: 4096,
} as const;

export function alignBlock(value: number): number {
  return Math.ceil(value / RAFS_BLOCK_SIZE) * RAFS_BLOCK_SIZE;
}

/** Throws (by `refuse`) for a compressor or digester that the format does not have. */
export function compressorOf(value: number, what: string): Compressor {
  if (value > Compressor.zstd) throw nydusInvalid(what, `compressor ${value}`);
  return value as Compressor;
}

export function digesterOf(value: number, what: string): DigestAlgorithm {
  const name = DIGESTERS[value];
  if (name === undefined) throw nydusInvalid(what, `digester ${value}`);
  return name;
}

export function nydusInvalid(what: string, message: string, cause?: unknown): HeadstartError {
  return new HeadstartError("HS_NYDUS_INVALID", {
    what: `${what}: ${message}`,
    ...(cause === undefined ? {} : { cause }),
  });
}
