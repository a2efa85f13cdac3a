/**
 * The pool of decoder threads, shared by all layers: one unit a thread at a time, the most urgent first. A layer is opened once (its arrays are shared with every
 * thread) and closed when none of its units is under way. A thread that dies is replaced; its unit fails with HS_INTERNAL.
 */

import { availableParallelism } from "node:os";
import { Worker } from "node:worker_threads";
import { HeadstartError } from "../base/errors.ts";
import { publish } from "../base/events.ts";
import { endWorker, watchLoading } from "../base/worker-end.ts";
import type { BadPieces, CopyPieces, DecodeContext, FromDecoder, ToDecoder } from "./decode-protocol.ts";
import { PRIORITIES, type Priority } from "./interfaces.ts";

export interface DecodedUnit {
  readonly decodeMs: number;
  readonly writes: number;
  /** Of pieces that were asked for one by one: those with another digest. */
  readonly bad: BadPieces | null;
}

interface Job {
  readonly id: number;
  readonly layer: number;
  readonly unit: number;
  readonly work:
    | { readonly t: "decode"; readonly stored: Uint8Array<ArrayBuffer>; readonly pieces: Uint32Array | null }
    | { readonly t: "copy"; readonly copy: CopyPieces };
  priority: Priority;
  readonly resolve: (unit: DecodedUnit) => void;
  readonly reject: (error: unknown) => void;
}

interface Thread {
  readonly worker: Worker;
  job: Job | null;
}

const IDLE_MS = 30_000;

export class Decoders implements AsyncDisposable {
  readonly #size: number;
  readonly #entry: URL;
  readonly #threads: Thread[] = [];
  readonly #waiting: Job[] = [];
  readonly #contexts = new Map<number, DecodeContext>();
  /** Closers that wait for the layer's last job. */
  readonly #closing = new Map<number, () => void>();
  #nextJob = 1;
  #idleTimer: NodeJS.Timeout | undefined;
  #closed = false;

  /** Threads start with the first layer. `entry` is for tests, which bring codecs of their own. */
  constructor(options: { threads?: number; entry?: URL } = {}) {
    this.#size = Math.max(1, options.threads ?? availableParallelism());
    this.#entry = options.entry ?? new URL("./decode.worker.ts", import.meta.url);
  }

  get waiting(): number {
    return this.#waiting.length;
  }

  open(context: DecodeContext): void {
    this.#contexts.set(context.layer, context);
    for (const thread of this.#threads) send(thread, { t: "open", context });
    // a thread takes some 100 ms to start: that shall be over when the first read comes
    while (this.#threads.length < this.#size) this.#startThread();
  }

  /** Afterwards no thread uses the layer's descriptors. */
  async close(layer: number): Promise<void> {
    if (!this.#contexts.delete(layer)) return;
    for (let index = this.#waiting.length - 1; index >= 0; index--) {
      const job = this.#waiting[index]!;
      if (job.layer !== layer) continue;
      this.#waiting.splice(index, 1);
      job.reject(new HeadstartError("HS_CANCELED", { what: `layer ${layer} was closed` }));
    }
    if (this.#threads.some((thread) => thread.job?.layer === layer)) {
      await new Promise<void>((resolve) => this.#closing.set(layer, resolve));
    }
    for (const thread of this.#threads) send(thread, { t: "close", layer });
    if (this.#contexts.size === 0) this.#endLater();
  }

  /**
   * Verifies, decodes and writes one unit. Throws HS_UNIT_DIGEST (other bytes may help), HS_UNIT_DECODE and HS_INDEX_MISMATCH (the index is wrong),
   * HS_DISK_FULL, HS_CANCELED when the layer is closed first. `stored`, with its whole buffer, is handed over: the caller has it no more. With `pieces` a wrong digest is no error but in `bad`: the other pieces are written.
   */
  decode(options: {
    layer: number;
    unit: number;
    stored: Uint8Array<ArrayBuffer>;
    pieces: Uint32Array | null;
    priority: Priority;
  }): Promise<DecodedUnit> {
    const { layer, unit, priority, stored, pieces } = options;
    return this.#add({ layer, unit, priority, work: { t: "decode", stored, pieces } });
  }

  /** Copies pieces of a unit from other files, whose descriptors stay open meanwhile, and verifies what came. Throws as `decode`. */
  copy(options: { layer: number; unit: number; copy: CopyPieces; priority: Priority }): Promise<DecodedUnit> {
    const { layer, unit, priority, copy } = options;
    return this.#add({ layer, unit, priority, work: { t: "copy", copy } });
  }

  #add(job: Pick<Job, "layer" | "unit" | "priority" | "work">): Promise<DecodedUnit> {
    if (this.#closed || !this.#contexts.has(job.layer))
      return Promise.reject(new HeadstartError("HS_CANCELED", { what: `layer ${job.layer} is closed` }));
    return new Promise((resolve, reject) => {
      this.#waiting.push({ id: this.#nextJob++, ...job, resolve, reject });
      this.#dispatch();
    });
  }

  promote(layer: number, unit: number, priority: Priority): void {
    for (const job of this.#waiting) if (job.layer === layer && job.unit === unit) job.priority = priority;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#closed = true;
    clearTimeout(this.#idleTimer);
    await Promise.all([...this.#contexts.keys()].map((layer) => this.close(layer)));
    await Promise.all(this.#threads.map((thread) => endWorker(thread.worker)));
    this.#threads.length = 0;
  }

  /** Threads cost some 30 MB each: without a layer that has holes they go, but not at once. */
  #endLater(): void {
    clearTimeout(this.#idleTimer);
    this.#idleTimer = setTimeout(() => {
      if (this.#contexts.size > 0) return;
      for (const thread of this.#threads.splice(0)) void endWorker(thread.worker);
    }, IDLE_MS).unref();
  }

  #dispatch(): void {
    while (this.#waiting.length > 0) {
      let thread = this.#threads.find((candidate) => candidate.job === null);
      if (thread === undefined) {
        if (this.#threads.length >= this.#size) return;
        thread = this.#startThread();
      }
      const job = this.#waiting.splice(mostUrgent(this.#waiting), 1)[0]!;
      thread.job = job;
      thread.worker.ref();
      const { id, layer, unit, work } = job;
      if (work.t === "copy") {
        send(thread, { t: "copy", job: id, layer, unit, copy: work.copy });
        continue;
      }
      // handed over, not shared: V8 does not count shared buffers when it decides to collect garbage, and hundreds of MB of fetched bytes would pile up
      const { stored, pieces } = work;
      send(thread, { t: "decode", job: id, layer, unit, stored, pieces }, [stored.buffer]);
    }
  }

  #startThread(): Thread {
    const worker = new Worker(this.#entry, { name: "headstart-decoder" });
    watchLoading(worker);
    // an idle pool shall not keep a process alive
    worker.unref();
    const thread: Thread = { worker, job: null };
    this.#threads.push(thread);
    for (const context of this.#contexts.values()) send(thread, { t: "open", context });
    worker.on("message", (message: FromDecoder) => this.#finish(thread, message));
    worker.on("error", (cause) => this.#lose(thread, cause));
    worker.on("exit", () => this.#lose(thread, undefined));
    return thread;
  }

  #finish(thread: Thread, message: FromDecoder): void {
    const job = thread.job;
    if (message.t === "ready" || job === null || job.id !== message.job) return;
    this.#free(thread, job);
    if (message.t === "done") job.resolve({ decodeMs: message.decodeMs, writes: message.writes, bad: message.bad });
    else job.reject(new HeadstartError(message.code, { what: message.what }));
    this.#dispatch();
  }

  #lose(thread: Thread, cause: unknown): void {
    const index = this.#threads.indexOf(thread);
    if (index < 0 || this.#closed) return;
    this.#threads.splice(index, 1);
    const job = thread.job;
    publish("layer:decoder-lost", { unit: job?.unit, layer: job?.layer, cause });
    if (job === null) return;
    this.#free(thread, job);
    job.reject(new HeadstartError("HS_INTERNAL", { what: `the thread that decoded unit ${job.unit} died`, cause }));
    this.#dispatch();
  }

  #free(thread: Thread, job: Job): void {
    thread.job = null;
    thread.worker.unref();
    if (this.#threads.some((other) => other.job?.layer === job.layer)) return;
    this.#closing.get(job.layer)?.();
    this.#closing.delete(job.layer);
  }
}

function send(thread: Thread, message: ToDecoder, transfer: ArrayBuffer[] = []): void {
  thread.worker.postMessage(message, transfer);
}

/** The first of the highest priority. */
function mostUrgent(jobs: readonly Job[]): number {
  let best = 0;
  for (let index = 1; index < jobs.length; index++) {
    if (PRIORITIES.indexOf(jobs[index]!.priority) < PRIORITIES.indexOf(jobs[best]!.priority)) best = index;
  }
  return best;
}
