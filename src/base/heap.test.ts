import assert from "node:assert/strict";
import { test } from "node:test";
import { getHeapSpaceStatistics, getHeapStatistics } from "node:v8";
import { collectGarbage, collectIfGrown, freeBuffer, keepYoungGenerationSmall } from "./heap.ts";
import { MiB } from "./limits.ts";

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

test("the room for new objects shrinks, and does not grow again", () => {
  liveForAMoment();
  const before = room();
  keepYoungGenerationSmall();
  liveForAMoment();
  const after = room();
  assert.ok(after <= 4 * MiB && before > 2 * after, `${before} and then ${after} bytes`);
});

function room(): number {
  return getHeapSpaceStatistics().find((space) => space.space_name === "new_space")!.space_size;
}

/** So many at once that they outlive several collections: V8 gives new objects more room then. */
function liveForAMoment(): void {
  let kept: object[] = [];
  for (let index = 0; index < 1_000_000; index++) {
    kept.push({ index, more: [index] });
    if (kept.length > 300_000) kept = [];
  }
}
