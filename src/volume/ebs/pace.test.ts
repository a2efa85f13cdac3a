import assert from "node:assert/strict";
import { test } from "node:test";
import type { Clock } from "../../base/clock.ts";
import type { Outcome } from "../aws/client.ts";
import { Pace } from "./pace.ts";

/** A clock that stands still until somebody sleeps. */
class StillClock implements Clock {
  ms = 0;
  now = () => this.ms;
  monotonic = () => this.ms;
  async sleep(ms: number): Promise<void> {
    this.ms += ms;
  }
}

const LIMITS = { start: 16, min: 8, max: 32, perSecond: 1_000_000 };

async function fill(pace: Pace, count: number): Promise<void> {
  for (let at = 0; at < count; at++) await pace.begin(undefined);
}

/** Rounds of a full window, all with one end. */
async function rounds(pace: Pace, count: number, outcome: Outcome): Promise<void> {
  for (let round = 0; round < count; round++) {
    const size = pace.window;
    await fill(pace, size);
    for (let at = 0; at < size; at++) pace.end(outcome);
  }
}

test("a full window of good answers adds one, up to the most", async () => {
  const pace = new Pace(LIMITS, new StillClock());
  await rounds(pace, 1, "done");
  assert.ok(pace.window >= 16);
  await rounds(pace, 400, "done");
  assert.equal(pace.window, 32);
});

test("throttling halves the window once, however many answers say so, and never below the least", async () => {
  const pace = new Pace(LIMITS, new StillClock());
  await rounds(pace, 1, "throttled");
  assert.equal(pace.window, 8);
  await rounds(pace, 20, "failed");
  assert.equal(pace.window, 8);
});

test("a window that is not full does not grow, and refusals say nothing", async () => {
  const pace = new Pace(LIMITS, new StillClock());
  for (let at = 0; at < 1000; at++) {
    await pace.begin(undefined);
    pace.end(at % 2 === 0 ? "done" : "refused");
  }
  assert.equal(pace.window, 16);
  assert.equal(pace.peak, 1);
});

test("never more a second than the quota", async () => {
  const clock = new StillClock();
  const pace = new Pace({ start: 256, min: 8, max: 256, perSecond: 1000 }, clock);
  for (let at = 0; at < 5000; at++) {
    await pace.begin(undefined);
    pace.end("done");
  }
  assert.ok(clock.ms >= 4900 && clock.ms <= 5100, `${clock.ms} ms`);
});

test("who waits for a place leaves when aborted, and the place goes to the next", async () => {
  const pace = new Pace({ ...LIMITS, start: 8, max: 8 }, new StillClock());
  await fill(pace, 8);
  const abort = new AbortController();
  const gone = pace.begin(abort.signal);
  let entered = false;
  const next = pace.begin(undefined).then(() => {
    entered = true;
  });
  abort.abort(new Error("enough"));
  await assert.rejects(gone, /enough/);
  assert.equal(entered, false);
  pace.end("done");
  await next;
  assert.equal(pace.peak, 8);
});
