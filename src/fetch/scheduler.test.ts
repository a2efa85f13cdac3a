import assert from "node:assert/strict";
import { test } from "node:test";
import { setImmediate as turn } from "node:timers/promises";
import fc from "fast-check";
import { noise } from "../../test/fakes/plain-layer.ts";
import { sha256 } from "../base/digest.ts";
import { HeadstartError, isHeadstartError } from "../base/errors.ts";
import type { Priority } from "../layer/interfaces.ts";
import { FetchScheduler, type SchedulerOptions } from "./scheduler.ts";

const BLOB = noise(100_000, 1);
const DIGEST = sha256(BLOB);

interface Asked {
  readonly start: number;
  readonly end: number;
  readonly attempt: number;
  readonly progress: (count: number) => void;
  readonly finish: () => void;
  readonly fail: (error: Error) => void;
  readonly signal: AbortSignal;
  readonly hold: () => Promise<void> | null;
}

/** A scheduler over one blob whose requests end when the test says so. */
function setUp(options: SchedulerOptions = {}) {
  const scheduler = new FetchScheduler({
    parallel: 3,
    demandBytes: 1000,
    backgroundBytes: 2000,
    gapBytes: 0,
    ...options,
  });
  const asked: Asked[] = [];
  const unregister = scheduler.registerBlob(DIGEST, {
    readRange: (start, end, { into, signal, attempt, onProgress, hold }) =>
      new Promise<void>((resolve, reject) => {
        const fill = (count: number) => {
          into.set(BLOB.subarray(start, start + count));
          onProgress(count);
        };
        signal.addEventListener("abort", () => reject(signal.reason));
        const finish = () => {
          fill(end - start);
          resolve();
        };
        asked.push({ start, end, attempt, progress: fill, finish, fail: reject, signal, hold });
      }),
  });
  const get = (
    start: number,
    end: number,
    priority: Priority = "demand",
    more: { attempt?: number; signal?: AbortSignal } = {},
  ) => scheduler.fetch({ blob: DIGEST, blobSize: BLOB.byteLength, start, end }, { priority, ...more });
  return { scheduler, asked, get, unregister };
}

test("units that are asked for together and touch become one request, and each gets its own bytes", async () => {
  const { asked, get, scheduler } = setUp();
  const ranges = [
    [200, 300],
    [0, 100],
    [99, 200],
  ] as const;
  const units = Promise.all(ranges.map(([start, end]) => get(start, end)));
  await turn();
  assert.deepEqual(
    asked.map(({ start, end }) => [start, end]),
    [[0, 300]],
  );
  asked[0]!.finish();
  const bytes = await units;
  for (const [index, [start, end]] of ranges.entries()) {
    assert.equal(Buffer.compare(bytes[index]!, BLOB.subarray(start, end)), 0);
    // it waits for its decoder without the rest of the request
    assert.equal(bytes[index]!.buffer.byteLength, end - start);
  }
  assert.deepEqual(scheduler.statistics().requests, { demand: 1, pack: 0, background: 0 });
  assert.equal(scheduler.statistics().bytes.demand, 300);
});

test("a unit is handed out as soon as its bytes are there, before its request ends", async () => {
  const { asked, get } = setUp();
  const [first, second] = [get(0, 100), get(100, 200)];
  await turn();
  asked[0]!.progress(150);
  assert.equal(Buffer.compare(await first, BLOB.subarray(0, 100)), 0);
  asked[0]!.finish();
  assert.equal(Buffer.compare(await second, BLOB.subarray(100, 200)), 0);
});

test("demand overtakes what waits in the background, and background leaves it a slot", async () => {
  const { asked, get } = setUp();
  const background = [0, 1, 2, 3].map((index) => get(index * 10_000, index * 10_000 + 100, "background"));
  await turn();
  assert.equal(asked.length, 2);
  const demand = get(50_000, 50_100);
  await turn();
  assert.deepEqual(
    asked.map(({ start }) => start),
    [0, 10_000, 50_000],
  );
  // while demand runs nothing of the background follows
  asked[0]!.finish();
  asked[1]!.finish();
  await turn();
  assert.deepEqual(
    asked.map(({ start }) => start),
    [0, 10_000, 50_000, 20_000],
  );
  asked[2]!.finish();
  await demand;
  await turn();
  assert.equal(asked.length, 5);
  for (const request of asked) request.finish();
  await Promise.all(background);
});

test("a background unit that somebody comes to need goes next", async () => {
  const { asked, get, scheduler } = setUp();
  const units = [0, 1, 2, 3].map((index) => get(index * 10_000, index * 10_000 + 100, "background"));
  await turn();
  scheduler.promote({ blob: DIGEST, blobSize: BLOB.byteLength, start: 30_000, end: 30_100 }, "demand");
  await turn();
  assert.deepEqual(
    asked.map(({ start }) => start),
    [0, 10_000, 30_000],
  );
  for (let index = 0; index < 4; index++) {
    asked[index]!.finish();
    await turn();
  }
  await Promise.all(units);
});

test("a request is aborted when the last of those who wait for it gives up, not before", async () => {
  const { asked, get } = setUp();
  const [first, second] = [new AbortController(), new AbortController()];
  const waits = [get(0, 100, "demand", { signal: first.signal }), get(100, 200, "demand", { signal: second.signal })];
  await turn();
  first.abort(new Error("one"));
  await assert.rejects(waits[0]!, /one/);
  assert.equal(asked[0]!.signal.aborted, false);
  second.abort(new Error("two"));
  await assert.rejects(waits[1]!, /two/);
  assert.equal(asked[0]!.signal.aborted, true);
});

test("a unit that is given up before its turn is never asked for", async () => {
  const { asked, get } = setUp({ parallel: 1 });
  const giveUp = new AbortController();
  const first = get(0, 100);
  await turn();
  const second = get(50_000, 50_100, "demand", { signal: giveUp.signal });
  giveUp.abort(new Error("no"));
  await assert.rejects(second, /no/);
  asked[0]!.finish();
  await first;
  await turn();
  assert.equal(asked.length, 1);
});

test("an error reaches all units of its request, and the next try asks another source", async () => {
  const { asked, get, scheduler } = setUp();
  const waits = Promise.allSettled([get(0, 100), get(100, 200)]);
  await turn();
  asked[0]!.fail(new HeadstartError("HS_REGISTRY_UNAVAILABLE", { what: "a test" }));
  assert.deepEqual(
    (await waits).map(({ status }) => status),
    ["rejected", "rejected"],
  );
  assert.equal(scheduler.statistics().failed, 1);
  const again = get(0, 100, "demand", { attempt: 1 });
  const other = get(100, 200);
  await turn();
  assert.deepEqual(
    asked.slice(1).map(({ start, attempt }) => [start, attempt]),
    [
      [0, 1],
      [100, 0],
    ],
  );
  for (const request of asked.slice(1)) request.finish();
  await Promise.all([again, other]);
});

test("a blob that nobody registered is an error at once, and so is one whose last user has left", async () => {
  const { get, unregister } = setUp();
  unregister();
  unregister();
  await assert.rejects(get(0, 1), (error) => isHeadstartError(error, "HS_NOT_FOUND"));
});

test("a limit for the background holds back its requests only", async () => {
  const waits: { ms: number; wake: () => void }[] = [];
  let nowMs = 0;
  const clock = {
    now: () => nowMs,
    monotonic: () => nowMs,
    sleep: (ms: number) => new Promise<void>((wake) => waits.push({ ms, wake })),
  };
  const { asked, get } = setUp({ backgroundBytesPerSecond: 1000, clock });
  const units = [get(0, 1000, "background"), get(50_000, 50_100, "background")];
  await turn();
  assert.equal(asked.length, 1);
  assert.deepEqual(
    waits.map(({ ms }) => ms),
    [1000],
  );
  const demand = get(70_000, 70_100);
  await turn();
  assert.equal(asked.length, 2);
  asked[1]!.finish();
  await demand;
  nowMs = 1000;
  waits[0]!.wake();
  await turn();
  assert.equal(asked.length, 3);
  asked[0]!.finish();
  asked[2]!.finish();
  await Promise.all(units);
});

test("whatever is asked for in whatever order, everybody gets exactly his bytes", async () => {
  const wishes = fc.array(
    fc.record({
      start: fc.nat(99_000),
      length: fc.integer({ min: 1, max: 900 }),
      priority: fc.constantFrom<Priority>("demand", "pack", "background"),
    }),
    { minLength: 1, maxLength: 60 },
  );
  await fc.assert(
    fc.asyncProperty(wishes, async (wanted) => {
      const { asked, get } = setUp({ gapBytes: 50 });
      const results = Promise.all(
        wanted.map(async ({ start, length, priority }) => {
          const bytes = await get(start, start + length, priority);
          assert.equal(Buffer.compare(bytes, BLOB.subarray(start, start + length)), 0);
        }),
      );
      for (let next = 0; next < wanted.length; next++) {
        await turn();
        if (asked[next] === undefined) break;
        asked[next]!.progress(Math.floor((asked[next]!.end - asked[next]!.start) / 2));
        asked[next]!.finish();
      }
      await results;
    }),
    { numRuns: 60 },
  );
});

test("while somebody waits, the bodies of background requests are not read on, unless he waits for them", async () => {
  const { asked, get, scheduler } = setUp();
  const background = [get(0, 100, "background"), get(10_000, 10_100, "background")];
  await turn();
  assert.equal(asked[0]!.hold(), null);
  const demand = get(50_000, 50_100);
  await turn();
  assert.equal(asked[2]!.hold(), null);
  let going = 0;
  const held = [0, 1].map((index) => asked[index]!.hold()!.then(() => going++));
  await turn();
  assert.equal(going, 0);
  scheduler.promote({ blob: DIGEST, blobSize: BLOB.byteLength, start: 0, end: 100 }, "demand");
  await turn();
  assert.equal(going, 1);
  asked[2]!.finish();
  await demand;
  await turn();
  assert.equal(going, 1, "the promoted one is demand now");
  asked[0]!.finish();
  await Promise.all(held);
  asked[1]!.finish();
  await Promise.all(background);
});

test("the background uses all its slots where their requests are small", async () => {
  const { asked, get } = setUp({ parallel: 8, backgroundBytes: 1000 });
  const units = Array.from({ length: 20 }, (_, index) => get(index * 2000, index * 2000 + 999, "background"));
  await turn();
  assert.equal(asked.length, 7, "the window is no smaller than all requests together");
  for (let index = 0; index < 20; index++) {
    asked[index]!.finish();
    await turn();
  }
  await Promise.all(units);
});
