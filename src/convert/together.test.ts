import assert from "node:assert/strict";
import { test } from "node:test";
import { Together } from "./together.ts";

const untilAborted = (signal: AbortSignal) =>
  new Promise<string>((resolve, reject) => {
    signal.addEventListener("abort", () => reject(signal.reason as Error), { once: true });
    if (signal.aborted) resolve("too late");
  });

test("when one part fails the others end before the error is told", async () => {
  const together = new Together(undefined);
  let ended = false;
  const other = untilAborted(together.signal).finally(() => {
    ended = true;
  });
  const failing = Promise.reject(new Error("first"));
  await assert.rejects(together.all([other, failing]), /first/);
  assert.ok(ended);
});

test("the caller's signal reaches the work, and results keep their order", async () => {
  const outer = new AbortController();
  const together = new Together(outer.signal);
  assert.deepEqual(await together.all([Promise.resolve(1), Promise.resolve(2)]), [1, 2]);
  const waiting = together.all([untilAborted(together.signal)]);
  outer.abort(new Error("enough"));
  await assert.rejects(waiting, /enough/);
});
