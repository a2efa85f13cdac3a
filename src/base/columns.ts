/** Arrays of numbers and of bytes that grow: what is collected entry by entry, a hundred thousand times, costs its numbers and no object. */

type Numbers = Uint8Array | Uint16Array | Uint32Array | Float64Array;

const START = 64;

/** Values are taken as the array takes them: a number out of its range wraps. */
export class Column<A extends Numbers> {
  #items: A;
  #length = 0;
  readonly #make: (length: number) => A;

  /** `make`: a typed array of that many zeros. */
  constructor(make: (length: number) => A) {
    this.#make = make;
    this.#items = make(START);
  }

  get length(): number {
    return this.#length;
  }

  at(index: number): number | undefined {
    return index < this.#length ? this.#items[index] : undefined;
  }

  /** A view, valid until the next push. */
  get items(): A {
    return this.#items.subarray(0, this.#length) as A;
  }

  push(value: number): void {
    if (this.#length === this.#items.length) {
      const grown = this.#make(2 * this.#length);
      grown.set(this.#items);
      this.#items = grown;
    }
    this.#items[this.#length++] = value;
  }
}

/** Bytes one behind the other, each piece found again by its offset. */
export class ByteColumn {
  #bytes = new Uint8Array(16 * START);
  #length = 0;

  get length(): number {
    return this.#length;
  }

  /** A view, valid until the next put. */
  get bytes(): Uint8Array {
    return this.#bytes.subarray(0, this.#length);
  }

  /** Copies; where they are now. */
  put(bytes: Uint8Array): number {
    const offset = this.#length;
    const end = offset + bytes.byteLength;
    if (end > this.#bytes.byteLength) {
      const grown = new Uint8Array(Math.max(end, 2 * this.#bytes.byteLength));
      grown.set(this.bytes);
      this.#bytes = grown;
    }
    this.#bytes.set(bytes, offset);
    this.#length = end;
    return offset;
  }
}
