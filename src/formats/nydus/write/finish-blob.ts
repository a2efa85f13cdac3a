/** What follows the data of every blob, native or of a ref: chunk array, digests, the layer's bootstrap, table of contents (specs/nydus.md 2.1, 2.3). */

import { createHash } from "node:crypto";
import type { FileTree } from "../../../erofs/file-tree.ts";
import { ZstdEncoder, zstdBound } from "../../../linux/zstd-encode.ts";
import type { ChunkInfoPlace } from "../blob-table.ts";
import { alignBlock, CI_HEADER_SIZE, Compressor, type DigestAlgorithm } from "../ondisk.ts";
import { TAR_SPLIT_NAME } from "../tar-split.ts";
import { writeLayerBootstrap } from "./bootstrap.ts";
import { type EncodedChunkArray, encodeChunkArrayHeader } from "./chunk-array.ts";
import type { BlobContainer, FinishedBlob, TocPart } from "./container.ts";
import type { ImageBlob, UnfinishedBlobFacts, WrittenChunks } from "./model.ts";
import type { TarSplit } from "./tar-split.ts";

/** A blob's chunks, and what its table entry says of them. */
export interface BlobChunks {
  readonly chunks: WrittenChunks;
  readonly array: EncodedChunkArray;
  readonly features: number;
  readonly compressor: Compressor;
  readonly digester: DigestAlgorithm;
  /** Bytes of the address space. */
  readonly uncompressedSize: number;
  /** Of a ref: hex digest of the original layer, and its bytes. */
  readonly ref: { readonly id: string; readonly size: number } | null;
}

export interface LayerEnd {
  readonly tree: FileTree;
  readonly chunkSize: number;
  readonly digester: DigestAlgorithm;
  readonly dictionary: readonly ImageBlob[];
  /** How the chunk array is compressed: "whole" makes it smaller or returns it as it is. */
  readonly compressArray: (bytes: Uint8Array) => Promise<Uint8Array>;
  readonly arrayCompressor: Compressor;
  readonly tarSplit: TarSplit | null;
}

/** `facts` and `blobMeta` are null for a layer without chunks. */
export async function finishBlob(
  container: BlobContainer,
  blob: BlobChunks | null,
  end: LayerEnd,
): Promise<{
  readonly finished: FinishedBlob;
  readonly facts: UnfinishedBlobFacts | null;
  /** The chunk array as it stands beside a bootstrap (bootstrap-layer.ts): plain, zeros to a multiple of 4096, its header. */
  readonly blobMeta: Uint8Array | null;
}> {
  let chunkInfo: ChunkInfoPlace | null = null;
  let blobMeta: Uint8Array | null = null;
  if (blob !== null) {
    const array = await writeChunkArray(container, blob, end);
    chunkInfo = array.place;
    blobMeta = array.file;
    await container.part("blob.digest", blob.chunks.digest, blob.chunks.digest, "none");
  }
  if (end.tarSplit !== null) await writeTarSplit(container, end.tarSplit);
  const facts =
    blob === null || chunkInfo === null
      ? null
      : {
          chunkCount: blob.chunks.count,
          compressor: blob.compressor,
          digester: blob.digester,
          features: blob.features,
          // of a native blob: where image.boot begins, as the peer has it
          compressedSize: blob.ref?.size ?? container.offset,
          uncompressedSize: blob.uncompressedSize,
          chunkInfo,
        };
  const bootstrap = writeLayerBootstrap({
    tree: end.tree,
    chunkSize: end.chunkSize,
    digester: end.digester,
    dictionary: end.dictionary,
    compressor: blob?.compressor ?? end.arrayCompressor,
    blob: facts === null ? null : { facts, chunks: blob!.chunks },
    refId: blob?.ref?.id ?? null,
  });
  await container.part("image.boot", await zstd(bootstrap), bootstrap, "zstd");
  return { finished: await container.finish(), facts, blobMeta };
}

async function writeChunkArray(
  container: BlobContainer,
  blob: BlobChunks,
  end: LayerEnd,
): Promise<{ readonly place: ChunkInfoPlace; readonly file: Uint8Array }> {
  const { bytes } = blob.array;
  const stored = await end.compressArray(bytes);
  const place = {
    compressor: stored === bytes ? Compressor.none : end.arrayCompressor,
    offset: container.offset,
    compressedSize: stored.byteLength,
    size: bytes.byteLength,
  };
  const header = encodeChunkArrayHeader(blob.array, blob.chunks.count, blob.features, place);
  const digest = createHash("sha256").update(bytes).digest();
  container.list({
    name: "blob.meta",
    compression: TOC_COMPRESSIONS[place.compressor],
    digest,
    offset: place.offset,
    storedSize: place.compressedSize,
    size: place.size,
  });
  container.list({
    name: "blob.meta.header",
    compression: "none",
    digest: createHash("sha256").update(header).digest(),
    offset: place.offset + place.compressedSize,
    storedSize: CI_HEADER_SIZE,
    size: CI_HEADER_SIZE,
  });
  await container.write(stored);
  await container.write(header);
  await container.header("blob.meta", place.compressedSize + CI_HEADER_SIZE);
  const file = new Uint8Array(alignBlock(bytes.byteLength) + CI_HEADER_SIZE);
  file.set(bytes);
  file.set(header, file.byteLength - CI_HEADER_SIZE);
  return { place, file };
}

/** gzip is none of a chunk array. */
const TOC_COMPRESSIONS: Readonly<Record<Compressor, TocPart["compression"]>> = {
  [Compressor.none]: "none",
  [Compressor.lz4]: "lz4_block",
  [Compressor.gzip]: "none",
  [Compressor.zstd]: "zstd",
};

async function writeTarSplit(container: BlobContainer, split: TarSplit): Promise<void> {
  container.list({
    name: TAR_SPLIT_NAME,
    compression: "zstd",
    digest: split.digest,
    offset: container.offset,
    storedSize: split.stored.byteLength,
    size: split.size,
  });
  await container.write(split.stored);
  await container.header(TAR_SPLIT_NAME, split.stored.byteLength);
}

/** Always compressed, also where that is larger: readers of image.boot expect it. */
async function zstd(bytes: Uint8Array): Promise<Uint8Array> {
  using encoder = new ZstdEncoder(3);
  const output = new Uint8Array(new ArrayBuffer(zstdBound(bytes.byteLength)));
  return output.subarray(0, await encoder.encode(bytes, output));
}
