/**
 * A proxy in front of a registry that counts what is fetched and caps how fast: every figure about laziness comes from here, and the cap is
 * what keeps a background fill over loopback from being done before the container runs. Answers stream through; nothing is kept.
 */

import { Agent, createServer, type IncomingMessage, request, type Server, type ServerResponse } from "node:http";
import { Agent as HttpsAgent, request as requestHttps } from "node:https";
import type { AddressInfo } from "node:net";
import { pipeline } from "node:stream/promises";
import { systemClock } from "../base/clock.ts";

export interface MeterOptions {
  /** For all connections together; none: as fast as it goes. */
  readonly bytesPerSecond?: number;
  /** Waited before each answer begins: a registry is some way off. */
  readonly latencyMs?: number;
}

export interface MeteredRequest {
  readonly method: string;
  readonly path: string;
  /** The digest of a blob or manifest that the path names, or the tag of a manifest. */
  readonly target: string;
  readonly kind: "blob" | "manifest" | "referrers" | "other";
  readonly range: string | undefined;
  readonly startedMs: number;
  status: number;
  /** Of the answer's body, as far as it was handed to the client's connection. */
  bytes: number;
}

/** A place in time: what was counted before it is not looked at. */
export interface Mark {
  readonly requests: number;
  readonly bytesBefore: ReadonlyMap<MeteredRequest, number>;
}

export interface Metered {
  readonly requests: number;
  /** Of answer bodies of any kind. */
  readonly bytes: number;
  readonly blobBytes: number;
  readonly blobRequests: number;
  /** digest -> what was fetched of that blob. */
  readonly blobs: ReadonlyMap<string, { readonly requests: number; readonly bytes: number }>;
  readonly list: readonly MeteredRequest[];
}

/** Blocks of this size go through the cap one by one: small enough that two streams share it evenly. */
const SLICE_BYTES = 16 * 1024;

export class Meter implements AsyncDisposable {
  /** "127.0.0.1:PORT". */
  readonly host: string;
  readonly #server: Server;
  readonly #agent: Agent;
  readonly #upstream: URL;
  readonly #requests: MeteredRequest[] = [];
  readonly #open = new Set<MeteredRequest>();
  readonly #cap: Cap;
  #latencyMs: number;

  /** `registry` is "HOST:PORT" of plain HTTP, or a URL such as "https://registry-1.docker.io". */
  static async start(registry: string, options: MeterOptions = {}): Promise<Meter> {
    const server = createServer();
    await new Promise<void>((resolve, reject) => {
      server.once("error", reject);
      server.listen(0, "127.0.0.1", resolve);
    });
    return new Meter(server, registry, options);
  }

  private constructor(server: Server, registry: string, options: MeterOptions) {
    this.#upstream = new URL(registry.includes("://") ? registry : `http://${registry}`);
    const secure = this.#upstream.protocol === "https:";
    this.#agent = new (secure ? HttpsAgent : Agent)({ keepAlive: true, maxSockets: 64 });
    this.#server = server;
    this.#cap = new Cap(options.bytesPerSecond);
    this.#latencyMs = options.latencyMs ?? 0;
    this.host = `127.0.0.1:${(server.address() as AddressInfo).port}`;
    server.keepAliveTimeout = 60_000;
    server.on("request", (incoming, answer) => void this.#serve(incoming, answer).catch(() => answer.destroy()));
  }

  get bytesPerSecond(): number | undefined {
    return this.#cap.bytesPerSecond;
  }

  /** Changes the cap for what follows. */
  limit(options: MeterOptions): void {
    this.#cap.bytesPerSecond = options.bytesPerSecond;
    this.#latencyMs = options.latencyMs ?? 0;
  }

  mark(): Mark {
    return {
      requests: this.#requests.length,
      bytesBefore: new Map([...this.#open].map((entry) => [entry, entry.bytes])),
    };
  }

  /** All requests begun since the mark, and the bytes that older ones have brought since. */
  since(mark: Mark): Metered {
    const list = this.#requests.slice(mark.requests);
    const blobs = new Map<string, { requests: number; bytes: number }>();
    let bytes = 0;
    let blobBytes = 0;
    let blobRequests = 0;
    const add = (entry: MeteredRequest, count: number, requests: number) => {
      bytes += count;
      if (entry.kind !== "blob" || entry.method !== "GET") return;
      blobBytes += count;
      blobRequests += requests;
      const known = blobs.get(entry.target) ?? { requests: 0, bytes: 0 };
      blobs.set(entry.target, { requests: known.requests + requests, bytes: known.bytes + count });
    };
    for (const entry of list) add(entry, entry.bytes, 1);
    for (const [entry, before] of mark.bytesBefore) if (entry.bytes > before) add(entry, entry.bytes - before, 0);
    return { requests: list.length, bytes, blobBytes, blobRequests, blobs, list };
  }

  async #serve(incoming: IncomingMessage, answer: ServerResponse): Promise<void> {
    const entry = this.#begin(incoming);
    try {
      if (this.#latencyMs > 0) await systemClock.sleep(this.#latencyMs);
      const upstream = await this.#forward(incoming);
      entry.status = upstream.statusCode ?? 502;
      answer.writeHead(entry.status, upstream.rawHeaders);
      const cap = this.#cap;
      await pipeline(
        upstream,
        async function* (body: AsyncIterable<Buffer>) {
          for await (const chunk of body) {
            for (let start = 0; start < chunk.byteLength; start += SLICE_BYTES) {
              const slice = chunk.subarray(start, start + SLICE_BYTES);
              await cap.take(slice.byteLength);
              entry.bytes += slice.byteLength;
              yield slice;
            }
          }
        },
        answer,
      );
    } finally {
      this.#open.delete(entry);
    }
  }

  #begin(incoming: IncomingMessage): MeteredRequest {
    const path = incoming.url ?? "/";
    const [, noun = "", target = ""] = /\/(blobs|manifests|referrers)\/([^/?]+)/.exec(path) ?? [];
    const kind = ({ blobs: "blob", manifests: "manifest", referrers: "referrers" } as const)[noun] ?? "other";
    const entry: MeteredRequest = {
      method: incoming.method ?? "GET",
      path,
      target,
      kind,
      range: incoming.headers.range,
      startedMs: systemClock.monotonic(),
      status: 0,
      bytes: 0,
    };
    this.#requests.push(entry);
    this.#open.add(entry);
    return entry;
  }

  #forward(incoming: IncomingMessage): Promise<IncomingMessage> {
    return new Promise((resolve, reject) => {
      const { protocol, hostname, port, host } = this.#upstream;
      const secure = protocol === "https:";
      // over plain HTTP the client's own Host goes along: the registry makes the Location of an upload of it
      const headers = secure ? { ...incoming.headers, host } : incoming.rawHeaders;
      const target = { hostname, port, agent: this.#agent, method: incoming.method, path: incoming.url, headers };
      const outgoing = (secure ? requestHttps : request)(target, resolve);
      outgoing.once("error", reject);
      pipeline(incoming, outgoing).catch(reject);
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#server.closeAllConnections();
    this.#agent.destroy();
    await new Promise((resolve) => this.#server.close(resolve));
  }
}

/** A token bucket that holds 20 ms worth of bytes: who takes more than is there waits, in the order of asking. */
class Cap {
  bytesPerSecond: number | undefined;
  #readyAtMs = 0;

  constructor(bytesPerSecond: number | undefined) {
    this.bytesPerSecond = bytesPerSecond;
  }

  async take(bytes: number): Promise<void> {
    if (this.bytesPerSecond === undefined) return;
    const now = systemClock.monotonic();
    const BURST_MS = 20;
    this.#readyAtMs = Math.max(this.#readyAtMs, now - BURST_MS) + (bytes / this.bytesPerSecond) * 1000;
    const waitMs = this.#readyAtMs - now;
    if (waitMs > 1) await systemClock.sleep(waitMs); // timers are no finer than that
  }
}
