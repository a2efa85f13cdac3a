/**
 * One contacted host: URLs under its path, its custom headers, its credentials, its TLS settings, and redirects away from it.
 * Invariant: Authorization and custom headers go out only in requests to this very scheme, host and port. Everything else, a redirect's target
 * above all, gets a bare request over connections that carry no client certificate.
 */

import { HeadstartError, isHeadstartError } from "../../base/errors.ts";
import type { Authenticator, Authorization, AuthRound } from "./auth/authenticator.ts";
import type { Capability, RegistryEndpoint } from "./hosts.ts";
import type { Patience, RequestKind, Transport, TransportRequest, TransportResponse } from "./transport/transport.ts";
import { abandonable } from "./wait.ts";

export interface HostRequest {
  readonly method: TransportRequest["method"];
  readonly kind: RequestKind;
  readonly repository: string;
  /** What a token must allow. */
  readonly scopes: readonly string[];
  readonly headers?: Readonly<Record<string, string>>;
  readonly body?: Uint8Array | AsyncIterable<Uint8Array> | undefined;
  readonly signal?: AbortSignal | undefined;
  readonly patience?: Patience;
}

export interface HostAnswer {
  readonly response: TransportResponse;
  /** Where the answer came from, after redirects. */
  readonly url: URL;
}

const REDIRECTS_MAX = 5;
const REDIRECT_STATUSES = new Set([301, 302, 303, 307, 308]);
/** Answers of a TLS client to a server that speaks plain HTTP, or to nobody. */
const NOT_TLS = new Set([
  "ERR_SSL_WRONG_VERSION_NUMBER",
  "ERR_SSL_PACKET_LENGTH_TOO_LONG",
  "ERR_SSL_HTTP_REQUEST",
  "ERR_SSL_RECORD_LAYER_FAILURE",
  "EPROTO",
  "ECONNREFUSED",
]);

export class HostClient {
  readonly endpoint: RegistryEndpoint;
  /** Set once a whole body came back for a range. */
  ignoresRanges = false;
  readonly #transport: Transport;
  readonly #bare: Transport;
  readonly #authenticatorFor: (origin: URL) => Authenticator;
  readonly #userAgent: string;
  #scheme: "http" | "https" | undefined;
  #settling: Promise<"http" | "https"> | undefined;
  #authenticator: Authenticator | undefined;

  constructor(parts: {
    readonly endpoint: RegistryEndpoint;
    readonly transport: Transport;
    /** Without client certificate: for redirects to elsewhere. */
    readonly bare: Transport;
    readonly authenticatorFor: (origin: URL) => Authenticator;
    readonly userAgent: string;
  }) {
    this.endpoint = parts.endpoint;
    this.#transport = parts.transport;
    this.#bare = parts.bare;
    this.#authenticatorFor = parts.authenticatorFor;
    this.#userAgent = parts.userAgent;
    if (!parts.endpoint.tlsFirst) this.#scheme = parts.endpoint.scheme;
  }

  get host(): string {
    return this.endpoint.host;
  }

  can(capability: Capability): boolean {
    return this.endpoint.capabilities.has(capability);
  }

  /** `<path>/<repository>/<rest>?ns=...` on this host. */
  url(repository: string, rest: string, query: Readonly<Record<string, string>> = {}): URL {
    const url = new URL(
      `${this.#scheme ?? "https"}://${this.endpoint.host}${this.endpoint.path}/${repository}/${rest}`,
    );
    if (this.endpoint.namespace !== undefined) url.searchParams.set("ns", this.endpoint.namespace);
    for (const [name, value] of Object.entries(query)) url.searchParams.set(name, value);
    return url;
  }

  /** True for URLs that may see our credentials. */
  owns(url: URL): boolean {
    return (
      url.protocol === `${this.#scheme ?? "https"}:` &&
      url.host === new URL(`${url.protocol}//${this.endpoint.host}`).host
    );
  }

  /** Sends to this host, answering its challenges. Redirects are returned as they are. */
  async send(url: URL, request: HostRequest): Promise<TransportResponse> {
    await this.#settleScheme(url, request.signal);
    if (!this.owns(url)) throw new HeadstartError("HS_INTERNAL", { what: `${url.host} is not ${this.host}` });
    const authenticator = this.#authenticatorNow();
    const round: AuthRound = new Set();
    const { repository, scopes, signal } = request;
    let authorization = await authenticator.authorize(repository, scopes, round, signal);
    for (;;) {
      const response = await this.#transport.send(this.#request(url, request, authorization));
      if (response.status !== 401 && response.status !== 403) return response;
      if (request.body !== undefined && !(request.body instanceof Uint8Array)) return response;
      const next = await authenticator.challenged(
        repository,
        scopes,
        authorization,
        response.header("www-authenticate"),
        round,
        signal,
      );
      if (next === undefined) return response;
      await response.discard();
      authorization = next;
    }
  }

  /** GET or HEAD, following redirects: to ourselves with credentials, to anybody else without anything of ours. */
  async follow(url: URL, request: HostRequest): Promise<HostAnswer> {
    let current = url;
    await this.#settleScheme(current, request.signal);
    for (let hop = 0; hop <= REDIRECTS_MAX; hop++) {
      const response = this.owns(current) ? await this.send(current, request) : await this.sendBare(current, request);
      if (!REDIRECT_STATUSES.has(response.status)) return { response, url: current };
      const location = response.header("location");
      await response.discard();
      const target = location === undefined ? null : URL.parse(location, current);
      if (target === null || !/^https?:$/.test(target.protocol) || target.host === "") {
        throw new HeadstartError("HS_REGISTRY_PROTOCOL", { what: `${current.host} redirects to nowhere` });
      }
      // a user and password in a URL would become an Authorization header
      target.username = "";
      target.password = "";
      target.hash = "";
      current = target;
    }
    throw new HeadstartError("HS_REGISTRY_PROTOCOL", {
      what: `${url.host} redirects more than ${REDIRECTS_MAX} times`,
    });
  }

  /** A request that carries nothing of ours but what it asks for. */
  sendBare(url: URL, request: HostRequest): Promise<TransportResponse> {
    return this.#bare.send({ ...bare(url, request), headers: { ...request.headers, "user-agent": this.#userAgent } });
  }

  #request(url: URL, request: HostRequest, authorization: Authorization | undefined): TransportRequest {
    const headers: Record<string, string | string[]> = {};
    for (const [name, values] of Object.entries(this.endpoint.headers)) headers[name] = [...values];
    Object.assign(headers, { "user-agent": this.#userAgent }, request.headers);
    if (authorization?.header !== undefined) headers.authorization = authorization.header.reveal();
    return { ...bare(url, request), headers };
  }

  #authenticatorNow(): Authenticator {
    this.#authenticator ??= this.#authenticatorFor(new URL(`${this.#scheme ?? "https"}://${this.endpoint.host}`));
    return this.#authenticator;
  }

  /** Mends the scheme of `url`, which is our guess until the host has answered once. */
  async #settleScheme(url: URL, signal: AbortSignal | undefined): Promise<void> {
    if (this.#scheme === undefined) {
      this.#settling ??= this.#findScheme().finally(() => {
        this.#settling = undefined;
      });
      this.#scheme = await abandonable(this.#settling, signal);
    }
    if (this.#scheme === "http" && url.protocol === "https:" && this.#isOwnHost(url)) url.protocol = "http:";
  }

  /** For a host that may speak either: asks once by TLS and takes plain HTTP if that is no TLS server. */
  async #findScheme(): Promise<"http" | "https"> {
    const url = new URL(`https://${this.endpoint.host}${this.endpoint.path}/`);
    const headers = { "user-agent": this.#userAgent };
    try {
      const response = await this.#transport.send({ method: "GET", url, kind: "probe", headers, patience: "none" });
      await response.discard();
      return "https";
    } catch (error) {
      if (isHeadstartError(error, "HS_REGISTRY_UNAVAILABLE") && NOT_TLS.has(String(error.details.reason)))
        return "http";
      throw error;
    }
  }

  #isOwnHost(url: URL): boolean {
    return this.endpoint.tlsFirst && url.host === this.endpoint.host;
  }
}

function bare(url: URL, request: HostRequest): Omit<TransportRequest, "headers"> {
  const { method, kind, body, signal, patience } = request;
  return { method, url, kind, body, signal, ...(patience === undefined ? {} : { patience }) };
}
