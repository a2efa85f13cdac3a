import assert from "node:assert/strict";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type TestContext, test } from "node:test";
import type { ChainID } from "../base/digest.ts";
import { type ErrorCode, isHeadstartError } from "../base/errors.ts";
import {
  type CreateSnapshot,
  claimSnapshot,
  commitSnapshot,
  createSnapshot,
  listSnapshots,
  removeSnapshot,
  updateSnapshot,
} from "./snapshots.ts";
import { type Labels, SnapshotStore } from "./store.ts";

function openStore(t: TestContext): SnapshotStore {
  const directory = mkdtempSync(join(tmpdir(), "snapshot-rules-"));
  const store = new SnapshotStore(join(directory, "snapshots.db"));
  t.after(() => {
    store.close();
    rmSync(directory, { recursive: true });
  });
  return store;
}

const request = (key: string, parent = "", labels: Labels = {}): CreateSnapshot => ({ key, parent, labels });
const create = (store: SnapshotStore, key: string, parent = "", kind: "active" | "view" = "active") =>
  createSnapshot(store, request(key, parent), { kind, nowUs: 1, reason: null, withId: () => undefined });
const commit = (store: SnapshotStore, name: string, key: string, parent = "") =>
  commitSnapshot(store, { name, key, labels: {}, parent }, 2);
const committed = (store: SnapshotStore, name: string, parent = "") => {
  create(store, `${name}-a`, parent);
  return commit(store, name, `${name}-a`);
};
const throws = (code: ErrorCode, work: () => unknown) => assert.throws(work, (error) => isHeadstartError(error, code));

test("creating needs a fresh key and a committed parent", (t) => {
  const store = openStore(t);
  committed(store, "p");
  create(store, "a", "p");
  create(store, "v", "p", "view");
  throws("HS_SNAPSHOT_EXISTS", () => create(store, "a"));
  throws("HS_SNAPSHOT_EXISTS", () => create(store, "p"));
  throws("HS_SNAPSHOT_NOT_FOUND", () => create(store, "x", "none"));
  throws("HS_SNAPSHOT_INVALID", () => create(store, "x", "a"));
  throws("HS_SNAPSHOT_INVALID", () => create(store, "x", "v"));
  throws("HS_SNAPSHOT_INVALID", () => create(store, ""));
  throws("HS_SNAPSHOT_INVALID", () => create(store, "x".repeat(5000)));
});

test("a label of more than 4096 bytes is refused, key and value counted together in UTF-8", (t) => {
  const store = openStore(t);
  const withLabel = (value: string) =>
    createSnapshot(store, request("k", "", { é: value }), {
      kind: "view",
      nowUs: 1,
      reason: null,
      withId: () => undefined,
    });
  throws("HS_SNAPSHOT_INVALID", () => withLabel("x".repeat(4095)));
  withLabel("x".repeat(4094));
});

test("when the directories cannot be made there is no row", (t) => {
  const store = openStore(t);
  const withId = () => {
    throw new Error("full");
  };
  assert.throws(() => createSnapshot(store, request("k"), { kind: "view", nowUs: 1, reason: null, withId }), /full/);
  assert.equal(store.byName("k"), null);
});

test("commit replaces labels, sets both times, and needs an active key and a fresh name", (t) => {
  const store = openStore(t);
  createSnapshot(store, request("k", "", { old: "1" }), {
    kind: "active",
    nowUs: 1,
    reason: "r",
    withId: () => undefined,
  });
  create(store, "v", "", "view");
  const row = commitSnapshot(store, { name: "n", key: "k", labels: { new: "2" }, parent: "" }, 5);
  assert.deepEqual(
    [row.name, row.kind, { ...row.labels }, row.createdUs, row.updatedUs, row.reason],
    ["n", "committed", { new: "2" }, 5, 5, "r"],
  );
  throws("HS_SNAPSHOT_NOT_FOUND", () => commit(store, "m", "k"));
  throws("HS_SNAPSHOT_KIND", () => commit(store, "m", "v"));
  throws("HS_SNAPSHOT_KIND", () => commit(store, "m", "n"));
  create(store, "k2");
  throws("HS_SNAPSHOT_EXISTS", () => commit(store, "n", "k2"));
  throws("HS_SNAPSHOT_INVALID", () => commit(store, "", "k2"));
});

test("a commit may bring the parent (rebase), but not another one", (t) => {
  const store = openStore(t);
  committed(store, "p");
  committed(store, "q");
  create(store, "a");
  throws("HS_SNAPSHOT_NOT_FOUND", () => commit(store, "n", "a", "none"));
  create(store, "active");
  throws("HS_SNAPSHOT_KIND", () => commit(store, "n", "a", "active"));
  assert.equal(commit(store, "n", "a", "p").parent, "p");
  create(store, "b", "p");
  throws("HS_SNAPSHOT_INVALID", () => commit(store, "m", "b", "q"));
  assert.equal(commit(store, "m", "b", "p").parent, "p");
});

test("only leaves are removed", (t) => {
  const store = openStore(t);
  committed(store, "p");
  create(store, "a", "p");
  throws("HS_SNAPSHOT_CHILDREN", () => removeSnapshot(store, "p"));
  removeSnapshot(store, "a");
  removeSnapshot(store, "p");
  throws("HS_SNAPSHOT_NOT_FOUND", () => removeSnapshot(store, "p"));
});

test("a claim is a committed snapshot of a fresh name; the second one of the same kind is the first", (t) => {
  const store = openStore(t);
  const target = `sha256:${"a".repeat(64)}` as ChainID;
  const labels = { "containerd.io/snapshot.ref": target };
  const claim = (key: string, parent: string, layer: number) =>
    claimSnapshot(store, request(key, parent, labels), { target, layer, nowUs: 1 });
  const first = claim("ns1/1/x", "", 7);
  assert.deepEqual([first.isNew, first.row.kind, first.row.layer], [true, "committed", 7]);
  assert.equal(first.row.name, `${first.row.id}/${target}`);
  const second = claim("ns2/1/x", "", 8);
  assert.deepEqual([second.isNew, second.row.id], [false, first.row.id]);
  const above = claim("ns2/2/x", first.row.name, 9);
  assert.deepEqual([above.isNew, above.row.parent], [true, first.row.name]);
  assert.deepEqual([...store.layersInUse()], [7, 9]);
});

test("labels are set, replaced and deleted by mask", (t) => {
  const store = openStore(t);
  create(store, "a");
  const update = (labels: Labels, mask: string[]) => ({
    ...updateSnapshot(store, { name: "a", labels, mask }, 9).labels,
  });
  assert.deepEqual(update({ a: "1", "b.c": "2" }, []), { a: "1", "b.c": "2" });
  assert.deepEqual(update({ "b.c": "3", d: "4" }, ["labels.b.c"]), { a: "1", "b.c": "3" });
  assert.deepEqual(update({ a: "" }, ["labels.a", "labels.none"]), { "b.c": "3" });
  assert.deepEqual(update({ x: "1" }, ["labels", "labels.y"]), { x: "1" });
  for (const path of ["parent", "kind", "name", "", "label", "labels_x"]) {
    throws("HS_SNAPSHOT_INVALID", () => update({}, [path]));
  }
  throws("HS_SNAPSHOT_NOT_FOUND", () => updateSnapshot(store, { name: "none", labels: {}, mask: [] }, 9));
  const large = Object.fromEntries([["__proto__", "p"]]);
  assert.deepEqual(Object.entries(update(large, ["labels.__proto__"])), [
    ["x", "1"],
    ["__proto__", "p"],
  ]);
});

test("a list comes in pages of the asked size, and what is removed meanwhile is no trouble", (t) => {
  const store = openStore(t);
  for (let index = 0; index < 25; index++) committed(store, `n${index}`);
  const sizes: number[] = [];
  for (const page of listSnapshots(store, [], 10)) sizes.push(page.length);
  assert.deepEqual(sizes, [10, 10, 5]);
  const names: string[] = [];
  for (const page of listSnapshots(store, ["name!=n3"], 10)) {
    names.push(...page.map(({ name }) => name));
    if (store.byName("n24") !== null) removeSnapshot(store, "n24");
  }
  assert.equal(names.length, 23);
  throws("HS_FILTER", () => listSnapshots(store, ["="], 10));
});
