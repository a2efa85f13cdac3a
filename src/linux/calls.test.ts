import assert from "node:assert/strict";
import {
  closeSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { isHeadstartError } from "../base/errors.ts";
import { MountFlag, mount, mountAsync, unmount, unmountAsync } from "./mount.ts";
import { findMount, readMountInfo } from "./mountinfo.ts";
import { makeNode } from "./node.ts";
import { openPidfd, takeDescriptor } from "./process.ts";
import { getXattr, listXattrs, removeXattr, setXattr } from "./xattr.ts";

const root = process.getuid?.() === 0;
const directory = mkdtempSync(join(tmpdir(), "headstart-linux-"));
after(() => rmSync(directory, { recursive: true, force: true }));

test("a refused call says what was tried and carries the errno's name", async () => {
  const request = { source: "none", target: "/nowhere/at/all", type: "tmpfs", flags: 0 };
  const expected = (error: unknown) =>
    isHeadstartError(error, "HS_SYSCALL") &&
    error.details.errnoName === "ENOENT" &&
    /mount -t tmpfs/.test(error.message);
  assert.throws(() => mount(request), expected);
  await assert.rejects(() => mountAsync(request), expected);
  await assert.rejects(
    () => unmountAsync("/nowhere/at/all"),
    (error) => isHeadstartError(error) && error.details.errnoName === "ENOENT",
  );
});

test("a tmpfs is mounted, seen and unmounted", { skip: !root && "needs root" }, async () => {
  const target = join(directory, "t m");
  mkdirSync(target);
  mount({ source: "none", target, type: "tmpfs", flags: MountFlag.noDev | MountFlag.noSuid, data: "size=64k" });
  assert.equal(findMount(readMountInfo(), target)?.type, "tmpfs");
  unmount(target);
  await mountAsync({ source: "none", target, type: "tmpfs", flags: 0 });
  await unmountAsync(target);
  assert.equal(findMount(readMountInfo(), target), undefined);
});

test("xattrs of a file are set, listed, read and removed; a missing one is null", () => {
  const file = join(directory, "x");
  writeFileSync(file, "");
  setXattr(file, "user.one", Buffer.from([1, 0, 2]));
  setXattr(Buffer.from(file), Buffer.from("user.two"), Buffer.alloc(0));
  assert.deepEqual(
    listXattrs(file)
      .map((name) => Buffer.from(name).toString())
      .sort(),
    ["user.one", "user.two"],
  );
  assert.deepEqual([...(getXattr(file, "user.one") ?? [])], [1, 0, 2]);
  assert.equal(getXattr(file, "user.two")?.byteLength, 0);
  assert.equal(getXattr(file, "user.three"), null);
  removeXattr(file, "user.one");
  assert.equal(getXattr(file, "user.one"), null);
  symlinkSync("x", join(directory, "link"));
  assert.equal(getXattr(join(directory, "link"), "user.two"), null);
});

test("a whiteout device, a fifo and a device with large numbers are made", { skip: !root && "needs root" }, () => {
  makeNode(join(directory, "w"), { kind: "char", mode: 0o600 });
  assert.equal(lstatSync(join(directory, "w")).rdev, 0);
  makeNode(join(directory, "p"), { kind: "fifo", mode: 0o600 });
  assert.ok(lstatSync(join(directory, "p")).isFIFO());
  makeNode(join(directory, "b"), { kind: "block", mode: 0o600, major: 259, minor: 70_000 });
  const device = BigInt(lstatSync(join(directory, "b"), { bigint: true }).rdev);
  assert.equal((device >> 8n) & 0xfffn, 259n);
});

test("a descriptor is taken over through a pidfd", () => {
  const file = join(directory, "f");
  writeFileSync(file, "taken");
  const fd = openSync(file, "r");
  const pidfd = openPidfd(process.pid);
  const copy = takeDescriptor(pidfd, fd);
  assert.notEqual(copy, fd);
  assert.equal(readFileSync(copy, "utf8"), "taken");
  for (const each of [fd, pidfd, copy]) closeSync(each);
});
