/**
 * Reads a zTOC into a value that is known to be sound (specs/soci.md 2.3, 4): whatever the bytes, the outcome is that value or a typed
 * error, after work that is proportional to the file. Big parts are flat arrays over SharedArrayBuffers, windows and strings stay in the
 * zTOC's bytes, so the value goes to worker threads without a copy when those bytes are shared too (`shareBytes`).
 */

import { HeadstartError } from "../../base/errors.ts";
import { LIMITS } from "../../base/limits.ts";
import { type EntryTable, readEntries } from "./entries.ts";
import { FlatBuffer } from "./flatbuffer.ts";
import { ZTOC, ZTOC_VERSION } from "./ondisk.ts";
import { readSpans, type SpanTable } from "./spans.ts";

export interface Ztoc {
  /** The zTOC's own bytes: names, PAX records and windows are views of them. */
  readonly bytes: Uint8Array;
  readonly buildTool: string;
  /** Size of the layer blob. */
  readonly compressedSize: number;
  /** Bytes of the tar up to where its reader stopped; padding may follow. */
  readonly uncompressedSize: number;
  readonly spans: SpanTable;
  readonly entries: EntryTable;
}

/** Throws HS_INDEX_INVALID, HS_FORMAT_UNSUPPORTED, HS_LIMIT. `what` names the zTOC in errors. */
export function readZtoc(bytes: Uint8Array, what = "zTOC"): Ztoc {
  if (bytes.byteLength > LIMITS.ztocBytes) {
    throw new HeadstartError("HS_LIMIT", { what: `${what}: ${bytes.byteLength} bytes` });
  }
  const buffer = new FlatBuffer(bytes, what);
  const unsupported = (message: string) => new HeadstartError("HS_FORMAT_UNSUPPORTED", { what: `${what}: ${message}` });
  const root = buffer.root();
  const version = Buffer.from(root.string(ZTOC.version, "version").subarray(0, 32)).toString("latin1");
  if (version !== ZTOC_VERSION) throw unsupported(`version ${JSON.stringify(version)} is not known`);
  const compressedSize = root.i64(ZTOC.compressed_archive_size, "compressed_archive_size");
  const uncompressedSize = root.i64(ZTOC.uncompressed_archive_size, "uncompressed_archive_size");
  if (compressedSize <= 0 || uncompressedSize < 0 || uncompressedSize > LIMITS.layerBytes) {
    throw buffer.bad(root.position, `a blob of ${compressedSize} bytes with an archive of ${uncompressedSize}`);
  }
  const info = root.table(ZTOC.compression_info, "compression_info");
  if (info === null) throw buffer.bad(root.position, "no compression_info");
  const spans = readSpans(info, { compressedSize, uncompressedSize }, unsupported);
  const entries = readEntries(root.table(ZTOC.toc, "toc"), uncompressedSize);
  return {
    bytes,
    buildTool: Buffer.from(root.string(ZTOC.build_tool_identifier, "build_tool_identifier").subarray(0, 1024)).toString(
      "utf8",
    ),
    compressedSize,
    uncompressedSize,
    spans,
    entries,
  };
}

/** The same bytes over a SharedArrayBuffer: a copy, unless they are already. */
export function shareBytes(bytes: Uint8Array): Uint8Array {
  if (bytes.buffer instanceof SharedArrayBuffer) return bytes;
  const shared = new Uint8Array(new SharedArrayBuffer(bytes.byteLength));
  shared.set(bytes);
  return shared;
}
