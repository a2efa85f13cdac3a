/**
 * OCI image layout directories (image-spec image-layout.md): `oci-layout`, `index.json`, `blobs/<algorithm>/<hex>`. Reading trusts no
 * name: bytes are checked against their digest. Writing puts a blob beside and renames it, so a blob that is there is whole.
 */

import { randomUUID } from "node:crypto";
import { mkdir, open, readFile, rename, rm, stat } from "node:fs/promises";
import { join } from "node:path";
import { type Digest, digestAlgorithm, digestHex, sha256 } from "../base/digest.ts";
import { HeadstartError } from "../base/errors.ts";
import { writeFileDurably } from "../base/files.ts";
import { LIMITS } from "../base/limits.ts";
import type { Descriptor } from "./descriptor.ts";
import { goIndex } from "./gojson.ts";
import { ManifestLedger } from "./ledger.ts";
import { type BlobLocator, describeManifest, LocalReader, selectEntry } from "./local.ts";
import { type ImageIndex, parseIndex } from "./manifest.ts";
import { MEDIA_TYPES } from "./media-types.ts";
import { type BlobSource, type ImageWriter, openBlobSource, type StoredBlob, type WriteOptions } from "./store.ts";
import { checkLimit, DigestingStream, verified } from "./verify.ts";

export const LAYOUT_FILE = '{"imageLayoutVersion":"1.0.0"}';

/** `<directory>/<algorithm>/<hex>`: the blobs of a layout and of containerd's content store lie so. */
export function directoryLocator(directory: string): BlobLocator {
  return {
    async locate(digest) {
      const path = blobPath(directory, digest);
      const known = await stat(path).catch((error: NodeJS.ErrnoException) => {
        if (error.code === "ENOENT" || error.code === "ENOTDIR") return undefined;
        throw error;
      });
      return known?.isFile() ? { path, offset: 0, size: known.size } : undefined;
    },
  };
}

export function blobPath(directory: string, digest: Digest): string {
  return join(directory, digestAlgorithm(digest), digestHex(digest));
}

export async function openLayout(
  directory: string,
  which: { readonly tag?: string; readonly digest?: Digest },
  what: string,
): Promise<LocalReader> {
  const indexBytes = await readSmall(join(directory, "index.json"), what);
  const index = parseIndex(indexBytes, `${what}: index.json`);
  return layoutReader({ what, locator: directoryLocator(join(directory, "blobs")), indexBytes, index, ...which });
}

/** A reader over anything that has an index.json and a locator. */
export function layoutReader(parts: {
  readonly what: string;
  readonly locator: BlobLocator;
  readonly indexBytes: Uint8Array;
  readonly index: ImageIndex;
  readonly tag?: string;
  readonly digest?: Digest;
}): LocalReader {
  const { what, locator, index, indexBytes } = parts;
  const indexDigest = sha256(indexBytes);
  const reader = new LocalReader({
    what,
    locator,
    resolve: async () => {
      if (parts.digest !== undefined) {
        const entry = index.manifests.find((one) => one.digest === parts.digest);
        return entry ?? (await describeManifest(reader, parts.digest));
      }
      const entry = selectEntry(index.manifests, parts.tag, what);
      if (entry !== "whole") return entry;
      return { mediaType: MEDIA_TYPES.ociIndex, digest: indexDigest, size: indexBytes.byteLength };
    },
    roots: async () => index.manifests,
    inline: (digest) => (digest === indexDigest ? indexBytes : undefined),
  });
  return reader;
}

async function readSmall(path: string, what: string): Promise<Uint8Array> {
  const known = await stat(path).catch((cause) => {
    throw new HeadstartError("HS_NOT_FOUND", { what: `${what}: no index.json: not an OCI layout`, cause });
  });
  checkLimit(known.size, LIMITS.manifestBytes, path);
  return readFile(path);
}

export class LayoutWriter implements ImageWriter, AsyncDisposable {
  readonly what: string;
  readonly tag: string | undefined;
  readonly #directory: string;
  readonly #locator: BlobLocator;
  readonly #ledger = new ManifestLedger();

  constructor(directory: string, tag: string | undefined, what: string) {
    this.#directory = directory;
    this.#locator = directoryLocator(join(directory, "blobs"));
    this.tag = tag;
    this.what = what;
  }

  async hasBlob(descriptor: Descriptor): Promise<boolean> {
    return (await this.#locator.locate(descriptor.digest))?.size === descriptor.size;
  }

  async pushBlob(descriptor: Descriptor, source: BlobSource, options: WriteOptions = {}): Promise<void> {
    if (await this.hasBlob(descriptor)) return;
    await this.#store(verified(openBlobSource(source), descriptor, this.what), () => descriptor.digest, options);
  }

  async pushStream(chunks: AsyncIterable<Uint8Array>, options: WriteOptions = {}): Promise<StoredBlob> {
    const digesting = new DigestingStream(chunks);
    await this.#store(digesting, () => digesting.stored.digest, options);
    return digesting.stored;
  }

  /** `digest` is asked for when all has been written. */
  async #store(chunks: AsyncIterable<Uint8Array>, digest: () => Digest, options: WriteOptions): Promise<void> {
    await mkdir(this.#directory, { recursive: true });
    const temporary = join(this.#directory, `.blob-${randomUUID()}`);
    try {
      await using file = await open(temporary, "wx", 0o644);
      for await (const chunk of chunks) {
        options.signal?.throwIfAborted();
        await file.writeFile(chunk);
      }
      await file.datasync();
      const path = blobPath(join(this.#directory, "blobs"), digest());
      await mkdir(join(path, ".."), { recursive: true });
      await rename(temporary, path);
    } catch (error) {
      await rm(temporary, { force: true });
      throw error;
    }
  }

  async pushManifest(
    bytes: Uint8Array,
    mediaType: string,
    tag?: string,
    options: WriteOptions = {},
  ): Promise<Descriptor> {
    const descriptor = this.#ledger.add(bytes, mediaType, tag);
    await this.pushBlob(descriptor, bytes, options);
    return descriptor;
  }

  /** Adds what was pushed to index.json; an entry of the same name or digest gives way. */
  async finish(): Promise<void> {
    await mkdir(join(this.#directory, "blobs"), { recursive: true });
    writeFileDurably(join(this.#directory, "oci-layout"), LAYOUT_FILE, 0o644);
    const path = join(this.#directory, "index.json");
    const known = await readFile(path).catch((error: NodeJS.ErrnoException) => {
      if (error.code === "ENOENT") return undefined;
      throw error;
    });
    const before = known === undefined ? [] : parseIndex(known, `${this.what}: index.json`).manifests;
    const index = { mediaType: MEDIA_TYPES.ociIndex, manifests: this.#ledger.merge(before) };
    writeFileDurably(path, goIndex(index), 0o644);
  }

  async [Symbol.asyncDispose](): Promise<void> {}
}
