/**
 * Reading one blob from a registry and its mirrors: closed ranges and whole streams that survive broken bodies.
 *
 * Rules (specs/containerd.md 13.2):
 * - ranges are closed and single, with Accept-Encoding: identity; a Content-Encoding in the answer is refused, offsets would mean nothing;
 * - a 206 is believed only if its Content-Range is the one asked for and its total the descriptor's size; a 200 is used from the offset on;
 * - a redirect's target is kept and asked directly until it expires or answers 400, 401, 403, 404 or 410, then the registry is asked again;
 * - a body that breaks, ends early or stalls is gone on with from where it stopped; only so many tries without progress;
 * - hosts are tried in order; `attempt` says with which to begin, for callers that found wrong bytes.
 */

import type { Clock } from "../../base/clock.ts";
import { HeadstartError, isHeadstartError } from "../../base/errors.ts";
import type { Descriptor } from "../descriptor.ts";
import type { BlobHandle, RangeOptions, ReadOptions, StreamOptions } from "../store.ts";
import { checkLimit, collectVerified, READ_ALL_LIMIT, rangeTarget, verified } from "../verify.ts";
import { repositoryScope } from "./auth/scope.ts";
import { checkContentRange } from "./content-range.ts";
import { mostTelling, registryError } from "./errcode.ts";
import type { HostAnswer, HostClient, HostRequest } from "./host-client.ts";
import { signedUrlExpiry } from "./signed-url.ts";
import { backoffMs, type RetryPolicy } from "./transport/retry.ts";
import type { Patience, RequestKind, TransportResponse } from "./transport/transport.ts";
import { withDeadline } from "./wait.ts";

/** Rounds over all hosts that bring no byte, before a read fails. */
const FRUITLESS_MAX = 4;
/** A signed URL is not used in the last seconds of its life. */
const EXPIRY_MARGIN_MS = 15_000;
/** A URL that does not say when it ends is asked for again after this time. */
const UNKNOWN_LIFETIME_MS = 5 * 60_000;
/** No read may take longer than this much plus what its size takes at the slowest rate: a body that drips does not stall, but is no use. */
const DEADLINE_BASE_MS = 5 * 60_000;
const SLOWEST_BYTES_PER_SECOND = 8 * 1024;

interface FinalUrl {
  readonly url: URL;
  readonly expiresAt: number;
}

interface Approach {
  readonly kind: RequestKind;
  readonly patience: Patience;
  readonly signal: AbortSignal;
}

export interface BlobParts {
  readonly descriptor: Descriptor;
  readonly repository: string;
  /** In the order in which they are asked; not empty. */
  readonly hosts: readonly HostClient[];
  /** Shared by all handles of a repository: digest and host to the place that a redirect led to. */
  readonly finalUrls: Map<string, FinalUrl>;
  readonly what: string;
  readonly clock: Clock;
  readonly random: () => number;
  readonly policy: RetryPolicy;
}

export class RegistryBlob implements BlobHandle {
  readonly descriptor: Descriptor;
  readonly what: string;
  readonly #parts: BlobParts;

  constructor(parts: BlobParts) {
    this.descriptor = parts.descriptor;
    this.what = parts.what;
    this.#parts = parts;
  }

  get sourceCount(): number {
    return this.#parts.hosts.length;
  }

  /** True once every host has answered a range with the whole blob. */
  get ignoresRanges(): boolean {
    return this.#parts.hosts.every((host) => host.ignoresRanges);
  }

  stream(offset: number, options: StreamOptions = {}): AsyncIterable<Uint8Array> {
    const chunks = this.#read(offset, this.descriptor.size, "blob", options);
    return offset === 0 && !options.callerVerifies ? verified(chunks, this.descriptor, this.what) : chunks;
  }

  async readRange(start: number, end: number, options: RangeOptions = {}): Promise<Uint8Array> {
    const target = rangeTarget(start, end, this.descriptor.size, options.into, this.what);
    let position = 0;
    for await (const chunk of this.#read(start, end, "range", options)) {
      target.set(chunk, position);
      position += chunk.byteLength;
      options.onProgress?.(position);
      await options.hold?.();
    }
    return target;
  }

  /** Wrong bytes from one host are asked for again from the next, once each. */
  async readAll(options: ReadOptions & { readonly limit?: number } = {}): Promise<Uint8Array> {
    checkLimit(this.descriptor.size, options.limit ?? READ_ALL_LIMIT, this.what);
    const errors: unknown[] = [];
    for (let attempt = 0; attempt < Math.max(2, this.sourceCount); attempt++) {
      try {
        const chunks = this.#read(0, this.descriptor.size, "blob", { ...options, attempt });
        return await collectVerified(chunks, this.descriptor, this.what, options.limit);
      } catch (error) {
        if (!isHeadstartError(error, "HS_DIGEST_MISMATCH")) throw error;
        errors.push(error);
      }
    }
    throw mostTelling(errors);
  }

  /** Exactly the bytes [start, end), in order, from whichever hosts can give them. */
  async *#read(start: number, end: number, kind: RequestKind, options: RangeOptions): AsyncGenerator<Uint8Array> {
    if (start === end) return;
    const { clock, random, policy } = this.#parts;
    // for a part of a blob, hosts that would send it whole come last
    const hosts = [...this.#parts.hosts];
    if (kind === "range") hosts.sort((a, b) => Number(a.ignoresRanges) - Number(b.ignoresRanges));
    const deadlineMs = DEADLINE_BASE_MS + ((end - start) / SLOWEST_BYTES_PER_SECOND) * 1000;
    const signal = withDeadline(options.signal, deadlineMs);
    let position = start;
    let errors: unknown[] = [];
    // an answer that never came was tried again by the transport already; a body that broke was not
    let retry = false;
    for (let fruitless = 0; ; fruitless++) {
      for (let turn = 0; turn < hosts.length; turn++) {
        const host = hosts[((options.attempt ?? 0) + turn) % hosts.length]!;
        const patience: Patience = turn + 1 === hosts.length ? "full" : "quick";
        const before = position;
        const how = { kind, patience, signal, opened: false };
        try {
          for await (const chunk of this.#readFrom(host, position, end, how)) {
            position += chunk.byteLength;
            yield chunk;
          }
          if (position === end) return;
        } catch (error) {
          if (signal.aborted) throw this.#interrupted(options.signal, errors);
          errors.push(error);
          retry ||= how.opened && isHeadstartError(error, "HS_REGISTRY_UNAVAILABLE", "HS_REGISTRY_RANGE");
        }
        if (position > before) {
          fruitless = -1;
          errors = errors.slice(-1);
          break; // progress: begin again with the first host
        }
      }
      if (fruitless + 1 >= FRUITLESS_MAX || (fruitless >= 0 && !retry)) throw mostTelling(errors);
      retry = false;
      if (fruitless >= 0) await clock.sleep(backoffMs(fruitless, policy, random), signal);
    }
  }

  #interrupted(signal: AbortSignal | undefined, errors: readonly unknown[]): unknown {
    if (signal?.aborted) return signal.reason;
    return new HeadstartError("HS_REGISTRY_UNAVAILABLE", { what: `${this.what}: too slow`, cause: errors.at(-1) });
  }

  /** What one answer of one host gives of [start, end): all, or a part and then an error. */
  async *#readFrom(
    host: HostClient,
    start: number,
    end: number,
    how: Approach & { opened: boolean },
  ): AsyncGenerator<Uint8Array> {
    const { size } = this.descriptor;
    const whole = start === 0 && end === size;
    const { response, url } = await this.#open(host, whole ? undefined : { start, end }, how);
    how.opened = true;
    const what = `${this.what} from ${url.host}`;
    // nothing may end the loop below without closing the body: its finally does
    const body = response.body[Symbol.asyncIterator]();
    try {
      const encoding = response.header("content-encoding");
      if (encoding !== undefined && encoding.trim().toLowerCase() !== "identity" && encoding.trim() !== "") {
        throw new HeadstartError("HS_REGISTRY_PROTOCOL", {
          what: `${what}: the answer is encoded (${encoding.slice(0, 40)})`,
        });
      }
      let skip = 0;
      let stop = end;
      if (response.status === 206) {
        stop = checkContentRange(response.header("content-range"), { start, end, size }, what);
      } else {
        checkWholeLength(response, this.descriptor, what);
        if (!whole) host.ignoresRanges = true;
        skip = start;
      }
      let position = start;
      while (position < stop) {
        const { value, done } = await body.next();
        if (done) {
          throw new HeadstartError("HS_REGISTRY_UNAVAILABLE", {
            what: `${what}: the body ends ${stop - position} bytes early`,
          });
        }
        let chunk: Uint8Array = value;
        if (skip > 0) {
          const skipped = Math.min(skip, chunk.byteLength);
          skip -= skipped;
          chunk = chunk.subarray(skipped);
        }
        // of a whole body only our part; of a 206 more than its range is a lie
        if (response.status === 206 && chunk.byteLength > stop - position) {
          throw new HeadstartError("HS_REGISTRY_RANGE", { what: `${what}: the body is longer than its Content-Range` });
        }
        const wanted = chunk.subarray(0, stop - position);
        if (wanted.byteLength === 0) continue;
        position += wanted.byteLength;
        yield wanted;
      }
      if (end === size || response.status === 206) await expectEnd(body, what, this.descriptor);
    } finally {
      await body.return?.(undefined);
      // a generator that was never started does not close what is below it
      await response.discard();
    }
  }

  async #open(
    host: HostClient,
    range: { readonly start: number; readonly end: number } | undefined,
    how: Approach,
  ): Promise<HostAnswer> {
    const { repository, finalUrls, clock } = this.#parts;
    const headers: Record<string, string> = { accept: "*/*", "accept-encoding": "identity" };
    if (range !== undefined) headers.range = `bytes=${range.start}-${range.end - 1}`;
    const request: HostRequest = {
      method: "GET",
      repository,
      scopes: [repositoryScope(repository, "pull")],
      headers,
      kind: how.kind,
      patience: how.patience,
      signal: how.signal,
    };
    const key = `${host.host} ${this.descriptor.digest}`;
    const known = finalUrls.get(key);
    if (known !== undefined && clock.now() < known.expiresAt) {
      const response = await host.sendBare(known.url, request);
      if (response.status === 200 || response.status === 206) return { response, url: known.url };
      finalUrls.delete(key);
      if (!isStale(response.status)) throw await this.#refused(response, known.url, range);
      await response.discard();
    }
    const answer = await host.follow(host.url(repository, `blobs/${this.descriptor.digest}`), request);
    if (answer.response.status !== 200 && answer.response.status !== 206) {
      throw await this.#refused(answer.response, answer.url, range);
    }
    if (!host.owns(answer.url)) {
      const said = signedUrlExpiry(answer.url);
      const expiresAt = said === undefined ? clock.now() + UNKNOWN_LIFETIME_MS : said - EXPIRY_MARGIN_MS;
      if (finalUrls.size >= FINAL_URLS_MAX) finalUrls.delete(finalUrls.keys().next().value!);
      finalUrls.set(key, { url: answer.url, expiresAt });
    }
    return answer;
  }

  async #refused(
    response: TransportResponse,
    url: URL,
    range: { start: number; end: number } | undefined,
  ): Promise<Error> {
    const what = `${this.what} from ${url.host}`;
    const error = await registryError(response, what, "HS_BLOB_NOT_FOUND");
    if (response.status !== 416) return error;
    return new HeadstartError("HS_SIZE_MISMATCH", {
      what: `${what}: bytes ${range?.start}-${(range?.end ?? 0) - 1} are outside of what the registry has`,
      cause: error,
    });
  }
}

const FINAL_URLS_MAX = 4096;

/** A signed URL that is over: S3 says 403 or 400 ExpiredToken, others 401, 404 or 410; or its place moved. */
function isStale(status: number): boolean {
  if (status >= 300 && status < 400) return true;
  return status === 400 || status === 401 || status === 403 || status === 404 || status === 410;
}

function checkWholeLength(response: TransportResponse, descriptor: Descriptor, what: string): void {
  const text = response.header("content-length");
  if (text === undefined || Number(text) === descriptor.size) return;
  throw new HeadstartError("HS_SIZE_MISMATCH", {
    what: `${what}: the registry has ${text.slice(0, 20)} bytes, the descriptor says ${descriptor.size}`,
    got: Number(text),
    want: descriptor.size,
  });
}

/** The body must be over: one byte more and it is not the blob. Also lets the connection be used again. */
async function expectEnd(body: AsyncIterator<Uint8Array>, what: string, descriptor: Descriptor): Promise<void> {
  const { done, value } = await body.next();
  if (done) return;
  if (value.byteLength === 0) return expectEnd(body, what, descriptor);
  throw new HeadstartError("HS_SIZE_MISMATCH", {
    what: `${what}: the body is longer than asked for (blob of ${descriptor.size} bytes)`,
  });
}
