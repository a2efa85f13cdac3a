/** Half-open byte ranges [start, end). */

export interface Range {
  readonly start: number;
  readonly end: number;
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
