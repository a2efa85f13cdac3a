/**
 * Bytes from one thread to another through shared memory: one writer, one reader, no messages, bounded. The writer waits while it is full, the reader while it is
 * empty, both without blocking their event loops.
 *
 *   words: 0 bytes written, 1 bytes read (both modulo 2^32), 2 how it ended      bytes: a power of two of them, position = count modulo capacity
 */

import { HeadstartError } from "../base/errors.ts";

const WRITTEN = 0;
const READ = 1;
const END = 2;
const WORDS_BYTES = 16;

const OPEN = 0;
const ENDED = 1;
const CANCELED = 2;

/** Longest view that a reader gets at once. */
const VIEW_BYTES = 512 * 1024;

export class ByteRing {
  readonly buffer: SharedArrayBuffer;
  readonly #words: Int32Array<SharedArrayBuffer>;
  readonly #bytes: Uint8Array<SharedArrayBuffer>;

  /** `capacity` bytes, a power of two; or the other end of a ring that exists. */
  constructor(capacityOrBuffer: number | SharedArrayBuffer) {
    this.buffer =
      typeof capacityOrBuffer === "number" ? new SharedArrayBuffer(WORDS_BYTES + capacityOrBuffer) : capacityOrBuffer;
    this.#words = new Int32Array(this.buffer, 0, WORDS_BYTES / 4);
    this.#bytes = new Uint8Array(this.buffer, WORDS_BYTES);
    const capacity = this.#bytes.byteLength;
    if (capacity === 0 || (capacity & (capacity - 1)) !== 0)
      throw new HeadstartError("HS_INTERNAL", { what: `a ring of ${capacity} bytes` });
  }

  /** Writer: resolves when all of `chunk` was copied. False when the reader has canceled. */
  async write(chunk: Uint8Array): Promise<boolean> {
    const capacity = this.#bytes.byteLength;
    let done = 0;
    while (done < chunk.byteLength) {
      if (Atomics.load(this.#words, END) !== OPEN) return false;
      const written = Atomics.load(this.#words, WRITTEN);
      const read = Atomics.load(this.#words, READ);
      const room = capacity - ((written - read) >>> 0);
      if (room === 0) {
        await this.#wait(READ, read);
        continue;
      }
      const position = (written >>> 0) % capacity;
      const count = Math.min(room, capacity - position, chunk.byteLength - done);
      this.#bytes.set(chunk.subarray(done, done + count), position);
      this.#advance(WRITTEN, written, count);
      done += count;
    }
    return true;
  }

  /** Writer: nothing follows. */
  end(): void {
    this.#finish(ENDED);
  }

  /** Either side: the other gives up at its next step. */
  cancel(): void {
    this.#finish(CANCELED);
  }

  /** Reader: views in order, each valid until the next one is asked for. Throws HS_CANCELED. */
  async *read(): AsyncGenerator<Uint8Array> {
    const capacity = this.#bytes.byteLength;
    for (;;) {
      // the end first: what was written before it is then seen for certain
      const end = Atomics.load(this.#words, END);
      if (end === CANCELED) throw new HeadstartError("HS_CANCELED", { what: "the stream was given up" });
      const written = Atomics.load(this.#words, WRITTEN);
      const read = Atomics.load(this.#words, READ);
      const count = (written - read) >>> 0;
      if (count === 0) {
        if (end === ENDED) return;
        await this.#wait(WRITTEN, written);
        continue;
      }
      const position = (read >>> 0) % capacity;
      const view = Math.min(count, capacity - position, VIEW_BYTES);
      yield this.#bytes.subarray(position, position + view);
      this.#advance(READ, read, view);
    }
  }

  #advance(word: number, from: number, count: number): void {
    Atomics.store(this.#words, word, (from + count) | 0);
    Atomics.notify(this.#words, word);
  }

  #finish(how: number): void {
    Atomics.compareExchange(this.#words, END, OPEN, how);
    if (how === CANCELED) Atomics.store(this.#words, END, CANCELED);
    Atomics.notify(this.#words, WRITTEN);
    Atomics.notify(this.#words, READ);
  }

  async #wait(word: number, seen: number): Promise<void> {
    // the time limit covers an end that comes between the look and the wait
    const waited = Atomics.waitAsync(this.#words, word, seen, 250);
    if (waited.async) await waited.value;
  }
}
