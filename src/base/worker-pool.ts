/**
 * A pool of threads of one kind, each doing one job at a time and giving one answer. What a thread throws arrives here as what it was: the code, the text and the plain details of
 * an error survive the way between threads (`workerAnswer`).
 */

import { type MessagePort, Worker, type WorkerOptions } from "node:worker_threads";
import { describeError, type ErrorCode, HeadstartError, kindOf } from "./errors.ts";
import { endWorker, watchLoading } from "./worker-end.ts";

export type WorkerAnswer<R> =
  | { readonly t: "done"; readonly result: R }
  | {
      readonly t: "failed";
      readonly code: ErrorCode;
      readonly what: string;
      readonly details: Readonly<Record<string, unknown>>;
    };

/** In the thread: what `work` returns or throws, as a message. Never rejects. */
export async function workerAnswer<R>(work: () => R | Promise<R>): Promise<WorkerAnswer<R>> {
  try {
    return { t: "done", result: await work() };
  } catch (error) {
    const what = describeError(error);
    if (error instanceof HeadstartError) {
      // whoever makes an error of this again puts the code in front
      return { t: "failed", code: error.code, what: what.replace(`[${error.code}] `, ""), details: plain(error) };
    }
    if (kindOf(error) === "exhausted") return { t: "failed", code: "HS_DISK_FULL", what, details: {} };
    const fromKernel = error instanceof Error && "errno" in error;
    return { t: "failed", code: fromKernel ? "HS_SYSCALL" : "HS_INTERNAL", what, details: {} };
  }
}

/** In the thread, once its modules are loaded: from now on it may be ended (worker-end.ts). */
export function workerReady(port: MessagePort): void {
  port.postMessage(READY);
}

const READY = "ready";

/** Details that survive a message: strings and numbers. */
function plain(error: HeadstartError): Record<string, unknown> {
  const kept = Object.entries(error.details).filter(
    ([field, value]) => field !== "what" && (typeof value === "string" || typeof value === "number"),
  );
  return Object.fromEntries(kept);
}

export interface WorkerPoolOptions {
  /** The thread's module; it says once that it is ready, and answers each message with one `workerAnswer`. */
  readonly entry: URL;
  readonly options: WorkerOptions;
  /** Idle threads that are kept: a start costs some 100 ms of CPU. */
  readonly idleMax: number;
  /** They cost some 30 MB each, so they go after this. */
  readonly idleMs: number;
}

export interface WorkerJobOptions {
  readonly signal?: AbortSignal | undefined;
  /** Called when the job has a thread. */
  readonly begin?: (() => void) | undefined;
}

export class WorkerPool<Job extends { readonly t: string }> implements AsyncDisposable {
  readonly #options: WorkerPoolOptions;
  readonly #idle: Worker[] = [];
  readonly #all = new Set<Worker>();
  #idleTimer: NodeJS.Timeout | undefined;
  #closed = false;

  /** Threads start with the first job. */
  constructor(options: WorkerPoolOptions) {
    this.#options = options;
  }

  /**
   * How many run at once is the caller's business. Throws what the job throws, the signal's reason (the thread is then gone, and touches no file any more), HS_CANCELED after the end
   * of the pool, HS_INTERNAL when the thread dies.
   */
  async run(job: Job, options: WorkerJobOptions = {}): Promise<unknown> {
    const { signal } = options;
    signal?.throwIfAborted();
    if (this.#closed) throw new HeadstartError("HS_CANCELED", { what: `no ${job.t} job any more` });
    const worker = this.#idle.pop() ?? this.#start();
    let answer: WorkerAnswer<unknown>;
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
    if (this.#closed || this.#idle.length >= this.#options.idleMax) await this.#end(worker);
    else this.#keep(worker);
    if (answer.t === "done") return answer.result;
    throw new HeadstartError(answer.code, { ...answer.details, what: answer.what });
  }

  /** Jobs that run end with an error. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#closed = true;
    clearTimeout(this.#idleTimer);
    await Promise.all([...this.#all].map((worker) => this.#end(worker)));
  }

  #start(): Worker {
    const worker = new Worker(this.#options.entry, this.#options.options);
    this.#all.add(worker);
    watchLoading(worker);
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
    }, this.#options.idleMs).unref();
  }

  #forget(worker: Worker): void {
    this.#all.delete(worker);
    const index = this.#idle.indexOf(worker);
    if (index >= 0) this.#idle.splice(index, 1);
  }

  async #end(worker: Worker): Promise<void> {
    this.#forget(worker);
    await endWorker(worker);
  }
}

/** The thread's one answer. Rejects when it dies or the signal aborts. */
function ask(
  worker: Worker,
  job: { readonly t: string },
  signal: AbortSignal | undefined,
): Promise<WorkerAnswer<unknown>> {
  return new Promise((resolve, reject) => {
    const leave = () => {
      worker.off("message", onMessage);
      worker.off("error", onError);
      worker.off("exit", onExit);
      signal?.removeEventListener("abort", onAbort);
    };
    const onMessage = (answer: WorkerAnswer<unknown> | typeof READY) => {
      if (answer === READY) return;
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
