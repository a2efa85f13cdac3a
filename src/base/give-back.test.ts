import assert from "node:assert/strict";
import { test } from "node:test";
import { getHeapStatistics } from "node:v8";
import { collectGarbage, collectIfGrown, freeBuffer } from "./give-back.ts";

const MANY = 300_000;

test("garbage of some MiB is collected at once, and what is in use stays", () => {
  collectGarbage();
  const before = getHeapStatistics().used_heap_size;
  const kept = { value: "kept" };
  let objects: unknown[] | null = Array.from({ length: MANY }, (_, index) => ({ index, kept }));
  assert.ok(getHeapStatistics().used_heap_size > before + MANY * 16);
  collectIfGrown();
  assert.equal(objects.length, MANY);
  objects = null;
  collectGarbage();
  assert.ok(getHeapStatistics().used_heap_size < before + MANY * 16);
  assert.equal(kept.value, "kept");
});

test("a buffer that is given back holds nothing any more", () => {
  const bytes = new Uint8Array(1000);
  const view = bytes.subarray(10);
  freeBuffer(bytes);
  assert.deepEqual([bytes.byteLength, view.byteLength], [0, 0]);
});
