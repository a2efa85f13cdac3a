/**
 * One repository of one registry: the verbs of the distribution-spec over the hosts that hosts.toml names. Reading tries hosts in order; writing
 * goes to the first that may be pushed to. Blobs: blob.ts; uploads: upload.ts; referrers: referrers.ts.
 */

import type { Clock } from "../../base/clock.ts";
import { type Digest, digestAlgorithm, isDigest, sha256, verifyDigest } from "../../base/digest.ts";
import { HeadstartError, isHeadstartError } from "../../base/errors.ts";
import { LIMITS } from "../../base/limits.ts";
import type { Descriptor } from "../descriptor.ts";
import { digestOf, sniffManifestType } from "../manifest.ts";
import {
  bareMediaType,
  isIndexType,
  isManifestType,
  isSchema1Type,
  MANIFEST_ACCEPT,
  MEDIA_TYPES,
} from "../media-types.ts";
import { formatReference, type ImageReference } from "../reference.ts";
import type {
  BlobHandle,
  BlobSizes,
  BlobSource,
  ImageReader,
  ImageWriter,
  ReferrersOptions,
  StoredBlob,
  WriteOptions,
} from "../store.ts";
import { checkLimit, sizeMismatch } from "../verify.ts";
import { repositoryScope } from "./auth/scope.ts";
import { type BlobParts, RegistryBlob } from "./blob.ts";
import { mostTelling, readSmallBody, registryError } from "./errcode.ts";
import type { HostAnswer, HostClient } from "./host-client.ts";
import type { Capability } from "./hosts.ts";
import { nextPage } from "./link.ts";
import { listReferrers, recordReferrer } from "./referrers.ts";
import type { RetryPolicy } from "./transport/retry.ts";
import type { Patience } from "./transport/transport.ts";
import { pushBlob, type UploadOptions } from "./upload.ts";
import { pushStream } from "./upload-stream.ts";
import { lateAsUnavailable, withDeadline } from "./wait.ts";

export interface RepositoryParts {
  readonly reference: ImageReference;
  readonly hosts: readonly HostClient[];
  readonly clock: Clock;
  readonly random: () => number;
  readonly policy: RetryPolicy;
  readonly upload?: UploadOptions;
  /** Closed with the repository. */
  readonly owned?: AsyncDisposable | undefined;
}

/** For one host, retries included: a body that drips does not stall, but is no use. */
const MANIFEST_DEADLINE_MS = 5 * 60_000;
const RECENT_MAX = 16;
const RECENT_BYTES_MAX = 1024 * 1024;
const TAGS_MAX = 100_000;
const TAGS_PAGE_BYTES = 4 * 1024 * 1024;

export class Repository implements ImageReader, BlobSizes, ImageWriter, AsyncDisposable {
  readonly reference: ImageReference;
  readonly what: string;
  readonly #parts: RepositoryParts;
  /** Verified manifests: whoever resolves a tag reads the manifest next, which must not cost a second round trip. */
  readonly #recent = new Map<Digest, Uint8Array>();
  readonly #finalUrls: BlobParts["finalUrls"] = new Map();

  constructor(parts: RepositoryParts) {
    this.#parts = parts;
    this.reference = parts.reference;
    this.what = formatReference(parts.reference);
  }

  get name(): string {
    return this.reference.repository;
  }

  get tag(): string | undefined {
    return this.reference.tag;
  }

  can(capability: Capability): boolean {
    return this.#parts.hosts.some((host) => host.can(capability));
  }

  /** The hosts that may do something, in order. Throws HS_CONFIG when hosts.toml leaves none. */
  hostsFor(capability: Capability): readonly HostClient[] {
    const hosts = this.#parts.hosts.filter((host) => host.can(capability));
    if (hosts.length > 0) return hosts;
    throw new HeadstartError("HS_CONFIG", { what: `${this.what}: hosts.toml names no host that may ${capability}` });
  }

  async resolve(signal?: AbortSignal): Promise<Descriptor> {
    const { tag, digest } = this.reference;
    return (await this.fetchManifest(digest ?? tag!, signal)).descriptor;
  }

  async readManifest(manifest: Descriptor | Digest, signal?: AbortSignal): Promise<Uint8Array> {
    const digest = digestOf(manifest);
    const bytes = this.#recent.get(digest) ?? (await this.fetchManifest(digest, signal)).bytes;
    if (typeof manifest !== "string" && manifest.size !== bytes.byteLength) {
      throw sizeMismatch(bytes.byteLength, manifest, `${this.what}: manifest`);
    }
    return bytes;
  }

  /**
   * A manifest by tag or digest, with its descriptor. With a digest any host that may pull will do, and the bytes are checked against it; a tag needs a
   * host that may resolve, and the digest is that of the bytes, which must agree with Docker-Content-Digest.
   */
  async fetchManifest(which: string, signal?: AbortSignal): Promise<{ descriptor: Descriptor; bytes: Uint8Array }> {
    const digest = isDigest(which) ? which : undefined;
    const what = `${this.what}: manifest ${which}`;
    if (digest === undefined && !/^\w[\w.-]{0,127}$/.test(which)) {
      throw new HeadstartError("HS_REFERENCE", { what: `${JSON.stringify(which.slice(0, 200))} is no tag` });
    }
    return this.tryHosts(digest === undefined ? "resolve" : "pull", signal, async (host, patience) => {
      const deadline = withDeadline(signal, MANIFEST_DEADLINE_MS);
      const { response } = await this.#get(host, `manifests/${which}`, {
        accept: MANIFEST_ACCEPT,
        patience,
        signal: deadline,
      });
      if (response.status !== 200) throw await registryError(response, what);
      const type = bareMediaType(response.header("content-type") ?? "");
      const said = response.header("docker-content-digest");
      const bytes = await readSmallBody(response, LIMITS.manifestBytes);
      if (bytes === undefined) {
        throw new HeadstartError("HS_LIMIT", { what: `${what}: more than ${LIMITS.manifestBytes} bytes` });
      }
      if (digest !== undefined) verifyDigest(bytes, digest, `${what} from ${host.host}`);
      else if (isDigest(said)) verifyDigest(bytes, said, `${what} from ${host.host}`);
      const mediaType = isKnownType(type) ? type : sniffManifestType(bytes, what);
      const name = digest ?? (isDigest(said) && digestAlgorithm(said) === "sha512" ? said : sha256(bytes));
      this.#remember(name, bytes);
      return { descriptor: { mediaType, digest: name, size: bytes.byteLength }, bytes };
    });
  }

  #remember(digest: Digest, bytes: Uint8Array): void {
    if (bytes.byteLength > RECENT_BYTES_MAX) return;
    if (this.#recent.size >= RECENT_MAX) this.#recent.delete(this.#recent.keys().next().value!);
    this.#recent.set(digest, bytes);
  }

  /** Asks host after host; the error of the one that tells most. With one host alone, or the last, patience is full. */
  async tryHosts<T>(
    capability: Capability,
    signal: AbortSignal | undefined,
    ask: (host: HostClient, patience: Patience) => Promise<T>,
  ): Promise<T> {
    const errors: unknown[] = [];
    const hosts = this.hostsFor(capability);
    for (const [index, host] of hosts.entries()) {
      try {
        return await ask(host, index + 1 === hosts.length ? "full" : "quick");
      } catch (error) {
        signal?.throwIfAborted();
        const known = lateAsUnavailable(error, `${this.what} from ${host.host}`);
        if (!isHeadstartError(known)) throw error; // a fault of ours
        errors.push(known);
      }
    }
    throw mostTelling(errors);
  }

  #get(
    host: HostClient,
    rest: string,
    options: { accept: string; patience: Patience; signal: AbortSignal | undefined },
  ): Promise<HostAnswer> {
    return host.follow(host.url(this.name, rest), {
      method: "GET",
      kind: "manifest",
      repository: this.name,
      scopes: [repositoryScope(this.name, "pull")],
      headers: { accept: options.accept, "accept-encoding": "identity" },
      patience: options.patience,
      signal: options.signal,
    });
  }

  openBlob(descriptor: Descriptor): BlobHandle {
    return new RegistryBlob({
      descriptor,
      repository: this.name,
      hosts: this.hostsFor("pull"),
      finalUrls: this.#finalUrls,
      what: `${this.what}: blob ${descriptor.digest}`,
      clock: this.#parts.clock,
      random: this.#parts.random,
      policy: this.#parts.policy,
    });
  }

  referrers(subject: Digest, options: ReferrersOptions = {}): Promise<Descriptor[]> {
    return listReferrers(this, subject, options);
  }

  async tags(signal?: AbortSignal): Promise<string[]> {
    const what = `${this.what}: tags`;
    return this.tryHosts("resolve", signal, async (host, patience) => {
      const all: string[] = [];
      for (let url: URL | undefined = host.url(this.name, "tags/list"); url !== undefined; ) {
        const { response }: HostAnswer = await host.follow(url, {
          method: "GET",
          kind: "tags",
          repository: this.name,
          scopes: [repositoryScope(this.name, "pull")],
          headers: { accept: "application/json" },
          patience,
          signal,
        });
        if (response.status !== 200) throw await registryError(response, what);
        url = nextPage(response, url, host);
        const body = await readSmallBody(response, TAGS_PAGE_BYTES);
        all.push(...readTags(body, what));
        if (all.length > TAGS_MAX) throw new HeadstartError("HS_LIMIT", { what: `${what}: more than ${TAGS_MAX}` });
      }
      return all;
    });
  }

  /** The host that takes pushes. */
  get pushHost(): HostClient {
    return this.hostsFor("push")[0]!;
  }

  async hasBlob(descriptor: Descriptor, options: WriteOptions = {}): Promise<boolean> {
    const found = await this.#headBlob(this.pushHost, descriptor.digest, ["pull", "push"], options.signal);
    return found !== null && (found.size === undefined || found.size === descriptor.size);
  }

  async blobSize(digest: Digest, signal?: AbortSignal): Promise<number | undefined> {
    return await this.tryHosts("pull", signal, async (host) => {
      const found = await this.#headBlob(host, digest, ["pull"], signal);
      if (found !== null && found.size === undefined)
        throw new HeadstartError("HS_REGISTRY_PROTOCOL", {
          what: `${this.what}: HEAD of blob ${digest} has no length`,
        });
      return found?.size;
    });
  }

  /** Null: it is not there. */
  async #headBlob(
    host: HostClient,
    digest: Digest,
    actions: readonly ("pull" | "push")[],
    signal: AbortSignal | undefined,
  ): Promise<{ readonly size: number | undefined } | null> {
    const { response } = await host.follow(host.url(this.name, `blobs/${digest}`), {
      method: "HEAD",
      kind: "blob",
      repository: this.name,
      scopes: [repositoryScope(this.name, ...actions)],
      signal,
    });
    await response.discard();
    if (response.status === 404) return null;
    if (response.status !== 200)
      throw await registryError(response, `${this.what}: blob ${digest}`, "HS_BLOB_NOT_FOUND");
    const length = response.header("content-length");
    return { size: length === undefined ? undefined : Number(length) };
  }

  /** `from`: another repository of this registry that has the blob: it is mounted from there if the registry can. */
  async pushBlob(
    descriptor: Descriptor,
    source: BlobSource,
    options: WriteOptions & { readonly from?: string } = {},
  ): Promise<void> {
    if (await this.hasBlob(descriptor, options)) return;
    await pushBlob(
      { ...this.#parts, host: this.pushHost, repository: this.name, what: this.what },
      descriptor,
      source,
      { ...this.#parts.upload, ...options },
    );
  }

  /** Chunked: pieces of 16 MiB are held until the registry has them. A blob of one piece is pushed only where its digest is not there yet. */
  async pushStream(chunks: AsyncIterable<Uint8Array>, options: WriteOptions = {}): Promise<StoredBlob> {
    return await pushStream(
      { ...this.#parts, host: this.pushHost, repository: this.name, what: this.what },
      chunks,
      { ...this.#parts.upload, ...options },
      async (stored, source) => {
        await this.pushBlob({ mediaType: MEDIA_TYPES.octetStream, ...stored }, source, options);
      },
    );
  }

  async pushManifest(
    bytes: Uint8Array,
    mediaType: string,
    tag?: string,
    options: WriteOptions = {},
  ): Promise<Descriptor> {
    checkLimit(bytes.byteLength, LIMITS.manifestBytes, `${this.what}: manifest`);
    const descriptor: Descriptor = { mediaType, digest: sha256(bytes), size: bytes.byteLength };
    const recorded = await this.#putManifest(bytes, mediaType, tag ?? descriptor.digest, options.signal);
    await recordReferrer(this, descriptor, bytes, recorded.subjectHandled, options.signal);
    return descriptor;
  }

  /** PUT of a manifest alone, without the care for its subject. */
  async #putManifest(
    bytes: Uint8Array,
    mediaType: string,
    which: string,
    signal: AbortSignal | undefined,
  ): Promise<{ subjectHandled: boolean }> {
    const host = this.pushHost;
    const what = `${this.what}: pushing manifest ${which}`;
    const response = await host.send(host.url(this.name, `manifests/${which}`), {
      method: "PUT",
      kind: "manifest",
      repository: this.name,
      scopes: [repositoryScope(this.name, "pull", "push")],
      headers: { "content-type": mediaType },
      body: bytes,
      signal,
    });
    if (response.status !== 201 && response.status !== 200 && response.status !== 202) {
      throw await registryError(response, what);
    }
    const said = response.header("docker-content-digest");
    const subjectHandled = response.header("oci-subject") !== undefined;
    await response.discard();
    if (isDigest(said) && digestAlgorithm(said) === "sha256" && said !== sha256(bytes)) {
      throw new HeadstartError("HS_DIGEST_MISMATCH", { what: `${what}: the registry stored ${said}` });
    }
    return { subjectHandled };
  }

  /** Stores an index under a tag without treating it as a referrer: how the fallback tag is kept. */
  async putTagged(bytes: Uint8Array, mediaType: string, tag: string, signal?: AbortSignal): Promise<void> {
    await this.#putManifest(bytes, mediaType, tag, signal);
  }

  /** By digest. Throws HS_NOT_FOUND, and HS_REGISTRY_PROTOCOL where the registry does not delete. */
  async deleteManifest(digest: Digest, signal?: AbortSignal): Promise<void> {
    const host = this.pushHost;
    const response = await host.send(host.url(this.name, `manifests/${digest}`), {
      method: "DELETE",
      kind: "manifest",
      repository: this.name,
      scopes: [repositoryScope(this.name, "delete", "pull", "push")],
      signal,
    });
    if (response.status !== 202 && response.status !== 200) {
      throw await registryError(response, `${this.what}: deleting ${digest}`);
    }
    await response.discard();
  }

  async finish(): Promise<void> {}

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#parts.owned?.[Symbol.asyncDispose]();
  }
}

function isKnownType(type: string): boolean {
  return isManifestType(type) || isIndexType(type) || isSchema1Type(type);
}

function readTags(body: Uint8Array | undefined, what: string): string[] {
  let tags: unknown;
  try {
    const document: unknown = JSON.parse(Buffer.from(body ?? []).toString("utf8"));
    tags = (document as { tags?: unknown }).tags ?? [];
  } catch (cause) {
    throw new HeadstartError("HS_REGISTRY_PROTOCOL", { what: `${what}: no JSON`, cause });
  }
  if (!Array.isArray(tags) || tags.some((tag) => typeof tag !== "string")) {
    throw new HeadstartError("HS_REGISTRY_PROTOCOL", { what: `${what}: no list of tags` });
  }
  return tags as string[];
}
