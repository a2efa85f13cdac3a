/**
 * Large writes to a file that go on while the thread fills the next buffer: a pool thread is in pwrite(2), which copies, finds new pages, and waits for the disk when much is dirty. A few
 * buffers go round; `ready` waits until one is free, and a write for which there is none is done by the thread itself.
 *
 * Invariant: the file must stay open until `settled` has resolved.
 */

import { write } from "node:fs";
import { writeFully } from "../base/files.ts";

export class WriteBehind {
  readonly #fd: number;
  readonly #spare: Uint8Array[];
  readonly #count: number;
  #failure: { readonly error: unknown } | null = null;
  #changed: (() => void) | null = null;

  /** Of the `count` buffers of `bytes` each, one is what `first` gives out to be filled. */
  constructor(fd: number, options: { readonly bytes: number; readonly count: number }) {
    this.#fd = fd;
    this.#count = options.count;
    this.#spare = Array.from({ length: options.count }, () => new Uint8Array(options.bytes));
  }

  /** The first buffer to fill. */
  first(): Uint8Array {
    return this.#spare.pop()!;
  }

  /** Writes the first `length` bytes of `buffer`; returns the buffer to fill next. Throws what a write said, this one or one before. */
  write(buffer: Uint8Array, length: number, offset: number): Uint8Array {
    this.#check();
    const next = this.#spare.pop();
    if (next === undefined) {
      writeFully(this.#fd, buffer.subarray(0, length), offset);
      return buffer;
    }
    this.#start(buffer, 0, length, offset);
    return next;
  }

  /** Resolves when the next write need not be waited for. Throws what a write said. */
  async ready(): Promise<void> {
    while (this.#spare.length === 0) await this.#change();
    this.#check();
  }

  /** Resolves when all is written. Throws what a write said. */
  async done(): Promise<void> {
    await this.settled();
    this.#check();
  }

  /** Resolves when nothing is under way any more, however it went. One buffer is being filled. */
  async settled(): Promise<void> {
    while (this.#spare.length < this.#count - 1) await this.#change();
  }

  #start(buffer: Uint8Array, from: number, length: number, offset: number): void {
    write(this.#fd, buffer, from, length - from, offset + from, (error, written) => {
      if (error === null && from + written < length) {
        this.#start(buffer, from + written, length, offset);
        return;
      }
      if (error !== null) this.#failure ??= { error };
      this.#spare.push(buffer);
      this.#changed?.();
    });
  }

  /** One waits at a time: the thread that fills. */
  #change(): Promise<void> {
    return new Promise((resolve) => {
      this.#changed = resolve;
    });
  }

  #check(): void {
    if (this.#failure !== null) throw this.#failure.error;
  }
}
