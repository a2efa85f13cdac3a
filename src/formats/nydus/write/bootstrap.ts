/**
 * Writes a RAFS v6 bootstrap (specs/nydus.md 2.5), of one layer or merged:
 *
 *   0 zeros | 1024 superblock | 1152 extended superblock | 1408 device slots
 *   | blob table, prefetch table | metadata region (bootstrap-inodes.ts) | chunk table |      "|" is a multiple of 4096
 *
 * Everything that nydusd and `nydus-image check` look at has the value that the peer's builder writes. Same input, same bytes: no time, no random uuid. What is
 * written is read back by the strict reader before anybody gets it.
 */

import { HeadstartError } from "../../../base/errors.ts";
import { alignUp } from "../../../base/ranges.ts";
import { ADDRESS_SPACE, type FileTree } from "../../../erofs/file-tree.ts";
import { EROFS_BLOCK_BITS, EROFS_SUPER_MAGIC, EROFS_SUPER_OFFSET, erofs_super_block } from "../../../erofs/ondisk.ts";
import { UNKNOWN_BLOB_ID } from "../blob-table.ts";
import { type NydusBootstrap, readBootstrap } from "../bootstrap.ts";
import { isChunkSize } from "../bootstrap-v6.ts";
import { namesOfMarks } from "../marks.ts";
import {
  alignBlock,
  BlobFeature,
  type Compressor,
  DIGESTERS,
  type DigestAlgorithm,
  NYDUS_LIMITS,
  RAFS_BLOCK_SIZE,
  RAFS_COMPRESSOR_FLAGS,
  RAFS_DIGESTER_FLAGS,
  RAFS_V6_COMPAT,
  RAFS_V6_DEVICES_OFFSET,
  RAFS_V6_DEVT_SLOTOFF,
  RAFS_V6_EXT_OFFSET,
  RAFS_V6_FLAG,
  RAFS_V6_INCOMPAT,
  RAFS_V6_MAPPED_ALIGN,
  RAFS_V6_ROOT_NID,
  rafs_v6_blob,
  rafs_v6_device,
  rafs_v6_super_block_ext,
} from "../ondisk.ts";
import { nydusUnits } from "../units.ts";
import { emitInodes, planInodes } from "./bootstrap-inodes.ts";
import { chunkTable } from "./chunk-table.ts";
import type { BlobFacts, BuiltLayer, ChunkList, ImageBlob, UnfinishedBlobFacts, WrittenChunks } from "./model.ts";
import { prefetchTable } from "./prefetch.ts";

export interface BootstrapInput {
  /** Address space b is blobs[b]; pieces as in model.ts. */
  readonly tree: FileTree;
  readonly chunkSize: number;
  readonly compressor: Compressor;
  readonly digester: DigestAlgorithm;
  /** In the order of the table; each is one that the kernel and nydusd are to open. */
  readonly blobs: readonly ImageBlob[];
  /** Inodes of the tree, in order. */
  readonly prefetch: readonly number[];
}

/** A bootstrap of whole images. Throws HS_NYDUS_LIMIT, HS_EROFS_LIMIT for what the format cannot hold. */
export function writeBootstrap(input: BootstrapInput): Uint8Array<ArrayBuffer> {
  const bytes = emitBootstrap(input, { merged: true });
  checkWritten(input, readBootstrap(bytes, "the bootstrap just written"));
  return bytes;
}

/** What is known of a layer when the bootstrap that its blob carries is written. */
export interface LayerBootstrapInput extends Pick<BuiltLayer, "tree" | "chunkSize" | "digester" | "dictionary"> {
  readonly compressor: Compressor;
  readonly blob: { readonly facts: UnfinishedBlobFacts; readonly chunks: ChunkList } | null;
  /** Of a ref: hex digest of the original layer. */
  readonly refId: string | null;
}

/**
 * The bootstrap of one layer, the part `image.boot` of its blob: marks are plain files `.wh.NAME`, the blob has no id yet. `nydus-image merge` takes it, and
 * `readLayerBootstrap` reads it. Throws as `writeBootstrap`.
 */
export function writeLayerBootstrap(input: LayerBootstrapInput): Uint8Array<ArrayBuffer> {
  const { blob, dictionary } = input;
  const own: ImageBlob[] = [];
  if (blob !== null) {
    const facts = {
      ...blob.facts,
      id: input.refId ?? UNKNOWN_BLOB_ID,
      features: blob.facts.features | BlobFeature.inlinedFsMeta,
      metaBlob: null,
      tocSize: 0,
      tocDigest: NO_DIGEST,
    };
    own.push({ facts, chunks: blob.chunks });
  }
  // space b of a bootstrap is its blob b: without a blob of its own the layer has none in space 0
  const tree = namesOfMarks(blob === null ? oneSpaceDown(input.tree) : input.tree);
  const image = { ...input, tree, blobs: [...own, ...dictionary], prefetch: [] };
  const bytes = emitBootstrap(image, { merged: false });
  // any blob: which one it is in is not known yet
  const container = { id: "f".repeat(64), size: 0 };
  checkWritten(image, readBootstrap(bytes, "the bootstrap just written", container));
  return bytes;
}

function oneSpaceDown(tree: FileTree): FileTree {
  return { ...tree, segmentAddress: tree.segmentAddress.map((address) => address - ADDRESS_SPACE) };
}

const NO_DIGEST = "0".repeat(64);

interface Layout {
  readonly blobTableAt: number;
  readonly prefetchAt: number;
  readonly metaAt: number;
  readonly chunkTableAt: number;
  readonly size: number;
}

function emitBootstrap(input: BootstrapInput, { merged }: { readonly merged: boolean }): Uint8Array<ArrayBuffer> {
  const { tree, chunkSize, blobs } = input;
  checkInput(input);
  const plan = planInodes(tree, chunkSize);
  const chunks = chunkTable(tree, chunkSize, blobs);
  // where there are no blobs there is nothing to fetch
  const prefetch = prefetchTable(blobs.length === 0 ? [] : input.prefetch, plan.nidOf);
  const blobTableAt = alignBlock(RAFS_V6_DEVICES_OFFSET + blobs.length * rafs_v6_device.size);
  const prefetchAt = blobTableAt + blobs.length * rafs_v6_blob.size;
  const metaAt = alignBlock(prefetchAt + prefetch.byteLength);
  const chunkTableAt = metaAt + plan.size;
  const size = alignBlock(chunkTableAt + chunks.byteLength);
  if (size > NYDUS_LIMITS.bootstrapBytes)
    throw new HeadstartError("HS_NYDUS_LIMIT", {
      what: `the bootstrap takes ${size} bytes, at most ${NYDUS_LIMITS.bootstrapBytes}`,
    });
  const layout = { blobTableAt, prefetchAt, metaAt, chunkTableAt, size };
  const bytes = new Uint8Array(size);
  const view = new DataView(bytes.buffer);
  emitSuperblock(view, input, metaAt);
  emitExtended(view, input, layout, {
    chunkTableSize: chunks.byteLength,
    prefetchSize: prefetch.byteLength,
    // a merge of the peer says so whatever it has found
    hasXattrs: plan.hasXattrs || merged,
  });
  emitDevices(bytes, view, blobs, size);
  blobs.forEach(({ facts }, index) => {
    emitBlob(bytes, view, blobTableAt + index * rafs_v6_blob.size, { facts, index, chunkSize });
  });
  bytes.set(prefetch, prefetchAt);
  const metaBlock = metaAt / RAFS_BLOCK_SIZE;
  emitInodes({ tree, plan, chunkSize, blobs, metaBlock }, bytes.subarray(metaAt, chunkTableAt));
  bytes.set(chunks, chunkTableAt);
  return bytes;
}

/** What a caller must have seen to. Throws HS_NYDUS_LIMIT for too many blobs, HS_INTERNAL for a program's mistake. */
function checkInput({ chunkSize, blobs, digester }: BootstrapInput): void {
  if (blobs.length > NYDUS_LIMITS.blobs)
    throw new HeadstartError("HS_NYDUS_LIMIT", {
      what: `${blobs.length} layers with data, a Nydus image refers to ${NYDUS_LIMITS.blobs} blobs at most`,
    });
  if (!isChunkSize(chunkSize)) throw new HeadstartError("HS_INTERNAL", { what: `chunks of ${chunkSize} bytes` });
  for (const { facts } of blobs) {
    if (facts.digester !== digester || facts.chunkCount === 0 || facts.uncompressedSize === 0)
      throw new HeadstartError("HS_INTERNAL", { what: `blob ${facts.id} does not belong into this bootstrap` });
  }
}

const blocksOf = (facts: BlobFacts) => Math.ceil(facts.uncompressedSize / RAFS_BLOCK_SIZE);

function emitSuperblock(view: DataView, { tree, blobs }: BootstrapInput, metaAt: number): void {
  const at = EROFS_SUPER_OFFSET;
  const offsets = erofs_super_block.offsets;
  view.setUint32(at + offsets.magic, EROFS_SUPER_MAGIC, true);
  view.setUint32(at + offsets.feature_compat, RAFS_V6_COMPAT, true);
  view.setUint8(at + offsets.blkszbits, EROFS_BLOCK_BITS);
  view.setUint16(at + offsets.rootnid_2b, RAFS_V6_ROOT_NID, true);
  // builders count names: each hard link, and the root
  view.setBigUint64(at + offsets.inos, BigInt(tree.childInode.length + 1), true);
  view.setUint32(at + offsets.blocks_lo, u32(blobs.reduce((sum, { facts }) => sum + blocksOf(facts), 0)), true);
  view.setUint32(at + offsets.meta_blkaddr, metaAt / RAFS_BLOCK_SIZE, true);
  view.setUint32(at + offsets.feature_incompat, RAFS_V6_INCOMPAT, true);
  view.setUint16(at + offsets.extra_devices, blobs.length, true);
  view.setUint16(at + offsets.devt_slotoff, RAFS_V6_DEVT_SLOTOFF, true);
}

function emitExtended(
  view: DataView,
  { chunkSize, compressor, digester, blobs }: BootstrapInput,
  layout: Layout,
  found: { readonly chunkTableSize: number; readonly prefetchSize: number; readonly hasXattrs: boolean },
): void {
  const at = RAFS_V6_EXT_OFFSET;
  const offsets = rafs_v6_super_block_ext.offsets;
  const u64 = (offset: number, value: number) => view.setBigUint64(at + offset, BigInt(value), true);
  const inlined = blobs.every(({ facts }) => (facts.features & BlobFeature.inlinedChunkDigest) !== 0);
  u64(
    offsets.flags,
    RAFS_COMPRESSOR_FLAGS[compressor] |
      RAFS_DIGESTER_FLAGS[digester] |
      RAFS_V6_FLAG.explicitUidGid |
      RAFS_V6_FLAG.cipherNone |
      (found.hasXattrs ? RAFS_V6_FLAG.hasXattr : 0) |
      (inlined ? RAFS_V6_FLAG.inlinedChunkDigest : 0),
  );
  u64(offsets.blob_table_offset, layout.blobTableAt);
  view.setUint32(at + offsets.blob_table_size, blobs.length * rafs_v6_blob.size, true);
  view.setUint32(at + offsets.chunk_size, chunkSize, true);
  u64(offsets.chunk_table_offset, layout.chunkTableAt);
  u64(offsets.chunk_table_size, found.chunkTableSize);
  if (found.prefetchSize === 0) return;
  u64(offsets.prefetch_offset, layout.prefetchAt);
  view.setUint32(at + offsets.prefetch_size, found.prefetchSize, true);
}

/** The flattened image has the bootstrap first and then each blob's address space; only block devices are made of that. */
function emitDevices(bytes: Uint8Array, view: DataView, blobs: readonly ImageBlob[], size: number): void {
  const offsets = rafs_v6_device.offsets;
  let mapped = alignUp(size, RAFS_V6_MAPPED_ALIGN) / RAFS_BLOCK_SIZE;
  for (const [index, { facts }] of blobs.entries()) {
    const at = RAFS_V6_DEVICES_OFFSET + index * rafs_v6_device.size;
    bytes.set(Buffer.from(facts.id, "latin1"), at + offsets.blob_id);
    view.setUint32(at + offsets.blocks, u32(blocksOf(facts)), true);
    view.setUint32(at + offsets.mapped_blkaddr, u32(mapped), true);
    mapped = alignUp(mapped + blocksOf(facts), RAFS_V6_MAPPED_ALIGN / RAFS_BLOCK_SIZE);
  }
}

function emitBlob(
  bytes: Uint8Array,
  view: DataView,
  at: number,
  { facts, index, chunkSize }: { readonly facts: BlobFacts; readonly index: number; readonly chunkSize: number },
): void {
  const offsets = rafs_v6_blob.offsets;
  const u64 = (offset: number, value: number) => view.setBigUint64(at + offset, BigInt(value), true);
  bytes.set(Buffer.from(facts.id, "latin1"), at + offsets.blob_id);
  view.setUint32(at + offsets.blob_index, index, true);
  view.setUint32(at + offsets.chunk_size, chunkSize, true);
  view.setUint32(at + offsets.chunk_count, facts.chunkCount, true);
  view.setUint32(at + offsets.compression_algo, facts.compressor, true);
  view.setUint32(at + offsets.digest_algo, DIGESTERS.indexOf(facts.digester), true);
  view.setUint32(at + offsets.features, facts.features, true);
  u64(offsets.compressed_size, facts.compressedSize);
  u64(offsets.uncompressed_size, facts.uncompressedSize);
  view.setUint32(at + offsets.toc_size, facts.tocSize, true);
  view.setUint32(at + offsets.ci_compressor, facts.chunkInfo.compressor, true);
  u64(offsets.ci_offset, facts.chunkInfo.offset);
  u64(offsets.ci_compressed_size, facts.chunkInfo.compressedSize);
  u64(offsets.ci_uncompressed_size, facts.chunkInfo.size);
  bytes.set(Buffer.from(facts.tocDigest, "hex"), at + offsets.toc_digest);
  if (facts.metaBlob === null) return;
  bytes.set(Buffer.from(facts.metaBlob.id, "hex"), at + offsets.blob_meta_digest);
  u64(offsets.blob_meta_size, facts.metaBlob.size);
}

/** Block numbers have 32 bits: all blobs of an image together have less than 16 TiB. Throws HS_NYDUS_LIMIT. */
function u32(blocks: number): number {
  if (blocks <= 0xffff_ffff) return blocks;
  throw new HeadstartError("HS_NYDUS_LIMIT", { what: `${blocks} blocks of data` });
}

/**
 * The reader has held every rule of specs/nydus.md 4 against the bytes; here that it found what was to be written, and that chunk arrays say of each used chunk what
 * the bootstrap says, as a mount will look at it. Of a dictionary's blobs the array is not known. Throws HS_INTERNAL, HS_NYDUS_INVALID.
 */
function checkWritten(input: BootstrapInput, found: NydusBootstrap): void {
  const { tree, blobs } = input;
  const same =
    found.chunkSize === input.chunkSize &&
    found.compressor === input.compressor &&
    found.digester === input.digester &&
    found.tree.inodeCount === tree.inodeCount &&
    found.tree.childInode.length === tree.childInode.length &&
    found.tree.segmentLength.length === tree.segmentLength.length &&
    found.tree.xattrNameLength.length === tree.xattrNameLength.length &&
    found.blobs.length === blobs.length &&
    !found.uses.record.includes(-1);
  if (!same) throw new HeadstartError("HS_INTERNAL", { what: "the bootstrap just written does not hold its tree" });
  const infos = blobs.map(({ chunks }) => (isWritten(chunks) ? chunks : undefined));
  const sizes = found.blobs.map((blob) => blob.dataSize);
  nydusUnits(found, infos, sizes, "the bootstrap just written");
}

function isWritten(chunks: ChunkList): chunks is WrittenChunks {
  return "restarts" in chunks;
}
