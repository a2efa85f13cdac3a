/**
 * The two cursors that all formats use. `Reader` checks every step against the bytes that are there; an error says what, where
 * and how much was wanted. `Writer` grows. Little endian unless a method says otherwise. `struct` declares an on-disk structure once.
 */

import { HeadstartError } from "./errors.ts";

export class Reader {
  readonly bytes: Uint8Array;
  readonly what: string;
  /** Absolute offset of bytes[0], for error messages. */
  readonly base: number;
  readonly #view: DataView;
  position = 0;

  constructor(bytes: Uint8Array, options: { what: string; base?: number }) {
    this.bytes = bytes;
    this.what = options.what;
    this.base = options.base ?? 0;
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  }

  get remaining(): number {
    return this.bytes.byteLength - this.position;
  }

  get length(): number {
    return this.bytes.byteLength;
  }

  /** Moves to `offset`; throws HS_TRUNCATED when it lies outside. */
  at(offset: number): this {
    if (!(Number.isSafeInteger(offset) && offset >= 0 && offset <= this.bytes.byteLength)) {
      throw new HeadstartError("HS_TRUNCATED", {
        what: `${this.what}: offset ${offset} lies outside of ${this.bytes.byteLength} bytes`,
      });
    }
    this.position = offset;
    return this;
  }

  #take(count: number, field: string): number {
    const start = this.position;
    if (!(count >= 0 && count <= this.bytes.byteLength - start)) {
      throw new HeadstartError("HS_TRUNCATED", {
        what: `${this.what}: ${field} at byte 0x${(this.base + start).toString(16)}: ${count} bytes wanted, ${this.bytes.byteLength - start} left`,
      });
    }
    this.position = start + count;
    return start;
  }

  u8(field = "u8"): number {
    return this.#view.getUint8(this.#take(1, field));
  }

  u16(field = "u16"): number {
    return this.#view.getUint16(this.#take(2, field), true);
  }

  i16(field = "i16"): number {
    return this.#view.getInt16(this.#take(2, field), true);
  }

  u32(field = "u32"): number {
    return this.#view.getUint32(this.#take(4, field), true);
  }

  i32(field = "i32"): number {
    return this.#view.getInt32(this.#take(4, field), true);
  }

  /** A number below 2^53; throws HS_LIMIT beyond. */
  u64(field = "u64"): number {
    const start = this.#take(8, field);
    const value = this.#view.getUint32(start + 4, true) * 2 ** 32 + this.#view.getUint32(start, true);
    if (!Number.isSafeInteger(value)) throw this.malformed(`${field} is beyond 2^53`, "HS_LIMIT");
    return value;
  }

  /** A signed number of at most 53 bits; throws HS_LIMIT beyond. */
  i64(field = "i64"): number {
    const start = this.#take(8, field);
    const value = this.#view.getInt32(start + 4, true) * 2 ** 32 + this.#view.getUint32(start, true);
    if (!Number.isSafeInteger(value)) throw this.malformed(`${field} is beyond 2^53`, "HS_LIMIT");
    return value;
  }

  u64big(field = "u64"): bigint {
    return this.#view.getBigUint64(this.#take(8, field), true);
  }

  /** A view of the next `count` bytes, not a copy. */
  take(count: number, field = "bytes"): Uint8Array {
    const start = this.#take(count, field);
    return this.bytes.subarray(start, start + count);
  }

  skip(count: number, field = "padding"): this {
    this.#take(count, field);
    return this;
  }

  ascii(count: number, field = "text"): string {
    return Buffer.from(this.take(count, field)).toString("latin1");
  }

  /** A cursor over the next `count` bytes, which this one passes. */
  sub(count: number, what: string): Reader {
    const start = this.#take(count, what);
    return new Reader(this.bytes.subarray(start, start + count), {
      what: `${this.what}: ${what}`,
      base: this.base + start,
    });
  }

  malformed(message: string, code: "HS_MALFORMED" | "HS_LIMIT" = "HS_MALFORMED"): HeadstartError {
    return new HeadstartError(code, {
      what: `${this.what}: ${message} (near byte 0x${(this.base + this.position).toString(16)})`,
    });
  }
}

/** A growing byte buffer. */
export class Writer {
  #bytes: Uint8Array<ArrayBuffer>;
  #view: DataView<ArrayBuffer>;
  #length = 0;

  constructor(capacity = 4096) {
    this.#bytes = new Uint8Array(capacity);
    this.#view = new DataView(this.#bytes.buffer);
  }

  get length(): number {
    return this.#length;
  }

  /** Call it before `#view` or `#bytes` is read: it may replace both. */
  #reserve(count: number): number {
    const start = this.#length;
    const wanted = start + count;
    if (wanted > this.#bytes.byteLength) {
      const grown = new Uint8Array(Math.max(wanted, this.#bytes.byteLength * 2));
      grown.set(this.#bytes.subarray(0, start));
      this.#bytes = grown;
      this.#view = new DataView(grown.buffer);
    }
    this.#length = wanted;
    return start;
  }

  u8(value: number): this {
    const at = this.#reserve(1);
    this.#view.setUint8(at, value);
    return this;
  }

  u16(value: number): this {
    const at = this.#reserve(2);
    this.#view.setUint16(at, value, true);
    return this;
  }

  u32(value: number): this {
    const at = this.#reserve(4);
    this.#view.setUint32(at, value, true);
    return this;
  }

  i32(value: number): this {
    const at = this.#reserve(4);
    this.#view.setInt32(at, value, true);
    return this;
  }

  /** Any safe integer, negative ones as two's complement. */
  u64(value: number | bigint): this {
    const at = this.#reserve(8);
    this.#view.setBigUint64(at, BigInt.asUintN(64, BigInt(value)), true);
    return this;
  }

  put(bytes: Uint8Array): this {
    // reserve first: it may replace the buffer
    const start = this.#reserve(bytes.byteLength);
    this.#bytes.set(bytes, start);
    return this;
  }

  zeros(count: number): this {
    const start = this.#reserve(count);
    this.#bytes.fill(0, start, start + count);
    return this;
  }

  align(unit: number): this {
    return this.zeros((unit - (this.#length % unit)) % unit);
  }

  patchU32(offset: number, value: number): this {
    this.#view.setUint32(offset, value, true);
    return this;
  }

  /** A view of what was written; valid until the next write. */
  finish(): Uint8Array<ArrayBuffer> {
    return this.#bytes.subarray(0, this.#length);
  }
}

export type FieldType = "u8" | "u16" | "u32" | "i32" | "u64" | number;
const FIELD_SIZES = { u8: 1, u16: 2, u32: 4, i32: 4, u64: 8 } as const;

export interface Struct<F extends Record<string, FieldType>> {
  readonly name: string;
  readonly size: number;
  /** Byte offset of each field. */
  readonly offsets: { readonly [K in keyof F]: number };
}

/**
 * Declares a packed little-endian structure: field names are those of the specification, a number is that many raw bytes. The size
 * is asserted when the module loads.
 */
export function struct<const F extends Record<string, FieldType>>(name: string, size: number, fields: F): Struct<F> {
  const offsets: Record<string, number> = {};
  let offset = 0;
  for (const [field, type] of Object.entries(fields)) {
    offsets[field] = offset;
    offset += typeof type === "number" ? type : FIELD_SIZES[type];
  }
  if (offset !== size) throw new Error(`struct ${name}: fields take ${offset} bytes, not ${size}`);
  return { name, size, offsets: offsets as { readonly [K in keyof F]: number } };
}

/** Unsigned byte order, as EROFS directories and tree listings are sorted. */
export function compareBytes(a: Uint8Array, b: Uint8Array): number {
  return Buffer.compare(a, b);
}
