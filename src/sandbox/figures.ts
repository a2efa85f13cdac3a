/** What `run` and `npm start` report (design/cli.md): one shape for the table and for --json. */

import type { Metered } from "./meter.ts";
import type { Started } from "./ready.ts";

export interface RunFigures {
  readonly mode: "lazy" | "eager" | "overlayfs";
  /** From the request to pull to ready. */
  readonly readyMs: number;
  /** From the request to pull to its answer. */
  readonly pullMs: number;
  /** Fetched from the registry before ready, manifests and indexes included. */
  readonly bytes: number;
  readonly requests: number;
  /** Reads that had to wait for the registry; 0 where there is no lazy file system. */
  readonly faults: number;
}

export interface Figures {
  readonly image: {
    readonly ref: string;
    readonly digest: string;
    /** Compressed, as a full pull fetches it: layers and configuration. */
    readonly bytes: number;
    readonly layers: number;
  };
  readonly runs: readonly RunFigures[];
  /** Time to ready of the plain pull over that of the first run: how many times faster. */
  readonly ratio: number;
}

export function runFigures(mode: RunFigures["mode"], started: Started, fetched: Metered, faults = 0): RunFigures {
  const whole = (milliseconds: number) => Math.round(milliseconds);
  return {
    mode,
    readyMs: whole(started.readyMs),
    pullMs: whole(started.pullMs),
    bytes: fetched.bytes,
    requests: fetched.requests,
    faults,
  };
}

export function figures(image: Figures["image"], runs: readonly RunFigures[]): Figures {
  const first = runs[0];
  const plain = runs.findLast((run) => run.mode === "overlayfs");
  const ratio = first === undefined || plain === undefined ? 1 : plain.readyMs / Math.max(1, first.readyMs);
  return { image, runs, ratio: Math.round(ratio * 100) / 100 };
}
