/**
 * Ends threads safely. One that is ended while a native addon registers itself takes the whole process with it (koffi: "napi_throw"), so a thread says when its modules are loaded,
 * and is not ended before.
 */

import type { Worker } from "node:worker_threads";

const loaded = new WeakMap<Worker, Promise<void>>();

/** To be called as soon as the thread is made. Its first message, whatever it is, says that it has loaded. */
export function watchLoading(worker: Worker): void {
  const { promise, resolve } = Promise.withResolvers<void>();
  loaded.set(worker, promise);
  for (const event of ["message", "error", "exit"] as const) worker.once(event, () => resolve());
}

/** Ends a thread that is watched, once it has loaded or is gone. */
export async function endWorker(worker: Worker): Promise<void> {
  // an idle one is not referenced, and this waits for it
  worker.ref();
  await loaded.get(worker);
  await worker.terminate();
}
