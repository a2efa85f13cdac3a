/** House rules as tests: the error list is documented, doc links lead somewhere, nothing half-done or of one machine is committed. */

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { existsSync, readFileSync, statSync } from "node:fs";
import { dirname, join } from "node:path";
import { test } from "node:test";
import { ERRORS } from "../src/base/errors.ts";

const root = dirname(import.meta.dirname);
const files = execFileSync("git", ["ls-files"], { cwd: root, encoding: "utf8" })
  .split("\n")
  .filter((file) => file !== "" && existsSync(join(root, file)));
const read = (file: string) => readFileSync(join(root, file), "utf8");

test("docs/errors.md documents exactly the error codes that exist", () => {
  const documented = [...read("docs/errors.md").matchAll(/^\| `(HS_[A-Z0-9_]+)` \| ([a-z-]+) \|/gm)].map(
    (match) => `${match[1]} ${match[2]}`,
  );
  const existing = Object.entries(ERRORS).map(([code, entry]) => `${code} ${entry.kind}`);
  assert.deepEqual(documented.toSorted(), existing.toSorted());
});

test("links between documents lead to files that exist", () => {
  const broken: string[] = [];
  for (const file of files.filter((name) => name.endsWith(".md") && !name.startsWith("test/golden/"))) {
    for (const match of read(file).matchAll(/\]\((?!https?:|#|mailto:)([^)#\s]+)/g)) {
      if (!existsSync(join(root, dirname(file), match[1]!))) broken.push(`${file}: ${match[1]}`);
    }
  }
  assert.deepEqual(broken, []);
});

test("no source file has leftovers", () => {
  const marks = new RegExp(
    ["TO" + "DO", "FIX" + "ME", "X" + "XX", "not " + "implemented", "\\.on" + "ly\\(", "debug" + "ger;"].join("|"),
  );
  const found = files.filter((file) => file.endsWith(".ts") && !file.startsWith("src/gen/") && marks.test(read(file)));
  assert.deepEqual(found, []);
});

test("no tracked file is larger than 2 MiB", () => {
  const large = files.filter(
    (file) => statSync(join(root, file)).size > 2 * 1024 * 1024 && !file.startsWith("test/golden/fixture/"),
  );
  assert.deepEqual(large, []);
});
