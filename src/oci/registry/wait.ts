/** Waiting with an end: deadlines joined to a caller's signal, and waiting for shared work that must not end with one caller. */

import { HeadstartError } from "../../base/errors.ts";

/** The caller's signal, and a deadline of our own. */
export function withDeadline(signal: AbortSignal | undefined, deadlineMs: number): AbortSignal {
  const deadline = AbortSignal.timeout(Math.min(Math.ceil(deadlineMs), 2 ** 31 - 1));
  return signal === undefined ? deadline : AbortSignal.any([signal, deadline]);
}

/** Waits for `work`, which others wait for too: an abort ends the waiting, not the work. */
export async function abandonable<T>(work: Promise<T>, signal: AbortSignal | undefined): Promise<T> {
  if (signal === undefined) return work;
  const { promise, reject } = Promise.withResolvers<never>();
  const onAbort = () => reject(signal.reason);
  if (signal.aborted) onAbort();
  else signal.addEventListener("abort", onAbort, { once: true });
  try {
    return await Promise.race([work, promise]);
  } finally {
    signal.removeEventListener("abort", onAbort);
  }
}

/** Our own deadline passed (the caller's signal did not): the host is too slow, and another may be asked. */
export function lateAsUnavailable(error: unknown, what: string): unknown {
  const late = error instanceof Error && error.name === "TimeoutError";
  return late ? new HeadstartError("HS_REGISTRY_UNAVAILABLE", { what: `${what}: too slow`, cause: error }) : error;
}
