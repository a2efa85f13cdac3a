import assert from "node:assert/strict";
import { appendFileSync, existsSync, readFileSync, truncateSync, writeFileSync } from "node:fs";
import { test } from "node:test";
import fc from "fast-check";
import { isHeadstartError } from "../../base/errors.ts";
import { PushState, STATE_SCHEMA } from "./state.ts";
import { Scratch } from "./testing.ts";

const header = {
  schema: STATE_SCHEMA,
  snapshot: "snap-1",
  plan: "sha256:x",
  region: "eu-central-1",
  attempt: 2,
} as const;

test("marks and words are there for the next run", () => {
  using scratch = new Scratch();
  const volume = scratch.path("v");
  assert.equal(PushState.read(volume), undefined);
  {
    using state = PushState.create(volume, header);
    state.mark(7);
    state.mark(0);
    state.say("completing");
  }
  using again = PushState.read(volume)!;
  assert.deepEqual([again.header, [...again.done], [...again.words]], [header, [7, 0], ["completing"]]);
  again.mark(9);
  again.remove();
  assert.ok(!existsSync(again.path));
});

test("cut anywhere, what is believed was marked, and what is marked next is read again", () => {
  using scratch = new Scratch();
  const volume = scratch.path("v");
  const path = PushState.pathFor(volume);
  const indexes = Array.from({ length: 200 }, (_, at) => at * 37);
  {
    using state = PushState.create(volume, header);
    for (const index of indexes) state.mark(index);
  }
  const whole = readFileSync(path);
  const first = whole.indexOf("\n") + 1;
  for (let length = first; length <= whole.byteLength; length += 13) {
    writeFileSync(path, whole.subarray(0, length));
    {
      using state = PushState.read(volume)!;
      assert.deepEqual([...state.done], indexes.slice(0, state.done.size));
      state.mark(123_456);
    }
    using again = PushState.read(volume)!;
    assert.ok(again.done.has(123_456));
  }
});

test("what a power cut leaves (zeros, halves, other bytes) ends what is believed", () => {
  using scratch = new Scratch();
  const volume = scratch.path("v");
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 40 }), (garbage) => {
      {
        using state = PushState.create(volume, header);
        state.mark(1);
      }
      appendFileSync(PushState.pathFor(volume), Buffer.concat([Buffer.from([0]), garbage, Buffer.from("\n5\n")]));
      using state = PushState.read(volume)!;
      assert.deepEqual([...state.done], [1]);
    }),
    { numRuns: 50 },
  );
});

test("a file that is no state of ours is not taken for one", () => {
  using scratch = new Scratch();
  const volume = scratch.path("v");
  for (const text of [
    "",
    "{}\n",
    "null\n",
    "x",
    JSON.stringify({ ...header, schema: "headstart.push/9" }),
    '{"schema":"headstart.push/1"}\n1\n',
  ]) {
    writeFileSync(PushState.pathFor(volume), text);
    assert.throws(
      () => PushState.read(volume),
      (error) => isHeadstartError(error, "HS_EBS_STATE"),
      text,
    );
  }
  PushState.create(volume, header);
  truncateSync(PushState.pathFor(volume), 10);
  assert.throws(
    () => PushState.read(volume),
    (error) => isHeadstartError(error, "HS_EBS_STATE"),
  );
});
