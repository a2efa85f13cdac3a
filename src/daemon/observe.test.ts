import assert from "node:assert/strict";
import { globSync, readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { test } from "node:test";
import { OBSERVED } from "./observe.ts";

const source = dirname(import.meta.dirname);

test("every fact that a module publishes is observed, and nothing else is", () => {
  const published = new Set<string>();
  for (const file of globSync("**/*.ts", {
    cwd: source,
    exclude: (path) => path.startsWith("gen") || path.endsWith(".test.ts"),
  })) {
    for (const match of readFileSync(join(source, file), "utf8").matchAll(/\bpublish\(\s*"([^"]+)"/g))
      published.add(match[1]!);
  }
  assert.deepEqual([...published].toSorted(), Object.keys(OBSERVED).toSorted());
});
