/**
 * Wraps a transport: at most so many requests to one host run at once, each until its body has ended. A 429 halves that number, a long
 * run of good answers adds one again (additive increase, multiplicative decrease).
 */

import type { Clock } from "../../../base/clock.ts";
import type { Transport, TransportRequest, TransportResponse } from "./transport.ts";

/** Good answers in a row before one more request is allowed. */
const RAISE_AFTER = 32;
/** Never fewer: registries limit requests in a time rather than at once, and one silent answer must not hold up all others. */
const REQUESTS_MIN = 4;
/** Requests that were under way together are refused together: they count as one refusal. */
const HALVE_EVERY_MS = 1000;

export class HostGate {
  readonly ceiling: number;
  #max: number;
  #running = 0;
  #good = 0;
  #halvedAt = Number.NEGATIVE_INFINITY;
  readonly #waiting: (() => void)[] = [];
  readonly #clock: Clock;

  constructor(ceiling: number, clock: Clock) {
    this.ceiling = ceiling;
    this.#max = ceiling;
    this.#clock = clock;
  }

  /** What is allowed now. */
  get max(): number {
    return this.#max;
  }

  get running(): number {
    return this.#running;
  }

  async enter(signal: AbortSignal | undefined): Promise<void> {
    signal?.throwIfAborted();
    if (this.#running < this.#max) {
      this.#running++;
      return;
    }
    await new Promise<void>((resolve, reject) => {
      const start = () => {
        signal?.removeEventListener("abort", onAbort);
        this.#running++;
        resolve();
      };
      const onAbort = () => {
        const index = this.#waiting.indexOf(start);
        if (index >= 0) this.#waiting.splice(index, 1);
        reject(signal!.reason);
      };
      this.#waiting.push(start);
      signal?.addEventListener("abort", onAbort, { once: true });
    });
  }

  leave(): void {
    this.#running--;
    this.#wake();
  }

  refused(): void {
    const now = this.#clock.monotonic();
    this.#good = 0;
    if (now - this.#halvedAt < HALVE_EVERY_MS) return;
    this.#halvedAt = now;
    this.#max = Math.max(Math.min(REQUESTS_MIN, this.ceiling), Math.floor(this.#max / 2));
  }

  accepted(): void {
    if (this.#max >= this.ceiling || ++this.#good < RAISE_AFTER) return;
    this.#good = 0;
    this.#max++;
    this.#wake();
  }

  #wake(): void {
    while (this.#running < this.#max && this.#waiting.length > 0) this.#waiting.shift()!();
  }
}

export function withLimit(inner: Transport, gateOf: (host: string) => HostGate): Transport {
  return {
    async send(request: TransportRequest): Promise<TransportResponse> {
      const gate = gateOf(request.url.host);
      await gate.enter(request.signal);
      let response: TransportResponse;
      try {
        response = await inner.send(request);
      } catch (error) {
        gate.leave();
        throw error;
      }
      if (response.status === 429) gate.refused();
      else gate.accepted();
      response.onClose(() => gate.leave());
      return response;
    },
  };
}
