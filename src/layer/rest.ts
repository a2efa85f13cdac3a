/**
 * The rest of a stream: its bytes that belong to no file (tar headers, padding, the end of the archive). They are kept packed in the file `rest` beside
 * the layer until it is sealed, so that the stream can be put together again and hashed as a whole.
 *
 *   stream     |hhh|  file a  |p|hh|  file b |ppp|          h header, p padding
 *   rest file  |hhh|p|hh|ppp|
 *
 *   gap g: stream bytes [address[g], + length[g]) <-> rest bytes [offset[g], + length[g])
 */

import { lastAtMost } from "../base/ranges.ts";
import type { Placement } from "../erofs/placement.ts";

/** Arrays over SharedArrayBuffers; gaps ascend, none is empty. */
export interface RestMap {
  readonly gapCount: number;
  readonly address: Float64Array;
  readonly length: Float64Array;
  readonly offset: Float64Array;
  /** Bytes of the rest file. */
  readonly size: number;
}

/** What of [0, streamLength) no row covers. */
export function makeRestMap(placement: Placement, streamLength: number): RestMap {
  const address: number[] = [];
  const length: number[] = [];
  let end = 0;
  const gap = (to: number) => {
    if (to <= end) return;
    address.push(end);
    length.push(to - end);
  };
  for (let row = 0; row < placement.rowCount && placement.address[row]! < streamLength; row++) {
    gap(placement.address[row]!);
    end = Math.max(end, placement.address[row]! + placement.length[row]!);
  }
  gap(streamLength);
  const shared = (values: readonly number[]) => {
    const array = new Float64Array(new SharedArrayBuffer(values.length * 8));
    array.set(values);
    return array;
  };
  let size = 0;
  const offset = length.map((bytes) => {
    size += bytes;
    return size - bytes;
  });
  return { gapCount: address.length, address: shared(address), length: shared(length), offset: shared(offset), size };
}

/** Calls `visit(address, restOffset, length)` for every part of a gap inside addresses [start, end), ascending. */
export function visitRest(
  rest: RestMap,
  start: number,
  end: number,
  visit: (address: number, restOffset: number, length: number) => void,
): void {
  let gap = Math.max(0, lastAtMost(rest.address, rest.gapCount, start));
  for (; gap < rest.gapCount && rest.address[gap]! < end; gap++) {
    const from = Math.max(start, rest.address[gap]!);
    const to = Math.min(end, rest.address[gap]! + rest.length[gap]!);
    if (from < to) visit(from, rest.offset[gap]! + (from - rest.address[gap]!), to - from);
  }
}
