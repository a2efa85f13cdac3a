/**
 * The plain data that the parts of the Nydus writer hand to each other: the layer builders make `BuiltLayer`s, the bootstrap writer and the merge make images of
 * them. Nothing here has behaviour; typed arrays may be over SharedArrayBuffers.
 *
 *   BuiltLayer.tree   a file is cut into pieces of `chunkSize`, the last one short; each piece is one segment, and one whole chunk:
 *                     segment address = space * 2^44 + the chunk's offset in the address space of blob `space`
 *                     space 0 = the layer's own blob, space 1 + i = dictionary[i]
 *
 * Nothing of a file is left out: a hole of a source file is chunks of zeros, since the peer knows no holes.
 */

import type { FileTree } from "../../../erofs/file-tree.ts";
import type { LayerRole } from "../../format.ts";
import type { NydusBlob } from "../blob-table.ts";
import type { ChunkInfo } from "../chunk-info.ts";
import type { DigestAlgorithm } from "../ondisk.ts";

/**
 * All that an entry of the blob table and a device slot need, as a merged bootstrap has them: `features` without INLINED_FS_META, the real id.
 * A `NydusBlob` that was read is one too.
 */
export type BlobFacts = Pick<
  NydusBlob,
  | "id"
  | "chunkCount"
  | "compressor"
  | "digester"
  | "features"
  | "compressedSize"
  | "uncompressedSize"
  | "tocSize"
  | "tocDigest"
  | "metaBlob"
> & { readonly chunkInfo: NonNullable<NydusBlob["chunkInfo"]> };

/** Facts before the blob is finished: its id, and of a ref the digest of its metadata blob, are known only when the bootstrap inside is written. */
export type UnfinishedBlobFacts = Omit<BlobFacts, "id" | "metaBlob" | "tocSize" | "tocDigest">;

/** What chunk records say of chunks; ascending by `index`. */
export interface ChunkList {
  readonly count: number;
  /** Position in the blob's chunk array; null: that of the element. */
  readonly index: Uint32Array | null;
  /** Within the blob's address space. */
  readonly offset: Float64Array;
  readonly size: Uint32Array;
  readonly storedOffset: Float64Array;
  readonly storedSize: Uint32Array;
  /** ChunkFlag. */
  readonly flags: Uint8Array;
  /** 32 bytes a chunk, by the blob's digester, over the plain chunk. */
  readonly digest: Uint8Array;
  /** CRC-32C of the plain chunk; 0: none. */
  readonly crc32: Uint32Array;
}

/** All chunks of a blob that was written: its chunk array and what only chunk records carry. */
export interface WrittenChunks extends ChunkInfo {
  readonly index: null;
  readonly digest: Uint8Array;
  readonly crc32: Uint32Array;
}

/** A blob that files of an image refer to. */
export interface ImageBlob {
  readonly facts: BlobFacts;
  readonly chunks: ChunkList;
}

/** What a layer builder returns. */
export interface BuiltLayer {
  readonly tree: FileTree;
  /**
   * How the marks of the layer are in its tree (formats/format.ts): "lowest" has carried them out, "upper" has them as overlayfs does (char 0:0,
   * trusted.overlay.opaque). The merge wants the first layer as "lowest" and all others as "upper".
   */
  readonly role: LayerRole;
  readonly chunkSize: number;
  readonly digester: DigestAlgorithm;
  /** Null: the layer has no chunks of its own. It is a layer of the manifest all the same, but of no blob table. */
  readonly blob: { readonly facts: BlobFacts; readonly chunks: WrittenChunks } | null;
  /** Blobs of a chunk dictionary that files of the layer refer to. */
  readonly dictionary: readonly ImageBlob[];
}
