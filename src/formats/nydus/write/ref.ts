/**
 * A layer that stays as it is gets a Nydus blob of metadata (specs/nydus.md 2.7, 3.3): its tree, the digests of its chunks, and where in the layer they are. One pass, streaming.
 *
 *   gzip   chunks lie in zran contexts (zran.ts); the decoder stops where a file begins and ends, since the peer's contexts depend on what it had read there
 *   tar    chunks are ranges of the layer
 *
 * Nothing is given back before the layer's digest, size and diffID were found right.
 */

import { createHash, type Hash } from "node:crypto";
import type { DiffID } from "../../../base/digest.ts";
import { HeadstartError } from "../../../base/errors.ts";
import { alignUp } from "../../../base/ranges.ts";
import type { FileTree } from "../../../erofs/file-tree.ts";
import type { LayerRole } from "../../format.ts";
import { GzipInflate } from "../../gzip/inflate.ts";
import { LayerTreeBuilder } from "../../tar/apply.ts";
import { checkLayerType, detectCompression, MAGIC_BYTES } from "../../tar/decompress.ts";
import { TAR_BLOCK } from "../../tar/header.ts";
import { type TarEntry, TarReader } from "../../tar/records.ts";
import { BlobFeature, ChunkFlag, Compressor, NYDUS_LIMITS } from "../ondisk.ts";
import { ChunkArrayBuilder, encodeChunkArray, type WrittenRestartPoints } from "./chunk-array.ts";
import { chunkCompressor } from "./compress.ts";
import { BlobContainer, type BlobSink } from "./container.ts";
import { type ChunkCrc, chunkCrc } from "./crc.ts";
import { finishBlob } from "./finish-blob.ts";
import { KnownChunks } from "./known-chunks.ts";
import { chunkedTree } from "./layer-tree.ts";
import type { NydusLayer } from "./native.ts";
import { checkNydusOptions, NYDUS_DEFAULTS, type NydusOptions } from "./options.ts";
import { checkDiffID, readSource, type SourceStream } from "./source.ts";
import { type Place, ZranContexts } from "./zran.ts";

export interface RefLayerInput extends SourceStream {
  readonly role: LayerRole;
  /** The format has one compressor and one digester for refs. */
  readonly options: Pick<NydusOptions, "chunkSize">;
  /** Takes the metadata blob, at the end. */
  readonly sink: BlobSink;
}

/** Features of every ref, as the peer's builder sets them (specs/nydus.md 2.4). */
const REF =
  BlobFeature.aligned |
  BlobFeature.chunkInfoV2 |
  BlobFeature.separate |
  BlobFeature.inlinedChunkDigest |
  BlobFeature.hasTarHeader |
  BlobFeature.hasToc |
  BlobFeature.capTarToc;

/**
 * Throws HS_FORMAT_UNSUPPORTED for a zstd layer, HS_NYDUS_LIMIT for what a ref cannot hold (sparse files, endless deflate blocks), HS_USAGE (chunk size), HS_LAYER_REFUSED, HS_LIMIT,
 * HS_DIGEST_MISMATCH, HS_SIZE_MISMATCH, HS_DIFFID_MISMATCH, and what the source and the sink throw.
 */
export async function buildRefLayer(input: RefLayerInput): Promise<NydusLayer> {
  const { layer: source, role } = input;
  const { chunkSize } = input.options;
  checkNydusOptions({ ...NYDUS_DEFAULTS, chunkSize, batchSize: 0 });
  checkLayerType(source.mediaType, source.digest);
  if (!source.digest.startsWith("sha256:"))
    throw new HeadstartError("HS_FORMAT_UNSUPPORTED", { what: `layer ${source.digest}: a ref names layers by sha256` });
  const chunks = new RefChunks(source.digest, chunkSize, await chunkCrc());
  using reader = new RefReader({ role, layer: source.digest, size: source.size, chunkSize, chunks });
  await readSource(input, (bytes) => reader.push(bytes));
  const { tree: sourceTree, diffID, restarts, isZran } = reader.finish();
  checkDiffID(source, diffID);
  const tree = chunkedTree(sourceTree, chunks, chunkSize);
  const { array } = chunks;
  const written = array.count === 0 ? null : array.finish(true, null, restarts);
  const id = source.digest.slice("sha256:".length);
  const container = new BlobContainer(input.sink);
  const { finished, facts, blobMeta } = await finishBlob(
    container,
    written === null
      ? null
      : {
          chunks: written,
          array: encodeChunkArray(written, true, restarts),
          features: (REF | (isZran ? BlobFeature.zran : 0)) >>> 0,
          compressor: Compressor.gzip,
          digester: "sha256",
          uncompressedSize: array.end,
          ref: { id, size: source.size },
        },
    {
      tree,
      chunkSize,
      digester: "sha256",
      dictionary: [],
      compressArray,
      arrayCompressor: Compressor.zstd,
      tarSplit: null,
    },
  );
  const { digest, size, tocSize, tocDigest } = finished;
  const metaBlob = { id: digest.slice("sha256:".length), size };
  return {
    layer: {
      tree,
      role,
      chunkSize,
      digester: "sha256",
      blob: facts === null ? null : { facts: { ...facts, id, metaBlob, tocSize, tocDigest }, chunks: written! },
      dictionary: [],
    },
    blob: { digest, size },
    diffID,
    blobMeta,
  };
}

async function compressArray(bytes: Uint8Array): Promise<Uint8Array> {
  await using compressor = chunkCompressor(NYDUS_DEFAULTS, bytes.byteLength);
  return await compressor.compress(bytes);
}

/** Chunks of a ref: only what describes them. Pieces of files follow each other as in FileCutter. */
class RefChunks {
  readonly array: ChunkArrayBuilder;
  readonly addresses: number[] = [];
  readonly #layer: string;
  readonly #chunkSize: number;
  readonly #crc: ChunkCrc;
  readonly #known = new KnownChunks(null);
  readonly #files = new Map<number, number>();
  #hash: Hash = createHash("sha256");
  #length = 0;

  constructor(layer: string, chunkSize: number, crc: ChunkCrc) {
    this.#layer = layer;
    this.#chunkSize = chunkSize;
    this.#crc = crc;
    this.array = new ChunkArrayBuilder(layer);
  }

  firstOf(dataOffset: number): number | undefined {
    return this.#files.get(dataOffset);
  }

  beginFile({ dataOffset, size }: TarEntry): void {
    if (this.addresses.length + Math.ceil(size / this.#chunkSize) > NYDUS_LIMITS.chunksPerBlob) {
      throw new HeadstartError("HS_NYDUS_LIMIT", {
        what: `layer ${this.#layer}: its files have more than ${NYDUS_LIMITS.chunksPerBlob} chunks of ${this.#chunkSize} bytes; use larger chunks`,
      });
    }
    this.#files.set(dataOffset, this.addresses.length);
  }

  begin(): void {
    this.#hash = createHash("sha256");
    this.#crc.begin();
    this.#length = 0;
  }

  update(bytes: Uint8Array): void {
    this.#hash.update(bytes);
    this.#crc.update(bytes);
    this.#length += bytes.byteLength;
  }

  /** The chunk's index if it is new, else null. */
  end(): number | null {
    const digest = this.#hash.digest();
    const crc = this.#crc.end();
    const there = this.#known.find(digest, this.#length);
    if (there !== undefined) {
      this.addresses.push(there);
      return null;
    }
    const index = this.array.add(this.#length, digest, crc);
    const address = this.array.offsetOf(index);
    this.#known.add(digest, this.#length, address);
    this.addresses.push(address);
    return index;
  }

  /** FileCutter makes zeros of holes; a ref has only what the layer has, and the reader refused the others. */
  zeroFile(): never {
    throw new HeadstartError("HS_INTERNAL", { what: `layer ${this.#layer}: a file without data` });
  }
}

interface RefReaderOptions {
  readonly role: LayerRole;
  readonly layer: string;
  readonly size: number;
  readonly chunkSize: number;
  readonly chunks: RefChunks;
}

/** The stored bytes of a layer, gzip or plain, to its tree and chunks. */
class RefReader implements Disposable {
  readonly #options: RefReaderOptions;
  readonly #tree: LayerTreeBuilder;
  readonly #reader: TarReader;
  readonly #hash = createHash("sha256");
  /** The first bytes, until they tell what the layer is. */
  #start: Uint8Array | null = new Uint8Array(0);
  #inflate: GzipInflate | null = null;
  #zran: ZranContexts | null = null;
  #headerIsNext = true;
  /** The piece of the layer that is being pushed: where it begins, and the byte before it. */
  #pushed: Uint8Array = new Uint8Array(0);
  #pushedStart = 0;
  #lastByte = 0;
  /** Bytes of the tar so far, and where the decoder is to stop next. */
  #tarOffset = 0;
  #limit = TAR_BLOCK;
  /** Of the file whose data come, where they end; -1 between files. */
  #dataEnd = -1;
  #chunkEnd = -1;
  #chunkStart: Place = { stored: 0, plain: 0 };

  constructor(options: RefReaderOptions) {
    this.#options = options;
    const { role, layer } = options;
    this.#tree = new LayerTreeBuilder(role, layer);
    this.#reader = new TarReader(
      { entry: (entry) => this.#entry(entry), data: (bytes, offset) => this.#data(bytes, offset) },
      { layer },
    );
  }

  push(bytes: Uint8Array): void {
    if (this.#start === null) {
      this.#push(bytes);
      return;
    }
    this.#start = Buffer.concat([this.#start, bytes]);
    if (this.#start.byteLength >= MAGIC_BYTES) this.#begin();
  }

  /** Throws HS_LAYER_REFUSED, HS_NYDUS_LIMIT. */
  finish(): {
    readonly tree: FileTree;
    readonly diffID: DiffID;
    readonly restarts: WrittenRestartPoints | null;
    readonly isZran: boolean;
  } {
    if (this.#start !== null) this.#begin();
    this.#inflate?.finish();
    this.#reader.finish();
    return {
      tree: this.#tree.finish(),
      diffID: `sha256:${this.#hash.digest("hex")}` as DiffID,
      restarts: this.#zran?.finish() ?? null,
      isZran: this.#zran !== null,
    };
  }

  [Symbol.dispose](): void {
    this.#inflate?.[Symbol.dispose]();
  }

  #begin(): void {
    const start = this.#start!;
    this.#start = null;
    const { layer, size, chunkSize } = this.#options;
    const compression = detectCompression(start);
    if (compression === "zstd") {
      throw new HeadstartError("HS_FORMAT_UNSUPPORTED", {
        what: `layer ${layer}: a zstd layer has no restart points for a Nydus ref; use --to nydus`,
        layer,
      });
    }
    if (compression === "gzip") {
      const zran = new ZranContexts(layer, chunkSize, size);
      this.#zran = zran;
      const inflate = new GzipInflate({
        data: (bytes) => {
          zran.handed((plain) => inflate.windowAt(plain));
          this.#tar(bytes);
        },
        limit: () => this.#limit,
        boundary: (stored, plain, bits) => {
          zran.boundary({ stored, plain }, bits, bits === 0 ? 0 : this.#byteBefore(stored), this.#headerIsNext);
          this.#headerIsNext = false;
          return 0;
        },
        memberEnd: () => {
          zran.memberEnd(inflate.produced);
          this.#headerIsNext = true;
        },
      });
      this.#inflate = inflate;
    } else if (chunkSize === NYDUS_LIMITS.chunkSizeMax) {
      throw new HeadstartError("HS_USAGE", {
        what: `layer ${layer}: a ref to a plain tar has no room for the size of a chunk of ${chunkSize} bytes`,
      });
    }
    if (start.byteLength > 0) this.#push(start);
  }

  #push(bytes: Uint8Array): void {
    this.#pushed = bytes;
    if (this.#inflate === null) this.#tar(bytes);
    else this.#inflate.push(bytes);
    this.#pushedStart += bytes.byteLength;
    this.#lastByte = bytes.at(-1) ?? this.#lastByte;
  }

  #byteBefore(stored: number): number {
    return stored === this.#pushedStart ? this.#lastByte : this.#pushed[stored - this.#pushedStart - 1]!;
  }

  #tar(bytes: Uint8Array): void {
    this.#hash.update(bytes);
    this.#tarOffset += bytes.byteLength;
    // between files the decoder stops at each block: the next one may be the last before data
    this.#limit = alignUp(this.#tarOffset + 1, TAR_BLOCK);
    this.#reader.push(bytes);
  }

  #entry(entry: TarEntry): boolean {
    const { dataWanted } = this.#tree.add(entry);
    const { sparse, size } = entry;
    const isWhole = sparse === null || (sparse.length === 1 && sparse[0]!.length === size);
    if (!isWhole && size > 0) {
      throw new HeadstartError("HS_NYDUS_LIMIT", {
        what: `layer ${this.#options.layer}: entry ${entry.number} is a sparse file, whose holes are not in the layer; use --to nydus`,
      });
    }
    if (!dataWanted) return false;
    this.#options.chunks.beginFile(entry);
    this.#dataEnd = entry.dataOffset + size;
    this.#beginChunk(entry.dataOffset);
    return true;
  }

  #data(bytes: Uint8Array, offset: number): void {
    for (let at = 0; at < bytes.byteLength; ) {
      const take = Math.min(bytes.byteLength - at, this.#chunkEnd - offset - at);
      this.#options.chunks.update(bytes.subarray(at, at + take));
      at += take;
      if (offset + at < this.#chunkEnd) continue;
      this.#endChunk();
      if (this.#chunkEnd < this.#dataEnd) this.#beginChunk(this.#chunkEnd);
    }
  }

  /** In a gzip layer the decoder stands at `offset` of the tar now: it has stopped here. */
  #beginChunk(offset: number): void {
    const { chunks, chunkSize } = this.#options;
    this.#chunkEnd = Math.min(offset + chunkSize, this.#dataEnd);
    this.#limit = this.#chunkEnd;
    chunks.begin();
    this.#chunkStart = { stored: this.#inflate?.consumed ?? offset, plain: offset };
    this.#zran?.begin(this.#chunkStart);
  }

  #endChunk(): void {
    const { chunks } = this.#options;
    const index = chunks.end();
    const { stored, plain } = this.#chunkStart;
    const size = this.#chunkEnd - plain;
    this.#limit = Math.max(alignUp(this.#tarOffset, TAR_BLOCK) + TAR_BLOCK, this.#chunkEnd);
    if (this.#zran === null) {
      if (index !== null) chunks.array.stored(index, stored, size, 0);
      return;
    }
    const end = this.#inflate!.consumed;
    const place = this.#zran.end({ stored: end, plain: this.#chunkEnd }, index !== null);
    if (index === null || place === null) return;
    chunks.array.inContext(index, place.context, place.offset, ZRAN, stored, end - stored);
  }
}

const ZRAN = ChunkFlag.compressed | ChunkFlag.zran;
