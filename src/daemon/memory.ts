/**
 * Gives memory back after a fill: what V8 has not collected, and what glibc keeps of freed buffers (docs/internals/threads.md has figures).
 */

import { listen } from "../base/events.ts";
import { collectGarbage } from "../base/heap.ts";
import { trimHeap } from "../linux/malloc.ts";

/** After the last layer of an image is usually sealed, too. */
const SETTLE_MS = 5_000;
/** Threads of a fill have ended by then (layer/jobs.ts, layer/decoders.ts): what they freed is glibc's. */
const IDLE_MS = 45_000;

/** Collects a while after layers stopped changing their state, and once more when nothing is left of the work. */
export function collectWhenSettled(): Disposable {
  const timers = new Set<NodeJS.Timeout>();
  const stop = () => {
    for (const timer of timers) clearTimeout(timer);
    timers.clear();
  };
  const collect = () => {
    collectGarbage();
    trimHeap();
  };
  const end = listen("layer:state", () => {
    stop();
    for (const ms of [SETTLE_MS, IDLE_MS]) timers.add(setTimeout(collect, ms).unref());
  });
  return {
    [Symbol.dispose]() {
      stop();
      end();
    },
  };
}
