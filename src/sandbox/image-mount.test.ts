import assert from "node:assert/strict";
import { test } from "node:test";
import { MountFlag } from "../linux/mount.ts";
import { parseMountCommand } from "./image-mount.ts";

test("what ctr prints becomes a call of mount(2)", () => {
  const overlay = "mount -t overlay overlay /mnt/x -o index=off,ro,lowerdir=/l/2:/l/1\n\n";
  assert.deepEqual(parseMountCommand(overlay, "/mnt/x"), {
    source: "overlay",
    target: "/mnt/x",
    type: "overlay",
    flags: MountFlag.readOnly,
    data: "index=off,lowerdir=/l/2:/l/1",
  });
  assert.deepEqual(parseMountCommand("mount -t bind /l/1 /mnt/x -o ro,rbind", "/mnt/x"), {
    source: "/l/1",
    target: "/mnt/x",
    type: "",
    flags: MountFlag.bind | MountFlag.recursive,
    data: "",
  });
  for (const text of ["", "no snapshot", `${overlay.trim()}\nmount -t tmpfs tmpfs /x -o size=1`]) {
    assert.throws(() => parseMountCommand(text, "/mnt/x"), { code: "HS_MOUNT" });
  }
});
