import assert from "node:assert/strict";
import { test } from "node:test";
import { MiB } from "../base/limits.ts";
import { BackgroundWindow } from "./window.ts";

test("the window doubles while nobody waits, up to its limit, and is small again when somebody does", () => {
  let nowMs = 0;
  const clock = { now: () => nowMs, monotonic: () => nowMs, sleep: () => Promise.resolve() };
  const window = new BackgroundWindow(6 * MiB, clock);
  assert.equal(window.bytes, MiB);
  window.completed();
  assert.equal(window.bytes, MiB, "a layer that was just opened is about to be read");
  nowMs += 1000;
  for (const bytes of [2, 4, 6, 6]) {
    window.completed();
    assert.equal(window.bytes, bytes * MiB);
  }
  window.demand();
  assert.equal(window.bytes, MiB);
  nowMs += 999;
  window.completed();
  assert.equal(window.bytes, MiB, "faults of a start follow each other");
  assert.equal(new BackgroundWindow(1000, clock).bytes, 1000);
});
