/** The reader threads as the main thread sees them: starting them, telling them of files, adding up what they counted, and ending them. */

import { randomUUID } from "node:crypto";
import { stat } from "node:fs/promises";
import { join } from "node:path";
import { MessageChannel, type MessagePort, Worker } from "node:worker_threads";
import type { SharedFile } from "./file-table.ts";
import { type Journal, READERS_MAX } from "./journal.ts";
import { ReaderCounter, type ReaderData, type ReaderMessage } from "./reader-contract.ts";

export interface ReadersOptions {
  readonly fd: number;
  readonly journal: Journal;
  readonly connectionPath: string;
  readonly onMessage: (message: ReaderMessage) => void;
}

export class Readers {
  readonly #options: ReadersOptions;
  readonly #stopName = `.stop-${randomUUID()}`;
  readonly #ports: MessagePort[] = [];
  readonly #workers = new Set<Worker>();
  readonly #counters: Float64Array<SharedArrayBuffer>[] = [];

  constructor(options: ReadersOptions) {
    this.#options = options;
  }

  /** Threads that have not ended. */
  get alive(): number {
    return this.#workers.size;
  }

  /** Once; `files` are those that are there already. */
  start(count: number, files: readonly SharedFile[]): void {
    for (let index = 0; index < Math.min(count, READERS_MAX); index++) this.#startOne(index, files);
  }

  add(file: SharedFile): void {
    for (const port of this.#ports) port.postMessage(file);
  }

  sum(counter: (typeof ReaderCounter)[keyof typeof ReaderCounter]): number {
    return this.#counters.reduce((total, counters) => total + counters[counter]!, 0);
  }

  /**
   * Has every reader end behind the request that it serves now. A thread that is blocked in read(2) ends only when it reads something: one lookup of the stop name ends one
   * reader, since it is not cached, and the last one is answered before its reader ends.
   */
  stop(mountPath: string): void {
    for (let left = this.#workers.size; left > 0; left--) {
      // on a thread of the pool: this one must go on
      void stat(join(mountPath, this.#stopName)).catch(() => undefined);
    }
    for (const port of this.#ports) port.close();
  }

  #startOne(index: number, files: readonly SharedFile[]): void {
    const { fd, journal, connectionPath, onMessage } = this.#options;
    const { port1, port2 } = new MessageChannel();
    const counters = new SharedArrayBuffer(Object.keys(ReaderCounter).length * 8);
    const data: ReaderData = {
      fd,
      files: port2,
      index,
      journalPath: journal.path,
      taken: journal.taken.buffer,
      counters,
      connectionPath,
      stopName: this.#stopName,
    };
    const worker = new Worker(new URL("./reader.worker.ts", import.meta.url), {
      workerData: data,
      transferList: [port2],
      name: "fuse-reader",
      resourceLimits: { maxOldGenerationSizeMb: 32, maxYoungGenerationSizeMb: 4, stackSizeMb: 1 },
    });
    port1.unref();
    this.#ports.push(port1);
    this.#counters.push(new Float64Array(counters));
    this.#workers.add(worker);
    for (const file of files) port1.postMessage(file);
    worker.on("message", onMessage);
    worker.on("exit", () => this.#workers.delete(worker));
    // no reader means no answers: die, the supervisor starts the next server
    worker.on("error", (error) => {
      throw error;
    });
    worker.unref();
  }
}
