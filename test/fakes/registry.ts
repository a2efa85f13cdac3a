/**
 * A small registry that speaks the distribution-spec 1.1 from memory, counts what it serves, and does wrong on demand. Blobs may be served by
 * redirects to signed URLs of a storage server on another port. Everything it was asked is in `log` and `storageLog`, headers included, so that
 * tests can show where a credential went.
 */

import { createHash, randomUUID } from "node:crypto";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import { createServer as createTlsServer } from "node:https";
import type { AddressInfo } from "node:net";
import { type AuthOptions, FakeAuth, readBytes } from "./registry-auth.ts";
import { type Fault, type FaultRule, Pace, sendBytes } from "./registry-faults.ts";

export interface FakeRegistryOptions {
  readonly auth?: AuthOptions;
  /** Default true; false: 404, as registries before 1.1. */
  readonly referrersApi?: boolean;
  /** Blobs come by a redirect to a URL on another port that is good for so long. */
  readonly redirect?: { readonly lifetimeMs: number };
  readonly bytesPerSecond?: number;
  /** Entries of one page of tags and referrers. */
  readonly pageSize?: number;
  /** Bodies longer than this get 413. */
  readonly bodyBytesMax?: number;
  readonly chunkBytesMin?: number;
  readonly tls?: { readonly key: string; readonly cert: string; readonly ca?: string; readonly requestCert?: boolean };
}

export interface RequestRecord {
  readonly method: string;
  readonly path: string;
  readonly query: string;
  readonly headers: Readonly<IncomingMessage["headers"]>;
  status: number;
  /** Of the answer's body. */
  bytes: number;
}

interface StoredManifest {
  readonly bytes: Uint8Array;
  readonly mediaType: string;
}

interface StoredRepository {
  readonly blobs: Map<string, Uint8Array>;
  readonly manifests: Map<string, StoredManifest>;
  readonly tags: Map<string, string>;
}

interface Descriptor {
  readonly mediaType: string;
  readonly digest: string;
  readonly size: number;
  readonly annotations?: Record<string, string>;
  readonly artifactType?: string;
}

export class FakeRegistry implements AsyncDisposable {
  readonly log: RequestRecord[] = [];
  readonly storageLog: RequestRecord[] = [];
  readonly auth: FakeAuth | undefined;
  readonly faults: FaultRule[] = [];
  readonly #options: FakeRegistryOptions;
  readonly #servers: Server[] = [];
  readonly #repositories = new Map<string, StoredRepository>();
  readonly #uploads = new Map<string, { repository: string; bytes: Uint8Array }>();
  readonly #signed = new Map<string, { bytes: Uint8Array; expiresAt: number }>();
  readonly #pace: Pace | undefined;
  #port = 0;
  #storagePort = 0;

  private constructor(options: FakeRegistryOptions) {
    this.#options = options;
    this.auth = options.auth === undefined ? undefined : new FakeAuth(options.auth);
    this.#pace = options.bytesPerSecond === undefined ? undefined : new Pace(options.bytesPerSecond);
  }

  static async start(options: FakeRegistryOptions = {}): Promise<FakeRegistry> {
    const registry = new FakeRegistry(options);
    registry.#port = await registry.#listen(registry.log, (...it) => registry.#answer(...it), options.tls);
    registry.#storagePort = await registry.#listen(registry.storageLog, (...it) => registry.#answerStorage(...it));
    if (registry.auth?.options.kind === "bearer") {
      const { auth } = registry;
      const tokenPort = await registry.#listen(
        [],
        (request, response) => auth.answerToken(request, response),
        options.tls,
      );
      auth.realm = `${options.tls === undefined ? "http" : "https"}://127.0.0.1:${tokenPort}/token`;
    }
    return registry;
  }

  get host(): string {
    return `127.0.0.1:${this.#port}`;
  }

  get storageHost(): string {
    return `127.0.0.1:${this.#storagePort}`;
  }

  /** Bytes of bodies sent so far, by both servers. */
  get bytesServed(): number {
    return [...this.log, ...this.storageLog].reduce((total, record) => total + record.bytes, 0);
  }

  /** Orders faults; they are used up in order. */
  inject(...rules: FaultRule[]): void {
    this.faults.push(...rules);
  }

  /** Changes the rate, of answers under way too. Only where there was one from the start. */
  limit(bytesPerSecond: number): void {
    this.#pace!.bytesPerSecond = bytesPerSecond;
  }

  /** Signed URLs given so far answer 403 from now on. */
  expireSignedUrls(): void {
    for (const signed of this.#signed.values()) signed.expiresAt = 0;
  }

  putBlob(repository: string, bytes: Uint8Array, mediaType = "application/octet-stream"): Descriptor {
    const digest = digestOf(bytes);
    this.#repository(repository).blobs.set(digest, bytes);
    return { mediaType, digest, size: bytes.byteLength };
  }

  putManifest(repository: string, document: object | Uint8Array, mediaType: string, tag?: string): Descriptor {
    const bytes = document instanceof Uint8Array ? document : Buffer.from(JSON.stringify(document));
    const digest = digestOf(bytes);
    const stored = this.#repository(repository);
    stored.manifests.set(digest, { bytes, mediaType });
    if (tag !== undefined) stored.tags.set(tag, digest);
    return { mediaType, digest, size: bytes.byteLength };
  }

  /** What is stored: for tests of pushes. */
  stored(repository: string): StoredRepository {
    return this.#repository(repository);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all(
      this.#servers.map(async (server) => {
        const { promise, resolve } = Promise.withResolvers<void>();
        server.close(() => resolve());
        server.closeAllConnections();
        await promise;
      }),
    );
  }

  #repository(name: string): StoredRepository {
    let repository = this.#repositories.get(name);
    if (repository === undefined) {
      repository = { blobs: new Map(), manifests: new Map(), tags: new Map() };
      this.#repositories.set(name, repository);
    }
    return repository;
  }

  async #listen(
    log: RequestRecord[],
    answer: (request: IncomingMessage, response: ServerResponse, record: RequestRecord) => Promise<void>,
    tls?: FakeRegistryOptions["tls"],
  ): Promise<number> {
    const handle = (request: IncomingMessage, response: ServerResponse) => {
      const url = new URL(request.url ?? "/", "http://fake");
      const record: RequestRecord = {
        method: request.method ?? "",
        path: url.pathname,
        query: url.search,
        headers: request.headers,
        status: 0,
        bytes: 0,
      };
      log.push(record);
      answer(request, response, record)
        .catch(() => response.destroy())
        .finally(() => {
          record.status = response.statusCode;
        });
    };
    const server =
      tls === undefined
        ? createServer(handle)
        : createTlsServer(
            { ...tls, requestCert: tls.requestCert ?? false, rejectUnauthorized: tls.requestCert ?? false },
            handle,
          );
    this.#servers.push(server);
    const { promise, resolve } = Promise.withResolvers<void>();
    server.listen(0, "127.0.0.1", resolve);
    await promise;
    return (server.address() as AddressInfo).port;
  }

  #takeFault(record: RequestRecord, at: "registry" | "storage"): Fault | undefined {
    const line = `${record.method} ${record.path}`;
    const index = this.faults.findIndex(({ match, ...rule }) => {
      if ((rule.at ?? "registry") !== at) return false;
      return match === undefined || (typeof match === "string" ? line.includes(match) : match.test(line));
    });
    const rule = this.faults[index];
    if (rule === undefined) return undefined;
    rule.times = (rule.times ?? 1) - 1;
    if (rule.times <= 0) this.faults.splice(index, 1);
    return rule.fault;
  }

  async #answer(request: IncomingMessage, response: ServerResponse, record: RequestRecord): Promise<void> {
    const route = /^\/v2(?:\/(.+?)\/(blobs\/uploads|blobs|manifests|referrers|tags)(?:\/(.*))?)?\/?$/.exec(record.path);
    if (route === null) return fail(response, 404, "NAME_UNKNOWN");
    const [, name, noun, rest = ""] = route;
    if (name === undefined) return void response.writeHead(200).end("{}");
    const writes =
      request.method === "PUT" ||
      request.method === "POST" ||
      request.method === "PATCH" ||
      request.method === "DELETE";
    const fault = this.#takeFault(record, "registry");
    if (fault?.kind === "status") return void response.writeHead(fault.status, fault.headers).end(fault.body);
    if (fault?.kind === "reset") return void response.destroy();
    if (this.auth !== undefined && !this.auth.admit(request, response, name, writes ? "push" : "pull")) {
      request.resume();
      return;
    }
    const query = new URLSearchParams(record.query);
    switch (noun) {
      case "blobs":
        return this.#blob(request, response, record, { name, digest: rest, fault });
      case "blobs/uploads":
        return this.#upload(request, response, { name, id: rest, query });
      case "manifests":
        return this.#manifest(request, response, record, { name, which: rest, fault });
      case "tags":
        return this.#tags(response, name, query);
      default:
        return this.#referrers(response, { name, digest: rest, query });
    }
  }

  async #blob(
    request: IncomingMessage,
    response: ServerResponse,
    record: RequestRecord,
    at: { name: string; digest: string; fault: Fault | undefined },
  ): Promise<void> {
    const bytes = this.#repository(at.name).blobs.get(at.digest);
    if (bytes === undefined) return fail(response, 404, "BLOB_UNKNOWN");
    if (this.#options.redirect !== undefined && request.method === "GET") {
      const id = randomUUID();
      this.#signed.set(id, { bytes, expiresAt: Date.now() + this.#options.redirect.lifetimeMs });
      return void response
        .writeHead(307, { location: `http://${this.storageHost}/bucket/${id}?X-Signature=secret` })
        .end();
    }
    record.bytes = await sendBytes(response, bytes, {
      range: request.headers.range,
      headers: { "docker-content-digest": at.digest, "content-type": "application/octet-stream" },
      fault: at.fault,
      pace: this.#pace,
      head: request.method === "HEAD",
    });
  }

  async #answerStorage(request: IncomingMessage, response: ServerResponse, record: RequestRecord): Promise<void> {
    const fault = this.#takeFault(record, "storage");
    if (fault?.kind === "status") return void response.writeHead(fault.status, fault.headers).end(fault.body);
    if (fault?.kind === "reset") return void response.destroy();
    const signed = this.#signed.get(record.path.replace("/bucket/", ""));
    // as S3: two ways of authorising at once are refused
    if (request.headers.authorization !== undefined) {
      return void response.writeHead(400).end("<Error><Code>InvalidArgument</Code></Error>");
    }
    if (signed === undefined || Date.now() >= signed.expiresAt) {
      return void response
        .writeHead(403)
        .end("<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>");
    }
    record.bytes = await sendBytes(response, signed.bytes, {
      range: request.headers.range,
      headers: {},
      fault,
      pace: this.#pace,
      head: request.method === "HEAD",
    });
  }

  async #upload(
    request: IncomingMessage,
    response: ServerResponse,
    at: { name: string; id: string; query: URLSearchParams },
  ): Promise<void> {
    const body = await readBytes(request);
    if (body.byteLength > (this.#options.bodyBytesMax ?? Number.POSITIVE_INFINITY))
      return fail(response, 413, "SIZE_INVALID");
    if (request.method === "POST") {
      const [mount, from] = [at.query.get("mount"), at.query.get("from")];
      const mounted = mount === null || from === null ? undefined : this.#repository(from).blobs.get(mount);
      if (mounted !== undefined) {
        this.#repository(at.name).blobs.set(mount!, mounted);
        return void response.writeHead(201, { location: `/v2/${at.name}/blobs/${mount}` }).end();
      }
      const id = randomUUID();
      this.#uploads.set(id, { repository: at.name, bytes: new Uint8Array(0) });
      return this.#accepted(response, at.name, id, 202);
    }
    const upload = this.#uploads.get(at.id);
    if (upload === undefined || upload.repository !== at.name) return fail(response, 404, "BLOB_UPLOAD_UNKNOWN");
    if (request.method === "GET") return this.#accepted(response, at.name, at.id, 204);
    const range = /^(\d+)-(\d+)$/.exec(request.headers["content-range"] ?? "");
    if (
      range !== null &&
      (Number(range[1]) !== upload.bytes.byteLength || Number(range[2]) - Number(range[1]) + 1 !== body.byteLength)
    ) {
      return this.#accepted(response, at.name, at.id, 416);
    }
    upload.bytes = Buffer.concat([upload.bytes, body]);
    if (request.method === "PATCH") return this.#accepted(response, at.name, at.id, 202);
    const digest = at.query.get("digest") ?? "";
    if (digestOf(upload.bytes) !== digest) return fail(response, 400, "DIGEST_INVALID");
    this.#uploads.delete(at.id);
    this.#repository(at.name).blobs.set(digest, upload.bytes);
    response.writeHead(201, { location: `/v2/${at.name}/blobs/${digest}`, "docker-content-digest": digest }).end();
  }

  #accepted(response: ServerResponse, name: string, id: string, status: number): void {
    const length = this.#uploads.get(id)!.bytes.byteLength;
    const headers: Record<string, string> = {
      location: `/v2/${name}/blobs/uploads/${id}?_state=${id}`,
      range: `0-${Math.max(0, length - 1)}`,
    };
    if (this.#options.chunkBytesMin !== undefined)
      headers["oci-chunk-min-length"] = String(this.#options.chunkBytesMin);
    response.writeHead(status, headers).end();
  }

  async #manifest(
    request: IncomingMessage,
    response: ServerResponse,
    record: RequestRecord,
    at: { name: string; which: string; fault: Fault | undefined },
  ): Promise<void> {
    const repository = this.#repository(at.name);
    if (request.method === "PUT") {
      const bytes = await readBytes(request);
      const digest = digestOf(bytes);
      const isDigest = at.which.includes(":");
      if (isDigest && at.which !== digest) return fail(response, 400, "DIGEST_INVALID");
      let document: {
        subject?: { digest: string };
        config?: Descriptor;
        layers?: Descriptor[];
        manifests?: Descriptor[];
      };
      try {
        document = JSON.parse(Buffer.from(bytes).toString("utf8"));
      } catch {
        return fail(response, 400, "MANIFEST_INVALID");
      }
      const blobs = [document.config, ...(document.layers ?? [])].filter((blob) => blob !== undefined);
      if (blobs.some((blob) => !repository.blobs.has(blob.digest))) return fail(response, 404, "MANIFEST_BLOB_UNKNOWN");
      if (
        (document.manifests ?? []).some((child) => !repository.manifests.has(child.digest)) &&
        !at.which.startsWith("sha256-")
      ) {
        return fail(response, 404, "MANIFEST_UNKNOWN");
      }
      repository.manifests.set(digest, { bytes, mediaType: request.headers["content-type"] ?? "" });
      if (!isDigest) repository.tags.set(at.which, digest);
      const headers: Record<string, string> = {
        location: `/v2/${at.name}/manifests/${digest}`,
        "docker-content-digest": digest,
      };
      if (document.subject !== undefined && this.#options.referrersApi !== false)
        headers["oci-subject"] = document.subject.digest;
      return void response.writeHead(201, headers).end();
    }
    const digest = repository.tags.get(at.which) ?? at.which;
    const stored = repository.manifests.get(digest);
    if (stored === undefined) return fail(response, 404, "MANIFEST_UNKNOWN");
    if (request.method === "DELETE") {
      repository.manifests.delete(digest);
      for (const [tag, target] of repository.tags) if (target === digest) repository.tags.delete(tag);
      return void response.writeHead(202).end();
    }
    record.bytes = await sendBytes(response, stored.bytes, {
      range: undefined,
      headers: { "content-type": stored.mediaType, "docker-content-digest": digest },
      fault: at.fault,
      pace: this.#pace,
      head: request.method === "HEAD",
    });
  }

  #tags(response: ServerResponse, name: string, query: URLSearchParams): void {
    const all = [...this.#repository(name).tags.keys()].sort();
    const start = all.findIndex((tag) => tag > (query.get("last") ?? ""));
    const size = this.#options.pageSize ?? 1000;
    const page = start < 0 ? [] : all.slice(start, start + size);
    const more = start >= 0 && start + size < all.length;
    const headers: Record<string, string> = { "content-type": "application/json" };
    if (more) headers.link = `</v2/${name}/tags/list?n=${size}&last=${page.at(-1)}>; rel="next"`;
    response.writeHead(200, headers).end(JSON.stringify({ name, tags: page }));
  }

  #referrers(response: ServerResponse, at: { name: string; digest: string; query: URLSearchParams }): void {
    if (this.#options.referrersApi === false) {
      fail(response, 404, "NOT_FOUND");
      return;
    }
    const found: Descriptor[] = [];
    for (const [digest, { bytes, mediaType }] of this.#repository(at.name).manifests) {
      const document = JSON.parse(Buffer.from(bytes).toString("utf8"));
      if (document.subject?.digest !== at.digest) continue;
      const artifactType = document.artifactType ?? document.config?.mediaType;
      const { annotations } = document;
      found.push({ mediaType, digest, size: bytes.byteLength, ...(annotations ? { annotations } : {}), artifactType });
    }
    const start = Number(at.query.get("page") ?? 0);
    const size = this.#options.pageSize ?? 1000;
    const headers: Record<string, string> = { "content-type": "application/vnd.oci.image.index.v1+json" };
    if (start + size < found.length)
      headers.link = `</v2/${at.name}/referrers/${at.digest}?page=${start + size}>; rel="next"`;
    const manifests = found.slice(start, start + size);
    const mediaType = "application/vnd.oci.image.index.v1+json";
    response.writeHead(200, headers).end(JSON.stringify({ schemaVersion: 2, mediaType, manifests }));
  }
}

function fail(response: ServerResponse, status: number, code: string): void {
  response.writeHead(status, { "content-type": "application/json" });
  response.end(JSON.stringify({ errors: [{ code, message: code.toLowerCase().replaceAll("_", " ") }] }));
}

export function digestOf(bytes: Uint8Array): string {
  return `sha256:${createHash("sha256").update(bytes).digest("hex")}`;
}
