/**
 * The background fill of one layer: every unit once, those first that the image's author wants first, then in order. Many units are asked for at once, so that the
 * scheduler can make few large requests of them; a budget that all layers share bounds their memory. What fails is tried again later, with growing
 * pauses, until it works or nobody wants the layer any more.
 */

import type { Clock } from "../base/clock.ts";
import { isHeadstartError } from "../base/errors.ts";
import { publish } from "../base/events.ts";
import type { ByteBudget } from "./byte-budget.ts";
import type { Filler } from "./filler.ts";

const PAUSE_MS_FIRST = 1_000;
const PAUSE_MS_MAX = 60_000;

/**
 * Resolves when all units are filled. Throws the signal's reason, or HS_UNIT_DECODE and HS_INDEX_MISMATCH: then the layer can never be completed by its index.
 */
export async function fillAll(options: {
  filler: Filler;
  layer: number;
  /** Units that go first; all others follow. */
  first: readonly number[];
  budget: ByteBudget;
  clock: Clock;
  signal: AbortSignal;
  /** Told why it waits before it goes on. */
  onPause?: (error: unknown) => void;
}): Promise<void> {
  const { filler, signal, clock, layer } = options;
  let pauseMs = PAUSE_MS_FIRST;
  for (;;) {
    const filledBefore = filler.state.progress;
    const failure = await fillOnce(options);
    if (filler.state.complete) return;
    signal.throwIfAborted();
    if (isHeadstartError(failure, "HS_UNIT_DECODE", "HS_INDEX_MISMATCH")) throw failure;
    // as long as something comes, go on quickly
    if (filler.state.progress > filledBefore) pauseMs = PAUSE_MS_FIRST;
    publish("layer:background-pause", { layer, pauseMs, error: failure });
    options.onPause?.(failure);
    await clock.sleep(pauseMs, signal);
    pauseMs = Math.min(PAUSE_MS_MAX, pauseMs * 2);
  }
}

/** Units of several files, once each and in this order. Never throws: whoever fills the files meets the same again. */
export async function fillFirst(options: {
  units: Iterable<{ readonly filler: Filler; readonly unit: number }>;
  budget: ByteBudget;
  signal: AbortSignal;
}): Promise<void> {
  const { budget, signal } = options;
  const running = new Set<Promise<void>>();
  for (const { filler, unit } of options.units) {
    if (signal.aborted) break;
    if (filler.state.isSettled(unit)) continue;
    let giveBack: () => void;
    try {
      giveBack = await budget.take(filler.table.unitEnd[unit]! - filler.table.unitStart[unit]!, signal);
    } catch {
      break;
    }
    const work = filler
      .fillUnit(unit, { priority: "background", signal })
      .catch(() => {})
      .finally(() => {
        giveBack();
        running.delete(work);
      });
    running.add(work);
  }
  await Promise.all(running);
}

/** Tries every unit that is still a hole; the last error, or undefined. Stops early where going on is of no use. */
async function fillOnce(options: Parameters<typeof fillAll>[0]): Promise<unknown> {
  const { filler, budget, signal } = options;
  const { table, state } = filler;
  let failure: unknown;
  let stop = false;
  const running = new Set<Promise<void>>();
  for (const unit of order(options.first, table.unitCount)) {
    if (stop || signal.aborted) break;
    if (state.isSettled(unit)) continue;
    let giveBack: () => void;
    try {
      // stored and decoded bytes are in memory together for a moment
      giveBack = await budget.take(table.unitEnd[unit]! - table.unitStart[unit]!, signal);
    } catch {
      break;
    }
    const work = filler
      .fillUnit(unit, { priority: "background", signal })
      .catch((error) => {
        failure = error;
        // a full disk or a wrong index will not be better for the next unit
        if (isHeadstartError(error, "HS_DISK_FULL", "HS_UNIT_DECODE", "HS_INDEX_MISMATCH")) stop = true;
      })
      .finally(() => {
        giveBack();
        running.delete(work);
      });
    running.add(work);
  }
  await Promise.all(running);
  return failure;
}

function* order(first: readonly number[], count: number): Generator<number> {
  for (const unit of first) if (unit >= 0 && unit < count) yield unit;
  for (let unit = 0; unit < count; unit++) yield unit;
}
