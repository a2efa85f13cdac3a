/** What a benchmark case is. `bench/main.ts` runs each in a process of its own, so that none warms the code or the memory of another. */

export interface BenchCase {
  /** "group.case": what the regular expression of `npm run bench -- REGEXP` is matched against. */
  readonly name: string;
  /** One line: what is measured, over what. */
  readonly about: string;
  run(report: Report): void | Promise<void>;
}

export interface Figure {
  readonly name: string;
  readonly value: number;
  /** "ms", "µs", "MB/s" (10^6 bytes), "MiB", "x" for a ratio of two figures of this run, … */
  readonly unit: string;
}

export type Report = (name: string, value: number, unit: string) => void;

/** Of a list that is not empty; `share` 0.5 is the median. Sorts in place. */
export function percentile(values: Float64Array | number[], share: number): number {
  values.sort(values instanceof Float64Array ? undefined : (a, b) => a - b);
  return values[Math.min(values.length - 1, Math.floor(values.length * share))]!;
}

/** What a case has to say while it runs: figures alone go to standard output. */
export function say(text: string): void {
  process.stderr.write(`${text}\n`);
}
