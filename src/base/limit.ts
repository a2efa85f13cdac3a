/** Named pieces of concurrency: `Limit` (a fair semaphore) and `Flights` (joining work that is already under way). */

/** At most `max` at once; waiters run in order and leave the queue when their signal aborts. */
export class Limit {
  readonly max: number;
  #running = 0;
  readonly #waiting: { start: () => void }[] = [];

  constructor(max: number) {
    this.max = max;
  }

  get running(): number {
    return this.#running;
  }

  get waiting(): number {
    return this.#waiting.length;
  }

  async run<T>(work: () => Promise<T>, options: { signal?: AbortSignal | undefined } = {}): Promise<T> {
    await this.#enter(options.signal);
    try {
      return await work();
    } finally {
      this.#running--;
      this.#waiting.shift()?.start();
    }
  }

  #enter(signal: AbortSignal | undefined): Promise<void> {
    signal?.throwIfAborted();
    if (this.#running < this.max) {
      this.#running++;
      return Promise.resolve();
    }
    return new Promise((resolve, reject) => {
      const waiter = {
        start: () => {
          signal?.removeEventListener("abort", onAbort);
          this.#running++;
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

/** One promise per key while work is under way: whoever asks meanwhile joins it. Results are not kept. */
export class Flights<K, V> {
  readonly #flights = new Map<K, Promise<V>>();

  get size(): number {
    return this.#flights.size;
  }

  join(key: K, work: () => Promise<V>): Promise<V> {
    const known = this.#flights.get(key);
    if (known !== undefined) return known;
    const flight = work().finally(() => this.#flights.delete(key));
    this.#flights.set(key, flight);
    return flight;
  }
}
