/**
 * A bitmap in a SharedArrayBuffer: any thread tests, several may set. Bits are only ever set, never cleared, so a reader may
 * see a bit late but never wrongly. Setting is atomic per byte.
 */
export class Bitmap {
  readonly bytes: Uint8Array<SharedArrayBuffer>;
  readonly length: number;

  /** `length` bits, all clear, or a view of a buffer that another thread made. */
  constructor(length: number, buffer: SharedArrayBuffer = new SharedArrayBuffer(Math.max(1, Math.ceil(length / 8)))) {
    this.length = length;
    this.bytes = new Uint8Array(buffer);
  }

  get buffer(): SharedArrayBuffer {
    return this.bytes.buffer;
  }

  has(index: number): boolean {
    return (Atomics.load(this.bytes, index >>> 3) & (1 << (index & 7))) !== 0;
  }

  /** True if this call set it. */
  set(index: number): boolean {
    const mask = 1 << (index & 7);
    return (Atomics.or(this.bytes, index >>> 3, mask) & mask) === 0;
  }

  /** Sets [start, end). */
  setRange(start: number, end: number): void {
    let index = start;
    while (index < end && (index & 7) !== 0) this.set(index++);
    for (; index + 8 <= end; index += 8) Atomics.store(this.bytes, index >>> 3, 0xff);
    while (index < end) this.set(index++);
  }

  /** True if every bit of [start, end) is set. */
  hasAll(start: number, end: number): boolean {
    return this.nextClear(start, end) === end;
  }

  /** The first clear bit in [start, end), or `end`. */
  nextClear(start: number, end: number): number {
    let index = start;
    while (index < end) {
      if ((index & 7) === 0) while (index + 8 <= end && Atomics.load(this.bytes, index >>> 3) === 0xff) index += 8;
      if (index >= end || !this.has(index)) return Math.min(index, end);
      index++;
    }
    return end;
  }

  /** The first set bit in [start, end), or `end`. */
  nextSet(start: number, end: number): number {
    let index = start;
    while (index < end) {
      if ((index & 7) === 0) while (index + 8 <= end && Atomics.load(this.bytes, index >>> 3) === 0) index += 8;
      if (index >= end || this.has(index)) return Math.min(index, end);
      index++;
    }
    return end;
  }

  count(): number {
    let total = 0;
    for (let byte of this.bytes) {
      for (; byte !== 0; byte &= byte - 1) total++;
    }
    return total;
  }
}
