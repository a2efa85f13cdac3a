/** The pieces of one data file that one image needs: how many of them are still missing, whatever other images want of the file. */

import type { Bitmap } from "../base/bitmap.ts";

export class PieceSet {
  readonly #pieces: Bitmap;
  readonly #done = Promise.withResolvers<void>();
  #left: number;
  #count: number;
  #bytesLeft = 0;
  #bytes = 0;

  constructor(pieces: Bitmap) {
    this.#pieces = pieces;
    this.#count = pieces.count();
    this.#left = this.#count;
    this.#done.promise.catch(() => {});
  }

  has(piece: number): boolean {
    return this.#pieces.has(piece);
  }

  get left(): number {
    return this.#left;
  }

  get count(): number {
    return this.#count;
  }

  /** Decoded bytes; 0 for a file that was complete when it was opened. */
  get bytes(): number {
    return this.#bytes;
  }

  get bytesLeft(): number {
    return this.#bytesLeft;
  }

  /** Resolves when nothing is missing. */
  get complete(): Promise<void> {
    return this.#done.promise;
  }

  start(isThere: (piece: number) => boolean, lengthOf: (piece: number) => number): void {
    const { length } = this.#pieces;
    this.#left = this.#bytes = this.#bytesLeft = 0;
    for (let piece = this.#pieces.nextSet(0, length); piece < length; piece = this.#pieces.nextSet(piece + 1, length)) {
      this.#bytes += lengthOf(piece);
      if (isThere(piece)) continue;
      this.#left++;
      this.#bytesLeft += lengthOf(piece);
    }
    this.#settle();
  }

  /** The file is complete. */
  allThere(): void {
    this.#left = this.#bytesLeft = 0;
    this.#settle();
  }

  arrived(piece: number, length: number): void {
    if (!this.#pieces.has(piece)) return;
    this.#left--;
    this.#bytesLeft -= length;
    this.#settle();
  }

  #settle(): void {
    if (this.#left === 0) this.#done.resolve();
  }
}
