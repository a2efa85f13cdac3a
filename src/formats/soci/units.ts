/** Units of a SOCI layer: unit i is span i, with one piece, in address space 0 (the uncompressed tar). Empty spans are units without a piece. */

import type { Digest } from "../../base/digest.ts";
import type { UnitTable } from "../format.ts";
import { type SpanTable, spanDecodedLength, spanStoredEnd, spanStoredStart } from "./spans.ts";

export function spanUnits(spans: SpanTable, blob: Digest): UnitTable {
  const { count } = spans;
  const unitStart = f64(count);
  const unitEnd = f64(count);
  const unitDecodedLength = f64(count);
  let pieceCount = 0;
  for (let span = 0; span < count; span++) {
    unitStart[span] = spanStoredStart(spans, span);
    unitEnd[span] = spanStoredEnd(spans, span);
    unitDecodedLength[span] = spanDecodedLength(spans, span);
    if (unitDecodedLength[span]! > 0) pieceCount++;
  }
  const pieceAddress = f64(pieceCount);
  const pieceLength = f64(pieceCount);
  const pieceUnit = new Uint32Array(new SharedArrayBuffer(pieceCount * 4));
  let piece = 0;
  for (let span = 0; span < count; span++) {
    if (unitDecodedLength[span] === 0) continue;
    pieceAddress[piece] = spans.out[span]!;
    pieceLength[piece] = unitDecodedLength[span]!;
    pieceUnit[piece] = span;
    piece++;
  }
  return {
    blobs: [{ digest: blob, size: spans.compressedSize }],
    unitCount: count,
    unitBlob: new Uint16Array(new SharedArrayBuffer(count * 2)),
    unitStart,
    unitEnd,
    unitDecodedLength,
    unitDigest: spans.digests,
    pieceCount,
    pieceAddress,
    pieceLength,
    pieceUnit,
    pieceOffset: f64(pieceCount),
    pieceDigest: null,
    pieceDigestAlgorithm: null,
  };
}

/** End of the last piece: what the units decode to in all. */
export function decodedEnd(units: UnitTable): number {
  const last = units.pieceCount - 1;
  return last < 0 ? 0 : units.pieceAddress[last]! + units.pieceLength[last]!;
}

function f64(count: number): Float64Array {
  return new Float64Array(new SharedArrayBuffer(count * 8));
}
