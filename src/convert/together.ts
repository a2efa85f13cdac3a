/** Work on several layers that is one piece of work: it succeeds or ends as a whole. */

export class Together {
  readonly #abort = new AbortController();
  /** For the work: aborted by the caller's, and when a part of it fails. */
  readonly signal: AbortSignal;

  constructor(signal: AbortSignal | undefined) {
    this.signal = signal === undefined ? this.#abort.signal : AbortSignal.any([signal, this.#abort.signal]);
  }

  /** When one fails the others are told to stop and waited for, so that nothing goes on behind the error. Throws the first one's error. */
  async all<T>(work: readonly Promise<T>[]): Promise<T[]> {
    try {
      return await Promise.all(work);
    } catch (error) {
      this.#abort.abort(error);
      await Promise.allSettled(work);
      throw error;
    }
  }
}
