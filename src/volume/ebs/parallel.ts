/** Many pieces of one kind of work at once, with one end: the first failure stops the others, and nothing goes on after the call has returned. */

/**
 * Calls `work` for every item, at most `max` at once (a number that may change meanwhile), in the items' order. The signal that `work` gets is aborted by the first failure or by the caller's;
 * what aborted it is thrown when all that was begun has ended.
 */
export async function eachAtOnce<T>(
  items: Iterable<T> | AsyncIterable<T>,
  max: () => number,
  work: (item: T, signal: AbortSignal) => Promise<void>,
  options: { readonly signal?: AbortSignal | undefined } = {},
): Promise<void> {
  const own = new AbortController();
  const onAbort = () => own.abort(options.signal?.reason);
  if (options.signal?.aborted) onAbort();
  options.signal?.addEventListener("abort", onAbort, { once: true });
  const running = new Set<Promise<void>>();
  let ended: (() => void) | undefined;
  own.signal.addEventListener("abort", () => ended?.(), { once: true });
  try {
    for await (const item of items) {
      if (own.signal.aborted) break;
      const task = work(item, own.signal)
        .catch((error: unknown) => own.abort(error))
        .finally(() => {
          running.delete(task);
          ended?.();
        });
      running.add(task);
      while (running.size >= max() && !own.signal.aborted) {
        // one waiter, and no race: that would leave a listener on every piece of work each time
        await new Promise<void>((resolve) => {
          ended = resolve;
        });
      }
    }
  } catch (error) {
    own.abort(error);
  } finally {
    await Promise.all(running);
    options.signal?.removeEventListener("abort", onAbort);
  }
  if (own.signal.aborted) throw own.signal.reason;
}
