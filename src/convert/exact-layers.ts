/**
 * The layers that a native image of ours was made of, to the bit of their tars: put together from each blob's part `tar.split` and its chunks (specs/nydus.md 3.7), held against the
 * diffID that the manifest has for the layer, and compressed anew. The image that was converted is not read.
 */

import { type Digest, digestHex } from "../base/digest.ts";
import { HeadstartError } from "../base/errors.ts";
import { MiB } from "../base/limits.ts";
import type { NydusBlob } from "../formats/nydus/blob-table.ts";
import { TOC_TAIL_BYTES, type TocEntry, tocOfTail } from "../formats/nydus/blob-tail.ts";
import { chunkInfoFromBlob, decompress } from "../formats/nydus/chunk-info.ts";
import { readLayerBootstrap } from "../formats/nydus/layer-bootstrap.ts";
import { CI_HEADER_SIZE, Compressor, NYDUS_LIMITS, nydusInvalid } from "../formats/nydus/ondisk.ts";
import { TAR_SPLIT_NAME } from "../formats/nydus/tar-split.ts";
import { imageBlobs } from "../formats/nydus/write/dictionary.ts";
import { unpackTar } from "../formats/nydus/write/reverse.ts";
import { StoredChunks } from "../formats/nydus/write/stored-chunks.ts";
import { pieceHash } from "../formats/piece-hash.ts";
import type { Descriptor } from "../oci/descriptor.ts";
import type { LoadedImage } from "../oci/manifest.ts";
import { MEDIA_TYPES } from "../oci/media-types.ts";
import type { BlobHandle } from "../oci/store.ts";
import type { Copier } from "./copy.ts";
import { gzipped } from "./gzip.ts";
import { type SourceLayer, sourceLayerOf } from "./nydus-manifest.ts";
import type { Together } from "./together.ts";

/** One request. */
const RANGE_BYTES = 4 * MiB;

/** A blob of the image with its table of contents. */
interface Stored {
  readonly descriptor: Descriptor;
  readonly handle: BlobHandle;
  readonly toc: readonly TocEntry[];
}

/** Null where the blobs do not tell: they are of other tools. Throws HS_NYDUS_INVALID, HS_DIFFID_MISMATCH, and what reading and pushing throw. */
export async function exactLayers(
  copier: Copier,
  together: Together,
  image: LoadedImage,
): Promise<SourceLayer[] | null> {
  const blobs = image.layers.slice(0, -1);
  // blobs of a chunk dictionary stand behind those of the layers, and were made of no layer of this image
  const sources = blobs.map(sourceLayerOf);
  const count = sources.findLastIndex((source) => source !== null) + 1;
  if (count === 0 || sources.slice(0, count).includes(null)) return null;
  const stored = await Promise.all(blobs.map((blob) => openStored(copier, blob)));
  if (stored.slice(0, count).some((blob) => blob === null || tarSplitOf(blob) === undefined)) return null;
  const byId = new Map(stored.flatMap((blob) => (blob === null ? [] : [[digestHex(blob.descriptor.digest), blob]])));
  return await together.all(
    sources.slice(0, count).map(async (source, position) => {
      const { diffID } = source!;
      const tar = tarOf(stored[position]!, byId, diffID, copier.signal);
      const made = await copier.stream(gzipped(tar), MEDIA_TYPES.ociLayerGzip);
      return { descriptor: { mediaType: MEDIA_TYPES.ociLayerGzip, ...made }, diffID };
    }),
  );
}

/** Null for a blob without a table of contents. */
async function openStored({ source, signal }: Copier, descriptor: Descriptor): Promise<Stored | null> {
  const handle = source.openBlob(descriptor);
  const { size } = descriptor;
  const tail = await handle.readRange(Math.max(0, size - TOC_TAIL_BYTES), size, { signal });
  const toc = tocOfTail(tail, size, handle.what);
  return toc === null ? null : { descriptor, handle, toc };
}

function tarSplitOf({ toc }: Stored): TocEntry | undefined {
  return toc.find(({ name }) => name === TAR_SPLIT_NAME);
}

async function* tarOf(
  blob: Stored,
  byId: ReadonlyMap<string, Stored>,
  diffID: Digest,
  signal: AbortSignal | undefined,
): AsyncGenerator<Uint8Array> {
  const { what } = blob.handle;
  const part = tarSplitOf(blob)!;
  const chunks = new LayerChunks(blob, byId, signal);
  const tar = unpackTar(rangesOf(blob.handle, part.storedOffset, part.storedSize, signal), chunks, what);
  for (;;) {
    const { done, value } = await tar.next();
    if (done !== true) {
      yield value;
      continue;
    }
    const got = `sha256:${value.sha256}`;
    if (got === diffID) return;
    throw new HeadstartError("HS_DIFFID_MISMATCH", {
      what: `${what}: its tar has ${got}, the manifest names ${diffID}`,
    });
  }
}

async function* rangesOf(
  handle: BlobHandle,
  start: number,
  size: number,
  signal: AbortSignal | undefined,
): AsyncGenerator<Uint8Array> {
  for (let at = start; at < start + size; at += RANGE_BYTES)
    yield await handle.readRange(at, Math.min(at + RANGE_BYTES, start + size), { signal });
}

/** Chunks of one layer: of its own blob, and of the dictionary's. Digests are those of the blobs; what they vouch for the diffID decides in the end. */
class LayerChunks {
  readonly #own: Stored;
  readonly #byId: ReadonlyMap<string, Stored>;
  readonly #signal: AbortSignal | undefined;
  #bootstrap: Promise<ReturnType<typeof readLayerBootstrap>> | null = null;
  readonly #opened = new Map<string, Promise<StoredChunks>>();

  constructor(own: Stored, byId: ReadonlyMap<string, Stored>, signal: AbortSignal | undefined) {
    this.#own = own;
    this.#byId = byId;
    this.#signal = signal;
  }

  async read(blob: string | null, chunk: number): Promise<Uint8Array> {
    const id = blob ?? digestHex(this.#own.descriptor.digest);
    let opened = this.#opened.get(id);
    if (opened === undefined) {
      opened = this.#open(id);
      this.#opened.set(id, opened);
    }
    return await (await opened).read(chunk);
  }

  async #open(id: string): Promise<StoredChunks> {
    this.#bootstrap ??= this.#readBootstrap();
    const bootstrap = await this.#bootstrap;
    const { what } = this.#own.handle;
    const blob = bootstrap.blobs.find((one) => one.id === id);
    const stored = this.#byId.get(id);
    if (blob === undefined || blob.chunkInfo === null || stored === undefined)
      throw nydusInvalid(what, `its tar needs blob ${id}, which is not in the image`);
    const { offset, compressedSize } = blob.chunkInfo;
    const read = (start: number, end: number) => stored.handle.readRange(start, end, { signal: this.#signal });
    const info = chunkInfoFromBlob(blob, await read(offset, offset + compressedSize + CI_HEADER_SIZE));
    const digests = await this.#digests(stored, blob, info.count, () => imageBlobs(bootstrap));
    return new StoredChunks({ blob, info, digests, digest: await pieceHash(blob.digester), read });
  }

  async #readBootstrap() {
    const { descriptor, handle } = this.#own;
    const part = this.#own.toc.find(({ name }) => name === "image.boot");
    if (part === undefined) throw nydusInvalid(handle.what, "no part image.boot");
    if (part.size > NYDUS_LIMITS.bootstrapBytes || part.storedSize > NYDUS_LIMITS.bootstrapBytes)
      throw new HeadstartError("HS_LIMIT", { what: `${handle.what}: a bootstrap of ${part.size} bytes` });
    const bytes = await handle.readRange(part.storedOffset, part.storedOffset + part.storedSize, {
      signal: this.#signal,
    });
    const compressor = part.compression === "none" ? Compressor.none : Compressor.zstd;
    const plain = decompress(compressor, bytes, part.size, `${handle.what}: image.boot`);
    const containing = { id: digestHex(descriptor.digest), size: descriptor.size };
    return readLayerBootstrap(plain, containing, "upper", handle.what);
  }

  /** 32 bytes a chunk: all that the blob keeps, else those that the bootstrap has. */
  async #digests(
    stored: Stored,
    blob: NydusBlob,
    count: number,
    known: () => ReturnType<typeof imageBlobs>,
  ): Promise<Uint8Array> {
    const part = stored.toc.find(({ name }) => name === "blob.digest");
    if (part !== undefined && part.compression === "none" && part.storedSize === count * 32)
      return await stored.handle.readRange(part.storedOffset, part.storedOffset + part.storedSize, {
        signal: this.#signal,
      });
    const digests = new Uint8Array(count * 32);
    const chunks = known().find(({ facts }) => facts.id === blob.id)?.chunks;
    for (let element = 0; element < (chunks?.count ?? 0); element++)
      digests.set(chunks!.digest.subarray(element * 32, element * 32 + 32), (chunks!.index?.[element] ?? element) * 32);
    return digests;
  }
}
