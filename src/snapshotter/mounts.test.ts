import assert from "node:assert/strict";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { isHeadstartError } from "../base/errors.ts";
import { commonDirectory, type MountPlan, overlayDefaults, planMounts } from "./mounts.ts";

const plan = (change: Partial<MountPlan>): MountPlan => ({
  kind: "active",
  upper: "/r/snapshots/9/fs",
  work: "/r/snapshots/9/work",
  lowers: [],
  overlayOptions: ["index=off"],
  idmapOptions: [],
  ...change,
});
const lowers = (count: number, length = 0) => Array.from({ length: count }, (_, i) => `/r/l/${"x".repeat(length)}${i}`);

test("an active snapshot without parent is its own directory, writable", () => {
  assert.deepEqual(planMounts(plan({})), [{ type: "bind", source: "/r/snapshots/9/fs", options: ["rw", "rbind"] }]);
});

test("an active snapshot with parents is an overlay, the nearest parent first", () => {
  assert.deepEqual(planMounts(plan({ lowers: ["/r/l/1", "/r/l/2"] })), [
    {
      type: "overlay",
      source: "overlay",
      options: ["index=off", "workdir=/r/snapshots/9/work", "upperdir=/r/snapshots/9/fs", "lowerdir=/r/l/2:/r/l/1"],
    },
  ]);
  assert.equal(planMounts(plan({ lowers: ["/r/l/1"] }))[0]!.type, "overlay");
});

test("a view is read-only: its empty directory, the one layer, or an overlay without upper", () => {
  const view = (below: string[]) => planMounts(plan({ kind: "view", lowers: below }));
  assert.deepEqual(view([]), [{ type: "bind", source: "/r/snapshots/9/fs", options: ["ro", "rbind"] }]);
  assert.deepEqual(view(["/r/l/1"]), [{ type: "bind", source: "/r/l/1", options: ["ro", "rbind"] }]);
  assert.deepEqual(view(["/r/l/1", "/r/l/2"]), [
    { type: "overlay", source: "overlay", options: ["index=off", "lowerdir=/r/l/2:/r/l/1"] },
  ]);
});

test("id mappings go into the options of either form", () => {
  const idmapOptions = ["uidmap=0:1:2", "gidmap=0:1:2"];
  assert.deepEqual(planMounts(plan({ idmapOptions }))[0]!.options, ["rw", "rbind", ...idmapOptions]);
  assert.deepEqual(planMounts(plan({ idmapOptions, lowers: ["/r/l/1"] }))[0]!.options.slice(0, 2), idmapOptions);
});

test("128 layers fit when they share a directory, and what the kernel cannot take is refused in words", () => {
  assert.ok(planMounts(plan({ lowers: lowers(128) })));
  assert.ok(planMounts(plan({ lowers: lowers(500) })));
  const refused = (below: string[]) =>
    assert.throws(
      () => planMounts(plan({ lowers: below })),
      (error) => isHeadstartError(error, "HS_MOUNT_OPTIONS"),
    );
  refused(lowers(501));
  refused(lowers(128, 40));
  refused(["/r/l/a:b"]);
  refused(["/r/l/a,b", "/r/l/c"]);
  // no common directory: nothing can be left out
  assert.ok(planMounts(plan({ lowers: lowers(128, 24) })));
  refused([...lowers(128, 24), "/other/1"]);
});

test("the common directory is one that every path lies in", () => {
  assert.equal(commonDirectory(["/a/b/c", "/a/b/d"]), "/a/b");
  assert.equal(commonDirectory(["/a/b/c", "/a/b"]), "/a");
  assert.equal(commonDirectory(["/a/bc/x", "/a/b/x"]), "/a");
  assert.equal(commonDirectory(["/a", "/b"]), "/");
});

test("index=off is set where the kernel knows it, unless the administrator says otherwise", () => {
  const parameters = mkdtempSync(join(tmpdir(), "overlay-parameters-"));
  try {
    assert.deepEqual(overlayDefaults(["volatile"], parameters), ["volatile"]);
    writeFileSync(join(parameters, "index"), "N\n");
    assert.deepEqual(overlayDefaults(["volatile"], parameters), ["index=off", "volatile"]);
    assert.deepEqual(overlayDefaults(["index=on"], parameters), ["index=on"]);
    for (const option of ["ro", "lowerdir=/x", "upperdir=/x", "volatile,ro"]) {
      assert.throws(
        () => overlayDefaults([option], parameters),
        (error) => isHeadstartError(error, "HS_CONFIG"),
      );
    }
  } finally {
    rmSync(parameters, { recursive: true });
  }
});
