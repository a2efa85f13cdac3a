/**
 * Heavy work on whole layers, in threads of its own: parsing a table and laying out its image, unpacking a blob, checking a filled layer. The main thread only waits. Messages to and from
 * layer.worker.ts, and the pool of those threads.
 */

import { availableParallelism } from "node:os";
import type { Digest } from "../base/digest.ts";
import { Limit } from "../base/limit.ts";
import { type WorkerJobOptions, WorkerPool } from "../base/worker-pool.ts";
import type { DataTable, MergedImage } from "../formats/format.ts";
import type { NydusBootstrap } from "../formats/nydus/bootstrap.ts";
import type { ChunkInfo } from "../formats/nydus/chunk-info.ts";
import type { Unpacked, UnpackRequest } from "./eager-unpack.ts";
import type { Prepared, PrepareRequest } from "./prepare.ts";
import type { MakeDataRequest, MakeImageRequest, OpenDataRequest, PreparedData } from "./prepare-data.ts";
import type { SealRequest } from "./seal.ts";

export type LayerJob =
  | { readonly t: "prepare"; readonly request: PrepareRequest }
  | { readonly t: "prepare-again"; readonly request: PrepareRequest }
  | { readonly t: "unpack"; readonly ring: SharedArrayBuffer; readonly request: UnpackRequest }
  | { readonly t: "seal"; readonly request: SealRequest }
  | { readonly t: "data-keys"; readonly tables: readonly DataTable[] }
  | { readonly t: "make-data"; readonly request: MakeDataRequest }
  | { readonly t: "open-data"; readonly request: OpenDataRequest }
  | { readonly t: "make-image"; readonly request: MakeImageRequest }
  | { readonly t: "read-bootstrap"; readonly bytes: Uint8Array; readonly what: string }
  | {
      readonly t: "merge-nydus";
      readonly bootstrap: NydusBootstrap;
      readonly infos: readonly (ChunkInfo | null)[];
      readonly sizes: readonly number[];
      readonly what: string;
    };

export interface JobResults {
  readonly prepare: Prepared;
  readonly "prepare-again": Prepared;
  readonly unpack: Unpacked;
  readonly seal: { readonly t: "sealed" };
  readonly "data-keys": Digest[];
  readonly "make-data": PreparedData;
  readonly "open-data": PreparedData;
  readonly "make-image": { readonly imageSize: number; readonly inodeCount: number };
  readonly "read-bootstrap": NydusBootstrap;
  readonly "merge-nydus": MergedImage;
}

/** Idle threads that are kept. */
const IDLE_MAX = 4;
/** They go when nothing is pulled. */
const IDLE_MS = 30_000;

export class LayerWorkers implements AsyncDisposable {
  readonly #pool = new WorkerPool<LayerJob>({
    entry: new URL("./layer.worker.ts", import.meta.url),
    options: { name: "headstart-layer" },
    idleMax: IDLE_MAX,
    idleMs: IDLE_MS,
  });
  /** By kind, so that pulls that wait for the network never hold up a start. */
  readonly #limits: { readonly [kind in LayerJob["t"]]: Limit };

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
      "data-keys": prepare,
      "make-data": prepare,
      "open-data": prepare,
      "make-image": prepare,
      "read-bootstrap": prepare,
      "merge-nydus": prepare,
    };
  }

  /** Throws as WorkerPool.run. */
  async run<J extends LayerJob>(job: J, options: WorkerJobOptions = {}): Promise<JobResults[J["t"]]> {
    const { signal } = options;
    return (await this.#limits[job.t].run(() => this.#pool.run(job, options), { signal })) as JobResults[J["t"]];
  }

  /** Jobs that run end with an error. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.#pool[Symbol.asyncDispose]();
  }
}
