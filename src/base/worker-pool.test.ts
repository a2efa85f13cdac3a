import assert from "node:assert/strict";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { pathToFileURL } from "node:url";
import { isHeadstartError } from "./errors.ts";
import { WorkerPool } from "./worker-pool.ts";

const directory = mkdtempSync(join(tmpdir(), "headstart-pool-"));
after(() => rmSync(directory, { recursive: true }));
const entry = join(directory, "test.worker.mjs");
writeFileSync(
  entry,
  `
import { parentPort, threadId } from "node:worker_threads";
import { workerAnswer } from ${JSON.stringify(new URL("./worker-pool.ts", import.meta.url).href)};
import { HeadstartError } from ${JSON.stringify(new URL("./errors.ts", import.meta.url).href)};
const work = (job) => {
  if (job.t === "thread") return threadId;
  if (job.t === "fail") throw new HeadstartError("HS_UNIT_DIGEST", { what: "unit 3", unit: 3, hidden: {} });
  if (job.t === "full") throw Object.assign(new Error("no room"), { code: "ENOSPC", errno: -28 });
  if (job.t === "die") process.exit(1);
  return new Promise(() => {});
};
parentPort.on("message", (job) => void workerAnswer(() => work(job)).then((message) => parentPort.postMessage(message)));
`,
);

const makePool = () =>
  new WorkerPool<{ t: string }>({ entry: pathToFileURL(entry), options: {}, idleMax: 1, idleMs: 60_000 });

test("a thread is used again, and what it throws arrives with code, text and plain details", async () => {
  await using pool = makePool();
  const first = await pool.run({ t: "thread" });
  await assert.rejects(pool.run({ t: "fail" }), (error) => {
    assert.ok(isHeadstartError(error, "HS_UNIT_DIGEST"));
    assert.equal(error.details.what, "unit 3");
    assert.equal(error.details.unit, 3);
    assert.ok(!("hidden" in error.details));
    return true;
  });
  await assert.rejects(pool.run({ t: "full" }), (error) => isHeadstartError(error, "HS_DISK_FULL"));
  assert.equal(await pool.run({ t: "thread" }), first);
});

test("a job whose thread dies fails, the next one has a new thread", async () => {
  await using pool = makePool();
  const first = await pool.run({ t: "thread" });
  await assert.rejects(pool.run({ t: "die" }), (error) => isHeadstartError(error, "HS_INTERNAL"));
  assert.notEqual(await pool.run({ t: "thread" }), first);
});

test("an aborted job ends with the signal's reason, and its thread is gone", async () => {
  await using pool = makePool();
  const first = await pool.run({ t: "thread" });
  const abort = new AbortController();
  const job = pool.run({ t: "forever" }, { signal: abort.signal, begin: () => abort.abort(new Error("enough")) });
  await assert.rejects(job, /enough/);
  assert.notEqual(await pool.run({ t: "thread" }), first);
});

test("after its end a pool takes no job, and those that run end", async () => {
  const pool = makePool();
  let begun = () => {};
  const running = new Promise<void>((resolve) => {
    begun = resolve;
  });
  const job = pool.run({ t: "forever" }, { begin: () => begun() });
  await running;
  const ended = assert.rejects(job, (error) => isHeadstartError(error, "HS_INTERNAL"));
  await pool[Symbol.asyncDispose]();
  await ended;
  await assert.rejects(pool.run({ t: "thread" }), (error) => isHeadstartError(error, "HS_CANCELED"));
});
