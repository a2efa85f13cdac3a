import assert from "node:assert/strict";
import { test } from "node:test";
import { decide } from "./retention.ts";
import type { SnapshotInfo } from "./snapshots.ts";

const DAY_MS = 24 * 3_600_000;
const NOW = 1000 * DAY_MS;

function snapshot(id: string, ageDays: number, status: SnapshotInfo["status"] = "completed"): SnapshotInfo {
  return {
    id,
    status,
    message: "",
    volumeSizeGiB: 1,
    startedAt: NOW - ageDays * DAY_MS,
    tags: new Map(),
    encrypted: false,
  };
}

const all = [snapshot("a", 40), snapshot("b", 30), snapshot("c", 20), snapshot("d", 10), snapshot("new", 0)];

test("the newest stay, the new one among them; older ones go", () => {
  const { deleted, kept } = decide(all, new Map(), { keep: 2, current: "new", now: NOW });
  assert.deepEqual(deleted, ["c", "b", "a"]);
  assert.deepEqual(
    kept.map(({ snapshot: id }) => id),
    ["new", "d"],
  );
  assert.deepEqual(decide(all, new Map(), { keep: 1, current: "new", now: NOW }).deleted, ["d", "c", "b", "a"]);
  assert.deepEqual(decide(all, new Map(), { keep: 9, current: "new", now: NOW }).deleted, []);
});

test("before the push one is to come", () => {
  assert.deepEqual(decide(all.slice(0, 4), new Map(), { keep: 2, current: undefined, now: NOW }).deleted, [
    "c",
    "b",
    "a",
  ]);
});

test("what is named somewhere, pending or a week young stays", () => {
  const found = decide(
    [
      ...all,
      snapshot("young", 6.9),
      snapshot("pending", 300, "pending"),
      snapshot("error", 300, "error"),
      snapshot("freshError", 1, "error"),
    ],
    new Map([["b", "launch template x version 1"]]),
    { keep: 1, current: "new", now: NOW },
  );
  assert.deepEqual(found.deleted.toSorted(), ["a", "c", "d", "error"]);
  assert.deepEqual(found.kept.map(({ snapshot: id, why }) => `${id}: ${why}`).toSorted(), [
    "b: launch template x version 1",
    "freshError: younger than 7 days",
    "new: the new one",
    "pending: pending",
    "young: younger than 7 days",
  ]);
});

test("a new one with an old date is not deleted", () => {
  const { deleted } = decide([snapshot("x", 5), snapshot("new", 100)], new Map(), {
    keep: 1,
    current: "new",
    now: NOW,
  });
  assert.deepEqual(deleted, []);
});
