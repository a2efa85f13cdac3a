/**
 * Decodes spans (specs/soci.md 3.2), in a worker thread: `soci-gzip` inflates from a checkpoint, `soci-tar` cuts. The decoder holds no copy of the windows:
 * they are views of the shared zTOC. Digests were checked by the caller; what else must hold, that the tar says what the table of contents said, is
 * header-check.ts.
 *
 * The gzip header before the first checkpoint belongs to no span and is never needed: a zTOC of version 2 says where the data begin. Version 1 implies byte
 * 10, which is wrong when the header has a name or more; its first span then begins inside the header, whose flags are not in the span: the lengths
 * that a header can have are tried in turn, and only the true one decodes to the span's length with a tar header in front (specs/soci.md B27).
 */

import { HeadstartError, isHeadstartError } from "../../base/errors.ts";
import type { DecodeTable, UnitDecoder, UnitTable } from "../format.ts";
import { ResumeInflate } from "../gzip/resume.ts";
import { HeaderCheck, type StraddleTable } from "./header-check.ts";
import type { Ztoc } from "./read.ts";
import { spanDecodedLength, spanWindow } from "./spans.ts";

export interface SociDecodeTable extends DecodeTable {
  readonly codec: "soci-gzip" | "soci-tar";
  /** With its bytes over a SharedArrayBuffer. */
  readonly ztoc: Ztoc;
  readonly straddle: StraddleTable;
}

export function sociDecoder(table: SociDecodeTable, _units: UnitTable): UnitDecoder {
  return table.codec === "soci-tar" ? new TarSpanDecoder(table) : new GzipSpanDecoder(table);
}

/** Larger buffers are not kept between units. */
const KEEP_BYTES = 8 * 1024 * 1024;
/** What every decoder of this thread decodes to: one each would be some MiB a thread for each open layer. */
let kept = new Uint8Array(0);

/** Exactly `length` bytes, which hold anything. */
function outputOf(length: number): Uint8Array {
  if (length > KEEP_BYTES) return new Uint8Array(length);
  if (kept.byteLength < length) kept = new Uint8Array(length);
  return kept.subarray(0, length);
}

class GzipSpanDecoder implements UnitDecoder {
  readonly #ztoc: Ztoc;
  readonly #check: HeaderCheck;
  // lives as long as the thread; a decoder has no end of its own
  readonly #inflate = new ResumeInflate();

  constructor(table: SociDecodeTable) {
    this.#ztoc = table.ztoc;
    this.#check = new HeaderCheck(table.ztoc, table.straddle);
    abandoned.register(this, this.#inflate);
  }

  decode(unit: number, stored: Uint8Array): Uint8Array {
    const { spans, bytes } = this.#ztoc;
    const output = outputOf(spanDecodedLength(spans, unit));
    if (unit === 0 && spans.zinfoVersion === 1) return this.#decodeFirstOfVersion1(stored, output);
    // the last one may go on with padding; any other that does would shift all bytes behind it
    const exact = unit + 1 < spans.count;
    const point = { bits: spans.bits[unit]!, window: spanWindow(bytes, spans, unit), exact };
    this.#inflate.decode(stored, point, output, `span ${unit}`);
    return output;
  }

  check(unit: number, decoded: Uint8Array): void {
    this.#check.check(unit, decoded);
  }

  #decodeFirstOfVersion1(stored: Uint8Array, output: Uint8Array): Uint8Array {
    let failure: unknown;
    const exact = this.#ztoc.spans.count > 1;
    for (const start of dataStarts(stored)) {
      try {
        this.#inflate.decode(stored.subarray(start), { bits: 0, window: null, exact }, output, "span 0");
      } catch (error) {
        if (!isHeadstartError(error, "HS_UNIT_DECODE")) throw error;
        failure ??= error;
        continue;
      }
      if (looksLikeTar(output)) return output;
    }
    throw failure ?? new HeadstartError("HS_UNIT_DECODE", { what: "span 0: its data begin nowhere" });
  }
}

class TarSpanDecoder implements UnitDecoder {
  readonly #ztoc: Ztoc;
  readonly #check: HeaderCheck;

  constructor(table: SociDecodeTable) {
    this.#ztoc = table.ztoc;
    this.#check = new HeaderCheck(table.ztoc, table.straddle);
  }

  decode(unit: number, stored: Uint8Array): Uint8Array {
    const length = spanDecodedLength(this.#ztoc.spans, unit);
    if (stored.byteLength < length) {
      throw new HeadstartError("HS_UNIT_DECODE", {
        what: `span ${unit}: ${stored.byteLength} bytes instead of ${length}`,
      });
    }
    return stored.subarray(0, length);
  }

  check(unit: number, decoded: Uint8Array): void {
    this.#check.check(unit, decoded);
  }
}

/** zlib's state is native memory: it goes with the decoder that a worker forgot. */
const abandoned = new FinalizationRegistry<ResumeInflate>((inflate) => inflate[Symbol.dispose]());

/**
 * Where the data may begin in bytes that begin at byte 10 of a gzip header of unknown flags: behind nothing, a name, a comment, an extra field and what of them can
 * stand together, each with or without a checksum (RFC 1952 2.3).
 */
function dataStarts(stored: Uint8Array): number[] {
  const starts: number[] = [];
  const extra = stored.byteLength < 2 ? 0 : 2 + stored[0]! + stored[1]! * 256;
  for (const fixed of [0, extra]) {
    let end = fixed;
    for (let strings = 0; strings <= 2; strings++) {
      if (strings > 0) {
        const zero = stored.indexOf(0, end);
        if (zero < 0) break;
        end = zero + 1;
      }
      for (const start of [end, end + 2]) if (start < stored.byteLength && !starts.includes(start)) starts.push(start);
    }
  }
  return starts;
}

/** An empty block or a header whose checksum is right; too short to say is fine. */
function looksLikeTar(decoded: Uint8Array): boolean {
  if (decoded.byteLength < 512) return true;
  let sum = 0;
  for (let index = 0; index < 512; index++) sum += index >= 148 && index < 156 ? 32 : decoded[index]!;
  if (sum === 256) return true;
  return Number.parseInt(Buffer.from(decoded.subarray(148, 156)).toString("latin1").trim(), 8) === sum;
}
