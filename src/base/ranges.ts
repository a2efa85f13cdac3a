/** Half-open byte ranges [start, end). */

export interface Range {
  readonly start: number;
  readonly end: number;
}

/** Sorted and merged; empty ranges vanish. Ranges that are at most `gap` bytes apart become one. */
export function mergeRanges(ranges: readonly Range[], gap = 0): Range[] {
  const sorted = ranges.filter((range) => range.end > range.start).sort((a, b) => a.start - b.start);
  const merged: { start: number; end: number }[] = [];
  for (const range of sorted) {
    const last = merged.at(-1);
    if (last !== undefined && range.start <= last.end + gap) last.end = Math.max(last.end, range.end);
    else merged.push({ start: range.start, end: range.end });
  }
  return merged;
}

export function alignUp(value: number, unit: number): number {
  return Math.ceil(value / unit) * unit;
}

export function alignDown(value: number, unit: number): number {
  return Math.floor(value / unit) * unit;
}

/** Index of the last element of the ascending `values[0..count)` that is <= `wanted`, or -1. */
export function lastAtMost(values: { readonly [index: number]: number }, count: number, wanted: number): number {
  let low = 0;
  let high = count;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (values[middle]! <= wanted) low = middle + 1;
    else high = middle;
  }
  return low - 1;
}
