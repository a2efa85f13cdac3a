/**
 * Eager pulls: a whole blob, streamed into a layer file in one pass. The network is read here, everything heavy is done in threads, one layer a thread at a time; in between is a ring of
 * bounded size (byte-ring.ts). A stream that breaks is asked for again from where it stood.
 */

import { availableParallelism } from "node:os";
import { Worker } from "node:worker_threads";
import type { Clock } from "../base/clock.ts";
import { type ErrorCode, HeadstartError, kindOf } from "../base/errors.ts";
import { publish } from "../base/events.ts";
import { Limit } from "../base/limit.ts";
import { MiB } from "../base/limits.ts";
import { ByteRing } from "./byte-ring.ts";
import type { Unpacked, UnpackRequest } from "./eager-unpack.ts";
import type { BlobStream } from "./interfaces.ts";

export interface ToEager {
  readonly ring: SharedArrayBuffer;
  readonly request: UnpackRequest;
}

export type FromEager =
  | { readonly t: "done"; readonly unpacked: Unpacked }
  | {
      readonly t: "failed";
      readonly code: ErrorCode;
      readonly what: string;
      readonly details: Record<string, unknown>;
    };

/** Compressed bytes between network and thread: some hundred milliseconds of a fast link. */
const RING_BYTES = 8 * MiB;
/** Breaks without one byte of progress between them before a pull is given up. */
const BREAKS_MAX = 6;
const PAUSE_MS_FIRST = 500;
const PAUSE_MS_MAX = 15_000;

export class EagerPuller implements AsyncDisposable {
  readonly #clock: Clock;
  readonly #limit: Limit;
  readonly #idle: Worker[] = [];
  readonly #all = new Set<Worker>();
  #closed = false;

  /** Threads start with the first pull. More threads than cores: some wait for the network. */
  constructor(options: { clock: Clock; threads?: number }) {
    this.#clock = options.clock;
    this.#limit = new Limit(options.threads ?? Math.max(4, availableParallelism()));
  }

  /**
   * Makes the layer file. Throws HS_DIGEST_MISMATCH, HS_SIZE_MISMATCH, HS_DIFFID_MISMATCH, HS_LAYER_REFUSED, HS_EROFS_LIMIT, HS_LIMIT, HS_DISK_FULL, HS_REGISTRY_*, or the signal's reason; what the
   * file holds is then worth nothing.
   */
  async pull(
    request: UnpackRequest,
    blob: BlobStream,
    options: { signal: AbortSignal; onProgress?: ((storedBytes: number) => void) | undefined },
  ): Promise<Unpacked> {
    const { signal } = options;
    return await this.#limit.run(
      async () => {
        signal.throwIfAborted();
        const worker = this.#idle.pop() ?? this.#start();
        const ring = new ByteRing(RING_BYTES);
        const onAbort = () => ring.cancel();
        signal.addEventListener("abort", onAbort, { once: true });
        worker.ref();
        let healthy = false;
        try {
          // whichever side fails ends the other, and its error is the one that counts
          const stop = new AbortController();
          let networkError: unknown;
          const feeding = this.#feed(ring, blob, {
            signal: AbortSignal.any([signal, stop.signal]),
            onProgress: options.onProgress,
          }).catch((error) => {
            if (!stop.signal.aborted) networkError = error;
            ring.cancel();
          });
          const unpacking = ask(worker, { ring: ring.buffer, request }).then(({ answer }) => {
            healthy = true;
            if (answer.t === "done") return answer.unpacked;
            stop.abort();
            throw new HeadstartError(answer.code, { ...answer.details, what: answer.what });
          });
          const [, unpacked] = await Promise.allSettled([feeding, unpacking]);
          signal.throwIfAborted();
          if (networkError !== undefined) throw networkError;
          if (unpacked.status === "rejected") throw unpacked.reason;
          return unpacked.value;
        } finally {
          signal.removeEventListener("abort", onAbort);
          worker.unref();
          if (healthy && !this.#closed) this.#idle.push(worker);
          else await this.#end(worker);
        }
      },
      { signal },
    );
  }

  /** Pulls that run end with an error. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#closed = true;
    await Promise.all([...this.#all].map((worker) => this.#end(worker)));
  }

  #start(): Worker {
    const worker = new Worker(new URL("./eager.worker.ts", import.meta.url), { name: "headstart-eager" });
    this.#all.add(worker);
    // an idle thread that dies is simply not used again
    worker.on("error", () => this.#forget(worker));
    worker.on("exit", () => this.#forget(worker));
    return worker;
  }

  #forget(worker: Worker): void {
    this.#all.delete(worker);
    const index = this.#idle.indexOf(worker);
    if (index >= 0) this.#idle.splice(index, 1);
  }

  async #end(worker: Worker): Promise<void> {
    this.#forget(worker);
    await worker.terminate();
  }

  /** Reads the blob into the ring, over breaks. Returns early when the thread gave up. */
  async #feed(
    ring: ByteRing,
    blob: BlobStream,
    options: { signal: AbortSignal; onProgress: ((storedBytes: number) => void) | undefined },
  ): Promise<void> {
    const { signal } = options;
    let offset = 0;
    let breaks = 0;
    let pauseMs = PAUSE_MS_FIRST;
    while (offset < blob.size) {
      const startedAt = offset;
      try {
        for await (const chunk of blob.stream(offset, { signal })) {
          if (offset + chunk.byteLength > blob.size)
            throw new HeadstartError("HS_SIZE_MISMATCH", {
              what: `blob ${blob.digest}: more than its ${blob.size} bytes`,
            });
          if (!(await ring.write(chunk))) return;
          offset += chunk.byteLength;
          options.onProgress?.(offset);
        }
        if (offset === blob.size) break;
        throw new HeadstartError("HS_SIZE_MISMATCH", {
          what: `blob ${blob.digest}: ${offset} of its ${blob.size} bytes`,
        });
      } catch (error) {
        signal.throwIfAborted();
        if (offset > startedAt) {
          breaks = 0;
          pauseMs = PAUSE_MS_FIRST;
        }
        if (!mayPass(error) || ++breaks >= BREAKS_MAX) throw error;
        publish("layer:pull-broken", { digest: blob.digest, offset, pauseMs, error });
        await this.#clock.sleep(pauseMs, signal);
        pauseMs = Math.min(PAUSE_MS_MAX, pauseMs * 2);
      }
    }
    ring.end();
  }
}

/** A break that a new request may mend. */
function mayPass(error: unknown): boolean {
  switch (kindOf(error)) {
    case "denied":
    case "not-found":
    case "invalid":
    case "exhausted":
    case "unsupported":
      return false;
    default:
      return true;
  }
}

/** The thread's one answer. Rejects when it dies. */
function ask(worker: Worker, message: ToEager): Promise<{ answer: FromEager }> {
  return new Promise((resolve, reject) => {
    const leave = () => {
      worker.off("message", onMessage);
      worker.off("error", onError);
      worker.off("exit", onExit);
    };
    const onMessage = (answer: FromEager) => {
      leave();
      resolve({ answer });
    };
    const onError = (cause: unknown) => {
      leave();
      reject(
        new HeadstartError("HS_INTERNAL", { what: `the thread that unpacks ${message.request.path} died`, cause }),
      );
    };
    const onExit = () => onError(undefined);
    worker.on("message", onMessage);
    worker.on("error", onError);
    worker.on("exit", onExit);
    worker.postMessage(message);
  });
}
