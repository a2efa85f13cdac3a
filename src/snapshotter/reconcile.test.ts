import assert from "node:assert/strict";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { isSameBoot } from "./reconcile.ts";
import { SnapshotStore } from "./store.ts";

test("a boot is recognised by the kernel's boot id, over restarts", (t) => {
  const directory = mkdtempSync(join(tmpdir(), "snapshot-boot-"));
  t.after(() => rmSync(directory, { recursive: true }));
  const ask = (id: string) => {
    const store = new SnapshotStore(join(directory, "snapshots.db"));
    try {
      return isSameBoot(store, id);
    } finally {
      store.close();
    }
  };
  assert.equal(ask("a"), false);
  assert.equal(ask("a"), true);
  assert.equal(ask("b"), false);
  assert.equal(ask("b"), true);
});
