/** One download, two readers: a blob that is pushed on and looked at on the way, at the pace of the slower. */

import { HeadstartError } from "../base/errors.ts";

/** How far the second reader may be behind. */
const QUEUE_BYTES_MAX = 8 * 1024 * 1024;

/** The second reader's end: an AsyncIterable that may be left early, after which the first is no longer held up. */
export class Tap implements AsyncIterable<Uint8Array> {
  readonly #queue: Uint8Array[] = [];
  #bytes = 0;
  #ended = false;
  #closed = false;
  #failure: { readonly error: unknown } | null = null;
  #changed: (() => void)[] = [];

  /** The stream did not come to its end. */
  get isBroken(): boolean {
    return this.#failure !== null;
  }

  /** Resolves once there is room for more. */
  async offer(chunk: Uint8Array): Promise<void> {
    if (this.#closed) return;
    this.#queue.push(chunk);
    this.#bytes += chunk.byteLength;
    this.#wake();
    while (this.#bytes > QUEUE_BYTES_MAX && !this.#closed) await this.#change();
  }

  end(): void {
    this.#ended = true;
    this.#wake();
  }

  fail(error: unknown): void {
    this.#failure ??= { error };
    this.end();
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<Uint8Array> {
    try {
      for (;;) {
        const chunk = this.#queue.shift();
        if (chunk !== undefined) {
          this.#bytes -= chunk.byteLength;
          this.#wake();
          yield chunk;
        } else if (this.#failure !== null) throw this.#failure.error;
        else if (this.#ended) return;
        else await this.#change();
      }
    } finally {
      this.close();
    }
  }

  /** The second reader wants no more. */
  close(): void {
    this.#closed = true;
    this.#queue.length = 0;
    this.#wake();
  }

  #change(): Promise<void> {
    return new Promise((resolve) => this.#changed.push(resolve));
  }

  #wake(): void {
    const waiting = this.#changed;
    this.#changed = [];
    for (const resolve of waiting) resolve();
  }
}

/** Passes `chunks` on, and to `tap`, which ends or fails as they do. */
export async function* tapped(chunks: AsyncIterable<Uint8Array>, tap: Tap): AsyncGenerator<Uint8Array> {
  let whole = false;
  try {
    for await (const chunk of chunks) {
      await tap.offer(chunk);
      yield chunk;
    }
    whole = true;
  } catch (error) {
    tap.fail(error);
    throw error;
  } finally {
    if (whole) tap.end();
    else tap.fail(new HeadstartError("HS_CANCELED", { what: "reading a blob: its first reader left" }));
  }
}
