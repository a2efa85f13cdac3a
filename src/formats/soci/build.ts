/**
 * Builds zTOCs: one pass over the blob of each layer, in pairs of worker threads (build-protocol.ts), several layers at once. The result is only given out
 * after the blob's digest and, where known, the diffID were found right.
 */

import { MessageChannel, Worker } from "node:worker_threads";
import { type DiffID, type Digest, sha256 } from "../../base/digest.ts";
import { ERRORS, type ErrorCode, HeadstartError } from "../../base/errors.ts";
import { Limit } from "../../base/limit.ts";
import { endWorker, watchLoading } from "../../base/worker-end.ts";
import {
  type BuildWorkerData,
  makeRings,
  STORED_SLOT_SIZE,
  STORED_SLOTS,
  type ToFront,
  type ToMain,
} from "./build-protocol.ts";

export interface ZtocBuildInput {
  /** The blob from its first byte; chunks of any size. Left early when the layer cannot be indexed. */
  readonly blob: AsyncIterable<Uint8Array>;
  readonly layer: { readonly digest: Digest; readonly size: number; readonly diffID?: Digest | null };
  /** Uncompressed bytes a span has at least; 0: a checkpoint at every deflate block. */
  readonly spanSize: number;
  readonly buildTool: string;
  readonly signal?: AbortSignal | undefined;
  /** Called with the stored bytes that were taken so far. */
  readonly onProgress?: (bytes: number) => void;
}

export interface BuiltZtoc {
  readonly kind: "built";
  readonly ztoc: Uint8Array;
  readonly digest: Digest;
  readonly diffID: DiffID;
  readonly compression: "gzip" | "tar";
  readonly spanCount: number;
  readonly entryCount: number;
  readonly uncompressedSize: number;
  /** An xattr or opaque mark is in it: SOCI's `xattr` optimization must not be applied. */
  readonly hasXattrs: boolean;
}

/** The layer is sound, but SOCI has no zTOC for such a one: it stays out of the index. */
export interface NoZtoc {
  readonly kind: "none";
  readonly reason: string;
}

export class ZtocBuilders implements AsyncDisposable {
  readonly #limit: Limit;
  readonly #idle: Pair[] = [];
  readonly #all = new Set<Pair>();
  #closed = false;

  /** `pairs`: layers at once. A pair keeps two cores busy. */
  constructor(pairs: number) {
    this.#limit = new Limit(Math.max(1, pairs));
  }

  /**
   * Throws HS_DIGEST_MISMATCH, HS_SIZE_MISMATCH, HS_DIFFID_MISMATCH, HS_LAYER_REFUSED (containerd refuses this layer too), HS_LIMIT (too many spans), HS_USAGE (a span
   * size that cannot be), and what the stream throws.
   */
  async build(input: ZtocBuildInput): Promise<BuiltZtoc | NoZtoc> {
    return await this.#limit.run(() => this.#build(input), { signal: input.signal });
  }

  async #build(input: ZtocBuildInput): Promise<BuiltZtoc | NoZtoc> {
    if (this.#closed) throw new HeadstartError("HS_CANCELED", { what: "building zTOCs: closed" });
    const pair = this.#idle.pop() ?? this.#open();
    let outcome: Outcome;
    try {
      outcome = await pair.run(input);
    } catch (error) {
      await this.#drop(pair);
      throw error;
    }
    if (outcome.t === "notIndexable") {
      await this.#drop(pair);
      return { kind: "none", reason: outcome.reason };
    }
    this.#idle.push(pair);
    const { hashes } = outcome;
    check(input, hashes);
    return {
      kind: "built",
      ztoc: outcome.ztoc,
      digest: sha256(outcome.ztoc),
      diffID: hashes.diffID,
      compression: outcome.compression,
      spanCount: hashes.spans.length,
      entryCount: outcome.entryCount,
      uncompressedSize: outcome.uncompressedSize,
      hasXattrs: outcome.hasXattrs,
    };
  }

  #open(): Pair {
    const pair = new Pair();
    this.#all.add(pair);
    return pair;
  }

  async #drop(pair: Pair): Promise<void> {
    this.#all.delete(pair);
    await pair.close();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#closed = true;
    await Promise.all([...this.#all].map((pair) => this.#drop(pair)));
  }
}

function check({ layer }: ZtocBuildInput, hashes: { blob: Digest; blobSize: number; diffID: Digest }): void {
  if (hashes.blobSize !== layer.size) {
    throw new HeadstartError("HS_SIZE_MISMATCH", {
      what: `layer ${layer.digest}: ${hashes.blobSize} bytes instead of ${layer.size}`,
      got: hashes.blobSize,
      want: layer.size,
    });
  }
  if (hashes.blob !== layer.digest) {
    throw new HeadstartError("HS_DIGEST_MISMATCH", {
      what: `layer ${layer.digest}: got ${hashes.blob}`,
      got: hashes.blob,
      want: layer.digest,
    });
  }
  if (layer.diffID && hashes.diffID !== layer.diffID) {
    throw new HeadstartError("HS_DIFFID_MISMATCH", {
      what: `layer ${layer.digest}: its tar has ${hashes.diffID}, the configuration names ${layer.diffID}`,
      got: hashes.diffID,
      want: layer.diffID,
    });
  }
}

type Outcome = Extract<ToMain, { t: "built" | "notIndexable" }>;

/** Two threads and their rings. One layer at a time. */
class Pair {
  readonly #front: Worker;
  readonly #back: Worker;
  readonly #slots: Uint8Array[];
  readonly #free: number[] = [...Array(STORED_SLOTS).keys()];
  #slotFreed: (() => void) | null = null;
  #settle: { resolve: (outcome: Outcome) => void; reject: (error: unknown) => void } | null = null;
  /** Set once nothing more is to be sent. */
  #over = false;

  constructor() {
    const rings = makeRings();
    const { port1, port2 } = new MessageChannel();
    const start = (role: "front" | "back", port: BuildWorkerData["port"]) => {
      const worker = new Worker(new URL("./build.worker.ts", import.meta.url), {
        name: `headstart-index-${role}`,
        workerData: { role, rings, port } satisfies BuildWorkerData,
        transferList: [port],
      });
      watchLoading(worker);
      worker.on("message", (message: ToMain) => this.#received(message));
      worker.on("error", (error) => this.#fail(error));
      return worker;
    };
    this.#front = start("front", port1);
    this.#back = start("back", port2);
    this.#slots = this.#free.map((slot) => new Uint8Array(rings.stored, slot * STORED_SLOT_SIZE, STORED_SLOT_SIZE));
  }

  async run(input: ZtocBuildInput): Promise<Outcome> {
    const { promise, resolve, reject } = Promise.withResolvers<Outcome>();
    // the stream may fail first: then nobody awaits this one
    promise.catch(() => {});
    this.#settle = { resolve, reject };
    this.#over = false;
    this.#tell({ t: "start", spanSize: input.spanSize, buildTool: input.buildTool, layer: input.layer.digest });
    await this.#feed(input);
    if (!this.#over) this.#tell({ t: "end" });
    const abort = () => reject(input.signal!.reason);
    input.signal?.addEventListener("abort", abort, { once: true });
    try {
      input.signal?.throwIfAborted();
      return await promise;
    } finally {
      input.signal?.removeEventListener("abort", abort);
    }
  }

  async close(): Promise<void> {
    await Promise.all([endWorker(this.#front), endWorker(this.#back)]);
  }

  /** Puts the stream into slots, each filled before it is sent, so that the cut of the chunks does not matter. */
  async #feed({ blob, layer, signal, onProgress }: ZtocBuildInput): Promise<void> {
    let slot = -1;
    let length = 0;
    let total = 0;
    for await (const chunk of blob) {
      signal?.throwIfAborted();
      total += chunk.byteLength;
      if (total > layer.size) {
        throw new HeadstartError("HS_SIZE_MISMATCH", {
          what: `layer ${layer.digest}: more than ${layer.size} bytes`,
          want: layer.size,
        });
      }
      for (let position = 0; position < chunk.byteLength && !this.#over; ) {
        if (slot < 0) slot = await this.#takeSlot();
        if (this.#over) break;
        const count = Math.min(STORED_SLOT_SIZE - length, chunk.byteLength - position);
        this.#slots[slot]!.set(chunk.subarray(position, position + count), length);
        length += count;
        position += count;
        if (length < STORED_SLOT_SIZE) continue;
        this.#tell({ t: "chunk", slot, length });
        slot = -1;
        length = 0;
      }
      if (this.#over) return;
      onProgress?.(total);
    }
    if (length > 0) this.#tell({ t: "chunk", slot, length });
    else if (slot >= 0) this.#free.push(slot);
  }

  async #takeSlot(): Promise<number> {
    while (this.#free.length === 0 && !this.#over) {
      await new Promise<void>((resolve) => {
        this.#slotFreed = resolve;
      });
    }
    return this.#free.pop() ?? 0;
  }

  #tell(message: ToFront): void {
    this.#front.postMessage(message);
  }

  #received(message: ToMain): void {
    switch (message.t) {
      case "ready":
        return;
      case "free":
        this.#free.push(message.slot);
        this.#wake();
        return;
      case "built":
      case "notIndexable":
        this.#end();
        this.#settle?.resolve(message);
        return;
      case "failed": {
        const { code, details } = message;
        const known: ErrorCode = code !== null && Object.hasOwn(ERRORS, code) ? (code as ErrorCode) : "HS_INTERNAL";
        this.#fail(new HeadstartError(known, details));
        return;
      }
      default:
        message satisfies never;
    }
  }

  #fail(error: unknown): void {
    this.#end();
    this.#settle?.reject(error);
  }

  #end(): void {
    this.#over = true;
    this.#wake();
  }

  #wake(): void {
    const wake = this.#slotFreed;
    this.#slotFreed = null;
    wake?.();
  }
}
