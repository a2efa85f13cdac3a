import assert from "node:assert/strict";
import { existsSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { pathToFileURL } from "node:url";
import { temporaryFolder } from "../../test/tools/erofs-image.ts";
import { HeadstartError } from "./errors.ts";
import { WorkerPool } from "./worker-pool.ts";

const POOL = new URL("./worker-pool.ts", import.meta.url).href;
const ERRORS = new URL("./errors.ts", import.meta.url).href;

/** A pool of one thread of this text. */
function poolOf(folder: string, text: string): WorkerPool<{ t: string }> {
  const entry = join(folder, "entry.ts");
  writeFileSync(entry, text);
  return new WorkerPool({ entry: pathToFileURL(entry), options: {}, idleMax: 1, idleMs: 1000 });
}

const SERVING = `
import { parentPort } from "node:worker_threads";
import { workerAnswer, workerReady } from ${JSON.stringify(POOL)};
import { HeadstartError } from ${JSON.stringify(ERRORS)};
parentPort.on("message", ({ t }) => {
  const work = () => { if (t === "fail") throw new HeadstartError("HS_LIMIT", { what: "too much" }); return t; };
  void workerAnswer(work).then((answer) => parentPort.postMessage(answer));
});
workerReady(parentPort);
`;

test("results and errors of a thread arrive as what they were, in one thread after the other, and not after the pool's end", async () => {
  using folder = temporaryFolder("headstart-pool-");
  await using pool = poolOf(folder.path, SERVING);
  for (let count = 0; count < 3; count++) {
    assert.equal(await pool.run({ t: "hello" }), "hello");
    await assert.rejects(pool.run({ t: "fail" }), (error) => {
      assert.ok(error instanceof HeadstartError);
      assert.deepEqual([error.code, error.message], ["HS_LIMIT", "[HS_LIMIT] too much"]);
      return true;
    });
  }
  await pool[Symbol.asyncDispose]();
  await assert.rejects(pool.run({ t: "hello" }), { code: "HS_CANCELED" });
});

test("a job that is canceled at once ends its thread only when that has loaded: native code that still registers itself would take the process with it", async () => {
  using folder = temporaryFolder("headstart-pool-");
  const mark = join(folder.path, "loaded");
  const loading = `
import { writeFileSync } from "node:fs";
Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 300);
writeFileSync(${JSON.stringify(mark)}, "");
`;
  await using pool = poolOf(folder.path, `${loading}${SERVING}`);
  const stop = new AbortController();
  const job = pool.run({ t: "hello" }, { signal: stop.signal });
  stop.abort(new Error("canceled"));
  await assert.rejects(job, /canceled/);
  assert.ok(existsSync(mark));
});

test("a thread that dies while it loads fails its job, and hinders nothing", async () => {
  using folder = temporaryFolder("headstart-pool-");
  await using pool = poolOf(folder.path, "throw new Error('no');");
  await assert.rejects(pool.run({ t: "hello" }), { code: "HS_INTERNAL" });
});
