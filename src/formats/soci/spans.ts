/**
 * Spans: the checkpoints of a zTOC (gzip zinfo of both versions, and TarZinfo), checked, and their geometry (specs/soci.md 2.6, 2.7, 3.1).
 *
 *   stored bytes  of span i: [in[i] - (bits[i] ? 1 : 0),  last ? compressed size   : in[i+1])     neighbours share a byte when bits != 0
 *   decoded bytes of span i: [out[i],                     last ? uncompressed size : out[i+1])
 *
 * Invariants of a SpanTable that exists: 1 <= count <= 65 000, in rises strictly, out never falls (an equal one is an empty span), bits 0..7,
 * every stored range lies in the blob, every decoded length is within LIMITS.unitDecodedBytes, every span has a digest.
 */

import { LIMITS } from "../../base/limits.ts";
import { lastAtMost } from "../../base/ranges.ts";
import type { FlatTable } from "./flatbuffer.ts";
import { FlatBuffer } from "./flatbuffer.ts";
import {
  CHECKPOINTS_MAX,
  COMPRESSION_ALGORITHM,
  COMPRESSION_INFO,
  TAR_ZINFO,
  TAR_ZINFO_VERSION,
  WINDOW_SIZE,
  ZINFO_CHECKPOINT,
  ZINFO_HEADER,
} from "./ondisk.ts";

export interface SpanTable {
  readonly compression: "gzip" | "tar";
  readonly count: number;
  /** Bytes of uncompressed data that the builder wanted in a span. */
  readonly spanSize: number;
  /** v1 leaves checkpoint 0 out and implies it at byte 10 of the blob, wherever the gzip header ends. 0 for tar. */
  readonly zinfoVersion: 0 | 1 | 2;
  readonly in: Float64Array;
  readonly out: Float64Array;
  readonly bits: Uint8Array;
  /** 32 bytes a span: sha256 of its stored bytes. */
  readonly digests: Uint8Array;
  readonly compressedSize: number;
  readonly uncompressedSize: number;
  /** Where the checkpoint records begin in the zTOC. */
  readonly recordsOffset: number;
}

/** What deflate can do at most (zlib's technical notes: 1032:1): a checkpoint beyond cannot be reached. */
const DEFLATE_RATIO_MAX = 1032;
/** A gzip header that is longer has an FEXTRA field of more than any known tool writes. */
const GZIP_HEADER_MAX = 65_536;
/** Fixed part of a gzip header. */
const GZIP_HEADER_MIN = 10;

export function spanStoredStart(spans: SpanTable, span: number): number {
  return spans.in[span]! - (spans.bits[span] === 0 ? 0 : 1);
}

export function spanStoredEnd(spans: SpanTable, span: number): number {
  return span + 1 < spans.count ? spans.in[span + 1]! : spans.compressedSize;
}

/** 0 for an empty span, and for a last one that lies behind the end of the archive (padding longer than a span, specs/soci.md B10). */
export function spanDecodedLength(spans: SpanTable, span: number): number {
  const end = span + 1 < spans.count ? spans.out[span + 1]! : spans.uncompressedSize;
  return Math.max(0, end - spans.out[span]!);
}

/** The span that holds the decoded byte at `offset`: the last whose `out` is not beyond it. */
export function spanOfOffset(spans: SpanTable, offset: number): number {
  return lastAtMost(spans.out, spans.count, offset);
}

/** The 32 KiB of output before span `span`; null where v1 implies zeros. `ztoc` is the whole zTOC. */
export function spanWindow(ztoc: Uint8Array, spans: SpanTable, span: number): Uint8Array | null {
  const record = spans.zinfoVersion === 1 ? span - 1 : span;
  if (spans.zinfoVersion === 0 || record < 0) return null;
  const start = spans.recordsOffset + record * ZINFO_CHECKPOINT.size + ZINFO_CHECKPOINT.offsets.window;
  return ztoc.subarray(start, start + WINDOW_SIZE);
}

/** Reads `table CompressionInfo`. Throws HS_INDEX_INVALID, HS_FORMAT_UNSUPPORTED through `unsupported`. */
export function readSpans(
  info: FlatTable,
  sizes: { compressedSize: number; uncompressedSize: number },
  unsupported: (message: string) => Error,
): SpanTable {
  const buffer = info.buffer;
  const algorithm = info.u8(
    COMPRESSION_INFO.compression_algorithm,
    "compression_algorithm",
    COMPRESSION_ALGORITHM.Gzip,
  );
  const checkpoints = info.vector(COMPRESSION_INFO.checkpoints, 1, "checkpoints");
  if (checkpoints.count === 0) throw buffer.bad(info.position, "no checkpoints");
  let draft: Draft;
  if (algorithm === COMPRESSION_ALGORITHM.Gzip) draft = readGzipZinfo(buffer, checkpoints);
  else if (algorithm === COMPRESSION_ALGORITHM.Uncompressed)
    draft = readTarZinfo(buffer, checkpoints, sizes.compressedSize);
  else throw unsupported(`compression algorithm ${algorithm} is not known`);
  const { count } = draft;
  const maxSpanId = info.i32(COMPRESSION_INFO.max_span_id, "max_span_id");
  if (maxSpanId !== count - 1) throw buffer.bad(info.position, `max_span_id ${maxSpanId} with ${count} spans`);
  const digests = readDigests(info, count);
  const spans: SpanTable = { ...draft, ...sizes, digests, recordsOffset: checkpoints.start + ZINFO_HEADER.size };
  checkGeometry(spans, (message) => buffer.bad(checkpoints.start, message));
  return spans;
}

type Draft = Pick<SpanTable, "compression" | "count" | "spanSize" | "zinfoVersion" | "in" | "out" | "bits">;

function draftOf(count: number, fixed: Pick<Draft, "compression" | "spanSize" | "zinfoVersion">): Draft {
  return {
    ...fixed,
    count,
    in: new Float64Array(new SharedArrayBuffer(count * 8)),
    out: new Float64Array(new SharedArrayBuffer(count * 8)),
    bits: new Uint8Array(new SharedArrayBuffer(count)),
  };
}

function readGzipZinfo(buffer: FlatBuffer, blob: { start: number; count: number }): Draft {
  const { view } = buffer;
  const bad = (message: string) => buffer.bad(blob.start, `checkpoints: ${message}`);
  if (blob.count < ZINFO_HEADER.size) throw bad(`${blob.count} bytes are too few`);
  const count = view.getInt32(blob.start + ZINFO_HEADER.offsets.have, true);
  if (!(count >= 1 && count <= CHECKPOINTS_MAX)) throw bad(`their number is ${count}`);
  // the version is not stored: it follows from the length, which therefore must match exactly
  const records = blob.count - ZINFO_HEADER.size;
  let zinfoVersion: 1 | 2;
  if (records === count * ZINFO_CHECKPOINT.size) zinfoVersion = 2;
  else if (records === (count - 1) * ZINFO_CHECKPOINT.size) zinfoVersion = 1;
  else throw bad(`${blob.count} bytes do not hold ${count}`);
  const int64 = (at: number, what: string): number => {
    const value = view.getInt32(at + 4, true) * 2 ** 32 + view.getUint32(at, true);
    if (!Number.isSafeInteger(value) || value < 0) throw bad(`${what} is ${value}`);
    return value;
  };
  const spanSize = int64(blob.start + ZINFO_HEADER.offsets.span_size, "span_size");
  const draft = draftOf(count, { compression: "gzip", spanSize, zinfoVersion });
  const first = zinfoVersion === 1 ? 1 : 0;
  if (first === 1) draft.in[0] = GZIP_HEADER_MIN;
  for (let span = first; span < count; span++) {
    const at = blob.start + ZINFO_HEADER.size + (span - first) * ZINFO_CHECKPOINT.size;
    draft.in[span] = int64(at + ZINFO_CHECKPOINT.offsets.in, `in of ${span}`);
    draft.out[span] = int64(at + ZINFO_CHECKPOINT.offsets.out, `out of ${span}`);
    const bits = view.getUint8(at + ZINFO_CHECKPOINT.offsets.bits);
    if (bits > 7) throw bad(`bits of ${span} are ${bits}`);
    draft.bits[span] = bits;
  }
  return draft;
}

function readTarZinfo(buffer: FlatBuffer, blob: { start: number; count: number }, compressedSize: number): Draft {
  const nested = new FlatBuffer(
    buffer.bytes.subarray(blob.start, blob.start + blob.count),
    `${buffer.what}: tar zinfo`,
  );
  const root = nested.root();
  const version = root.i32(TAR_ZINFO.version, "version");
  const spanSize = root.i64(TAR_ZINFO.span_size, "span_size");
  const size = root.i64(TAR_ZINFO.size, "size");
  if (version !== TAR_ZINFO_VERSION) throw nested.bad(0, `version ${version}`);
  if (spanSize <= 0) throw nested.bad(0, `span_size ${spanSize}`);
  if (size <= 0 || size !== compressedSize) throw nested.bad(0, `size ${size} of a blob of ${compressedSize} bytes`);
  const count = Math.ceil(size / spanSize);
  // a span has a digest of 71 characters in the same file: cannot be exceeded by an honest count
  if (count > buffer.bytes.byteLength / 64) throw nested.bad(0, `${count} spans`);
  const draft = draftOf(count, { compression: "tar", spanSize, zinfoVersion: 0 });
  for (let span = 0; span < count; span++) draft.in[span] = draft.out[span] = span * spanSize;
  return draft;
}

function readDigests(info: FlatTable, count: number): Uint8Array {
  const { buffer } = info;
  const vector = info.vector(COMPRESSION_INFO.span_digests, 4, "span_digests");
  if (vector.count !== count) throw buffer.bad(vector.start, `${vector.count} digests for ${count} spans`);
  const digests = new Uint8Array(new SharedArrayBuffer(count * 32));
  for (let span = 0; span < count; span++) {
    const text = buffer.string(buffer.reference(vector.start + 4 * span, "span digest"), "span digest");
    const match = text.byteLength === 71 ? DIGEST.exec(Buffer.from(text).toString("latin1")) : null;
    if (match === null) throw buffer.bad(vector.start, `the digest of span ${span} is no sha256`);
    digests.set(Buffer.from(match[1]!, "hex"), span * 32);
  }
  return digests;
}

const DIGEST = /^sha256:([0-9a-f]{64})$/;

function checkGeometry(spans: SpanTable, bad: (message: string) => Error): void {
  const { count, compressedSize } = spans;
  const outMax =
    spans.compression === "tar" ? compressedSize : Math.max(spans.uncompressedSize, compressedSize * DEFLATE_RATIO_MAX);
  const firstIn = spans.in[0]!;
  if (spans.compression === "gzip" && !(firstIn >= GZIP_HEADER_MIN && firstIn <= GZIP_HEADER_MAX)) {
    throw bad(`the first span begins at byte ${firstIn}`);
  }
  // SOCI's first checkpoint always stands behind the gzip header: on a byte, with nothing before it
  if (spans.out[0] !== 0 || spans.bits[0] !== 0) throw bad("the first span does not begin with the archive");
  for (let span = 0; span < count; span++) {
    const start = spans.in[span]!;
    const end = spanStoredEnd(spans, span);
    if (!(end > start && end <= compressedSize)) throw bad(`span ${span} is stored at [${start}, ${end})`);
    if (span + 1 < count && spans.out[span + 1]! < spans.out[span]!) throw bad(`span ${span + 1} goes back`);
    if (spans.out[span]! > outMax) throw bad(`span ${span} begins at byte ${spans.out[span]} of the archive`);
    if (end - start > LIMITS.unitStoredBytes) throw bad(`span ${span} has ${end - start} stored bytes`);
    const length = spanDecodedLength(spans, span);
    if (length > LIMITS.unitDecodedBytes) throw bad(`span ${span} has ${length} bytes`);
  }
}
