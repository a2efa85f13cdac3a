import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { linkSync, mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type TestContext, test } from "node:test";
import { systemClock } from "../base/clock.ts";
import { measureUsage, UsageCache } from "./usage.ts";

function tree(t: TestContext): string {
  const root = mkdtempSync(join(tmpdir(), "snapshot-usage-"));
  t.after(() => rmSync(root, { recursive: true, force: true }));
  for (let index = 0; index < 30; index++) {
    mkdirSync(join(root, `d${index}/e/f`), { recursive: true });
    writeFileSync(join(root, `d${index}/e/file`), Buffer.alloc(index * 1000, 1));
  }
  writeFileSync(join(root, "one"), Buffer.alloc(50_000, 1));
  linkSync(join(root, "one"), join(root, "d0/two"));
  linkSync(join(root, "one"), join(root, "d1/three"));
  symlinkSync("/etc", join(root, "link"));
  return root;
}

test("usage is what du says: blocks, hard links once, links not followed", async (t) => {
  const root = tree(t);
  const du = (option: string) => Number.parseInt(execFileSync("du", [option, root], { encoding: "utf8" }), 10);
  assert.deepEqual(await measureUsage(root), {
    bytes: du("-sk") * 1024,
    inodes: Number(execFileSync("du", ["-s", "--inodes", root], { encoding: "utf8" }).split("\t")[0]),
  });
});

test("what is mounted inside is not counted", async (t) => {
  const root = tree(t);
  const before = await measureUsage(root);
  execFileSync("mount", ["-t", "tmpfs", "none", join(root, "d0/e/f")]);
  try {
    writeFileSync(join(root, "d0/e/f/x"), Buffer.alloc(100_000));
    assert.equal((await measureUsage(root)).inodes, before.inodes - 1);
  } finally {
    execFileSync("umount", [join(root, "d0/e/f")]);
  }
});

test("a measurement is remembered in proportion to what it cost", async (t) => {
  const root = tree(t);
  let now = 0;
  const clock = { ...systemClock, monotonic: () => now++ * 100 };
  const cache = new UsageCache(clock);
  const first = await cache.measure(1, root);
  writeFileSync(join(root, "more"), "x");
  // it took 100 ms of this clock, hence holds for 3 s of it
  assert.deepEqual(await cache.measure(1, root), first);
  now += 40;
  assert.equal((await cache.measure(1, root)).inodes, first.inodes + 1);
  cache.forget(1);
  rmSync(join(root, "more"));
  assert.deepEqual(await cache.measure(1, root), first);
});

test("many who ask at once share one measurement", async (t) => {
  const root = tree(t);
  const cache = new UsageCache(systemClock);
  const results = await Promise.all(Array.from({ length: 5 }, () => cache.measure(1, root)));
  assert.ok(results.every((usage) => usage === results[0]));
});
