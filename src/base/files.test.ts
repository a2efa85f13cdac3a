import assert from "node:assert/strict";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { giveName } from "./files.ts";

test("a finished file gets its name, unless something has it meanwhile, which stays as it is", () => {
  const folder = mkdtempSync(join(tmpdir(), "headstart-files-"));
  try {
    const [part, name] = [join(folder, "part"), join(folder, "name")];
    writeFileSync(part, "new");
    giveName(part, name);
    assert.equal(readFileSync(name, "utf8"), "new");
    writeFileSync(name, "another's");
    rmSync(part, { force: true });
    writeFileSync(part, "newer");
    assert.throws(() => giveName(part, name), { code: "HS_OUTPUT_EXISTS" });
    assert.equal(readFileSync(name, "utf8"), "another's");
  } finally {
    rmSync(folder, { recursive: true });
  }
});
