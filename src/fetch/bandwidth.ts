/** A limit on bytes a second, as a debt: a request may start when earlier ones are paid for. So a large request goes at once and the next one waits longer. */

import type { Clock } from "../base/clock.ts";

export class Bandwidth {
  readonly #bytesPerSecond: number;
  readonly #clock: Clock;
  #paidUntilMs = 0;

  /** `bytesPerSecond` > 0; Infinity is no limit. */
  constructor(bytesPerSecond: number, clock: Clock) {
    this.#bytesPerSecond = bytesPerSecond;
    this.#clock = clock;
  }

  /** Milliseconds until the next request may start; 0 if it may now. */
  waitMs(): number {
    return Math.max(0, this.#paidUntilMs - this.#clock.monotonic());
  }

  /** Counts a request that starts now. */
  spend(bytes: number): void {
    this.#paidUntilMs = Math.max(this.#paidUntilMs, this.#clock.monotonic()) + (bytes / this.#bytesPerSecond) * 1000;
  }
}
