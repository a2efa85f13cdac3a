/**
 * Searching a UnitTable: addresses -> units, and unit -> pieces. And the one place that checks a table against everything that will later rely on it,
 * so that neither a decode nor a scatter can be led outside by a hostile index.
 */

import { HeadstartError } from "../base/errors.ts";
import { LIMITS } from "../base/limits.ts";
import { lastAtMost } from "../base/ranges.ts";
import type { Placement } from "../erofs/placement.ts";
import type { UnitTable } from "../formats/format.ts";

/** Pieces grouped by unit: those of unit u are `pieces[start[u]] .. pieces[start[u + 1]]`. Over SharedArrayBuffers. */
export interface UnitPieces {
  readonly start: Uint32Array;
  readonly pieces: Uint32Array;
}

export function groupPieces(units: UnitTable): UnitPieces {
  const start = new Uint32Array(new SharedArrayBuffer((units.unitCount + 1) * 4));
  const pieces = new Uint32Array(new SharedArrayBuffer(units.pieceCount * 4));
  for (let piece = 0; piece < units.pieceCount; piece++) start[units.pieceUnit[piece]! + 1]!++;
  for (let unit = 0; unit < units.unitCount; unit++) start[unit + 1]! += start[unit]!;
  const next = start.slice(0, units.unitCount);
  for (let piece = 0; piece < units.pieceCount; piece++) pieces[next[units.pieceUnit[piece]!]!++] = piece;
  return { start, pieces };
}

/** Calls `visit(piece, start, end)` for every piece that overlaps addresses [start, end), with the overlap, ascending. */
export function visitPieces(
  units: UnitTable,
  start: number,
  end: number,
  visit: (piece: number, start: number, end: number) => void,
): void {
  if (end <= start) return;
  let piece = Math.max(0, lastAtMost(units.pieceAddress, units.pieceCount, start));
  for (; piece < units.pieceCount && units.pieceAddress[piece]! < end; piece++) {
    const from = Math.max(start, units.pieceAddress[piece]!);
    const to = Math.min(end, units.pieceAddress[piece]! + units.pieceLength[piece]!);
    if (from < to) visit(piece, from, to);
  }
}

/**
 * Throws HS_INDEX_INVALID unless the table is sound and covers every row of the placement (and, with a `streamLength`, the whole stream), and
 * HS_LIMIT for a unit that is larger than any decoder may allocate.
 */
export function checkUnits(units: UnitTable, placement: Placement, streamLength: number): void {
  const bad = (what: string) => new HeadstartError("HS_INDEX_INVALID", { what: `unit table: ${what}` });
  if (units.unitDigest === null && units.pieceDigest === null) throw bad("it has no digests");
  if (units.pieceDigest !== null && units.pieceDigestAlgorithm === null) throw bad("its digests are of no algorithm");
  if (
    units.unitStart.length !== units.unitCount ||
    units.unitEnd.length !== units.unitCount ||
    units.unitBlob.length !== units.unitCount ||
    units.unitDecodedLength.length !== units.unitCount ||
    (units.unitDigest !== null && units.unitDigest.length !== units.unitCount * 32) ||
    units.pieceAddress.length !== units.pieceCount ||
    units.pieceLength.length !== units.pieceCount ||
    units.pieceUnit.length !== units.pieceCount ||
    units.pieceOffset.length !== units.pieceCount ||
    (units.pieceDigest !== null && units.pieceDigest.length !== units.pieceCount * 32)
  )
    throw bad("its arrays have not the lengths that it says");
  for (let unit = 0; unit < units.unitCount; unit++) {
    const start = units.unitStart[unit]!;
    const end = units.unitEnd[unit]!;
    const blob = units.blobs[units.unitBlob[unit]!];
    if (blob === undefined || !(start >= 0 && start < end && end <= blob.size))
      throw bad(`unit ${unit} lies outside of its blob`);
    const decoded = units.unitDecodedLength[unit]!;
    if (!(decoded >= 0)) throw bad(`unit ${unit} has no length`);
    if (decoded > LIMITS.unitDecodedBytes || end - start > LIMITS.unitStoredBytes)
      throw new HeadstartError("HS_LIMIT", {
        what: `unit table: unit ${unit} is ${end - start} bytes, ${decoded} decoded`,
      });
  }
  let addressEnd = 0;
  let covered = 0;
  for (let piece = 0; piece < units.pieceCount; piece++) {
    const address = units.pieceAddress[piece]!;
    const length = units.pieceLength[piece]!;
    const unit = units.pieceUnit[piece]!;
    const offset = units.pieceOffset[piece]!;
    if (!(address >= addressEnd && length >= 0 && Number.isSafeInteger(address + length)))
      throw bad(`piece ${piece} overlaps the one before it`);
    if (unit >= units.unitCount) throw bad(`piece ${piece} names no unit`);
    if (!(offset >= 0 && offset + length <= units.unitDecodedLength[unit]!))
      throw bad(`piece ${piece} lies outside of its unit`);
    addressEnd = address + length;
    if (address === covered) covered = addressEnd;
  }
  if (covered < streamLength) throw bad(`it covers ${covered} of the stream's ${streamLength} bytes`);
  for (let row = 0; row < placement.rowCount; row++) {
    let next = placement.address[row]!;
    const end = next + placement.length[row]!;
    // one search when one piece holds the row, as nearly always
    visitPieces(units, next, end, (_, from, to) => {
      if (from === next) next = to;
    });
    if (next !== end) throw bad(`no unit holds the data at address ${next}`);
  }
}
