/** What a fuzzer is: one round of work with its own random numbers. `npm run fuzz -- NAME [SECONDS] [SEED]` (main.ts) runs rounds until the time is over. */

import assert from "node:assert/strict";
import { HeadstartError } from "../src/base/errors.ts";

export interface Fuzzer {
  /** Throws when what it tests misbehaves; what `round` did is repeated by the same random numbers. */
  round(random: Random): void | Promise<void>;
}

const ROUND_MS_MAX = 2000;

/** Runs `work`: only typed errors may come out, and it may not take long. Null where it ended in one. */
export function tolerated<T>(work: () => T): T | null {
  const started = performance.now();
  let result: T | null = null;
  try {
    result = work();
  } catch (error) {
    if (!(error instanceof HeadstartError) || error.code === "HS_INTERNAL") throw error;
  }
  assert.ok(performance.now() - started < ROUND_MS_MAX, "a round took too long");
  return result;
}

/** As `tolerated`, for what takes turns. */
export async function toleratedLater<T>(work: () => Promise<T>): Promise<T | null> {
  const started = performance.now();
  let result: T | null = null;
  try {
    result = await work();
  } catch (error) {
    if (!(error instanceof HeadstartError) || error.code === "HS_INTERNAL") throw error;
  }
  assert.ok(performance.now() - started < ROUND_MS_MAX, "a round took too long");
  return result;
}

/** A small generator with a seed (mulberry32): speed and repeatability, no more. */
export class Random {
  #state: number;

  constructor(seed: number) {
    this.#state = seed >>> 0;
  }

  /** [0, 1). */
  next(): number {
    this.#state = (this.#state + 0x6d2b79f5) >>> 0;
    let mixed = this.#state;
    mixed = Math.imul(mixed ^ (mixed >>> 15), mixed | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  }

  /** [0, below). */
  below(below: number): number {
    return Math.floor(this.next() * below);
  }

  pick<T>(values: readonly T[]): T {
    return values[this.below(values.length)]!;
  }
}

/** A copy with a few bytes or words changed, a piece moved, or the end cut. Odd values are likelier. */
export function mutate(bytes: Uint8Array, random: Random): Uint8Array {
  let copy = Uint8Array.from(bytes);
  const view = new DataView(copy.buffer);
  for (let times = 1 + random.below(6); times > 0 && copy.byteLength > 8; times--) {
    // headers and tables stand at both ends of most formats
    const span = random.pick([64, 512, 4096, copy.byteLength]);
    const offset = random.below(Math.min(span, copy.byteLength - 8));
    const at = random.below(2) === 0 ? offset : copy.byteLength - 8 - offset;
    switch (random.below(4)) {
      case 0:
        copy[at] = random.below(256);
        break;
      case 1:
        view.setUint32(at, random.pick([0, 1, 0x7fff_ffff, 0xffff_ffff, 0x8000_0000, random.below(2 ** 32)]), true);
        break;
      case 2:
        view.setBigInt64(at, random.pick([0n, -1n, 2n ** 53n, 2n ** 62n, BigInt(random.below(2 ** 32))]), true);
        break;
      case 3:
        copy.copyWithin(at, random.below(copy.byteLength), random.below(copy.byteLength));
        break;
    }
  }
  if (random.below(8) === 0) copy = copy.slice(0, random.below(copy.byteLength));
  return copy;
}
