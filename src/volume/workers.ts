/** The threads of a build: decompressing, hashing and unpacking are synchronous work, one layer a thread. */

import { availableParallelism } from "node:os";
import { Limit } from "../base/limit.ts";
import { WorkerPool } from "../base/worker-pool.ts";
import type { BlockDigests, FillRequest, HashRequest } from "./fill.ts";
import type { PlaceRequest } from "./place.ts";
import type { StagedLayer, StageRequest } from "./stage.ts";

export type VolumeJob =
  | { readonly t: "stage"; readonly request: StageRequest }
  | { readonly t: "place"; readonly request: PlaceRequest }
  | { readonly t: "fill"; readonly request: FillRequest }
  | { readonly t: "hash"; readonly request: HashRequest };

export interface VolumeResults {
  readonly stage: StagedLayer;
  readonly place: null;
  readonly fill: null;
  readonly hash: BlockDigests;
}

/** Each holds one layer's tree while it is built; more would only wait for the disk. */
const THREADS_MAX = 4;
/** Entries of a tar are soon garbage: left to itself each thread lets some 100 MB of it lie. */
const YOUNG_MIB = 8;
/** What each thread leaves behind goes when it idles. */
const IDLE_MS = 30_000;

export class VolumeWorkers implements AsyncDisposable {
  /** Jobs at once. */
  readonly threads: number;
  readonly #pool: WorkerPool<VolumeJob>;
  readonly #limit: Limit;

  constructor(threads: number = Math.min(THREADS_MAX, availableParallelism())) {
    this.threads = threads;
    this.#limit = new Limit(threads);
    this.#pool = new WorkerPool({
      entry: new URL("./volume.worker.ts", import.meta.url),
      options: { name: "headstart-volume", resourceLimits: { maxYoungGenerationSizeMb: YOUNG_MIB } },
      idleMax: threads,
      idleMs: IDLE_MS,
    });
  }

  /** Throws as WorkerPool.run. */
  async run<J extends VolumeJob>(job: J, signal: AbortSignal): Promise<VolumeResults[J["t"]]> {
    return (await this.#limit.run(() => this.#pool.run(job, { signal }), { signal })) as VolumeResults[J["t"]];
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#pool[Symbol.asyncDispose]();
  }
}
