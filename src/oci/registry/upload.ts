/**
 * Pushing one blob (distribution-spec "Push"): POST opens a session, then either one PUT with everything (monolithic: what every registry
 * takes) or PATCHes in order and an empty PUT (chunked: for proxies that limit a body, and streams: upload-stream.ts). The session's
 * URL is followed wherever it is on the same host, and never with credentials anywhere else.
 *
 *   opening --202--> sending --(all sent)--> closing --201--> stored
 *      '--201--> stored (mounted)      '--416/lost--> where did we stop? --> sending
 */

import { setImmediate } from "node:timers/promises";
import type { Clock } from "../../base/clock.ts";
import type { Digest } from "../../base/digest.ts";
import { HeadstartError, isHeadstartError } from "../../base/errors.ts";
import { MiB } from "../../base/limits.ts";
import type { Descriptor } from "../descriptor.ts";
import { type BlobSource, openBlobSource } from "../store.ts";
import { verified } from "../verify.ts";
import { mergeScopes, repositoryScope } from "./auth/scope.ts";
import { registryError } from "./errcode.ts";
import type { HostClient, HostRequest } from "./host-client.ts";
import { backoffMs, isRetryableStatus, type RetryPolicy } from "./transport/retry.ts";
import type { TransportResponse } from "./transport/transport.ts";

export interface UploadOptions {
  readonly signal?: AbortSignal | undefined;
  readonly mode?: "monolithic" | "chunked";
  /** Bytes of one PATCH; the registry's OCI-Chunk-Min-Length raises it. */
  readonly chunkBytes?: number;
  /** Another repository of this registry, to mount the blob from. */
  readonly from?: string;
}

export interface UploadParts {
  readonly host: HostClient;
  readonly repository: string;
  readonly what: string;
  readonly clock: Clock;
  readonly random: () => number;
  readonly policy: RetryPolicy;
}

/** Some registries refuse more than 4 MiB in one PATCH, and some less than 5 MiB but for the last: this is what most proxies let pass. */
const CHUNK_BYTES = 16 * MiB;
const CHUNK_MIN_MAX = 256 * MiB;
const ATTEMPTS = 4;

export async function pushBlob(
  parts: UploadParts,
  descriptor: Descriptor,
  source: BlobSource,
  options: UploadOptions,
): Promise<void> {
  const replayable = source instanceof Uint8Array || typeof source === "function";
  const upload = new Upload(parts, `pushing blob ${descriptor.digest}`, options);
  const checked = () => verified(openBlobSource(source), descriptor, upload.what);
  let mode = options.mode ?? "monolithic";
  for (let attempt = 0; ; attempt++) {
    try {
      const session = await upload.open(descriptor.digest);
      if (session === "stored") return;
      if (mode === "monolithic") await upload.sendWhole(session, checked(), descriptor, source instanceof Uint8Array);
      else await upload.sendChunks(session, checked(), descriptor.digest);
      return;
    } catch (error) {
      options.signal?.throwIfAborted();
      if (!replayable || attempt + 1 >= ATTEMPTS || !isHeadstartError(error)) throw error;
      // a proxy between us that limits bodies: smaller pieces may pass
      if (error.details.status === 413 && mode === "monolithic") mode = "chunked";
      else if (!isPassing(error, attempt)) throw error;
      await parts.clock.sleep(backoffMs(attempt, parts.policy, parts.random), options.signal);
    }
  }
}

/** A stream's request is not sent again by itself, so a token that ended just then is such a case too, once. */
function isPassing(error: HeadstartError, attempt: number): boolean {
  if (error.code === "HS_REGISTRY_AUTH") return attempt === 0;
  return error.code === "HS_REGISTRY_UNAVAILABLE" || error.code === "HS_REGISTRY_RATE";
}

export interface Session {
  readonly url: URL;
  readonly chunkMin: number;
}

export class Upload {
  readonly #parts: UploadParts;
  readonly #options: UploadOptions;
  readonly what: string;

  constructor(parts: UploadParts, doing: string, options: UploadOptions) {
    this.#parts = parts;
    this.#options = options;
    this.what = `${parts.what}: ${doing}`;
  }

  /** Of one PATCH. */
  chunkBytes(session?: Session): number {
    return Math.max(this.#options.chunkBytes ?? CHUNK_BYTES, session?.chunkMin ?? 0);
  }

  /** `digest`: to mount the blob from another repository, where one is named. */
  async open(digest?: Digest): Promise<Session | "stored"> {
    const { host, repository } = this.#parts;
    const { from } = this.#options;
    const query: Record<string, string> = from === undefined || digest === undefined ? {} : { mount: digest, from };
    const scopes = from === undefined ? [] : [repositoryScope(from, "pull")];
    const url = host.url(repository, "blobs/uploads/", query);
    const response = await host.send(url, {
      ...this.#request("POST"),
      scopes: mergeScopes([repositoryScope(repository, "pull", "push")], scopes),
      headers: { "content-length": "0" },
      body: new Uint8Array(0),
    });
    if (response.status === 201) {
      await response.discard();
      return "stored";
    }
    if (response.status !== 202) throw await registryError(response, this.what);
    const chunkMin = Number(response.header("oci-chunk-min-length") ?? 0);
    return {
      url: await this.#location(response, url),
      chunkMin: chunkMin > 0 && chunkMin <= CHUNK_MIN_MAX ? chunkMin : 0,
    };
  }

  /** Everything in one PUT. The stream is verified on its way here, and by the registry against the digest in the URL. */
  async sendWhole(
    session: Session,
    checked: AsyncIterable<Uint8Array>,
    { digest, size }: Descriptor,
    inMemory: boolean,
  ): Promise<void> {
    const url = closingUrl(session.url, digest);
    const headers = {
      "content-type": "application/octet-stream",
      "content-length": String(size),
    };
    const small = inMemory || size === 0;
    let failure: unknown;
    const body = small
      ? await gather(checked)
      : watched(checked, (error) => {
          failure = error;
        });
    let response: TransportResponse;
    try {
      response = await this.#send(url, { ...this.#request("PUT"), headers, body, patience: "none" });
    } catch (error) {
      throw failure ?? error; // what broke the stream is the reason, not the connection that we then closed
    }
    await this.#expect(response, [201, 200, 204]);
  }

  /** PATCH by PATCH. */
  async sendChunks(session: Session, chunks: AsyncIterable<Uint8Array>, digest: Digest): Promise<void> {
    let url = session.url;
    let offset = 0;
    for await (const chunk of pieces(chunks, this.chunkBytes(session))) {
      url = await this.sendChunk(url, chunk, offset);
      offset += chunk.byteLength;
      await setImmediate(); // lets other work in between pieces that come from memory
    }
    await this.close(url, digest);
  }

  /** Ends a session whose bytes are all there. */
  async close(url: URL, digest: Digest): Promise<void> {
    const response = await this.#send(closingUrl(url, digest), {
      ...this.#request("PUT"),
      headers: { "content-length": "0" },
      body: new Uint8Array(0),
    });
    await this.#expect(response, [201, 200, 204]);
  }

  /** One PATCH; a lost one is sent again from where the registry says it is. Where the next one goes. */
  async sendChunk(start: URL, chunk: Uint8Array, offset: number): Promise<URL> {
    let url = start;
    let sent = 0;
    for (let attempt = 0; ; attempt++) {
      const rest = chunk.subarray(sent);
      const from = offset + sent;
      let failure: unknown;
      try {
        const response = await this.#send(url, {
          ...this.#request("PATCH"),
          headers: {
            "content-type": "application/octet-stream",
            "content-range": `${from}-${from + rest.byteLength - 1}`,
          },
          body: rest,
          patience: "none",
        });
        if (response.status === 202 || response.status === 201 || response.status === 204) {
          const next = await this.#location(response, url);
          const end = rangeEnd(response);
          if (end === undefined || end === offset + chunk.byteLength) return next;
          if (end < from || end > offset + chunk.byteLength) throw this.#lost(end);
          url = next;
          sent = end - offset;
          continue;
        }
        const recoverable = response.status === 416 || isRetryableStatus(response.status);
        failure = await registryError(response, this.what);
        if (!recoverable) throw failure;
      } catch (error) {
        this.#options.signal?.throwIfAborted();
        if (failure === undefined && !isHeadstartError(error, "HS_REGISTRY_UNAVAILABLE")) throw error;
        if (failure !== undefined && failure === error && !isHeadstartError(error, "HS_REGISTRY_UNAVAILABLE"))
          throw error;
        failure = error;
      }
      if (attempt + 1 >= ATTEMPTS) throw failure;
      await this.#parts.clock.sleep(backoffMs(attempt, this.#parts.policy, this.#parts.random), this.#options.signal);
      const state = await this.#state(url);
      if (state.end < offset || state.end > offset + chunk.byteLength) throw this.#lost(state.end);
      url = state.url;
      sent = state.end - offset;
      if (sent === chunk.byteLength) return url;
    }
  }

  /** Asks the session how far it got. */
  async #state(url: URL): Promise<{ url: URL; end: number }> {
    const response = await this.#send(url, this.#request("GET"));
    if (response.status !== 204 && response.status !== 202) throw await registryError(response, this.what);
    const end = rangeEnd(response) ?? 0;
    return { url: response.header("location") === undefined ? url : await this.#location(response, url), end };
  }

  #lost(end: number): HeadstartError {
    return new HeadstartError("HS_REGISTRY_PROTOCOL", {
      what: `${this.what}: the registry has ${end} bytes, which we cannot continue`,
    });
  }

  async #expect(response: TransportResponse, statuses: readonly number[]): Promise<void> {
    if (!statuses.includes(response.status)) throw await registryError(response, this.what);
    await response.discard();
  }

  /** A session may lie on a storage host: then it is addressed without anything of ours. */
  #send(url: URL, request: HostRequest): Promise<TransportResponse> {
    const { host } = this.#parts;
    return host.owns(url) ? host.send(url, request) : host.sendBare(url, request);
  }

  async #location(response: TransportResponse, base: URL): Promise<URL> {
    const text = response.header("location");
    await response.discard();
    const url = text === undefined ? null : URL.parse(text, base);
    if (url === null || !/^https?:$/.test(url.protocol)) {
      throw new HeadstartError("HS_REGISTRY_PROTOCOL", {
        what: `${this.what}: the registry opened a session without a place`,
      });
    }
    url.username = "";
    url.password = "";
    return url;
  }

  #request(method: HostRequest["method"]): HostRequest {
    const { repository } = this.#parts;
    return {
      method,
      kind: "upload",
      repository,
      scopes: [repositoryScope(repository, "pull", "push")],
      signal: this.#options.signal,
    };
  }
}

function closingUrl(url: URL, digest: Digest): URL {
  const closing = new URL(url);
  closing.searchParams.set("digest", digest);
  return closing;
}

/** Where the registry's `Range: 0-n` of a session ends, exclusive. "0-0" of an empty session and of one byte cannot be told apart: callers ask after sending. */
function rangeEnd(response: TransportResponse): number | undefined {
  const match = /^(?:bytes=)?0-(-?\d{1,16})$/.exec(response.header("range")?.trim() ?? "");
  if (match === null) return undefined;
  const last = Number(match[1]);
  return last <= 0 ? 0 : last + 1;
}

async function gather(chunks: AsyncIterable<Uint8Array>): Promise<Uint8Array> {
  const all: Uint8Array[] = [];
  for await (const chunk of chunks) all.push(chunk);
  return Buffer.concat(all);
}

async function* watched(
  chunks: AsyncIterable<Uint8Array>,
  onError: (error: unknown) => void,
): AsyncGenerator<Uint8Array> {
  try {
    yield* chunks;
  } catch (error) {
    onError(error);
    throw error;
  }
}

/** The same bytes in pieces of exactly `size`, but for the last. */
export async function* pieces(
  chunks: AsyncIterable<Uint8Array>,
  size: number,
): AsyncGenerator<Uint8Array, void, undefined> {
  let held: Uint8Array[] = [];
  let length = 0;
  for await (const chunk of chunks) {
    let rest = chunk;
    while (length + rest.byteLength >= size) {
      const take = size - length;
      yield Buffer.concat([...held, rest.subarray(0, take)]);
      held = [];
      length = 0;
      rest = rest.subarray(take);
    }
    if (rest.byteLength > 0) {
      held.push(rest);
      length += rest.byteLength;
    }
  }
  if (length > 0) yield Buffer.concat(held);
}
