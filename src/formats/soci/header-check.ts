/**
 * The tar must say what the table of contents said (specs/soci.md 2.3, B14): as decoded spans pass by, each entry's headers are read and compared, and what stands behind
 * the last entry must be the end of the archive. A zTOC with right digests and wrong names is so found out at the first span that shows it.
 *
 * Headers that lie across spans are put together in shared memory, whichever threads decode the spans: each part is copied in once, and who brings the last
 * one compares. Very long ones are left to the check of the whole layer when it is sealed.
 */

import { HeadstartError } from "../../base/errors.ts";
import { lastAtMost } from "../../base/ranges.ts";
import { parseEntryAt, type TarEntry, TarType } from "../tar/records.ts";
import { entryAt, type ZtocEntry } from "./entries.ts";
import { FlatBuffer } from "./flatbuffer.ts";
import type { ZtocEntryType } from "./ondisk.ts";
import type { Ztoc } from "./read.ts";
import { type SpanTable, spanDecodedLength, spanOfOffset } from "./spans.ts";

/** Entries whose headers lie in more than one span, ascending. Row r has parts partStart[r] .. partStart[r + 1], one a span. */
export interface StraddleTable {
  readonly count: number;
  readonly entry: Uint32Array;
  readonly firstSpan: Uint32Array;
  readonly partStart: Uint32Array;
  readonly byteStart: Uint32Array;
  /** Parts still to come. */
  readonly remaining: Int32Array;
  /** 1 once a part was copied. */
  readonly partDone: Int32Array;
  readonly bytes: Uint8Array;
}

/** Longer headers are not kept: a name, a link target and a few xattrs take far less. */
const STRADDLE_BYTES_MAX = 65_536;

export function makeStraddleTable(ztoc: Ztoc): StraddleTable {
  const { entries, spans } = ztoc;
  const rows: { entry: number; first: number; parts: number; arriving: number; length: number }[] = [];
  let entry = 0;
  for (let span = 1; span < spans.count; span++) {
    const border = spans.out[span]!;
    // the entry whose headers have bytes on both sides of this border, if any; taken once, at its first border
    while (entry < entries.count && entries.dataOffset[entry]! <= border) entry++;
    if (entry === entries.count) break;
    const start = entries.headerOffset[entry]!;
    const end = entries.dataOffset[entry]!;
    if (start >= border || rows.at(-1)?.entry === entry || end - start > STRADDLE_BYTES_MAX) continue;
    const first = spanOfOffset(spans, start);
    const last = spanOfOffset(spans, end - 1);
    rows.push({
      entry,
      first,
      parts: last - first + 1,
      arriving: countFilled(spans, first, last),
      length: end - start,
    });
  }
  const u32 = (length: number) => new Uint32Array(new SharedArrayBuffer(length * 4));
  const table = {
    count: rows.length,
    entry: u32(rows.length),
    firstSpan: u32(rows.length),
    partStart: u32(rows.length + 1),
    byteStart: u32(rows.length + 1),
    remaining: new Int32Array(new SharedArrayBuffer(rows.length * 4)),
  };
  for (const [index, row] of rows.entries()) {
    table.entry[index] = row.entry;
    table.firstSpan[index] = row.first;
    table.remaining[index] = row.arriving;
    table.partStart[index + 1] = table.partStart[index]! + row.parts;
    table.byteStart[index + 1] = table.byteStart[index]! + row.length;
  }
  return {
    ...table,
    partDone: new Int32Array(new SharedArrayBuffer(table.partStart[rows.length]! * 4)),
    bytes: new Uint8Array(new SharedArrayBuffer(table.byteStart[rows.length]!)),
  };
}

/** Spans first..last that have bytes: an empty one brings no part. */
function countFilled(spans: SpanTable, first: number, last: number): number {
  let filled = 0;
  for (let span = first; span <= last; span++) if (spanDecodedLength(spans, span) > 0) filled++;
  return filled;
}

export class HeaderCheck {
  readonly #ztoc: Ztoc;
  readonly #straddle: StraddleTable;
  readonly #buffer: FlatBuffer;

  constructor(ztoc: Ztoc, straddle: StraddleTable) {
    this.#ztoc = ztoc;
    this.#straddle = straddle;
    this.#buffer = new FlatBuffer(ztoc.bytes, "zTOC", { trusted: true });
  }

  /** Throws HS_INDEX_MISMATCH. */
  check(span: number, decoded: Uint8Array): void {
    const { entries, spans } = this.#ztoc;
    const start = spans.out[span]!;
    const end = start + spanDecodedLength(spans, span);
    if (end === start) return;
    let index = Math.max(0, lastAtMost(entries.dataOffset, entries.count, start) + 1);
    for (; index < entries.count && entries.headerOffset[index]! < end; index++) {
      const header = entries.headerOffset[index]!;
      const data = entries.dataOffset[index]!;
      if (header >= start && data <= end) this.#compare(index, decoded.subarray(header - start, data - start));
      else this.#part(index, span, start, decoded);
    }
    this.#checkEnd(start, decoded);
  }

  #part(index: number, span: number, start: number, decoded: Uint8Array): void {
    const table = this.#straddle;
    const row = lastAtMost(table.entry, table.count, index);
    if (row < 0 || table.entry[row] !== index) return;
    const header = this.#ztoc.entries.headerOffset[index]!;
    const from = Math.max(header, start);
    const part = decoded.subarray(from - start, this.#ztoc.entries.dataOffset[index]! - start);
    const byteStart = table.byteStart[row]!;
    table.bytes.set(part, byteStart + (from - header));
    const partIndex = table.partStart[row]! + span - table.firstSpan[row]!;
    // a span may be decoded again, by another thread too: its part counts once. The exchange publishes the bytes before it
    if (Atomics.exchange(table.partDone, partIndex, 1) === 1) return;
    if (Atomics.sub(table.remaining, row, 1) !== 1) return;
    this.#compare(index, Uint8Array.from(table.bytes.subarray(byteStart, table.byteStart[row + 1]!)));
  }

  #compare(index: number, headers: Uint8Array): void {
    const { entries } = this.#ztoc;
    const offset = entries.headerOffset[index]!;
    let found: TarEntry;
    try {
      found = parseEntryAt(headers, offset, "zTOC");
    } catch (cause) {
      throw mismatch(`no headers of one entry stand at byte ${offset} of the tar`, cause);
    }
    const wanted = entryAt(this.#buffer, entries, index);
    const different = firstDifference(wanted, found, entries.dataSize[index]!);
    if (different !== null) {
      const name = JSON.stringify(Buffer.from(wanted.name.subarray(0, 200)).toString("latin1"));
      throw mismatch(`entry ${index + 1} ${name} has another ${different} in the tar than in the zTOC`);
    }
  }

  /** Behind the last entry stand two blocks of zeros, or the archive ends. */
  #checkEnd(start: number, decoded: Uint8Array): void {
    const from = Math.max(0, this.#ztoc.entries.end - start);
    const to = Math.min(decoded.byteLength, this.#ztoc.entries.end - start + END_BYTES);
    for (let index = from; index < to; index++) {
      if (decoded[index] !== 0) throw mismatch(`the tar goes on at byte ${start + index}, where the zTOC ends`);
    }
  }
}

const END_BYTES = 1024;

const TYPES: { readonly [type in ZtocEntryType]: number } = {
  reg: TarType.regular,
  hardlink: TarType.hardLink,
  symlink: TarType.symlink,
  char: TarType.char,
  block: TarType.block,
  dir: TarType.directory,
  fifo: TarType.fifo,
};

export function tarType(type: ZtocEntryType): number {
  return TYPES[type];
}

export const XATTR_PREFIX = "SCHILY.xattr.";

function firstDifference(wanted: ZtocEntry, found: TarEntry, size: number): string | null {
  if (TYPES[wanted.type] !== found.type) return "type";
  if (Buffer.compare(wanted.name, found.name) !== 0) return "name";
  if (found.sparse !== null || found.storedSize !== size) return "size";
  if (wanted.mtime.seconds !== found.mtimeSeconds || wanted.mtime.nanoseconds !== found.mtimeNanoseconds) return "time";
  if (Buffer.compare(wanted.linkname, found.linkname) !== 0) return "link target";
  if (wanted.mode !== found.mode) return "mode";
  if (wanted.uid !== found.uid || wanted.gid !== found.gid) return "owner";
  if (wanted.devmajor !== found.devMajor || wanted.devminor !== found.devMinor) return "device number";
  let xattrs = 0;
  for (const key of found.pax.keys()) if (key.startsWith(XATTR_PREFIX)) xattrs++;
  for (const record of wanted.pax) {
    const key = Buffer.from(record.key).toString("latin1");
    if (!key.startsWith(XATTR_PREFIX)) continue;
    xattrs--;
    const value = found.pax.get(key);
    if (value === undefined || Buffer.compare(value, record.value) !== 0) return "xattr";
  }
  return xattrs === 0 ? null : "xattr";
}

function mismatch(message: string, cause?: unknown): HeadstartError {
  return new HeadstartError("HS_INDEX_MISMATCH", {
    what: `zTOC: ${message}`,
    ...(cause === undefined ? {} : { cause }),
  });
}
