import assert from "node:assert/strict";
import { test } from "node:test";
import { getHeapSpaceStatistics } from "node:v8";
import { MiB } from "./limits.ts";
import { keepYoungGenerationSmall } from "./young-generation.ts";

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
