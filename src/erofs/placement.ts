/**
 * Placement: which address range of the decoded stream lies where in the layer file. One row a segment of a regular file:
 *
 *   row r: addresses [address[r], + length[r])  <->  layer file bytes [fileOffset[r], + length[r])
 *
 * Rows ascend by address; several rows may cover one address (files that share data), so `addressEnd[r]` is the greatest end of rows 0..r and a
 * search can stop. `byFile` lists the rows ascending by fileOffset; in the file rows never overlap. Every file begins on a 4 KiB block, so
 * a block belongs to one file. Bytes of a block that no row covers are zeros: padding, and holes of sparse files.
 */

import { lastAtMost } from "../base/ranges.ts";

export const BLOCK_SIZE = 4096;

export interface Placement {
  readonly rowCount: number;
  readonly address: Float64Array;
  readonly length: Float64Array;
  readonly fileOffset: Float64Array;
  readonly addressEnd: Float64Array;
  readonly byFile: Uint32Array;
}

/** Arrays are over SharedArrayBuffers: workers scatter by them. */
export function makePlacement(rows: {
  address: Float64Array;
  length: Float64Array;
  fileOffset: Float64Array;
}): Placement {
  const count = rows.address.length;
  const f64 = () => new Float64Array(new SharedArrayBuffer(count * 8));
  const order = ascending(
    new Uint32Array(count),
    (a, b) => rows.address[a]! - rows.address[b]! || rows.fileOffset[a]! - rows.fileOffset[b]!,
  );
  const placement = {
    rowCount: count,
    address: f64(),
    length: f64(),
    fileOffset: f64(),
    addressEnd: f64(),
    byFile: new Uint32Array(new SharedArrayBuffer(count * 4)),
  };
  let end = 0;
  for (let row = 0; row < count; row++) {
    const from = order[row]!;
    placement.address[row] = rows.address[from]!;
    placement.length[row] = rows.length[from]!;
    placement.fileOffset[row] = rows.fileOffset[from]!;
    end = Math.max(end, rows.address[from]! + rows.length[from]!);
    placement.addressEnd[row] = end;
  }
  ascending(placement.byFile, (a, b) => placement.fileOffset[a]! - placement.fileOffset[b]!);
  return placement;
}

/** Fills `rows` with 0, 1, 2 ... and sorts; rows that are in order already (a tar placed by address) cost one pass instead of n log n calls. */
function ascending(rows: Uint32Array<ArrayBufferLike>, compare: (a: number, b: number) => number): Uint32Array {
  let inOrder = true;
  for (let row = 0; row < rows.length; row++) {
    rows[row] = row;
    if (row > 0 && compare(row - 1, row) > 0) inOrder = false;
  }
  return inOrder ? rows : rows.sort(compare);
}

/** Calls `visit(address, fileOffset, length)` for every part of a row inside addresses [start, end), by ascending row. */
export function visitAddresses(
  placement: Placement,
  start: number,
  end: number,
  visit: (address: number, fileOffset: number, length: number) => void,
): void {
  // the first row whose own or an earlier row's end lies beyond `start`
  let row = firstBeyond(placement.addressEnd, placement.rowCount, start);
  for (; row < placement.rowCount && placement.address[row]! < end; row++) {
    const from = Math.max(start, placement.address[row]!);
    const to = Math.min(end, placement.address[row]! + placement.length[row]!);
    if (from < to) visit(from, placement.fileOffset[row]! + (from - placement.address[row]!), to - from);
  }
}

/** Calls `visit(address, fileOffset, length)` for every part of a row inside layer file bytes [start, end), ascending. */
export function visitFileRange(
  placement: Placement,
  start: number,
  end: number,
  visit: (address: number, fileOffset: number, length: number) => void,
): void {
  let low = 0;
  let high = placement.rowCount;
  while (low < high) {
    const middle = (low + high) >>> 1;
    const row = placement.byFile[middle]!;
    if (placement.fileOffset[row]! + placement.length[row]! <= start) low = middle + 1;
    else high = middle;
  }
  for (; low < placement.rowCount; low++) {
    const row = placement.byFile[low]!;
    const offset = placement.fileOffset[row]!;
    if (offset >= end) return;
    const from = Math.max(start, offset);
    const to = Math.min(end, offset + placement.length[row]!);
    if (from < to) visit(placement.address[row]! + (from - offset), from, to - from);
  }
}

function firstBeyond(ascending: Float64Array, count: number, wanted: number): number {
  return lastAtMost(ascending, count, wanted) + 1;
}
