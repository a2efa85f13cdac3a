/**
 * Writes zTOCs byte for byte as SOCI's Go builder does (specs/soci.md 2.3, 2.4): readers take any valid flatbuffer, but equal bytes share storage with
 * what the real tool made. The order of calls is the format here: it decides where everything lies.
 */

import { HeadstartError } from "../../base/errors.ts";
import { daysFromCivil, type Instant, type ZtocEntry } from "./entries.ts";
import { FlatBufferWriter } from "./flatbuffer-writer.ts";
import {
  CHECKPOINTS_MAX,
  COMPRESSION_ALGORITHM,
  COMPRESSION_INFO,
  FILE_METADATA,
  TAR_ZINFO,
  TAR_ZINFO_VERSION,
  TOC,
  WINDOW_SIZE,
  XATTR,
  ZINFO_CHECKPOINT,
  ZINFO_HEADER,
  ZTOC,
  ZTOC_VERSION,
} from "./ondisk.ts";

export interface ZtocContent {
  readonly buildTool: string;
  readonly compressedSize: number;
  readonly uncompressedSize: number;
  /** In the order of the tar. */
  readonly entries: readonly ZtocEntry[];
  readonly compression: "gzip" | "tar";
  /** From `GzipZinfoWriter` or `tarZinfo`. */
  readonly checkpoints: Uint8Array;
  /** "sha256:<hex>" of each span's stored bytes. */
  readonly spanDigests: readonly string[];
}

export function writeZtoc(content: ZtocContent): Uint8Array {
  const writer = new FlatBufferWriter(estimate(content));
  const version = writer.string(Buffer.from(ZTOC_VERSION));
  const buildTool = writer.string(Buffer.from(content.buildTool));
  const metadata = new Array<number>(content.entries.length);
  for (let index = content.entries.length - 1; index >= 0; index--)
    metadata[index] = writeEntry(writer, content.entries[index]!);
  const vector = writer.offsetVector(metadata);
  writer.startTable(Object.keys(TOC).length);
  writer.reference(TOC.metadata, vector);
  const toc = writer.endTable();
  const checkpoints = writer.byteVector(content.checkpoints);
  const digests = writer.offsetVector(content.spanDigests.map((digest) => writer.string(Buffer.from(digest))));
  writer.startTable(Object.keys(COMPRESSION_INFO).length);
  writer.i32(COMPRESSION_INFO.max_span_id, content.spanDigests.length - 1);
  writer.reference(COMPRESSION_INFO.span_digests, digests);
  writer.reference(COMPRESSION_INFO.checkpoints, checkpoints);
  const algorithm = content.compression === "gzip" ? COMPRESSION_ALGORITHM.Gzip : COMPRESSION_ALGORITHM.Uncompressed;
  writer.u8(COMPRESSION_INFO.compression_algorithm, algorithm, COMPRESSION_ALGORITHM.Gzip);
  const info = writer.endTable();
  writer.startTable(Object.keys(ZTOC).length);
  writer.reference(ZTOC.version, version);
  writer.reference(ZTOC.build_tool_identifier, buildTool);
  writer.reference(ZTOC.toc, toc);
  writer.i64(ZTOC.compressed_archive_size, content.compressedSize);
  writer.i64(ZTOC.uncompressed_archive_size, content.uncompressedSize);
  writer.reference(ZTOC.compression_info, info);
  return writer.finish(writer.endTable());
}

const FILE_METADATA_FIELDS = Object.keys(FILE_METADATA).length;

function writeEntry(writer: FlatBufferWriter, entry: ZtocEntry): number {
  const name = writer.string(entry.name);
  const type = writer.string(Buffer.from(entry.type));
  const linkname = writer.string(entry.linkname);
  const uname = writer.string(entry.uname);
  const gname = writer.string(entry.gname);
  const modTime = writer.string(Buffer.from(formatTime(entry.mtime)));
  const records = entry.pax.map((record) => {
    const key = writer.string(record.key);
    const value = writer.string(record.value);
    writer.startTable(Object.keys(XATTR).length);
    writer.reference(XATTR.key, key);
    writer.reference(XATTR.value, value);
    return writer.endTable();
  });
  const xattrs = writer.offsetVector(records);
  writer.startTable(FILE_METADATA_FIELDS);
  writer.reference(FILE_METADATA.name, name);
  writer.reference(FILE_METADATA.type, type);
  writer.i64(FILE_METADATA.uncompressed_offset, entry.dataOffset);
  writer.i64(FILE_METADATA.uncompressed_size, entry.size);
  writer.reference(FILE_METADATA.linkname, linkname);
  writer.i64(FILE_METADATA.mode, entry.mode);
  writer.i32(FILE_METADATA.uid, entry.uid);
  writer.i32(FILE_METADATA.gid, entry.gid);
  writer.reference(FILE_METADATA.uname, uname);
  writer.reference(FILE_METADATA.gname, gname);
  writer.reference(FILE_METADATA.mod_time, modTime);
  writer.i64(FILE_METADATA.devmajor, entry.devmajor);
  writer.i64(FILE_METADATA.devminor, entry.devminor);
  writer.reference(FILE_METADATA.xattrs, xattrs);
  return writer.endTable();
}

function estimate(content: ZtocContent): number {
  let total = content.checkpoints.byteLength + content.spanDigests.length * 84 + 1024;
  for (const entry of content.entries) {
    total += 240 + entry.name.byteLength + entry.linkname.byteLength + entry.uname.byteLength + entry.gname.byteLength;
    for (const record of entry.pax) total += 40 + record.key.byteLength + record.value.byteLength;
  }
  return total;
}

/** Collects checkpoints into the packed records of zinfo version 2 (specs/soci.md 2.6). */
export class GzipZinfoWriter {
  #bytes = new Uint8Array(ZINFO_HEADER.size + 8 * ZINFO_CHECKPOINT.size);
  #count = 0;
  readonly #spanSize: number;

  constructor(spanSize: number) {
    this.#spanSize = spanSize;
  }

  get count(): number {
    return this.#count;
  }

  /** Throws HS_LIMIT beyond the number that SOCI's readers take. */
  add(consumed: number, produced: number, bits: number, window: Uint8Array): void {
    if (this.#count === CHECKPOINTS_MAX) {
      throw new HeadstartError("HS_LIMIT", {
        what: `zTOC: more than ${CHECKPOINTS_MAX} spans; choose a larger span size`,
      });
    }
    const at = ZINFO_HEADER.size + this.#count * ZINFO_CHECKPOINT.size;
    if (at + ZINFO_CHECKPOINT.size > this.#bytes.byteLength) {
      const grown = new Uint8Array(this.#bytes.byteLength * 2);
      grown.set(this.#bytes);
      this.#bytes = grown;
    }
    const view = new DataView(this.#bytes.buffer);
    view.setBigInt64(at + ZINFO_CHECKPOINT.offsets.in, BigInt(consumed), true);
    view.setBigInt64(at + ZINFO_CHECKPOINT.offsets.out, BigInt(produced), true);
    view.setUint8(at + ZINFO_CHECKPOINT.offsets.bits, bits);
    if (window.byteLength !== WINDOW_SIZE)
      throw new HeadstartError("HS_INTERNAL", { what: "zTOC: a window is 32 KiB" });
    this.#bytes.set(window, at + ZINFO_CHECKPOINT.offsets.window);
    this.#count++;
  }

  finish(): Uint8Array {
    const view = new DataView(this.#bytes.buffer);
    view.setInt32(ZINFO_HEADER.offsets.have, this.#count, true);
    view.setBigInt64(ZINFO_HEADER.offsets.span_size, BigInt(this.#spanSize), true);
    return this.#bytes.subarray(0, ZINFO_HEADER.size + this.#count * ZINFO_CHECKPOINT.size);
  }
}

/** The checkpoints of a plain tar of `size` bytes (specs/soci.md 2.7). */
export function tarZinfo(spanSize: number, size: number): Uint8Array {
  const writer = new FlatBufferWriter(128);
  writer.startTable(Object.keys(TAR_ZINFO).length);
  writer.i32(TAR_ZINFO.version, TAR_ZINFO_VERSION);
  writer.i64(TAR_ZINFO.span_size, spanSize);
  writer.i64(TAR_ZINFO.size, size);
  return writer.finish(writer.endTable());
}

/** RFC 3339 as Go's `time.RFC3339Nano` prints it in UTC: no trailing zeros of the fraction, years of four digits or more. */
export function formatTime(time: Instant): string {
  const days = Math.floor(time.seconds / 86_400);
  const rest = time.seconds - days * 86_400;
  const { year, month, day } = civilFromDays(days);
  const two = (value: number) => String(value).padStart(2, "0");
  const sign = year < 0 ? "-" : "";
  const date = `${sign}${String(Math.abs(year)).padStart(4, "0")}-${two(month)}-${two(day)}`;
  const clock = `${two(Math.floor(rest / 3600))}:${two(Math.floor(rest / 60) % 60)}:${two(rest % 60)}`;
  const fraction = time.nanoseconds === 0 ? "" : `.${String(time.nanoseconds).padStart(9, "0").replace(/0+$/, "")}`;
  return `${date}T${clock}${fraction}Z`;
}

/** The inverse of daysFromCivil. */
function civilFromDays(days: number): { year: number; month: number; day: number } {
  const shifted = days + 719_468;
  const era = Math.floor(shifted / 146_097);
  const dayOfEra = shifted - era * 146_097;
  const yearOfEra = Math.floor(
    (dayOfEra - Math.floor(dayOfEra / 1460) + Math.floor(dayOfEra / 36_524) - Math.floor(dayOfEra / 146_096)) / 365,
  );
  const dayOfYear = dayOfEra - (365 * yearOfEra + Math.floor(yearOfEra / 4) - Math.floor(yearOfEra / 100));
  const monthIndex = Math.floor((5 * dayOfYear + 2) / 153);
  const month = monthIndex < 10 ? monthIndex + 3 : monthIndex - 9;
  const year = yearOfEra + era * 400 + (month <= 2 ? 1 : 0);
  return { year, month, day: days - daysFromCivil(year, month, 1) + 1 };
}
