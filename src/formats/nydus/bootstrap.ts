/**
 * A Nydus bootstrap of either version as plain data: blobs, the merged tree, and the chunks that the tree uses with the digests that the bootstrap has for
 * them. Nothing else binds a chunk: what is read from a blob by range (chunk arrays, `blob.digest`) is held against this (specs/nydus.md 3.1).
 *
 * The bytes are not trusted. Whatever they are, reading ends in a sound tree or in HS_NYDUS_INVALID, HS_LIMIT, HS_TRUNCATED, HS_FORMAT_UNSUPPORTED or
 * HS_EROFS_LIMIT; it visits every inode once and allocates no more than a small multiple of the bytes given.
 */

import { HeadstartError } from "../../base/errors.ts";
import type { FileTree } from "../../erofs/file-tree.ts";
import { EROFS_SUPER_MAGIC, EROFS_SUPER_OFFSET } from "../../erofs/ondisk.ts";
import type { NydusBlob } from "./blob-table.ts";
import { readV5 } from "./bootstrap-v5.ts";
import { readV6 } from "./bootstrap-v6.ts";
import type { ChunkRecords, ChunkUses } from "./chunks.ts";
import type { ContainingBlob } from "./layer-bootstrap.ts";
import {
  type Compressor,
  type DigestAlgorithm,
  NYDUS_LIMITS,
  nydusInvalid,
  RAFS_V5_MAGIC,
  RAFS_V6_COMPAT,
  RAFS_V6_INCOMPAT,
} from "./ondisk.ts";

export interface NydusBootstrap {
  readonly version: 5 | 6;
  /** Pieces of a file are this long but for the last one. */
  readonly chunkSize: number;
  /** Null in a v6 image whose flags name none (older builders). */
  readonly compressor: Compressor | null;
  readonly digester: DigestAlgorithm | null;
  /** In the order of the table: address space b is blob b. */
  readonly blobs: readonly NydusBlob[];
  readonly tree: FileTree;
  readonly uses: ChunkUses;
  readonly records: ChunkRecords;
  /** Inodes of the tree that the author wants first, in order. */
  readonly prefetch: readonly number[];
}

/** "v6", "v5" or null, from the first 1156 bytes: what a file is, not whether it is sound. */
export function sniffBootstrap(bytes: Uint8Array): "v5" | "v6" | null {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (bytes.byteLength >= 4 && view.getUint32(0, true) === RAFS_V5_MAGIC) return "v5";
  if (bytes.byteLength < EROFS_SUPER_OFFSET + 128) return null;
  if (view.getUint32(EROFS_SUPER_OFFSET, true) !== EROFS_SUPER_MAGIC) return null;
  // our own EROFS images and mkfs.erofs's have neither mark
  const compat = view.getUint32(EROFS_SUPER_OFFSET + 8, true);
  const incompat = view.getUint32(EROFS_SUPER_OFFSET + 80, true);
  return (compat & RAFS_V6_COMPAT) !== 0 || incompat === RAFS_V6_INCOMPAT ? "v6" : null;
}

/** `container`: the blob that the bootstrap of one layer was found in (layer-bootstrap.ts). */
export function readBootstrap(
  bytes: Uint8Array,
  what = "bootstrap",
  container: ContainingBlob | null = null,
): NydusBootstrap {
  if (bytes.byteLength > NYDUS_LIMITS.bootstrapBytes) {
    throw new HeadstartError("HS_LIMIT", { what: `${what}: ${bytes.byteLength} bytes` });
  }
  switch (sniffBootstrap(bytes)) {
    case "v6":
      return readV6(bytes, what, container);
    case "v5":
      return readV5(bytes, what);
    default:
      throw nydusInvalid(what, "neither the magic of RAFS v6 nor of v5");
  }
}
