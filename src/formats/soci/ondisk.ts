/**
 * The zTOC as it lies on disk (specs/soci.md 2.3, 2.6, 2.7): field numbers of its flatbuffers tables, the packed checkpoint records, and the names
 * that SOCI gives to media types and annotations. No code that reads or writes.
 */

import { struct } from "../../base/bytes.ts";

/** The only version there is. */
export const ZTOC_VERSION = "0.9";

/** Field numbers (declaration order) of `table Ztoc`. */
export const ZTOC = {
  version: 0,
  build_tool_identifier: 1,
  compressed_archive_size: 2,
  uncompressed_archive_size: 3,
  toc: 4,
  compression_info: 5,
} as const;

export const TOC = { metadata: 0 } as const;

export const COMPRESSION_INFO = { compression_algorithm: 0, max_span_id: 1, span_digests: 2, checkpoints: 3 } as const;

export const FILE_METADATA = {
  name: 0,
  type: 1,
  uncompressed_offset: 2,
  uncompressed_size: 3,
  linkname: 4,
  mode: 5,
  uid: 6,
  gid: 7,
  uname: 8,
  gname: 9,
  mod_time: 10,
  devmajor: 11,
  devminor: 12,
  xattrs: 13,
} as const;

/** Despite the name: any PAX record. */
export const XATTR = { key: 0, value: 1 } as const;

export const TAR_ZINFO = { version: 0, span_size: 1, size: 2 } as const;
export const TAR_ZINFO_VERSION = 2;

/** `enum CompressionAlgorithm`; Gzip is the default of the field. */
export const COMPRESSION_ALGORITHM = { Gzip: 1, Uncompressed: 2 } as const;

export const WINDOW_SIZE = 32_768;
export const ZINFO_HEADER = struct("gzip_zinfo", 12, { have: "i32", span_size: "u64" });
export const ZINFO_CHECKPOINT = struct("gzip_checkpoint", 32_785, {
  in: "u64",
  out: "u64",
  bits: "u8",
  window: WINDOW_SIZE,
});

/** SOCI's readers fail beyond: its length is a C int, a flatbuffer ends below 2 GiB (specs/soci.md 2.6). */
export const CHECKPOINTS_MAX = 65_000;

export const ENTRY_TYPES = ["hardlink", "symlink", "dir", "reg", "char", "block", "fifo"] as const;
export type ZtocEntryType = (typeof ENTRY_TYPES)[number];

/** 2^22, of uncompressed bytes. */
export const DEFAULT_SPAN_SIZE = 4_194_304;
/** 10 * 2^20, of compressed bytes. */
export const DEFAULT_MIN_LAYER_SIZE = 10_485_760;
/** What SOCI's own command line writes. */
export const SOCI_BUILD_TOOL = "AWS SOCI CLI v0.2";

export const SOCI_MEDIA_TYPES = {
  indexV1: "application/vnd.amazon.soci.index.v1+json",
  indexV2: "application/vnd.amazon.soci.index.v2+json",
  ztoc: "application/octet-stream",
  prefetch: "application/vnd.amazon.soci.prefetch.v1+json",
} as const;

export const SOCI_ANNOTATIONS = {
  /** On an image manifest: digest of its v2 SOCI index. */
  indexDigest: "com.amazon.soci.index-digest",
  /** On a v2 SOCI index's descriptor: digest of its image manifest. */
  imageManifestDigest: "com.amazon.soci.image-manifest-digest",
  imageLayerDigest: "com.amazon.soci.image-layer-digest",
  imageLayerMediaType: "com.amazon.soci.image-layer-mediaType",
  spanSize: "com.amazon.soci.span-size",
  disableXattrs: "com.amazon.soci.disable-xattrs",
  buildTool: "com.amazon.soci.build-tool-identifier",
} as const;
