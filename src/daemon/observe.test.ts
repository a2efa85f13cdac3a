import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { closeSync, globSync, openSync, readFileSync } from "node:fs";
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

test("a log on a full disk does not end the server", () => {
  const full = openSync("/dev/full", "w");
  const program = `
    import { publish } from ${JSON.stringify(join(source, "base/events.ts"))};
    import { Observer } from ${JSON.stringify(join(source, "daemon/observe.ts"))};
    using observer = new Observer("debug");
    for (let count = 0; count < 3000; count++) publish("mount:mounted", { pad: "x".repeat(1000) });
    console.log("goes on");
  `;
  try {
    const args = ["--input-type=module-typescript", "--eval", program];
    const { stdout } = spawnSync(process.execPath, args, { stdio: ["ignore", "pipe", full], encoding: "utf8" });
    assert.equal(stdout, "goes on\n");
  } finally {
    closeSync(full);
  }
});
