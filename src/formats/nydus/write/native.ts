/**
 * A layer becomes a native Nydus blob in one pass (specs/nydus.md 3.5): stored bytes in, blob bytes out, the layer's tree at the end.
 *
 *   stored bytes -> inflate -> tar reader -> tree of the layer
 *                                  |-> data of files -> chunks -> digest, known? -> compress (other threads) -> image.blob
 *                                  |-> all else, and which chunks stand between -> tar.split
 *   at the end: chunk array, digests, tar.split, bootstrap of the layer, table of contents
 *
 * Invariants: same input and options, same bytes; in memory are the chunks that are being compressed and what describes the layer, never its data. Nothing is
 * given back before the source's digest, size and diffID were found right; bytes of the blob go out before that, so whoever takes them waits for the end.
 */

import { createHash } from "node:crypto";
import type { DiffID, Digest } from "../../../base/digest.ts";
import { MiB } from "../../../base/limits.ts";
import type { LayerRole } from "../../format.ts";
import { pieceHash } from "../../piece-hash.ts";
import { LayerTreeBuilder } from "../../tar/apply.ts";
import { checkLayerType, LayerDecoder } from "../../tar/decompress.ts";
import { TarReader } from "../../tar/records.ts";
import { BlobFeature } from "../ondisk.ts";
import { ChunkArrayBuilder, encodeChunkArray } from "./chunk-array.ts";
import { ChunkWriter } from "./chunk-writer.ts";
import { chunkCompressor } from "./compress.ts";
import { BlobContainer, type BlobSink } from "./container.ts";
import { chunkCrc } from "./crc.ts";
import type { ChunkDictionary } from "./dictionary.ts";
import { FileCutter } from "./file-chunks.ts";
import { finishBlob } from "./finish-blob.ts";
import { KnownChunks } from "./known-chunks.ts";
import { chunkedTree } from "./layer-tree.ts";
import type { BuiltLayer } from "./model.ts";
import { batchOptions, checkNydusOptions, compressorId, type NydusOptions } from "./options.ts";
import { checkDiffID, readSource, type SourceStream } from "./source.ts";
import { TarSplitWriter } from "./tar-split.ts";

export interface NativeLayerInput extends SourceStream {
  readonly role: LayerRole;
  readonly options: NydusOptions;
  /** Chunks that other images have; their digests are of `options.digester`. */
  readonly dictionary: ChunkDictionary | null;
  readonly sink: BlobSink;
}

export interface NydusLayer {
  readonly layer: BuiltLayer;
  /** The stored blob: a native one, or the metadata blob of a ref. */
  readonly blob: { readonly digest: Digest; readonly size: number };
  readonly diffID: DiffID;
  /** The plain chunk array, for the layer with the merged bootstrap; null for a layer without chunks. */
  readonly blobMeta: Uint8Array | null;
}

/** Features of every native blob, as the peer's builder sets them (specs/nydus.md 2.4). */
const NATIVE = (BlobFeature.aligned |
  BlobFeature.inlinedChunkDigest |
  BlobFeature.hasTarHeader |
  BlobFeature.hasToc |
  BlobFeature.capTarToc) as number;
const BATCHED = BlobFeature.chunkInfoV2 | BlobFeature.batch;

/** Plain bytes that may be under way to the blob; at least four chunks. */
const UNDER_WAY = 16 * MiB;

/**
 * Throws HS_USAGE (options), HS_LAYER_REFUSED (containerd refuses this layer too), HS_NYDUS_LIMIT, HS_LIMIT, HS_DIGEST_MISMATCH, HS_SIZE_MISMATCH, HS_DIFFID_MISMATCH, and what the
 * source and the sink throw.
 */
export async function buildNativeLayer(input: NativeLayerInput): Promise<NydusLayer> {
  const { layer: source, options } = input;
  checkNydusOptions(options);
  checkLayerType(source.mediaType, source.digest);
  const { chunkSize, digester } = options;
  const container = new BlobContainer(input.sink);
  const array = new ChunkArrayBuilder(source.digest);
  const known = new KnownChunks(input.dictionary);
  await using compressor = chunkCompressor(options, chunkSize);
  await using batchCompressor = chunkCompressor(batchOptions(options), options.batchSize);
  const chunks = new ChunkWriter({
    array,
    known,
    compressor,
    batchCompressor,
    container,
    digest: await pieceHash(digester),
    crc: await chunkCrc(),
    chunkSize,
    batchSize: options.batchSize,
  });
  const files = new FileCutter(chunkSize, source.digest, chunks);
  await using split = new TarSplitWriter({
    own: (address) => array.indexOf(address),
    foreign: (space, offset) => known.chunkOf(space, offset),
  });
  const layer = new LayerReader(input.role, source.digest, files, split);
  using decoder = new LayerDecoder({ layer: source.digest, data: (bytes) => layer.push(bytes) });
  const underWay = Math.max(UNDER_WAY, 4 * chunkSize);
  await readSource(input, async (bytes) => {
    decoder.push(bytes);
    await chunks.drain(underWay);
    await split.flush();
  });
  decoder.finish();
  const { tree: sourceTree, diffID, tarSize, tarDigest } = layer.finish();
  checkDiffID(source, diffID);
  const tree = chunkedTree(sourceTree, files, chunkSize);
  const batches = await chunks.finish();
  const dataSize = container.offset;
  const v2 = batches !== null && batches.count > 0;
  const written = array.count === 0 ? null : array.finish(v2, v2 ? batches : null, null);
  if (written !== null) {
    await container.header("image.blob", dataSize);
    container.list({
      name: "image.blob",
      compression: "none",
      // with its header, unlike those of all other parts
      digest: container.digestSoFar(),
      offset: 0,
      storedSize: dataSize,
      size: array.end,
    });
  }
  const { finished, facts, blobMeta } = await finishBlob(
    container,
    written === null
      ? null
      : {
          chunks: written,
          array: encodeChunkArray(written, v2, null),
          features: (NATIVE | (v2 ? BATCHED : 0)) >>> 0,
          compressor: compressorId(options.compressor),
          digester,
          uncompressedSize: array.end,
          ref: null,
        },
    {
      tree,
      chunkSize,
      digester,
      dictionary: known.used,
      compressArray: (bytes) => compressOnce(options, bytes),
      arrayCompressor: compressorId(options.compressor),
      tarSplit: await split.finish(tarSize, tarDigest),
    },
  );
  const { digest, size, tocSize, tocDigest } = finished;
  const id = digest.slice("sha256:".length);
  return {
    layer: {
      tree,
      role: input.role,
      chunkSize,
      digester,
      blob: facts === null ? null : { facts: { ...facts, id, metaBlob: null, tocSize, tocDigest }, chunks: written! },
      dictionary: known.used,
    },
    blob: { digest, size },
    diffID,
    blobMeta,
  };
}

async function compressOnce(options: NydusOptions, bytes: Uint8Array): Promise<Uint8Array> {
  await using compressor = chunkCompressor(options, bytes.byteLength);
  return await compressor.compress(bytes);
}

/** Reads the tar: entries to the tree, data of files to the cutter, and everything once to the tar-split. */
class LayerReader {
  readonly #reader: TarReader;
  readonly #tree: LayerTreeBuilder;
  readonly #split: TarSplitWriter;
  readonly #hash = createHash("sha256");
  /** Where in the tar the pushed bytes begin, and up to where they went to the tar-split, or to chunks. */
  #chunk: Uint8Array = new Uint8Array(0);
  #chunkStart = 0;
  #done = 0;

  constructor(role: LayerRole, layer: string, files: FileCutter, split: TarSplitWriter) {
    this.#tree = new LayerTreeBuilder(role, layer);
    this.#split = split;
    this.#reader = new TarReader(
      {
        entry: (entry) => {
          const { dataWanted } = this.#tree.add(entry);
          if (dataWanted) files.begin(entry);
          return dataWanted;
        },
        data: (bytes, offset) => {
          this.#literal(offset);
          this.#done = offset + bytes.byteLength;
          const parts = files.data(bytes);
          if (parts !== null) split.parts(parts);
        },
      },
      { layer },
    );
  }

  push(bytes: Uint8Array): void {
    this.#hash.update(bytes);
    this.#chunk = bytes;
    this.#reader.push(bytes);
    const end = this.#chunkStart + bytes.byteLength;
    this.#literal(end);
    this.#chunkStart = end;
  }

  finish() {
    this.#reader.finish();
    const tarDigest = this.#hash.digest();
    return {
      tree: this.#tree.finish(),
      tarSize: this.#chunkStart,
      tarDigest,
      diffID: `sha256:${tarDigest.toString("hex")}` as DiffID,
    };
  }

  /** Bytes of the pushed chunk up to `offset` of the tar that went nowhere yet. */
  #literal(offset: number): void {
    this.#split.literal(this.#chunk.subarray(this.#done - this.#chunkStart, offset - this.#chunkStart));
    this.#done = Math.max(this.#done, offset);
  }
}
