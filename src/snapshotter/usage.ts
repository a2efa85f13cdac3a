/**
 * Disk usage of a snapshot's directory, as containerd counts it: allocated blocks and inodes, the root included, a file of several names once. Asynchronous and in
 * small batches: the main thread stays free. An upper that changes is measured again only when the last measurement is old compared with what it cost.
 */

import type { Stats } from "node:fs";
import { lstat, readdir } from "node:fs/promises";
import { join } from "node:path";
import type { Clock } from "../base/clock.ts";
import { Flights } from "../base/limit.ts";

export interface Usage {
  readonly bytes: number;
  readonly inodes: number;
}

/** stat(2)'s unit, whatever the file system's block size. */
const BLOCK_BYTES = 512;
/** Half of Node's four threads stay free for others. */
const PARALLEL = 2;
/** A measurement that took t ms is good for this times t: du costs at most 3 % of one core. */
const VALID_FACTOR = 30;

export async function measureUsage(root: string, options: { signal?: AbortSignal } = {}): Promise<Usage> {
  const linked = new Set<string>();
  let bytes = 0;
  let inodes = 0;
  const pending = [root];
  const count = (stats: Stats) => {
    if (stats.nlink > 1 && !stats.isDirectory()) {
      const key = `${stats.dev}:${stats.ino}`;
      if (linked.has(key)) return;
      linked.add(key);
    }
    bytes += stats.blocks * BLOCK_BYTES;
    inodes++;
  };
  const rootStats = await lstat(root);
  count(rootStats);
  const walk = async () => {
    for (let directory = pending.pop(); directory !== undefined; directory = pending.pop()) {
      options.signal?.throwIfAborted();
      for (const entry of await readOrEmpty(directory)) {
        const path = join(directory, entry);
        const stats = await lstatOrGone(path);
        // something mounted in an upper is not the snapshot's
        if (stats === null || stats.dev !== rootStats.dev) continue;
        count(stats);
        if (stats.isDirectory()) pending.push(path);
      }
    }
  };
  // a walker that finds nothing pending ends: the others carry on, so the first one is given all that remains
  while (pending.length > 0) await Promise.all(Array.from({ length: PARALLEL }, walk));
  return { bytes, inodes };
}

// A container writes while we look: what has gone meanwhile takes no space.
async function readOrEmpty(path: string): Promise<string[]> {
  try {
    return await readdir(path);
  } catch (error) {
    if (isGone(error)) return [];
    throw error;
  }
}

async function lstatOrGone(path: string): Promise<Stats | null> {
  try {
    return await lstat(path);
  } catch (error) {
    if (isGone(error)) return null;
    throw error;
  }
}

function isGone(error: unknown): boolean {
  const { code } = error as NodeJS.ErrnoException;
  return code === "ENOENT" || code === "ENOTDIR";
}

/** Measurements by snapshot id, remembered for a while, and one at a time each. */
export class UsageCache {
  readonly #clock: Clock;
  readonly #flights = new Flights<number, Usage>();
  readonly #known = new Map<number, { usage: Usage; validUntilMs: number }>();

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  async measure(id: number, root: string): Promise<Usage> {
    const known = this.#known.get(id);
    if (known !== undefined && this.#clock.monotonic() < known.validUntilMs) return known.usage;
    return this.#flights.join(id, async () => {
      const startedMs = this.#clock.monotonic();
      const usage = await measureUsage(root);
      const endedMs = this.#clock.monotonic();
      this.#known.set(id, { usage, validUntilMs: endedMs + VALID_FACTOR * (endedMs - startedMs) });
      return usage;
    });
  }

  forget(id: number): void {
    this.#known.delete(id);
  }
}
