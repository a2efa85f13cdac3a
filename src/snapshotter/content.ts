/**
 * Manifests and configurations from containerd's content store (specs/containerd.md 9.1): they are there before the first Prepare and cost no network. Read from its directory, which is
 * fastest, else asked for by gRPC (another root, no access). Whatever comes is verified by its digest; what cannot be had is null, and then the registry is asked.
 * Not for layers: blobs of all namespaces lie in one directory, and who may see one is in containerd's database.
 */

import { constants } from "node:fs";
import { open } from "node:fs/promises";
import { join } from "node:path";
import { type Digest, digestAlgorithm, digestHex, verifyDigest } from "../base/digest.ts";
import { describeError, HeadstartError } from "../base/errors.ts";
import { publish } from "../base/events.ts";
import { LIMITS } from "../base/limits.ts";
import type { ManifestSource } from "../image/open.ts";
import type { ContainerdClient } from "./containerd.ts";

export interface ContentPlaces {
  /** containerd's root directory, e.g. /var/lib/containerd; null: only ask. */
  readonly root: string | null;
  /** Null: only read. */
  readonly client: ContainerdClient | null;
}

export class ContainerdContent implements ManifestSource {
  readonly #places: ContentPlaces;

  constructor(places: ContentPlaces) {
    this.#places = places;
  }

  async read(
    digest: Digest,
    options: { namespace: string | null; signal?: AbortSignal | undefined },
  ): Promise<Uint8Array | null> {
    return (
      (await this.#attempt("directory", digest, () => this.#fromDirectory(digest))) ??
      (await this.#attempt("grpc", digest, () => this.#fromService(digest, options)))
    );
  }

  async #fromDirectory(digest: Digest): Promise<Uint8Array | null> {
    if (this.#places.root === null) return null;
    const blobs = join(this.#places.root, "io.containerd.content.v1.content/blobs");
    const file = await open(
      join(blobs, digestAlgorithm(digest), digestHex(digest)),
      constants.O_RDONLY | constants.O_NOFOLLOW,
    );
    try {
      const { size } = await file.stat();
      if (size > LIMITS.manifestBytes) {
        throw new HeadstartError("HS_LIMIT", { what: `${digest}: ${size} bytes, no manifest or configuration` });
      }
      return await file.readFile();
    } finally {
      await file.close();
    }
  }

  async #fromService(
    digest: Digest,
    options: { namespace: string | null; signal?: AbortSignal | undefined },
  ): Promise<Uint8Array | null> {
    const { client } = this.#places;
    if (client === null || options.namespace === null) return null;
    return client.readBlob(digest, LIMITS.manifestBytes, { namespace: options.namespace, signal: options.signal });
  }

  /** Verified bytes or null: a store that fails is one that does not have it, but the reason is told. */
  async #attempt(where: string, digest: Digest, read: () => Promise<Uint8Array | null>): Promise<Uint8Array | null> {
    try {
      const bytes = await read();
      if (bytes !== null) verifyDigest(bytes, digest, `${where} of containerd's content store`);
      return bytes;
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "ENOENT") {
        publish("snapshotter:content-failed", { where, digest, error: describeError(error) });
      }
      return null;
    }
  }
}
