/**
 * Parsing a layer's table away from the main thread: 100 k entries take most of a second. One thread, started with the first table; trees and unit tables are over shared memory, so what comes
 * back is not copied.
 */

import { Worker } from "node:worker_threads";
import { type ErrorCode, HeadstartError } from "../base/errors.ts";
import type { LayerIdentity, LayerRole, LazyLayer } from "../formats/format.ts";

export interface TableInput {
  /** Name of an adapter of formats/all.ts. */
  readonly format: string;
  readonly identity: LayerIdentity;
  readonly role: LayerRole;
  /** Bytes whose digest was checked. */
  readonly table: Uint8Array;
  readonly extras: readonly (Uint8Array | null)[];
}

export type ToTables = { readonly id: number; readonly input: TableInput };

export type FromTables =
  | { readonly id: number; readonly t: "opened"; readonly lazy: LazyLayer }
  | { readonly id: number; readonly t: "failed"; readonly code: ErrorCode; readonly what: string };

export class TableOpener implements AsyncDisposable {
  #worker: Worker | null = null;
  #next = 0;
  readonly #waiting = new Map<number, PromiseWithResolvers<LazyLayer>>();

  /** Throws what the adapter's `openLayer` throws. */
  async open(input: TableInput): Promise<LazyLayer> {
    const id = ++this.#next;
    const answer = Promise.withResolvers<LazyLayer>();
    this.#waiting.set(id, answer);
    this.#started().postMessage({ id, input: { ...input, table: shared(input.table) } } satisfies ToTables);
    return await answer.promise;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#worker?.terminate();
  }

  #started(): Worker {
    if (this.#worker !== null) return this.#worker;
    const worker = new Worker(new URL("./tables.worker.ts", import.meta.url));
    worker.unref();
    worker.on("message", (message: FromTables) => {
      const waiting = this.#waiting.get(message.id);
      this.#waiting.delete(message.id);
      if (message.t === "opened") waiting?.resolve(message.lazy);
      else waiting?.reject(new HeadstartError(message.code, { what: message.what }));
    });
    const lost = (cause: unknown) => {
      if (this.#worker === worker) this.#worker = null;
      const error = new HeadstartError("HS_INTERNAL", { what: "the thread that reads tables died", cause });
      for (const waiting of this.#waiting.values()) waiting.reject(error);
      this.#waiting.clear();
    };
    worker.on("error", lost);
    worker.on("exit", lost);
    this.#worker = worker;
    return worker;
  }
}

function shared(bytes: Uint8Array): Uint8Array {
  if (bytes.buffer instanceof SharedArrayBuffer) return bytes;
  const copy = new Uint8Array(new SharedArrayBuffer(bytes.byteLength));
  copy.set(bytes);
  return copy;
}
