import assert from "node:assert/strict";
import { test } from "node:test";
import { MountFlag } from "../linux/mount.ts";
import { mountRequest } from "./image-mount.ts";

test("containerd's mounts become calls of mount(2)", () => {
  const options = ["index=off", "ro", "lowerdir=/l/2:/l/1"];
  assert.deepEqual(mountRequest({ type: "overlay", source: "overlay", options }, "/mnt/x"), {
    source: "overlay",
    target: "/mnt/x",
    type: "overlay",
    flags: MountFlag.readOnly,
    data: "index=off,lowerdir=/l/2:/l/1",
  });
  assert.deepEqual(mountRequest({ type: "bind", source: "/l/1", options: ["ro", "rbind"] }, "/mnt/x"), {
    source: "/l/1",
    target: "/mnt/x",
    type: "",
    flags: MountFlag.bind | MountFlag.recursive,
    data: "",
  });
});
