/**
 * A reader for flatbuffers that trusts nothing (specs/soci.md B15): every table, field, vector and string is checked against the buffer before it
 * is read, and the bytes looked at are counted against a budget that is a small multiple of the buffer's length. Offsets may point anywhere, so a
 * small file can describe a tree of any size by pointing to the same place again and again; the budget makes total work O(file size).
 *
 *   table  : i32 distance back to its vtable, then fields        vtable : u16 own size, u16 table size, u16 field offsets (0 = absent)
 *   string : u32 length, bytes (NUL behind, not relied upon)     vector : u32 count, elements        references: u32, relative to where they stand
 */

import { HeadstartError } from "../../base/errors.ts";

/** A table, its vtable and a vector of references come to far less than this per byte of an honest file, shared vtables and strings included. */
const BUDGET_PER_BYTE = 8;

export class FlatBuffer {
  readonly bytes: Uint8Array;
  readonly what: string;
  readonly view: DataView;
  #budget: number;

  /** `trusted`: the buffer has been read once already, by this class; bounds are still checked, work is not counted. */
  constructor(bytes: Uint8Array, what: string, options: { trusted?: boolean } = {}) {
    this.bytes = bytes;
    this.what = what;
    this.view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    this.#budget = options.trusted ? Number.POSITIVE_INFINITY : bytes.byteLength * BUDGET_PER_BYTE + 1024;
  }

  root(): FlatTable {
    return new FlatTable(this, this.reference(0, "root"));
  }

  /** The place that the u32 at `position` refers to. */
  reference(position: number, field: string): number {
    this.need(position, 4, field);
    const distance = this.view.getUint32(position, true);
    if (distance === 0) throw this.bad(position, `${field} refers to itself`);
    this.need(position + distance, 4, field);
    return position + distance;
  }

  /** `count` elements of `size` bytes of the vector at `position`, checked; the place of the first. */
  vector(position: number, size: number, field: string): { start: number; count: number } {
    this.need(position, 4, field);
    const count = this.view.getUint32(position, true);
    // below 2^32 * 2^16: cannot wrap a double
    this.need(position + 4, count * size, field);
    this.charge(4 + count * size);
    return { start: position + 4, count };
  }

  string(position: number, field: string): Uint8Array {
    const { start, count } = this.vector(position, 1, field);
    return this.bytes.subarray(start, start + count);
  }

  need(position: number, length: number, field: string): void {
    if (!(position >= 0 && length <= this.bytes.byteLength - position)) {
      throw this.bad(position, `${field}: ${length} bytes wanted, ${this.bytes.byteLength} are there in all`);
    }
  }

  charge(bytes: number): void {
    this.#budget -= bytes;
    if (this.#budget < 0) throw this.bad(0, "tables overlap: more is described than there are bytes");
  }

  bad(position: number, message: string): HeadstartError {
    return new HeadstartError("HS_INDEX_INVALID", {
      what: `${this.what}: ${message} (near byte 0x${Math.max(0, position).toString(16)})`,
    });
  }
}

/** One table. Getters take the field's number and name; absent fields give the schema's default. */
export class FlatTable {
  readonly buffer: FlatBuffer;
  readonly position: number;
  readonly #vtable: number;
  readonly #vtableSize: number;
  readonly #size: number;

  constructor(buffer: FlatBuffer, position: number) {
    buffer.need(position, 4, "table");
    const { view } = buffer;
    const vtable = position - view.getInt32(position, true);
    buffer.need(vtable, 4, "vtable");
    const vtableSize = view.getUint16(vtable, true);
    const size = view.getUint16(vtable + 2, true);
    if (vtableSize < 4 || vtableSize % 2 !== 0 || size < 4) throw buffer.bad(vtable, "vtable is too short");
    buffer.need(vtable, vtableSize, "vtable");
    buffer.need(position, size, "table");
    buffer.charge(vtableSize + size);
    this.buffer = buffer;
    this.position = position;
    this.#vtable = vtable;
    this.#vtableSize = vtableSize;
    this.#size = size;
  }

  /** Where the field's `width` bytes are, or -1 when it is absent. */
  #field(id: number, width: number, name: string): number {
    const slot = 4 + 2 * id;
    if (slot + 2 > this.#vtableSize) return -1;
    const offset = this.buffer.view.getUint16(this.#vtable + slot, true);
    if (offset === 0) return -1;
    if (offset < 4 || offset + width > this.#size)
      throw this.buffer.bad(this.position, `${name} lies outside of its table`);
    return this.position + offset;
  }

  u8(id: number, name: string, absent = 0): number {
    const position = this.#field(id, 1, name);
    return position < 0 ? absent : this.buffer.view.getUint8(position);
  }

  i32(id: number, name: string): number {
    const position = this.#field(id, 4, name);
    return position < 0 ? 0 : this.buffer.view.getInt32(position, true);
  }

  u32(id: number, name: string): number {
    const position = this.#field(id, 4, name);
    return position < 0 ? 0 : this.buffer.view.getUint32(position, true);
  }

  /** Beyond 53 bits: HS_INDEX_INVALID. */
  i64(id: number, name: string): number {
    const position = this.#field(id, 8, name);
    if (position < 0) return 0;
    const { view } = this.buffer;
    const value = view.getInt32(position + 4, true) * 2 ** 32 + view.getUint32(position, true);
    if (!Number.isSafeInteger(value)) throw this.buffer.bad(position, `${name} is beyond 2^53`);
    return value;
  }

  /** A view; empty when absent. */
  string(id: number, name: string): Uint8Array {
    const position = this.#field(id, 4, name);
    return position < 0 ? EMPTY : this.buffer.string(this.buffer.reference(position, name), name);
  }

  table(id: number, name: string): FlatTable | null {
    const position = this.#field(id, 4, name);
    return position < 0 ? null : new FlatTable(this.buffer, this.buffer.reference(position, name));
  }

  vector(id: number, elementSize: number, name: string): { start: number; count: number } {
    const position = this.#field(id, 4, name);
    if (position < 0) return { start: 0, count: 0 };
    return this.buffer.vector(this.buffer.reference(position, name), elementSize, name);
  }
}

const EMPTY = new Uint8Array(0);
