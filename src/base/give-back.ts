/**
 * Giving memory back when work is over. V8 collects when a heap grows, not when its thread falls silent: what the last job left would stay in memory until the next one needs the room.
 */

import { getHeapStatistics, setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";

/** Less is not worth the time. */
const GROWN_BYTES = 8 * 1024 * 1024;

let gc: (() => void) | undefined;
let heldAfterLast = 0;

/** Of this thread alone, and at once: some 10 ms where nearly all is garbage. */
export function collectGarbage(): void {
  if (gc === undefined) {
    setFlagsFromString("--expose-gc");
    gc = runInNewContext("gc") as () => void;
  }
  gc();
  heldAfterLast = held();
}

/** Collects if the thread holds some MiB more than after the last time. */
export function collectIfGrown(): void {
  if (held() > heldAfterLast + GROWN_BYTES) collectGarbage();
}

/** Gives a buffer's memory back now, not when it is collected. Nobody may use it, nor a view of it, any more. */
export function freeBuffer(bytes: Uint8Array<ArrayBuffer>): void {
  bytes.buffer.transfer(0);
}

function held(): number {
  const { used_heap_size, external_memory } = getHeapStatistics();
  return used_heap_size + external_memory;
}
