/**
 * What a stored blob holds, found from its end (specs/nydus.md 2.1): each part is followed by a tar header of 512 bytes, and since `blob-toc` the last part is a
 * table of contents.
 *
 *   [image.blob][hdr] [blob.meta][hdr] [blob.digest][hdr] [image.boot][hdr] [rafs.blob.toc][hdr]
 */

import { createHash } from "node:crypto";
import { Reader } from "../../base/bytes.ts";
import { isHeadstartError } from "../../base/errors.ts";
import type { ErofsSource } from "../../erofs/source.ts";
import { readHeader, TAR_BLOCK } from "../tar/header.ts";
import { TarType } from "../tar/records.ts";
import { nydusInvalid, TOC_ENTRIES_MAX, TOC_NAME, toc_entry } from "./ondisk.ts";

export interface BlobPart {
  readonly name: string;
  readonly start: number;
  readonly size: number;
}

export interface TocEntry {
  readonly name: string;
  /** "none", "zstd", "lz4_block". */
  readonly compression: string;
  /** Hex, over the uncompressed bytes; null where the builder left it out. */
  readonly sha256: string | null;
  readonly storedOffset: number;
  readonly storedSize: number;
  readonly size: number;
}

export interface BlobTail {
  /** In the order in which they lie. */
  readonly parts: readonly BlobPart[];
  /** Bytes before the first part that has a header (blobs of old builders: the data). */
  readonly headSize: number;
  readonly toc: readonly TocEntry[] | null;
  /** Over the table and its header: what a blob table binds (hex). */
  readonly tocDigest: string | null;
  /** Why a table that is there was not used. */
  readonly tocProblem: string | null;
}

const PARTS_MAX = 32;
const COMPRESSIONS: Readonly<Record<number, string>> = { 1: "none", 2: "zstd", 4: "lz4_block" };

/** True when the last 512 bytes are the header of a blob's last part: what a file is, not whether it is sound. */
export function looksLikeBlob(source: ErofsSource): boolean {
  const last = partBefore(source, source.size);
  return typeof last !== "string" && (last.name === TOC_NAME || last.name === "image.boot");
}

/** Throws HS_NYDUS_INVALID when the walk meets something that is no header before it has found any part. */
export function readBlobTail(source: ErofsSource, what = "blob"): BlobTail {
  const parts: BlobPart[] = [];
  let end = source.size;
  while (end > 0) {
    const part = partBefore(source, end);
    if (typeof part === "string") {
      if (parts.length === 0) throw nydusInvalid(what, part);
      // only data may be without a header, and data are the first part
      break;
    }
    if (parts.length === PARTS_MAX) throw nydusInvalid(what, `more than ${PARTS_MAX} parts`);
    parts.unshift(part);
    end = part.start;
  }
  const last = parts.at(-1);
  if (last === undefined) throw nydusInvalid(what, "no bytes");
  if (last.name !== TOC_NAME) return { parts, headSize: end, toc: null, tocDigest: null, tocProblem: null };
  try {
    // before it is read: the header may claim the whole blob
    if (last.size > TOC_ENTRIES_MAX * toc_entry.size) throw nydusInvalid(what, `table of contents: ${last.size} bytes`);
    const bytes = source.readAt(last.start, last.size + TAR_BLOCK);
    const toc = readToc(bytes.subarray(0, last.size), source.size, what);
    const tocDigest = createHash("sha256").update(bytes).digest("hex");
    return { parts, headSize: end, toc, tocDigest, tocProblem: null };
  } catch (error) {
    if (!isHeadstartError(error)) throw error;
    return { parts, headSize: end, toc: null, tocDigest: null, tocProblem: error.message };
  }
}

/** So many bytes of a blob's end hold any table of contents with its header. */
export const TOC_TAIL_BYTES = TOC_ENTRIES_MAX * toc_entry.size + TAR_BLOCK;

/** The table of contents out of the last `TOC_TAIL_BYTES` of a blob (or all of a smaller one); null where the last header is that of another part. Throws HS_NYDUS_INVALID. */
export function tocOfTail(tail: Uint8Array, blobSize: number, what: string): TocEntry[] | null {
  const at = tail.byteLength - TAR_BLOCK;
  const header = at < 0 ? "it is too short" : readHeader(tail.subarray(at));
  if (typeof header === "string") throw nydusInvalid(what, `its last bytes are no header: ${header}`);
  if (Buffer.from(header.name).toString("latin1") !== TOC_NAME) return null;
  const size = Number(header.size);
  if (!(size >= 0 && size <= at)) throw nydusInvalid(what, `table of contents: ${size} bytes`);
  return readToc(tail.subarray(at - size, at), blobSize, what);
}

/** The part whose header ends at `end`, or why there is none. */
function partBefore(source: ErofsSource, end: number): BlobPart | string {
  const at = end - TAR_BLOCK;
  if (at < 0) return `${end} bytes are no header`;
  const header = readHeader(source.readAt(at, TAR_BLOCK));
  if (typeof header === "string") return header === "zero" ? "zeros instead of a header" : header;
  if (header.type !== TarType.regular) return `a header of type ${header.type}`;
  const name = Buffer.from(header.name).toString("latin1");
  if (!/^[\w.-]{1,16}$/.test(name)) return `a part named ${JSON.stringify(name.slice(0, 100))}`;
  const size = Number(header.size);
  if (!(size >= 0 && size <= at)) return `${name} has ${size} bytes, ${at} are left`;
  return { name, start: at - size, size };
}

/** The bytes of the table without its header. Throws HS_NYDUS_INVALID. */
export function readToc(bytes: Uint8Array, blobSize: number, what: string): TocEntry[] {
  const bad = (message: string) => nydusInvalid(what, `table of contents: ${message}`);
  const count = bytes.byteLength / toc_entry.size;
  if (!Number.isInteger(count)) throw bad(`${bytes.byteLength} bytes`);
  if (count > TOC_ENTRIES_MAX) throw bad(`${count} entries`);
  const reader = new Reader(bytes, { what: `${what}: table of contents` });
  const entries: TocEntry[] = [];
  for (let index = 0; index < count; index++) {
    const flags = reader.u32() & 0xf;
    reader.skip(4);
    const padded = reader.ascii(16);
    const name = padded.replace(/\0+$/, "");
    if (!/^[\w.-]+$/.test(name)) throw bad(`entry ${index} is named ${JSON.stringify(padded)}`);
    const compression = COMPRESSIONS[flags];
    if (compression === undefined) throw bad(`${name} has flags ${flags}`);
    const digest = Buffer.from(reader.take(32)).toString("hex");
    const storedOffset = reader.u64("compressed_offset");
    const storedSize = reader.u64("compressed_size");
    const size = reader.u64("uncompressed_size");
    reader.skip(48);
    if (storedOffset + storedSize > blobSize) throw bad(`${name} lies at ${storedOffset} + ${storedSize}`);
    const sha256 = /^0+$/.test(digest) ? null : digest;
    entries.push({ name, compression, sha256, storedOffset, storedSize, size });
  }
  return entries;
}
