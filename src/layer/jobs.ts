/**
 * Heavy work on whole layers, in threads of its own: parsing a table and laying out its image, unpacking a blob, checking a filled layer. The main thread only waits. Messages to and from
 * layer.worker.ts, and the pool of those threads.
 */

import { availableParallelism } from "node:os";
import { Worker } from "node:worker_threads";
import { type ErrorCode, HeadstartError } from "../base/errors.ts";
import { Limit } from "../base/limit.ts";
import type { Unpacked, UnpackRequest } from "./eager-unpack.ts";
import type { Prepared, PrepareRequest } from "./prepare.ts";
import type { SealRequest } from "./seal.ts";

export type LayerJob =
  | { readonly t: "prepare"; readonly request: PrepareRequest }
  | { readonly t: "prepare-again"; readonly request: PrepareRequest }
  | { readonly t: "unpack"; readonly ring: SharedArrayBuffer; readonly request: UnpackRequest }
  | { readonly t: "seal"; readonly request: SealRequest };

export interface JobResults {
  readonly prepare: Prepared;
  readonly "prepare-again": Prepared;
  readonly unpack: Unpacked;
  readonly seal: { readonly t: "sealed" };
}

export type JobAnswer =
  | { readonly t: "done"; readonly result: JobResults[keyof JobResults] }
  | {
      readonly t: "failed";
      readonly code: ErrorCode;
      readonly what: string;
      readonly details: Readonly<Record<string, unknown>>;
    };

/** Idle threads that are kept: a start costs some 100 ms of CPU. */
const IDLE_MAX = 4;
/** They cost some 30 MB each, so they go when nothing is pulled. */
const IDLE_MS = 30_000;

export class LayerWorkers implements AsyncDisposable {
  readonly #idle: Worker[] = [];
  readonly #all = new Set<Worker>();
  /** By kind, so that pulls that wait for the network never hold up a start. */
  readonly #limits: { readonly [kind in LayerJob["t"]]: Limit };
  #idleTimer: NodeJS.Timeout | undefined;
  #closed = false;

  /** Threads start with the first job. */
  constructor(options: { unpackThreads?: number } = {}) {
    const cores = availableParallelism();
    const prepare = new Limit(Math.max(2, cores));
    this.#limits = {
      prepare,
      "prepare-again": prepare,
      // more threads than cores: some wait for the network
      unpack: new Limit(options.unpackThreads ?? Math.max(4, cores)),
      seal: new Limit(Math.max(1, cores >> 1)),
    };
  }

  /** `begin` is called when the job has a thread. Throws what the job throws, the signal's reason (the thread is then gone), HS_INTERNAL when the thread dies. */
  async run<J extends LayerJob>(
    job: J,
    options: { signal?: AbortSignal | undefined; begin?: () => void } = {},
  ): Promise<JobResults[J["t"]]> {
    const { signal } = options;
    return await this.#limits[job.t].run(
      async () => {
        signal?.throwIfAborted();
        if (this.#closed) throw new HeadstartError("HS_CANCELED", { what: "the layer store was closed" });
        const worker = this.#idle.pop() ?? this.#start();
        let answer: JobAnswer;
        try {
          worker.ref();
          const asked = ask(worker, job, signal);
          options.begin?.();
          answer = await asked;
          worker.unref();
        } catch (error) {
          // only when its end is sure may its files be closed
          await this.#end(worker);
          throw error;
        }
        if (this.#closed || this.#idle.length >= IDLE_MAX) await this.#end(worker);
        else this.#keep(worker);
        if (answer.t === "done") return answer.result as JobResults[J["t"]];
        throw new HeadstartError(answer.code, { ...answer.details, what: answer.what });
      },
      { signal },
    );
  }

  /** Jobs that run end with an error. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#closed = true;
    clearTimeout(this.#idleTimer);
    await Promise.all([...this.#all].map((worker) => this.#end(worker)));
  }

  #start(): Worker {
    const worker = new Worker(new URL("./layer.worker.ts", import.meta.url), { name: "headstart-layer" });
    this.#all.add(worker);
    // one that dies while it is idle is simply not used again
    worker.on("error", () => this.#forget(worker));
    worker.on("exit", () => this.#forget(worker));
    return worker;
  }

  #keep(worker: Worker): void {
    this.#idle.push(worker);
    clearTimeout(this.#idleTimer);
    this.#idleTimer = setTimeout(() => {
      for (const idle of [...this.#idle]) void this.#end(idle);
    }, IDLE_MS).unref();
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
}

/** The thread's one answer. Rejects when it dies or the signal aborts. */
function ask(worker: Worker, job: LayerJob, signal: AbortSignal | undefined): Promise<JobAnswer> {
  return new Promise((resolve, reject) => {
    const leave = () => {
      worker.off("message", onMessage);
      worker.off("error", onError);
      worker.off("exit", onExit);
      signal?.removeEventListener("abort", onAbort);
    };
    const onMessage = (answer: JobAnswer) => {
      leave();
      resolve(answer);
    };
    const onError = (cause: unknown) => {
      leave();
      reject(new HeadstartError("HS_INTERNAL", { what: `the thread of a ${job.t} job died`, cause }));
    };
    const onExit = () => onError(undefined);
    const onAbort = () => {
      leave();
      reject(signal!.reason);
    };
    worker.on("message", onMessage);
    worker.on("error", onError);
    worker.on("exit", onExit);
    signal?.addEventListener("abort", onAbort, { once: true });
    worker.postMessage(job);
  });
}
