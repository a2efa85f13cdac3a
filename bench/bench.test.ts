/** The runner alone; what it measures is run by hand (README.md). */

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { join } from "node:path";
import { test } from "node:test";
import { CASES } from "./all.ts";

const bench = (...args: string[]) =>
  spawnSync(process.execPath, [join(import.meta.dirname, "main.ts"), ...args], { encoding: "utf8" });

test("cases have names of their own, and are listed", () => {
  assert.equal(new Set(CASES.map(({ name }) => name)).size, CASES.length);
  const { status, stdout } = bench("--list");
  assert.equal(status, 0);
  assert.deepEqual(
    stdout
      .trimEnd()
      .split("\n")
      .map((line) => line.split(" ")[0]),
    CASES.map(({ name }) => name),
  );
});

test("a case runs in a process of its own, and its figures are JSON", () => {
  const { status, stdout, stderr } = bench("^erofs.layout-lazy$", "--json");
  assert.equal(status, 0, stderr);
  const { cases } = JSON.parse(stdout) as { cases: { name: string; figures: { value: number; unit: string }[] }[] };
  assert.deepEqual(
    cases.map(({ name }) => name),
    ["erofs.layout-lazy"],
  );
  assert.ok(cases[0]!.figures.every(({ value, unit }) => Number.isFinite(value) && typeof unit === "string"));
});

test("a name that there is not is wrong usage", () => {
  assert.equal(bench("no-such-case").status, 2);
});
