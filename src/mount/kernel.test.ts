import assert from "node:assert/strict";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { fuseTimeoutWarnings, kernelGate } from "./kernel.ts";

test("file-backed mounts and direct I/O are allowed from the patch levels on that mended them", () => {
  const table: [string, boolean, boolean][] = [
    ["5.15.0-91-generic", false, false],
    ["6.1.155", false, false],
    ["6.12.0", false, false],
    ["6.12.28-1.el10", false, false],
    ["6.12.29", true, false],
    ["6.12.71", true, false],
    ["6.12.72-amzn", true, true],
    ["6.13.12", false, false],
    ["6.14.6", false, false],
    ["6.14.7", true, false],
    ["6.15", true, false],
    ["6.18.10", true, false],
    ["6.18.11", true, true],
    ["6.18.44-fc", true, true],
    ["6.19.0-rc1", true, true],
    ["7.0", true, true],
    ["nonsense", false, false],
  ];
  for (const [release, fileBacked, directio] of table) {
    const gate = kernelGate(release);
    assert.deepEqual([release, gate.fileBacked, gate.directio], [release, fileBacked, directio]);
    assert.equal(gate.reason === "", fileBacked && directio);
  }
});

test("a machine that cuts FUSE requests off is warned about; one without the setting is not", () => {
  const directory = mkdtempSync(join(tmpdir(), "headstart-sysctl-"));
  writeFileSync(join(directory, "max_request_timeout"), "60\n");
  writeFileSync(join(directory, "default_request_timeout"), "0\n");
  assert.deepEqual(fuseTimeoutWarnings(directory).length, 1);
  assert.match(fuseTimeoutWarnings(directory)[0] ?? "", /max_request_timeout is 60 s/);
  assert.deepEqual(fuseTimeoutWarnings(join(directory, "none")), []);
  rmSync(directory, { recursive: true });
});
