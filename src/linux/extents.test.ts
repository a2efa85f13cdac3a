import assert from "node:assert/strict";
import { closeSync, ftruncateSync, mkdtempSync, openSync, rmSync, writeSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { isHeadstartError } from "../base/errors.ts";
import { dataExtents } from "./extents.ts";

const MiB = 1024 * 1024;

test("only what was written is data, and a hole at the end is none", () => {
  const directory = mkdtempSync(join(tmpdir(), "headstart-extents-"));
  const fd = openSync(join(directory, "f"), "w+");
  try {
    assert.deepEqual([...dataExtents(fd, 0)], []);
    ftruncateSync(fd, 64 * MiB);
    assert.deepEqual([...dataExtents(fd, 64 * MiB)], []);
    writeSync(fd, Buffer.alloc(4096, 1), 0, 4096, 10 * MiB);
    writeSync(fd, Buffer.alloc(MiB, 1), 0, MiB, 20 * MiB);
    const found = [...dataExtents(fd, 64 * MiB)];
    for (const { start, end } of found) assert.ok(start < end && end <= 64 * MiB);
    for (const wanted of [10 * MiB, 20 * MiB, 21 * MiB - 1]) {
      assert.ok(
        found.some(({ start, end }) => start <= wanted && wanted < end),
        `byte ${wanted}`,
      );
    }
    assert.ok(!found.some(({ start, end }) => start <= 40 * MiB && 40 * MiB < end));
  } finally {
    closeSync(fd);
    rmSync(directory, { recursive: true });
  }
  assert.throws(
    () => [...dataExtents(fd, 4096)],
    (error) => isHeadstartError(error, "HS_SYSCALL"),
  );
});
