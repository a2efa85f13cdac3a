/**
 * How fast blocks are sent: as many at once as AWS takes well. Additive increase while the window is full and answers are good, half of it when AWS throttles or fails (once a window, however many
 * answers say so), between 8 and 256; and never more than so many a second, which is the quota of a snapshot that cannot be raised (specs/warm-volume.md 9).
 */

import type { Clock } from "../../base/clock.ts";
import type { Outcome, Pacer } from "../aws/client.ts";

export interface PaceLimits {
  readonly start: number;
  readonly min: number;
  readonly max: number;
  readonly perSecond: number;
}

export const EBS_PACE: PaceLimits = { start: 64, min: 8, max: 256, perSecond: 1000 };
/** So much of a second may be sent at once after a pause. */
const BURST_SECONDS = 0.05;

export class Pace implements Pacer {
  /** The most that were in flight at once. */
  peak = 0;
  readonly #limits: PaceLimits;
  readonly #clock: Clock;
  readonly #waiting: { readonly go: () => void }[] = [];
  #window: number;
  #running = 0;
  /** Answers until the window may be halved again. */
  #calm = 0;
  /** When the next one may go, by the monotonic clock. */
  #nextMs: number;

  constructor(limits: PaceLimits, clock: Clock) {
    this.#limits = limits;
    this.#clock = clock;
    this.#window = limits.start;
    this.#nextMs = clock.monotonic();
  }

  get window(): number {
    return Math.floor(this.#window);
  }

  async begin(signal: AbortSignal | undefined): Promise<void> {
    await this.#enter(signal);
    try {
      const stepMs = 1000 / this.#limits.perSecond;
      const now = this.#clock.monotonic();
      const at = Math.max(this.#nextMs, now - BURST_SECONDS * 1000);
      this.#nextMs = at + stepMs;
      if (at > now) await this.#clock.sleep(at - now, signal);
    } catch (error) {
      this.#leave();
      throw error;
    }
  }

  end(outcome: Outcome): void {
    const full = this.#running >= this.window;
    if (this.#calm > 0) this.#calm--;
    if (outcome === "done") {
      if (full) this.#window = Math.min(this.#limits.max, this.#window + 1 / this.#window);
    } else if (outcome !== "refused" && this.#calm === 0) {
      this.#calm = this.window;
      this.#window = Math.max(this.#limits.min, this.#window / 2);
    }
    this.#leave();
  }

  #leave(): void {
    this.#running--;
    while (this.#running < this.window) {
      const next = this.#waiting.shift();
      if (next === undefined) return;
      this.#running++;
      next.go();
    }
  }

  #enter(signal: AbortSignal | undefined): Promise<void> {
    signal?.throwIfAborted();
    if (this.#running < this.window) {
      this.peak = Math.max(this.peak, ++this.#running);
      return Promise.resolve();
    }
    return new Promise((resolve, reject) => {
      const waiter = {
        go: () => {
          signal?.removeEventListener("abort", onAbort);
          this.peak = Math.max(this.peak, this.#running);
          resolve();
        },
      };
      const onAbort = () => {
        const index = this.#waiting.indexOf(waiter);
        if (index >= 0) this.#waiting.splice(index, 1);
        reject(signal!.reason);
      };
      this.#waiting.push(waiter);
      signal?.addEventListener("abort", onAbort, { once: true });
    });
  }
}
