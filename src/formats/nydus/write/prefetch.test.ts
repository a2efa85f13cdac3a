import assert from "node:assert/strict";
import { test } from "node:test";
import { parsePrefetchPatterns, prefetchTable } from "./prefetch.ts";

test("patterns are absolute paths, one a line; comments and empty lines are left out", () => {
  assert.deepEqual(parsePrefetchPatterns("/bin/sh\r\n\n# hot\n/etc\n/with space \n"), [
    "/bin/sh",
    "/etc",
    "/with space ",
  ]);
  assert.deepEqual(parsePrefetchPatterns(""), []);
});

test("a line that is no absolute path is refused with its number", () => {
  for (const text of ["/ok\nbin/sh", "/ok\n/a\0b", `/ok\n/${"a".repeat(5000)}`]) {
    assert.throws(() => parsePrefetchPatterns(text, "list"), { code: "HS_USAGE", message: /list: line 2/ });
  }
});

test("the table has the nids in order, and the root alone where it is among them", () => {
  const nids = Uint32Array.of(128, 140, 2 ** 31);
  assert.deepEqual([...prefetchTable([2, 1], nids)], [0, 0, 0, 128, 140, 0, 0, 0]);
  assert.deepEqual([...prefetchTable([2, 0, 1], nids)], [128, 0, 0, 0]);
  assert.equal(prefetchTable([], nids).byteLength, 0);
});
