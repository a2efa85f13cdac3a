import assert from "node:assert/strict";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { DatabaseSync } from "node:sqlite";
import { type TestContext, test } from "node:test";
import { isHeadstartError } from "../base/errors.ts";
import { type NewSnapshot, SnapshotStore } from "./store.ts";

function place(t: TestContext): string {
  const directory = mkdtempSync(join(tmpdir(), "snapshot-store-"));
  t.after(() => rmSync(directory, { recursive: true, force: true }));
  return join(directory, "snapshots.db");
}

function open(t: TestContext, path: string): SnapshotStore {
  const store = new SnapshotStore(path, { busyMs: 50 });
  t.after(() => store.close());
  return store;
}

const snapshot = (name: string, change: Partial<NewSnapshot> = {}): NewSnapshot => ({
  name,
  parentId: null,
  kind: "committed",
  nowUs: 1_700_000_000_123_456,
  labels: {},
  layer: null,
  reason: null,
  ...change,
});

test("a row comes back as it was written, after closing and opening too", (t) => {
  const path = place(t);
  const store = open(t, path);
  const labels = JSON.parse('{"containerd.io/snapshot.ref":"sha256:aa","__proto__":"x","é\\"":"\\u0000"}');
  const parent = store.insert(snapshot("parent"));
  const id = store.insert(snapshot("n", { parentId: parent, kind: "active", labels, layer: 7, reason: "because" }));
  const row = store.byId(id);
  store.close();
  const again = open(t, path).byName("n");
  assert.deepEqual(again, row);
  assert.deepEqual(
    { ...again, labels: Object.entries(again!.labels) },
    {
      id,
      name: "n",
      parentId: parent,
      parent: "parent",
      kind: "active",
      createdUs: 1_700_000_000_123_456,
      updatedUs: 1_700_000_000_123_456,
      labels: Object.entries(labels),
      layer: 7,
      reason: "because",
      usage: null,
      broken: null,
    },
  );
});

test("ids are never used again", (t) => {
  const store = open(t, place(t));
  const first = store.insert(snapshot("a"));
  store.remove(first);
  assert.ok(store.insert(snapshot("a")) > first);
});

test("a transaction that throws leaves nothing, also when it was nested", (t) => {
  const store = open(t, place(t));
  assert.throws(() =>
    store.transaction(() => {
      store.insert(snapshot("a"));
      store.transaction(() => store.insert(snapshot("b")));
      throw new Error("no");
    }),
  );
  assert.deepEqual(store.page(0, 10), []);
  store.transaction(() => store.insert(snapshot("a")));
  assert.equal(store.page(0, 10).length, 1);
});

test("claims are found by target and parent, sound committed ones only", (t) => {
  const store = open(t, place(t));
  const labels = { "containerd.io/snapshot.ref": "sha256:aa" };
  const a = store.insert(snapshot("a", { labels }));
  const b = store.insert(snapshot("b", { labels, parentId: a }));
  store.insert(snapshot("c", { labels, kind: "active", parentId: b }));
  assert.equal(store.findByRef("sha256:aa", null)?.id, a);
  assert.equal(store.findByRef("sha256:aa", a)?.id, b);
  assert.equal(store.findByRef("sha256:aa", b), null);
  assert.equal(store.findByRef("sha256:bb", null), null);
  store.setBroken(a, "gone");
  assert.equal(store.findByRef("sha256:aa", null), null);
  store.setLabels(b, {}, 1);
  assert.equal(store.findByRef("sha256:aa", a), null);
});

test("a second daemon on the same root is refused", (t) => {
  const path = place(t);
  open(t, path).insert(snapshot("a"));
  assert.throws(
    () => new SnapshotStore(path, { busyMs: 50 }),
    (error) => isHeadstartError(error, "HS_STATE_BUSY"),
  );
});

test("state of a newer version, and a file that is no database, are refused and left alone", (t) => {
  const path = place(t);
  open(t, path).close();
  const database = new DatabaseSync(path);
  database.exec("PRAGMA user_version = 99");
  database.close();
  assert.throws(
    () => new SnapshotStore(path),
    (error) => isHeadstartError(error, "HS_STATE_VERSION"),
  );
  const damaged = place(t);
  writeFileSync(damaged, "not a database, but long enough to be looked at as if it were one ".repeat(40));
  assert.throws(
    () => new SnapshotStore(damaged),
    (error) => isHeadstartError(error, "HS_STATE_DAMAGED"),
  );
});
