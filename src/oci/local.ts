/**
 * Readers over local files: blobs that lie as a piece of some file (a layout's blob, a member of an archive, a blob in containerd's
 * content directory). What differs is only how a digest is located and what the source names.
 */

import { type FileHandle, open } from "node:fs/promises";
import type { Digest } from "../base/digest.ts";
import { HeadstartError } from "../base/errors.ts";
import { LIMITS, MiB } from "../base/limits.ts";
import { type Descriptor, isImageEntry } from "./descriptor.ts";
import { digestOf, parseIndex, parseManifest, sniffManifestType } from "./manifest.ts";
import { isConfigType, isIndexType, isManifestType } from "./media-types.ts";
import type {
  BlobHandle,
  BlobSizes,
  ImageReader,
  RangeOptions,
  ReadOptions,
  ReferrersOptions,
  StreamOptions,
} from "./store.ts";
import { checkLimit, collectVerified, rangeTarget, sizeMismatch, verified } from "./verify.ts";

/** Bytes of a file. */
export interface FilePiece {
  readonly path: string;
  readonly offset: number;
  readonly size: number;
}

export interface BlobLocator {
  /** Where the blob lies, or undefined. */
  locate(digest: Digest): Promise<FilePiece | undefined>;
}

const CHUNK_BYTES = MiB;

class FileBlob implements BlobHandle {
  readonly descriptor: Descriptor;
  readonly what: string;
  readonly sourceCount = 1;
  readonly #locator: BlobLocator;

  constructor(descriptor: Descriptor, what: string, locator: BlobLocator) {
    this.descriptor = descriptor;
    this.what = what;
    this.#locator = locator;
  }

  stream(offset: number, options: StreamOptions = {}): AsyncIterable<Uint8Array> {
    const chunks = this.#chunks(offset, options);
    return offset === 0 && !options.callerVerifies ? verified(chunks, this.descriptor, this.what) : chunks;
  }

  async *#chunks(offset: number, { signal, passing }: StreamOptions): AsyncGenerator<Uint8Array> {
    const piece = await this.#locate();
    await using file = await open(piece.path, "r");
    let buffer: Uint8Array | undefined;
    for (let position = offset; position < piece.size; ) {
      signal?.throwIfAborted();
      const length = Math.min(CHUNK_BYTES, piece.size - position);
      if (passing) buffer ??= new Uint8Array(length);
      const chunk = buffer?.subarray(0, length) ?? new Uint8Array(length);
      await readExactly(file, chunk, piece.offset + position, this.what);
      yield chunk;
      position += chunk.byteLength;
    }
  }

  async readRange(start: number, end: number, options: RangeOptions = {}): Promise<Uint8Array> {
    options.signal?.throwIfAborted();
    const target = rangeTarget(start, end, this.descriptor.size, options.into, this.what);
    const piece = await this.#locate();
    await using file = await open(piece.path, "r");
    await readExactly(file, target, piece.offset + start, this.what);
    return target;
  }

  readAll(options: ReadOptions & { readonly limit?: number } = {}): Promise<Uint8Array> {
    return collectVerified(this.#chunks(0, { ...options, passing: true }), this.descriptor, this.what, options.limit);
  }

  async #locate(): Promise<FilePiece> {
    const piece = await this.#locator.locate(this.descriptor.digest);
    if (piece === undefined) throw new HeadstartError("HS_BLOB_NOT_FOUND", { what: this.what });
    if (piece.size !== this.descriptor.size) throw sizeMismatch(piece.size, this.descriptor, this.what);
    return piece;
  }
}

export async function readExactly(file: FileHandle, into: Uint8Array, position: number, what: string): Promise<void> {
  let done = 0;
  while (done < into.byteLength) {
    const { bytesRead } = await file.read(into, done, into.byteLength - done, position + done);
    if (bytesRead === 0) {
      throw new HeadstartError("HS_TRUNCATED", { what: `${what}: the file ends at byte ${position + done}` });
    }
    done += bytesRead;
  }
}

export interface LocalReaderParts {
  readonly what: string;
  readonly locator: BlobLocator;
  resolve(): Promise<Descriptor>;
  /** Where a search for referrers begins: the entries of index.json. */
  roots?(): Promise<readonly Descriptor[]>;
  /** A manifest that is no blob of its own, such as index.json itself or one that we made up for a `docker save` archive. */
  inline?(digest: Digest): Uint8Array | undefined;
}

export class LocalReader implements ImageReader, BlobSizes, AsyncDisposable {
  readonly what: string;
  readonly #parts: LocalReaderParts;

  constructor(parts: LocalReaderParts) {
    this.what = parts.what;
    this.#parts = parts;
  }

  async resolve(signal?: AbortSignal): Promise<Descriptor> {
    signal?.throwIfAborted();
    return this.#parts.resolve();
  }

  async readManifest(manifest: Descriptor | Digest, signal?: AbortSignal): Promise<Uint8Array> {
    const digest = digestOf(manifest);
    const what = `${this.what}: manifest ${digest}`;
    const inline = this.#parts.inline?.(digest);
    if (inline !== undefined) return inline;
    const piece = await this.#parts.locator.locate(digest);
    if (piece === undefined) throw new HeadstartError("HS_NOT_FOUND", { what });
    const size = typeof manifest === "string" ? piece.size : manifest.size;
    checkLimit(size, LIMITS.manifestBytes, what);
    const blob = new FileBlob({ mediaType: "", digest, size }, what, this.#parts.locator);
    return blob.readAll({ signal });
  }

  async blobSize(digest: Digest): Promise<number | undefined> {
    return (await this.#parts.locator.locate(digest))?.size;
  }

  openBlob(descriptor: Descriptor): BlobHandle {
    return new FileBlob(descriptor, `${this.what}: blob ${descriptor.digest}`, this.#parts.locator);
  }

  /** The entries of index.json (and of the indexes in it) whose manifest has that subject, each described as the referrers API would. */
  async referrers(subject: Digest, options: ReferrersOptions = {}): Promise<Descriptor[]> {
    const found = new Map<Digest, Descriptor>();
    const queue = [...((await this.#parts.roots?.()) ?? [])];
    for (let index = 0; index < queue.length && index < REFERRER_ROOTS_MAX; index++) {
      const entry = queue[index]!;
      if (isIndexType(entry.mediaType)) {
        const inner = parseIndex(await this.readManifest(entry, options.signal), `index ${entry.digest}`);
        if (inner.subject?.digest === subject && inner.artifactType) found.set(entry.digest, entry);
        queue.push(...inner.manifests);
      } else if (isManifestType(entry.mediaType) && (await this.#parts.locator.locate(entry.digest)) !== undefined) {
        const manifest = parseManifest(await this.readManifest(entry, options.signal), `manifest ${entry.digest}`);
        if (manifest.subject?.digest !== subject) continue;
        const artifactType = manifest.artifactType ?? manifest.config.mediaType;
        const { mediaType, digest, size } = entry;
        const annotations = manifest.annotations === undefined ? {} : { annotations: manifest.annotations };
        found.set(digest, { mediaType, digest, size, ...annotations, artifactType });
      }
    }
    const all = [...found.values()];
    return options.artifactType === undefined ? all : all.filter((one) => one.artifactType === options.artifactType);
  }

  async [Symbol.asyncDispose](): Promise<void> {}
}

const REFERRER_ROOTS_MAX = 10_000;

/** Describes a manifest that only its digest is known of, by reading it. */
export async function describeManifest(reader: ImageReader, digest: Digest): Promise<Descriptor> {
  const bytes = await reader.readManifest(digest);
  return { mediaType: sniffManifestType(bytes, `manifest ${digest}`), digest, size: bytes.byteLength };
}

const REF_NAME = "org.opencontainers.image.ref.name";
const CONTAINERD_NAME = "io.containerd.image.name";

/**
 * The entry of an index.json that a tag means: its ref.name, or its containerd name, whole or by tag alone. Without a tag the only image there
 * is; "whole" means that the index as such is the image (one nameless entry per platform). Throws HS_NOT_FOUND with the names there are.
 */
export function selectEntry(
  entries: readonly Descriptor[],
  tag: string | undefined,
  what: string,
): Descriptor | "whole" {
  const images = entries.filter(isImageEntry);
  const nameOf = (entry: Descriptor, key: string) => entry.annotations?.[key];
  if (tag !== undefined) {
    const named =
      entries.find((entry) => nameOf(entry, REF_NAME) === tag) ??
      entries.find((entry) => nameOf(entry, CONTAINERD_NAME) === tag) ??
      entries.find((entry) => nameOf(entry, CONTAINERD_NAME)?.endsWith(`:${tag}`) && !tag.includes("/"));
    if (named !== undefined) return named;
  } else {
    if (new Set(images.map((entry) => entry.digest)).size === 1) return images[0]!;
    const nameless = images.filter((entry) => nameOf(entry, REF_NAME) === undefined);
    if (nameless.length === 1) return nameless[0]!;
    if (nameless.length > 1 && nameless.every((entry) => entry.platform !== undefined)) return "whole";
  }
  const names = entries
    .map((entry) => nameOf(entry, REF_NAME) ?? nameOf(entry, CONTAINERD_NAME))
    .filter((name) => name);
  const wanted = tag === undefined ? "several images, say which" : `no image ${JSON.stringify(tag)}`;
  throw new HeadstartError("HS_NOT_FOUND", {
    what: `${what}: ${entries.length === 0 ? "no image at all" : wanted}; there are: ${names.join(", ") || "none with a name"}`,
  });
}

/** What a referrers answer or index.json says the type of an artifact is; undefined for images. */
export function artifactTypeOf(manifest: {
  readonly artifactType?: string;
  readonly config?: Descriptor;
}): string | undefined {
  if (manifest.artifactType) return manifest.artifactType;
  const type = manifest.config?.mediaType;
  return type === undefined || isConfigType(type) ? undefined : type;
}
