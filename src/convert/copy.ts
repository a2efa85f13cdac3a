/** Copies manifests with all that they name from a reader to a writer. What the destination has is not read. */

import type { Digest } from "../base/digest.ts";
import { isHeadstartError } from "../base/errors.ts";
import { Limit } from "../base/limit.ts";
import type { Descriptor } from "../oci/descriptor.ts";
import { parseIndex, parseManifest } from "../oci/manifest.ts";
import { isIndexType, isManifestType } from "../oci/media-types.ts";
import type { ImageReader, ImageWriter, StoredBlob } from "../oci/store.ts";
import type { OnProgress } from "./progress.ts";

/** As SOCI's default for uploads. */
const BLOBS_AT_ONCE = 3;
/** Indexes in indexes: nobody nests deeper. */
const DEPTH_MAX = 4;

export class Copier {
  readonly source: ImageReader;
  readonly destination: ImageWriter;
  readonly signal: AbortSignal | undefined;
  readonly #onProgress: OnProgress | undefined;
  readonly #limit = new Limit(BLOBS_AT_ONCE);
  readonly #streams = new Limit(BLOBS_AT_ONCE);
  readonly #blobs = new Map<Digest, Promise<void>>();

  constructor(
    source: ImageReader,
    destination: ImageWriter,
    options: { signal?: AbortSignal | undefined; onProgress?: OnProgress | undefined } = {},
  ) {
    this.source = source;
    this.destination = destination;
    this.signal = options.signal;
    this.#onProgress = options.onProgress;
  }

  /** True if the blob was pushed, or is being. */
  knows(digest: Digest): boolean {
    return this.#blobs.has(digest);
  }

  /** Each blob once, however often it is named. `push` does it in another way than by reading it from the source. */
  blob(descriptor: Descriptor, push?: () => Promise<void>): Promise<void> {
    const known = this.#blobs.get(descriptor.digest);
    if (known !== undefined) return known;
    const work = this.#limit.run(push ?? (() => this.#copyBlob(descriptor)), { signal: this.signal }).then(() => {
      this.pushed(descriptor);
    });
    this.#blobs.set(descriptor.digest, work);
    return work;
  }

  /** Bytes that were made here. */
  async bytes(descriptor: Descriptor, bytes: Uint8Array): Promise<void> {
    await this.blob(descriptor, () => this.destination.pushBlob(descriptor, bytes, { signal: this.signal }));
  }

  /** A blob that is made on the way, perhaps of one that is being copied: they do not wait for each other. */
  async stream(chunks: AsyncIterable<Uint8Array>, mediaType: string): Promise<StoredBlob> {
    const { signal } = this;
    const stored = await this.#streams.run(() => this.destination.pushStream(chunks, { signal }), { signal });
    this.pushed({ ...stored, mediaType });
    return stored;
  }

  async manifest(bytes: Uint8Array, mediaType: string, tag?: string): Promise<Descriptor> {
    const descriptor = await this.destination.pushManifest(bytes, mediaType, tag, { signal: this.signal });
    this.pushed(descriptor);
    return descriptor;
  }

  /**
   * A manifest or index with everything below it. False: the source does not have it itself (a partial copy of an image): then it stays named, as it
   * was.
   */
  async tree(descriptor: Descriptor, tag?: string, depth = 0): Promise<boolean> {
    let bytes: Uint8Array;
    try {
      bytes = await this.source.readManifest(descriptor, this.signal);
    } catch (error) {
      if (isHeadstartError(error, "HS_NOT_FOUND", "HS_BLOB_NOT_FOUND")) return false;
      throw error;
    }
    if (isIndexType(descriptor.mediaType)) {
      const { manifests } = parseIndex(bytes, `index ${descriptor.digest}`);
      if (depth < DEPTH_MAX) for (const child of manifests) await this.child(child, depth + 1);
    } else {
      const { config, layers } = parseManifest(bytes, `manifest ${descriptor.digest}`);
      await Promise.all([config, ...layers].map((blob) => this.blob(blob)));
    }
    await this.manifest(bytes, descriptor.mediaType, tag);
    return true;
  }

  /** What an index names: a manifest with its tree, or, oddly, a blob. */
  async child(descriptor: Descriptor, depth = 1): Promise<void> {
    if (isIndexType(descriptor.mediaType) || isManifestType(descriptor.mediaType))
      await this.tree(descriptor, undefined, depth);
    else await this.blob(descriptor);
  }

  pushed({ digest, size, mediaType }: Descriptor): void {
    this.#onProgress?.({ t: "pushed", digest, size, mediaType });
  }

  async #copyBlob(descriptor: Descriptor): Promise<void> {
    const { signal } = this;
    // a foreign layer lies elsewhere; what names it says where
    if ((descriptor.urls?.length ?? 0) > 0 && !(await this.destination.hasBlob(descriptor, { signal }))) {
      const known = await this.#sourceHas(descriptor);
      if (!known) return;
    }
    const blob = this.source.openBlob(descriptor);
    await this.destination.pushBlob(descriptor, () => blob.stream(0, { signal }), { signal });
  }

  async #sourceHas(descriptor: Descriptor): Promise<boolean> {
    try {
      await this.source.openBlob(descriptor).readRange(0, Math.min(1, descriptor.size), { signal: this.signal });
      return true;
    } catch {
      return false;
    }
  }
}
