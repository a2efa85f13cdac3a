/**
 * The table of contents: entries in flat arrays, in the order of the tar, and one entry as an object on demand (specs/soci.md 2.3). The strings stay in
 * the zTOC's own bytes: 100 k entries cost 28 bytes each here.
 *
 * Invariants of an EntryTable that exists: entry i's headers are bytes [headerOffset, dataOffset) of the uncompressed tar, at least one block;
 * its data are the dataSize bytes from dataOffset on; entry i+1's headers begin where entry i's data, padded to a block, end; all within the archive.
 */

import { LIMITS } from "../../base/limits.ts";
import { alignUp } from "../../base/ranges.ts";
import { type FlatBuffer, FlatTable } from "./flatbuffer.ts";
import { ENTRY_TYPES, FILE_METADATA, TOC, XATTR, type ZtocEntryType } from "./ondisk.ts";

export interface EntryTable {
  readonly count: number;
  /** Place of each entry's flatbuffers table in the zTOC. */
  readonly position: Uint32Array;
  readonly headerOffset: Float64Array;
  readonly dataOffset: Float64Array;
  /** 0 for types without data, whatever the zTOC says (specs/soci.md B12). */
  readonly dataSize: Float64Array;
  /** Where the last entry's data, padded, end. */
  readonly end: number;
}

export interface PaxRecord {
  readonly key: Uint8Array;
  readonly value: Uint8Array;
}

/** One entry as the zTOC has it; byte strings are views into it. */
export interface ZtocEntry {
  readonly name: Uint8Array;
  readonly type: ZtocEntryType;
  readonly dataOffset: number;
  readonly size: number;
  readonly linkname: Uint8Array;
  /** Raw tar mode. */
  readonly mode: number;
  readonly uid: number;
  readonly gid: number;
  readonly uname: Uint8Array;
  readonly gname: Uint8Array;
  readonly mtime: Instant;
  readonly devmajor: number;
  readonly devminor: number;
  /** All PAX records of the entry, sorted by key. */
  readonly pax: readonly PaxRecord[];
}

export interface Instant {
  readonly seconds: number;
  readonly nanoseconds: number;
}

const BLOCK = 512;
/** What an entry takes at least: its reference, a table of type and offset, name. */
const ENTRY_BYTES_MIN = 40;
/** Longest name and link target (specs/soci.md B16). */
const NAME_BYTES_MAX = 4096;

/** Reads and checks `table TOC`. Throws HS_INDEX_INVALID. */
export function readEntries(toc: FlatTable | null, uncompressedSize: number): EntryTable {
  if (toc === null) return emptyTable();
  const { buffer } = toc;
  const vector = toc.vector(TOC.metadata, 4, "metadata");
  const { count } = vector;
  if (count > buffer.bytes.byteLength / ENTRY_BYTES_MIN || count > LIMITS.layerEntries) {
    throw buffer.bad(vector.start, `${count} entries in ${buffer.bytes.byteLength} bytes`);
  }
  const position = new Uint32Array(new SharedArrayBuffer(count * 4));
  const dataOffset = f64(count);
  const dataSize = f64(count);
  let sorted = true;
  for (let index = 0; index < count; index++) {
    const table = new FlatTable(buffer, buffer.reference(vector.start + 4 * index, "entry"));
    const entry = readEntry(table);
    position[index] = table.position;
    dataOffset[index] = entry.dataOffset;
    dataSize[index] = entry.type === "reg" ? entry.size : 0;
    if (index > 0 && entry.dataOffset < dataOffset[index - 1]!) sorted = false;
  }
  if (!sorted) sortByOffset(position, dataOffset, dataSize);
  const headerOffset = f64(count);
  let end = 0;
  for (let index = 0; index < count; index++) {
    const offset = dataOffset[index]!;
    if (offset % BLOCK !== 0 || offset - end < BLOCK) {
      throw buffer.bad(position[index]!, `an entry's data begin at ${offset}, its headers at ${end}`);
    }
    // one name and one link target of 1 MiB each, and 1 MiB of PAX, is what a tar reader takes (specs/layer.md 2.3)
    if (offset - end > 4 * LIMITS.paxBytes)
      throw buffer.bad(position[index]!, `an entry's headers take ${offset - end} bytes`);
    headerOffset[index] = end;
    end = alignUp(offset + dataSize[index]!, BLOCK);
    if (offset + dataSize[index]! > uncompressedSize) {
      throw buffer.bad(position[index]!, `an entry ends at ${offset + dataSize[index]!} of ${uncompressedSize} bytes`);
    }
  }
  return { count, position, headerOffset, dataOffset, dataSize, end };
}

/** Reads one `table FileMetadata`, checked. Throws HS_INDEX_INVALID. */
export function readEntry(table: FlatTable): ZtocEntry {
  const { buffer } = table;
  const name = table.string(FILE_METADATA.name, "name");
  const linkname = table.string(FILE_METADATA.linkname, "linkname");
  if (name.byteLength > NAME_BYTES_MAX || linkname.byteLength > NAME_BYTES_MAX) {
    throw buffer.bad(table.position, "a name is longer than 4096 bytes");
  }
  const typeName = table.string(FILE_METADATA.type, "type");
  const type = entryType(typeName);
  if (type === undefined)
    throw buffer.bad(table.position, `entry type ${JSON.stringify(latin1(typeName.subarray(0, 32)))}`);
  const dataOffset = table.i64(FILE_METADATA.uncompressed_offset, "uncompressed_offset");
  const size = table.i64(FILE_METADATA.uncompressed_size, "uncompressed_size");
  if (dataOffset < 0 || size < 0 || !Number.isSafeInteger(dataOffset + size)) {
    throw buffer.bad(table.position, `an entry of ${size} bytes at ${dataOffset}`);
  }
  return {
    name,
    type,
    dataOffset,
    size,
    linkname,
    mode: table.i64(FILE_METADATA.mode, "mode"),
    uid: table.u32(FILE_METADATA.uid, "uid"),
    gid: table.u32(FILE_METADATA.gid, "gid"),
    uname: table.string(FILE_METADATA.uname, "uname"),
    gname: table.string(FILE_METADATA.gname, "gname"),
    mtime: parseTime(table.string(FILE_METADATA.mod_time, "mod_time")),
    devmajor: table.i64(FILE_METADATA.devmajor, "devmajor"),
    devminor: table.i64(FILE_METADATA.devminor, "devminor"),
    pax: readPax(table),
  };
}

/** Entry `index` of a zTOC that was read before. */
export function entryAt(ztoc: FlatBuffer, entries: EntryTable, index: number): ZtocEntry {
  return readEntry(new FlatTable(ztoc, entries.position[index]!));
}

const NO_PAX: readonly PaxRecord[] = [];

function readPax(table: FlatTable): readonly PaxRecord[] {
  const { buffer } = table;
  const vector = table.vector(FILE_METADATA.xattrs, 4, "xattrs");
  if (vector.count === 0) return NO_PAX;
  const records: PaxRecord[] = [];
  let total = 0;
  for (let index = 0; index < vector.count; index++) {
    const record = new FlatTable(buffer, buffer.reference(vector.start + 4 * index, "xattr"));
    const key = record.string(XATTR.key, "key");
    const value = record.string(XATTR.value, "value");
    total += key.byteLength + value.byteLength;
    if (total > LIMITS.paxBytes) throw buffer.bad(record.position, "an entry has more than 1 MiB of PAX records");
    records.push({ key, value });
  }
  return records;
}

/** Go's zero time, year 1: what SOCI makes of a time that it cannot read. */
const ZERO_TIME: Instant = { seconds: -62_135_596_800, nanoseconds: 0 };

/** RFC 3339, also years beyond 9999 as Go prints them. Anything else is year 1, no error (specs/soci.md 2.3). */
export function parseTime(bytes: Uint8Array): Instant {
  // a fixed form, read digit by digit: a regular expression on a string takes longer than all else about an entry
  const sign = bytes[0] === 0x2d ? 1 : 0;
  let dash = sign + 4;
  while (dash < sign + 12 && isDigit(bytes[dash])) dash++;
  const year = digits(bytes, sign, dash);
  const at = dash;
  const month = digits(bytes, at + 1, at + 3);
  const day = digits(bytes, at + 4, at + 6);
  const hour = digits(bytes, at + 7, at + 9);
  const minute = digits(bytes, at + 10, at + 12);
  const second = digits(bytes, at + 13, at + 15);
  if (!(year >= 0 && month >= 1 && month <= 12 && day >= 1 && day <= 31 && hour <= 23 && minute <= 59 && second <= 60))
    return ZERO_TIME;
  // - - T : :
  if (
    bytes[at] !== 0x2d ||
    bytes[at + 3] !== 0x2d ||
    bytes[at + 6] !== 0x54 ||
    bytes[at + 9] !== 0x3a ||
    bytes[at + 12] !== 0x3a
  ) {
    return ZERO_TIME;
  }
  let end = at + 15;
  let nanoseconds = 0;
  if (bytes[end] === 0x2e) {
    const start = ++end;
    while (end < start + 9 && isDigit(bytes[end])) nanoseconds = nanoseconds * 10 + bytes[end++]! - 0x30;
    if (end === start) return ZERO_TIME;
    for (let place = end - start; place < 9; place++) nanoseconds *= 10;
  }
  const zone = zoneSeconds(bytes, end);
  if (Number.isNaN(zone)) return ZERO_TIME;
  const days = daysFromCivil(sign === 1 ? -year : year, month, day);
  return { seconds: days * 86_400 + hour * 3600 + minute * 60 + second - zone, nanoseconds };
}

/** "Z" or "+hh:mm" at `start`, and nothing after it; else NaN. */
function zoneSeconds(bytes: Uint8Array, start: number): number {
  const sign = bytes[start];
  if (sign === 0x5a) return bytes.byteLength === start + 1 ? 0 : Number.NaN;
  if ((sign !== 0x2b && sign !== 0x2d) || bytes[start + 3] !== 0x3a || bytes.byteLength !== start + 6)
    return Number.NaN;
  const seconds = digits(bytes, start + 1, start + 3) * 3600 + digits(bytes, start + 4, start + 6) * 60;
  return sign === 0x2d ? -seconds : seconds;
}

function isDigit(byte: number | undefined): boolean {
  return byte !== undefined && byte >= 0x30 && byte <= 0x39;
}

/** The decimal number in [start, end), or NaN. */
function digits(bytes: Uint8Array, start: number, end: number): number {
  let value = 0;
  for (let index = start; index < end; index++) {
    const byte = bytes[index];
    if (!isDigit(byte)) return Number.NaN;
    value = value * 10 + byte! - 0x30;
  }
  return value;
}

function entryType(name: Uint8Array): ZtocEntryType | undefined {
  for (const [index, known] of TYPE_NAMES.entries()) {
    if (name.byteLength === known.byteLength && Buffer.compare(name, known) === 0) return ENTRY_TYPES[index];
  }
  return undefined;
}

const TYPE_NAMES = ENTRY_TYPES.map((type) => Buffer.from(type));

function latin1(bytes: Uint8Array): string {
  return Buffer.from(bytes).toString("latin1");
}

/** Days since 1970-01-01 in the proleptic Gregorian calendar (Hinnant, chrono-compatible date algorithms): `Date` ends at the year 275760. */
export function daysFromCivil(year: number, month: number, day: number): number {
  const y = month <= 2 ? year - 1 : year;
  const era = Math.floor(y / 400);
  const yearOfEra = y - era * 400;
  const dayOfYear = Math.floor((153 * (month + (month > 2 ? -3 : 9)) + 2) / 5) + day - 1;
  const dayOfEra = yearOfEra * 365 + Math.floor(yearOfEra / 4) - Math.floor(yearOfEra / 100) + dayOfYear;
  return era * 146_097 + dayOfEra - 719_468;
}

function sortByOffset(position: Uint32Array, dataOffset: Float64Array, dataSize: Float64Array): void {
  const order = [...position.keys()].sort((a, b) => dataOffset[a]! - dataOffset[b]! || a - b);
  const [positions, offsets, sizes] = [position.slice(), dataOffset.slice(), dataSize.slice()];
  for (const [to, from] of order.entries()) {
    position[to] = positions[from]!;
    dataOffset[to] = offsets[from]!;
    dataSize[to] = sizes[from]!;
  }
}

function f64(count: number): Float64Array {
  return new Float64Array(new SharedArrayBuffer(count * 8));
}

function emptyTable(): EntryTable {
  return { count: 0, position: new Uint32Array(0), headerOffset: f64(0), dataOffset: f64(0), dataSize: f64(0), end: 0 };
}
