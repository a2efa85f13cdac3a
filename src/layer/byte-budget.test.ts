import assert from "node:assert/strict";
import { test } from "node:test";
import { setImmediate as turn } from "node:timers/promises";
import { ByteBudget } from "./byte-budget.ts";

test("takers wait in order for what they need, and what is given back twice counts once", async () => {
  const budget = new ByteBudget(10);
  const first = await budget.take(6);
  const order: string[] = [];
  const second = budget.take(6).then((giveBack) => {
    order.push("second");
    return giveBack;
  });
  const third = budget.take(1).then(() => order.push("third"));
  await turn();
  assert.deepEqual(order, []);
  first();
  first();
  await Promise.all([second, third]);
  assert.deepEqual(order, ["second", "third"]);
  assert.equal(budget.taken, 7);
});

test("a taker of more than all there is goes alone", async () => {
  const budget = new ByteBudget(10);
  const giveBack = await budget.take(100);
  let entered = false;
  const other = budget.take(1).then(() => {
    entered = true;
  });
  await turn();
  assert.equal(entered, false);
  giveBack();
  await other;
});

test("one that gives up leaves the queue, and those behind it go on", async () => {
  const budget = new ByteBudget(10);
  await budget.take(8);
  const giveUp = new AbortController();
  const large = budget.take(5, giveUp.signal);
  const small = budget.take(2);
  giveUp.abort(new Error("no"));
  await assert.rejects(large, /no/);
  await small;
  assert.equal(budget.taken, 10);
  await assert.rejects(budget.take(1, giveUp.signal), /no/);
});
