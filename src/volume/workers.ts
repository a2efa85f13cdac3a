/** The threads of a build: decompressing, hashing and unpacking are synchronous work, one layer a thread. */

import { availableParallelism } from "node:os";
import { Worker } from "node:worker_threads";
import { type ErrorCode, HeadstartError } from "../base/errors.ts";
import { Limit } from "../base/limit.ts";
import type { PlaceRequest } from "./place.ts";
import type { StagedLayer, StageRequest } from "./stage.ts";

export type VolumeJob =
  | { readonly t: "stage"; readonly request: StageRequest }
  | { readonly t: "place"; readonly request: PlaceRequest };

export interface VolumeResults {
  readonly stage: StagedLayer;
  readonly place: null;
}

export type VolumeAnswer =
  | { readonly t: "done"; readonly result: VolumeResults[VolumeJob["t"]] }
  | { readonly t: "failed"; readonly code: ErrorCode; readonly what: string };

/** Each holds one layer's tree while it is built; more would only wait for the disk. */
const THREADS_MAX = 4;
/** Entries of a tar are soon garbage: left to itself each thread lets some 100 MB of it lie. */
const YOUNG_MIB = 8;

export class VolumeWorkers implements AsyncDisposable {
  readonly #idle: Worker[] = [];
  readonly #all = new Set<Worker>();
  readonly #limit: Limit;

  constructor(threads: number = Math.min(THREADS_MAX, availableParallelism())) {
    this.#limit = new Limit(threads);
  }

  /** Throws what the job throws, the signal's reason (the thread is then gone, and touches no file any more), HS_INTERNAL when the thread dies. */
  run<J extends VolumeJob>(job: J, signal: AbortSignal): Promise<VolumeResults[J["t"]]> {
    return this.#limit.run(
      async () => {
        signal.throwIfAborted();
        const worker = this.#idle.pop() ?? this.#start();
        let answer: VolumeAnswer;
        try {
          answer = await ask(worker, job, signal);
        } catch (error) {
          this.#all.delete(worker);
          await worker.terminate();
          throw error;
        }
        this.#idle.push(worker);
        if (answer.t === "done") return answer.result as VolumeResults[J["t"]];
        throw new HeadstartError(answer.code, { what: answer.what });
      },
      { signal },
    );
  }

  #start(): Worker {
    const worker = new Worker(new URL("./volume.worker.ts", import.meta.url), {
      name: "headstart-volume",
      resourceLimits: { maxYoungGenerationSizeMb: YOUNG_MIB },
    });
    this.#all.add(worker);
    return worker;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all([...this.#all].map((worker) => worker.terminate()));
    this.#all.clear();
  }
}

/** The thread's one answer. Rejects when it dies or the signal aborts. */
function ask(worker: Worker, job: VolumeJob, signal: AbortSignal): Promise<VolumeAnswer> {
  return new Promise((resolve, reject) => {
    const leave = () => {
      worker.off("message", onMessage);
      worker.off("error", onError);
      worker.off("exit", onExit);
      signal.removeEventListener("abort", onAbort);
    };
    const onMessage = (answer: VolumeAnswer) => {
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
      reject(signal.reason);
    };
    worker.on("message", onMessage);
    worker.on("error", onError);
    worker.on("exit", onExit);
    signal.addEventListener("abort", onAbort, { once: true });
    worker.postMessage(job);
  });
}
