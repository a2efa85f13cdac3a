/**
 * What `layer/` needs from above and is given: it must not know HTTP, containerd or FUSE.
 */

import type { Digest } from "../base/digest.ts";

/** Demand: a process waits. Pack: a start-up will want it soon. Background: completing the layer. */
export type Priority = "demand" | "pack" | "background";
/** The most urgent first. */
export const PRIORITIES = ["demand", "pack", "background"] as const satisfies readonly Priority[];

export function isMoreUrgent(a: Priority, b: Priority): boolean {
  return PRIORITIES.indexOf(a) < PRIORITIES.indexOf(b);
}

export interface StoredRange {
  readonly blob: Digest;
  /** Bytes of the whole stored blob: closed ranges need it. */
  readonly blobSize: number;
  readonly start: number;
  readonly end: number;
}

/** Ranges of stored blobs. `fetch/scheduler.ts` implements it: it orders by priority and coalesces neighbours into one request. */
export interface UnitFetcher {
  /**
   * The stored bytes [start, end) of a blob. Not verified: the caller does. One call a unit; units that are asked for close together become one request.
   * What is returned is the caller's, its whole buffer.
   * `attempt` > 0 asks for another source than before, where there is one.
   * Throws HS_REGISTRY_*, HS_CANCELED.
   */
  fetch(
    range: StoredRange,
    options: { priority: Priority; attempt?: number; signal?: AbortSignal },
  ): Promise<Uint8Array<ArrayBuffer>>;
  /** A more urgent caller joined work that is under way for this range. */
  promote(range: StoredRange, priority: Priority): void;
  /** Resolves when nobody has waited for a unit for a while, or after long enough: work that only completes a layer leaves the processor to starts. Left out: at once. */
  whenQuiet?(signal: AbortSignal): Promise<void>;
}

/** A stored blob as one stream, for eager pulls. Resumable: a reader that failed asks again from where it stood. */
export interface BlobStream {
  readonly digest: Digest;
  readonly size: number;
  stream(offset: number, options: { signal?: AbortSignal }): AsyncIterable<Uint8Array>;
}
