/**
 * All connections to registries of one process (or one command): transports by TLS settings, host clients, tokens, gates. Opens
 * repositories; closing it ends every connection. Holds no decision: hosts.toml says where, credential sources say who.
 */

import { type Clock, systemClock } from "../../base/clock.ts";
import { VERSION } from "../../base/version.ts";
import type { ImageReference } from "../reference.ts";
import { Authenticator } from "./auth/authenticator.ts";
import type { CredentialSource } from "./auth/credentials.ts";
import { TokenCache } from "./auth/token.ts";
import { Repository } from "./client.ts";
import { HostClient } from "./host-client.ts";
import { DEFAULT_HOSTS_DIRS, loadEndpoints, type RegistryEndpoint } from "./hosts.ts";
import { HostGate, withLimit } from "./transport/limit.ts";
import { withLog } from "./transport/log.ts";
import type { Environment } from "./transport/proxy.ts";
import { DEFAULT_RETRY, type RetryPolicy, withRetry } from "./transport/retry.ts";
import type { Transport } from "./transport/transport.ts";
import { type Timeouts, type TlsSettings, UndiciTransport } from "./transport/undici.ts";
import type { UploadOptions } from "./upload.ts";

export interface RegistryOptions {
  /** In order of preference; see auth/sources.ts for the usual ones. */
  readonly credentials?: readonly CredentialSource[];
  /** Directories of hosts.toml. */
  readonly hostsDirs?: readonly string[];
  readonly clock?: Clock;
  /** [0, 1), for the jitter of back-offs. */
  readonly random?: () => number;
  /** HTTPS_PROXY, HTTP_PROXY, NO_PROXY. */
  readonly env?: Environment;
  readonly timeouts?: Partial<Timeouts>;
  readonly retry?: Partial<RetryPolicy>;
  readonly upload?: UploadOptions;
  /** Requests that may run at once to one host. */
  readonly hostConcurrency?: number;
}

const HOST_CONCURRENCY = 24;
const HOST_CLIENTS_MAX = 256;

export class Registry implements AsyncDisposable {
  readonly #options: RegistryOptions;
  readonly #clock: Clock;
  readonly #random: () => number;
  readonly #policy: RetryPolicy;
  readonly #transports = new Map<string, { readonly base: UndiciTransport; readonly wrapped: Transport }>();
  readonly #gates = new Map<string, HostGate>();
  readonly #clients = new Map<string, HostClient>();
  readonly #userAgent = `headstart/${VERSION}`;

  constructor(options: RegistryOptions = {}) {
    this.#options = options;
    this.#clock = options.clock ?? systemClock;
    this.#random = options.random ?? Math.random;
    this.#policy = { ...DEFAULT_RETRY, ...options.retry };
  }

  /** Reads hosts.toml now. `owned` is closed with the repository. Throws HS_CONFIG. */
  async repository(reference: ImageReference, owned?: AsyncDisposable): Promise<Repository> {
    const endpoints = await loadEndpoints(reference.host, this.#options.hostsDirs ?? DEFAULT_HOSTS_DIRS);
    return new Repository({
      reference,
      hosts: endpoints.map((endpoint) => this.#client(endpoint)),
      clock: this.#clock,
      random: this.#random,
      policy: this.#policy,
      owned,
      ...(this.#options.upload === undefined ? {} : { upload: this.#options.upload }),
    });
  }

  /** One client for one way of speaking to one host, so that tokens and connections are shared between repositories. */
  #client(endpoint: RegistryEndpoint): HostClient {
    const key = JSON.stringify({ ...endpoint, capabilities: [...endpoint.capabilities] });
    const known = this.#clients.get(key);
    if (known !== undefined) return known;
    const { tls, dialTimeoutMs } = endpoint;
    const bare = this.#transport({ ...tls, client: [] }, dialTimeoutMs);
    const tokens = new TokenCache(bare, this.#clock);
    const client = new HostClient({
      endpoint,
      transport: tls.client.length === 0 ? bare : this.#transport(tls, dialTimeoutMs),
      bare,
      userAgent: this.#userAgent,
      authenticatorFor: (origin) =>
        new Authenticator({
          origin,
          host: endpoint.host,
          sources: this.#options.credentials ?? [],
          tokens,
          clock: this.#clock,
        }),
    });
    if (this.#clients.size >= HOST_CLIENTS_MAX) this.#clients.delete(this.#clients.keys().next().value!);
    this.#clients.set(key, client);
    return client;
  }

  #transport(tls: TlsSettings, dialTimeoutMs: number | undefined): Transport {
    const key = JSON.stringify([tls, dialTimeoutMs]);
    let known = this.#transports.get(key);
    if (known === undefined) {
      const timeouts = {
        ...this.#options.timeouts,
        ...(dialTimeoutMs === undefined ? {} : { connectMs: dialTimeoutMs }),
      };
      const base = new UndiciTransport({ tls, timeouts, env: this.#options.env ?? process.env });
      const limited = withLimit(withLog(base, this.#clock), (host) => this.#gate(host));
      const retry = { clock: this.#clock, random: this.#random, policy: this.#policy };
      known = { base, wrapped: withRetry(limited, retry) };
      this.#transports.set(key, known);
    }
    return known.wrapped;
  }

  #gate(host: string): HostGate {
    let gate = this.#gates.get(host);
    if (gate === undefined) {
      gate = new HostGate(this.#options.hostConcurrency ?? HOST_CONCURRENCY, this.#clock);
      this.#gates.set(host, gate);
    }
    return gate;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const all = [...this.#transports.values()];
    this.#transports.clear();
    this.#clients.clear();
    await Promise.all(all.map(({ base }) => base[Symbol.asyncDispose]()));
  }
}
