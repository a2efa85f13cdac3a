/**
 * The transport that sends: undici pools over HTTP/1.1 (parallel ranges want connections, not streams of one connection). One object
 * for one set of TLS settings. Every wait has its own deadline here: connecting, headers, and the silence between two pieces of a body.
 */

import { createSecureContext, getCACertificates, type SecureContext } from "node:tls";
import { Agent, type Dispatcher, ProxyAgent } from "undici";
import { HeadstartError } from "../../../base/errors.ts";
import { machineAuthorities } from "./authorities.ts";
import { type Environment, proxyFor } from "./proxy.ts";
import type { Transport, TransportRequest, TransportResponse } from "./transport.ts";

export interface TlsSettings {
  /** PEM texts, in addition to the machine's authorities. */
  readonly ca: readonly string[];
  /** PEM certificate chains with their keys. */
  readonly client: readonly { readonly cert: string; readonly key: string }[];
  readonly skipVerify: boolean;
  /** PEM texts in place of the machine's authorities: nobody else is believed. */
  readonly onlyCa?: readonly string[] | undefined;
  /** The name that the certificate must have, where it is not the host's. */
  readonly serverName?: string | undefined;
}

export const PLAIN_TLS: TlsSettings = { ca: [], client: [], skipVerify: false };

export interface Timeouts {
  readonly connectMs: number;
  /** From the request's end to the answer's headers. */
  readonly headersMs: number;
  /** The longest silence within a body. */
  readonly stallMs: number;
}

export const DEFAULT_TIMEOUTS: Timeouts = { connectMs: 10_000, headersMs: 30_000, stallMs: 15_000 };

/** Connections to one host; a fetcher keeps about as many ranges in flight. */
const CONNECTIONS_MAX = 32;
/** A rest of a body up to this size is read away to save the connection. */
const DISCARD_BYTES = 64 * 1024;

export class UndiciTransport implements Transport, AsyncDisposable {
  readonly #tls: TlsSettings;
  readonly #timeouts: Timeouts;
  readonly #env: Environment;
  readonly #connections: number;
  readonly #dispatchers = new Map<string, Dispatcher>();
  #secureContext: Promise<SecureContext> | undefined;

  constructor(
    options: {
      tls?: TlsSettings;
      timeouts?: Partial<Timeouts>;
      env?: Environment;
      /** The most to one host. */
      connections?: number;
    } = {},
  ) {
    this.#tls = options.tls ?? PLAIN_TLS;
    this.#timeouts = { ...DEFAULT_TIMEOUTS, ...options.timeouts };
    this.#env = options.env ?? {};
    this.#connections = options.connections ?? CONNECTIONS_MAX;
  }

  async send(request: TransportRequest): Promise<TransportResponse> {
    const { url, signal } = request;
    signal?.throwIfAborted();
    try {
      const dispatcher = await this.#dispatcher(url);
      signal?.throwIfAborted();
      const answer = await dispatcher.request({
        origin: url.origin,
        path: `${url.pathname}${url.search}`,
        method: request.method,
        headers: request.headers as Record<string, string | string[]>,
        body: (request.body ?? null) as Dispatcher.RequestOptions["body"],
        signal: signal ?? null,
        headersTimeout: this.#timeouts.headersMs,
        bodyTimeout: this.#timeouts.stallMs,
      } as Dispatcher.RequestOptions);
      return new UndiciResponse(answer, `${request.method} ${url.host}`, signal);
    } catch (cause) {
      throw transportError(cause, `${request.method} ${url.host}`, signal);
    }
  }

  async #dispatcher(url: URL): Promise<Dispatcher> {
    const proxy = proxyFor(url, this.#env);
    const secure = url.protocol === "https:" || proxy?.protocol === "https:";
    const key = `${secure} ${proxy?.href ?? "direct"}`;
    const known = this.#dispatchers.get(key);
    if (known !== undefined) return known;
    const connect = { ...(secure ? await this.#tlsOptions() : {}), timeout: this.#timeouts.connectMs };
    let dispatcher = this.#dispatchers.get(key); // somebody else may have made it meanwhile
    if (dispatcher === undefined) {
      const options = { connections: this.#connections, pipelining: 1, allowH2: false, keepAliveTimeout: 30_000 };
      dispatcher =
        proxy === undefined
          ? new Agent({ ...options, connect })
          : new ProxyAgent({
              ...options,
              uri: `${proxy.protocol}//${proxy.host}`,
              ...(proxy.username === "" ? {} : { token: basicOf(proxy) }),
              requestTls: connect,
              connect,
            });
      this.#dispatchers.set(key, dispatcher);
    }
    return dispatcher;
  }

  /** Reading hundreds of authorities takes milliseconds, so all connections share one context; unverified ones need none. */
  async #tlsOptions() {
    this.#secureContext ??= secureContext(this.#tls);
    const { skipVerify, serverName } = this.#tls;
    return {
      secureContext: await this.#secureContext,
      rejectUnauthorized: !skipVerify,
      ...(serverName === undefined ? {} : { servername: serverName }),
    };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const all = [...this.#dispatchers.values()];
    this.#dispatchers.clear();
    await Promise.all(all.map((dispatcher) => dispatcher.destroy()));
  }
}

async function secureContext(tls: TlsSettings): Promise<SecureContext> {
  const added = tls.skipVerify || tls.onlyCa !== undefined ? [] : [...(await machineAuthorities()), ...tls.ca];
  const ca = tls.onlyCa ?? (added.length === 0 ? undefined : [...getCACertificates("default"), ...added]);
  return createSecureContext({
    ...(ca === undefined ? {} : { ca: [...ca] }),
    cert: tls.client.map((pair) => pair.cert),
    key: tls.client.map((pair) => pair.key),
  });
}

function basicOf(proxy: URL): string {
  const user = decodeURIComponent(proxy.username);
  return `Basic ${Buffer.from(`${user}:${decodeURIComponent(proxy.password)}`).toString("base64")}`;
}

class UndiciResponse implements TransportResponse {
  readonly status: number;
  readonly body: AsyncIterable<Uint8Array>;
  readonly #answer: Dispatcher.ResponseData;
  readonly #what: string;
  readonly #signal: AbortSignal | undefined;
  #bytes = 0;
  #error: unknown;

  constructor(answer: Dispatcher.ResponseData, what: string, signal: AbortSignal | undefined) {
    this.#answer = answer;
    this.#what = what;
    this.#signal = signal;
    this.status = answer.statusCode;
    this.body = this.#chunks();
    // a body that breaks before anybody reads it must not become an unhandled error
    answer.body.on("error", (error) => {
      this.#error ??= error;
    });
  }

  header(name: string): string | undefined {
    const value = this.#answer.headers[name];
    return Array.isArray(value) ? value.join(", ") : value;
  }

  async *#chunks(): AsyncGenerator<Uint8Array> {
    try {
      for await (const chunk of this.#answer.body as AsyncIterable<Uint8Array>) {
        this.#bytes += chunk.byteLength;
        yield chunk;
      }
    } catch (cause) {
      this.#error ??= cause;
      throw transportError(cause, `${this.#what}: body after ${this.#bytes} bytes`, this.#signal);
    }
  }

  async discard(): Promise<void> {
    try {
      await this.#answer.body.dump({ limit: DISCARD_BYTES });
    } catch (error) {
      this.#error ??= error; // told by onClose
    }
  }

  onClose(listener: (fact: { readonly bytes: number; readonly error?: unknown }) => void): void {
    const tell = () => listener({ bytes: this.#bytes, error: this.#error });
    if (this.#answer.body.closed) tell();
    else this.#answer.body.once("close", tell);
  }
}

/** What undici or the socket throws, as ours. The codes are undici's or Node's: never messages. */
export function transportError(cause: unknown, what: string, signal: AbortSignal | undefined): unknown {
  if (signal?.aborted) return signal.reason;
  if (cause instanceof HeadstartError) return cause;
  const reason = transportCode(cause) ?? "no answer";
  return new HeadstartError("HS_REGISTRY_UNAVAILABLE", { what: `${what}: ${reason}`, reason, cause });
}

/** The code of the innermost cause that has one: ECONNREFUSED, UND_ERR_BODY_TIMEOUT, ERR_SSL_WRONG_VERSION_NUMBER… */
export function transportCode(error: unknown): string | undefined {
  let code: string | undefined;
  let current = error;
  for (let depth = 0; depth < 8 && current instanceof Error; depth++) {
    const own = (current as NodeJS.ErrnoException).code;
    if (typeof own === "string" && !own.startsWith("HS_")) code = own;
    if (current instanceof AggregateError && current.errors.length > 0) current = current.errors[0];
    else current = current.cause;
  }
  return code;
}
