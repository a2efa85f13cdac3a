/** The fuzzers themselves: each runs for a few rounds here; long runs are `npm run fuzz -- NAME SECONDS`. */

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { join } from "node:path";
import { test } from "node:test";
import { FUZZERS } from "./all.ts";

function fuzz(...args: string[]) {
  return spawnSync(process.execPath, [join(import.meta.dirname, "main.ts"), ...args], { encoding: "utf8" });
}

test("every fuzzer passes a few rounds with fixed seeds", () => {
  const { status, stdout, stderr } = fuzz("smoke");
  assert.equal(status, 0, stderr);
  for (const name of Object.keys(FUZZERS).filter((each) => each !== "canary"))
    assert.match(stdout, new RegExp(`^${name}: 20 rounds`, "m"));
});

test("a round that fails is seen, and its seed repeats it", () => {
  const first = fuzz("canary", "5");
  assert.equal(first.status, 1);
  const seed = /npm run fuzz -- canary 1 (\d+)/.exec(first.stderr)?.[1];
  assert.ok(seed !== undefined, first.stderr);
  assert.match(fuzz("canary", "1", seed).stderr, new RegExp(`canary 1 ${seed}\n`));
});

test("without arguments the names are listed; an unknown name is wrong usage", () => {
  assert.deepEqual(fuzz().stdout.trim().split("\n"), Object.keys(FUZZERS));
  assert.equal(fuzz("nothing").status, 2);
});
