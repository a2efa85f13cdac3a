import assert from "node:assert/strict";
import { closeSync, mkdtempSync, openSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { copyRange } from "./copy-range.ts";

test("bytes are copied from one place to the other, and a source that ends before is said", (context) => {
  const folder = mkdtempSync(join(tmpdir(), "headstart-copy-"));
  context.after(() => rmSync(folder, { recursive: true }));
  const bytes = Buffer.alloc(3 * 4096, "abcdefg");
  writeFileSync(join(folder, "a"), bytes);
  writeFileSync(join(folder, "b"), Buffer.alloc(4 * 4096, "-"));
  const [from, to] = [openSync(join(folder, "a"), "r"), openSync(join(folder, "b"), "r+")];
  try {
    assert.equal(copyRange(from, 4096, to, 8192, 4096), true);
    const expected = Buffer.concat([Buffer.alloc(8192, "-"), bytes.subarray(4096, 8192), Buffer.alloc(4096, "-")]);
    assert.deepEqual(readFileSync(join(folder, "b")), expected);
    assert.equal(copyRange(from, 8192, to, 0, 8192), false);
  } finally {
    closeSync(from);
    closeSync(to);
  }
});
