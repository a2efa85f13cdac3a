import assert from "node:assert/strict";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { isHeadstartError } from "../base/errors.ts";
import { cachedDirectory, withCacheLock } from "./cache.ts";
import { leftSince, takeInventory } from "./inventory.ts";
import { Child, execute } from "./process.ts";

const root = mkdtempSync(join(tmpdir(), "headstart-process-"));
process.env.HEADSTART_CACHE = join(root, "cache");
after(() => rmSync(root, { recursive: true }));

test("a program that fails says how, with its last lines", async () => {
  await assert.rejects(execute("sh", ["-c", "echo reason >&2; exit 3"]), (error) => {
    assert.ok(isHeadstartError(error, "HS_CHILD_FAILED"));
    assert.match(error.message, /exit code 3\n {2}reason/);
    return true;
  });
  assert.equal((await execute("sh", ["-c", "cat; exit 3"], { input: "in", accept: [3] })).stdout, "in");
  await assert.rejects(execute("no-such-program", []), { code: "HS_TOOL_MISSING" });
});

test("a program that takes too long is killed", async () => {
  await assert.rejects(execute("sleep", ["100"], { timeoutMs: 50 }), /took too long/);
});

test("a child is waited for by a line, and ends with its owner", async () => {
  let pid: number;
  {
    await using child = await Child.start("sh", ["-c", "echo port 123; exec sleep 100"]);
    const [, port] = await child.waitForLine(/port (\d+)/);
    assert.equal(port, "123");
    pid = child.pid;
  }
  assert.throws(() => process.kill(pid, 0), { code: "ESRCH" });
  await using short = await Child.start("sh", ["-c", "echo gone"]);
  await assert.rejects(short.waitForLine(/never/), /ended before[\s\S]*gone/);
});

test("a cache entry is built once, however many ask, and a failed build leaves nothing", async () => {
  let builds = 0;
  const build = () =>
    cachedDirectory("things/one", async () => {
      builds++;
      await new Promise((resolve) => setTimeout(resolve, 50));
    });
  const paths = await Promise.all([build(), build(), build()]);
  assert.equal(builds, 1);
  assert.deepEqual(new Set(paths), new Set([join(root, "cache/things/one")]));
  const failing = cachedDirectory("things/two", () => Promise.reject(new Error("no")));
  await assert.rejects(failing, /no/);
  const { stdout } = await execute("ls", [join(root, "cache/things")]);
  assert.equal(stdout, "one\n");
});

test("the lock of a process that was killed is free again", async () => {
  const script = `
    import { withCacheLock } from ${JSON.stringify(join(import.meta.dirname, "cache.ts"))};
    await withCacheLock("held", async () => { console.log("held"); await new Promise((r) => setTimeout(r, 100_000)); });`;
  const holder = await Child.start(process.execPath, ["--input-type=module", "-e", script]);
  await holder.waitForLine(/held/);
  let taken = false;
  const taking = withCacheLock("held", async () => {
    taken = true;
  });
  await new Promise((resolve) => setTimeout(resolve, 250));
  assert.equal(taken, false);
  holder.kill("SIGKILL");
  await taking;
  await holder.end;
});

test("an inventory names the processes and mounts of a folder, and nothing else", async () => {
  const before = takeInventory([root]);
  {
    await using child = await Child.start("sleep", ["100"], { cwd: root });
    await execute("mount", ["-t", "tmpfs", "tmpfs", root]);
    assert.deepEqual(leftSince(before, [root]), [`mount ${root} (tmpfs)`, `process ${child.pid}: sleep 100 [${root}]`]);
    await execute("umount", [root]);
  }
  assert.deepEqual(leftSince(before, [root]), []);
});
