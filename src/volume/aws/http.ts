/**
 * One HTTP exchange with an AWS service or a metadata endpoint: a whole body out, a whole body back, both bounded, with one deadline over it all. Broken connections are HS_AWS_UNAVAILABLE. Knows no
 * credentials and judges no status.
 */

import { HeadstartError, isHeadstartError } from "../../base/errors.ts";
import type { Environment } from "../../oci/registry/transport/proxy.ts";
import type { RequestKind, TransportResponse } from "../../oci/registry/transport/transport.ts";
import { UndiciTransport } from "../../oci/registry/transport/undici.ts";

export interface HttpRequest {
  readonly method: "GET" | "PUT" | "POST";
  readonly url: URL;
  readonly headers: Readonly<Record<string, string>>;
  readonly body?: Uint8Array | undefined;
  /** The most that the answer's body may have. */
  readonly limit: number;
  /** `limit` bytes that the body is put into; `body` of the answer is a part of it then. */
  readonly into?: Uint8Array | undefined;
  /** Over the whole exchange. */
  readonly deadlineMs: number;
  readonly signal?: AbortSignal | undefined;
}

export interface HttpAnswer {
  readonly status: number;
  header(name: string): string | undefined;
  readonly body: Uint8Array;
}

export interface HttpOptions {
  /** The most to one host. */
  readonly connections?: number | undefined;
  /** For its proxies; none without. */
  readonly env?: Environment | undefined;
  readonly connectMs?: number | undefined;
  /** The longest silence. */
  readonly stallMs?: number | undefined;
}

const KIND: RequestKind = "upload";
const STALL_MS = 20_000;

export class Http implements AsyncDisposable {
  readonly #transport: UndiciTransport;

  constructor(options: HttpOptions = {}) {
    const { stallMs = STALL_MS } = options;
    const timeouts = { connectMs: options.connectMs ?? 10_000, headersMs: stallMs, stallMs };
    this.#transport = new UndiciTransport({
      timeouts,
      env: options.env ?? {},
      ...(options.connections !== undefined && { connections: options.connections }),
    });
  }

  /** Throws HS_AWS_UNAVAILABLE, HS_AWS_PROTOCOL for a body beyond the limit, the signal's reason. */
  async exchange(request: HttpRequest): Promise<HttpAnswer> {
    const { method, url, headers, body, signal } = request;
    signal?.throwIfAborted();
    const own = new AbortController();
    const what = `${method} ${url.host}`;
    const late = () =>
      new HeadstartError("HS_AWS_UNAVAILABLE", { what: `${what}: no answer in ${request.deadlineMs / 1000} s` });
    const timer = setTimeout(() => own.abort(late()), request.deadlineMs);
    const onAbort = () => own.abort(signal?.reason);
    signal?.addEventListener("abort", onAbort, { once: true });
    try {
      const response = await this.#transport.send({ method, url, kind: KIND, headers, body, signal: own.signal });
      const bytes = await readBody(response, request, what);
      return { status: response.status, header: (name) => response.header(name), body: bytes };
    } catch (error) {
      if (isHeadstartError(error, "HS_REGISTRY_UNAVAILABLE")) {
        const reason = error.details.reason;
        throw new HeadstartError("HS_AWS_UNAVAILABLE", { what: `${what}: ${String(reason)}`, reason });
      }
      throw error;
    } finally {
      clearTimeout(timer);
      signal?.removeEventListener("abort", onAbort);
    }
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.#transport[Symbol.asyncDispose]();
  }
}

async function readBody(response: TransportResponse, request: HttpRequest, what: string): Promise<Uint8Array> {
  const { limit, into } = request;
  const chunks: Uint8Array[] = [];
  let total = 0;
  for await (const chunk of response.body) {
    if (total + chunk.byteLength > limit) {
      throw new HeadstartError("HS_AWS_PROTOCOL", { what: `${what}: more than ${limit} bytes of answer` });
    }
    if (into === undefined) chunks.push(chunk);
    else into.set(chunk, total);
    total += chunk.byteLength;
  }
  if (into !== undefined) return into.subarray(0, total);
  return chunks.length === 1 ? chunks[0]! : Buffer.concat(chunks);
}
