/** What EBS costs and takes, by its public prices and quotas (specs/warm-volume.md 9, 10): for estimates that say so. Dollars of us-east-1. Pure. */

import { BLOCK_BYTES } from "./blocks.ts";

export const EBS_PRICES = {
  putPer1000: 0.006,
  getPer1000: 0.003,
  listPer1000: 0.0006,
  storageGiBMonth: 0.05,
  /** Of VolumeInitializationRate. */
  initializationPerGiB: 0.0036,
  fastRestoreZoneHour: 0.75,
} as const;
/** A second, for one snapshot; cannot be raised. */
export const BLOCKS_PER_SECOND = 1000;

export interface PushEstimate {
  readonly blocks: number;
  readonly bytes: number;
  /** At the quota: it cannot be faster. */
  readonly secondsAtLeast: number;
  readonly dollars: number;
  /** Of the blocks sent; a child pays for what it changed. */
  readonly storageDollarsMonth: number;
}

export function estimatePush(blocks: number): PushEstimate {
  const bytes = blocks * BLOCK_BYTES;
  return {
    blocks,
    bytes,
    secondsAtLeast: blocks / BLOCKS_PER_SECOND,
    dollars: (blocks / 1000) * EBS_PRICES.putPer1000,
    storageDollarsMonth: (bytes / 2 ** 30) * EBS_PRICES.storageGiBMonth,
  };
}
