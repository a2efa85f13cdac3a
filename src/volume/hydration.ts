/**
 * How long a volume that was made of a snapshot loads in the background (specs/warm-volume.md 1, 10). A model, not a promise: what EBS does by default is not documented, so the
 * default rate is what a user reported: a 15 GB image took over ten minutes to be read.
 */

import { MiB } from "../base/limits.ts";

/** MiB/s that a restored volume may be read at while it loads, as reported. */
export const DEFAULT_RATE = 25;
/** The most that VolumeInitializationRate takes, in MiB/s. */
export const RATE_MAX = 300;

/** Seconds until `bytes` of the snapshot are on the volume; `rate` in MiB/s, null: nothing was paid for. */
export function hydrationSeconds(bytes: number, rate: number | null): number {
  return bytes / MiB / (rate ?? DEFAULT_RATE);
}
