/**
 * Writes flatbuffers byte for byte as Google's Go and JavaScript builders do (specs/soci.md 2.4): back to front, each object before what refers to it, equal
 * vtables shared, zero scalars left out. Offsets that calls return count from the end of the buffer, as in those builders.
 *
 *   buffer: |        free        | newest object ... oldest object |
 *                                ^ #space
 */

const LOOP_BYTES_MAX = 64;

export class FlatBufferWriter {
  #bytes: Uint8Array;
  #view: DataView;
  #space: number;
  #alignment = 1;
  readonly #vtables: number[] = [];
  /** Of the table that is being written: where each field is, 0 for none; its first `#slotCount` are meant. */
  readonly #slots: number[] = [];
  #slotCount = 0;
  #tableStart = 0;

  /** `capacity`: what it will come to, roughly; growing copies everything. */
  constructor(capacity = 1024) {
    this.#bytes = new Uint8Array(Math.max(64, capacity));
    this.#view = new DataView(this.#bytes.buffer);
    this.#space = this.#bytes.byteLength;
  }

  /** Bytes written so far: the offset of what was written last. */
  get offset(): number {
    return this.#bytes.byteLength - this.#space;
  }

  string(bytes: Uint8Array): number {
    this.#prepare(4, bytes.byteLength + 1);
    const length = bytes.byteLength;
    this.#space -= length + 1;
    const start = this.#space;
    const target = this.#bytes;
    // names are short: a call costs more than the loop
    if (length > LOOP_BYTES_MAX) target.set(bytes, start);
    else for (let index = 0; index < length; index++) target[start + index] = bytes[index]!;
    target[start + length] = 0;
    return this.#endVector(length);
  }

  byteVector(bytes: Uint8Array): number {
    this.#prepare(4, bytes.byteLength);
    this.#space -= bytes.byteLength;
    this.#bytes.set(bytes, this.#space);
    return this.#endVector(bytes.byteLength);
  }

  /** A vector of references to what was written at `offsets`. */
  offsetVector(offsets: readonly number[]): number {
    this.#prepare(4, 4 * offsets.length);
    for (let index = offsets.length - 1; index >= 0; index--) this.#reference(offsets[index]!);
    return this.#endVector(offsets.length);
  }

  startTable(slots: number): void {
    for (let slot = 0; slot < slots; slot++) this.#slots[slot] = 0;
    this.#slotCount = slots;
    this.#tableStart = this.offset;
  }

  /** Scalars that are the default of the schema (`absent`) are left out. */
  u8(slot: number, value: number, absent = 0): void {
    if (value === absent) return;
    this.#prepare(1, 0);
    this.#space -= 1;
    this.#view.setUint8(this.#space, value);
    this.#slots[slot] = this.offset;
  }

  /** Signed or unsigned: the same 32 bits. */
  i32(slot: number, value: number): void {
    if (value === 0) return;
    this.#prepare(4, 0);
    this.#space -= 4;
    this.#view.setInt32(this.#space, value | 0, true);
    this.#slots[slot] = this.offset;
  }

  /** `value` is a safe integer. */
  i64(slot: number, value: number): void {
    if (value === 0) return;
    this.#prepare(8, 0);
    this.#space -= 8;
    this.#view.setInt32(this.#space, value | 0, true);
    this.#view.setInt32(this.#space + 4, Math.floor(value / 2 ** 32), true);
    this.#slots[slot] = this.offset;
  }

  reference(slot: number, offset: number): void {
    this.#prepare(4, 0);
    this.#reference(offset);
    this.#slots[slot] = this.offset;
  }

  endTable(): number {
    this.#prepare(4, 0);
    this.#space -= 4;
    const table = this.offset;
    let used = this.#slotCount;
    while (used > 0 && this.#slots[used - 1] === 0) used--;
    const vtableSize = 4 + 2 * used;
    this.#prepare(2, vtableSize - 2);
    this.#space -= vtableSize;
    this.#view.setUint16(this.#space, vtableSize, true);
    this.#view.setUint16(this.#space + 2, table - this.#tableStart, true);
    for (let slot = 0; slot < used; slot++) {
      const at = this.#slots[slot]!;
      this.#view.setUint16(this.#space + 4 + 2 * slot, at === 0 ? 0 : table - at, true);
    }
    const known = this.#vtables.find((offset) => this.#sameVtable(offset, vtableSize));
    const place = this.#bytes.byteLength - table;
    if (known === undefined) {
      this.#vtables.push(this.offset);
      this.#view.setInt32(place, this.offset - table, true);
    } else {
      this.#space = place;
      this.#view.setInt32(place, known - table, true);
    }
    return table;
  }

  /** The finished buffer with `root` as its root table. */
  finish(root: number): Uint8Array {
    this.#prepare(this.#alignment, 4);
    this.#reference(root);
    return this.#bytes.subarray(this.#space);
  }

  #sameVtable(offset: number, size: number): boolean {
    const at = this.#bytes.byteLength - offset;
    for (let index = 0; index < size; index += 2) {
      if (this.#view.getUint16(at + index, true) !== this.#view.getUint16(this.#space + index, true)) return false;
    }
    return true;
  }

  #reference(offset: number): void {
    this.#space -= 4;
    this.#view.setUint32(this.#space, this.offset - offset, true);
  }

  #endVector(count: number): number {
    this.#space -= 4;
    this.#view.setUint32(this.#space, count, true);
    return this.offset;
  }

  /** Pads so that, once `additional` more bytes are written, the place is aligned to `size`; and makes room for both and a count. */
  #prepare(size: number, additional: number): void {
    if (size > this.#alignment) this.#alignment = size;
    const padding = (size - ((this.offset + additional) % size)) % size;
    const wanted = padding + additional + size + 4;
    if (wanted > this.#space) this.#grow(wanted);
    // not left to a fresh buffer: a vtable that was dropped may have stood here
    for (let left = padding; left > 0; left--) this.#bytes[--this.#space] = 0;
  }

  #grow(wanted: number): void {
    const used = this.offset;
    const grown = new Uint8Array(Math.max(this.#bytes.byteLength * 2, used + wanted));
    grown.set(this.#bytes.subarray(this.#space), grown.byteLength - used);
    this.#bytes = grown;
    this.#view = new DataView(grown.buffer);
    this.#space = grown.byteLength - used;
  }
}
