/**
 * A pulled image's tree, mounted for reading: a view of its topmost snapshot. For images that CRI pulled `ctr images mount` is no help: that of containerd 1.6 unpacks
 * with the default snapshotter whatever it is told.
 */

import { mkdir, rmdir } from "node:fs/promises";
import { HeadstartError } from "../base/errors.ts";
import { MountFlag, mountAsync, UnmountFlag, unmountAsync } from "../linux/mount.ts";
import type { SandboxNode } from "./node.ts";

const CRI_NAMESPACE = "k8s.io";

/** Mounts an image that CRI has pulled at `target`, which is made, until the result is disposed of. Throws HS_CHILD_FAILED, HS_MOUNT, HS_SYSCALL. */
export async function mountCriImage(node: SandboxNode, image: string, target: string): Promise<AsyncDisposable> {
  const chainID = await node.cri.chainID(image);
  const ctr = node.ctr.in(CRI_NAMESPACE);
  const snapshots = ["snapshots", "--snapshotter", node.snapshotter];
  const key = `tree-${process.pid}-${target.replaceAll("/", "-")}`;
  await mkdir(target, { recursive: true });
  await ctr.call([...snapshots, "view", key, chainID]);
  // nothing refers to it: without this the next garbage collection takes it away
  await ctr.call([...snapshots, "label", key, `containerd.io/gc.root=${new Date().toISOString()}`]);
  const remove = () => ctr.call([...snapshots, "remove", key]);
  try {
    const { stdout } = await ctr.call([...snapshots, "mounts", target, key]);
    await mountAsync(parseMountCommand(stdout, target));
  } catch (error) {
    await remove();
    throw error;
  }
  return {
    [Symbol.asyncDispose]: async () => {
      await unmountAsync(target, UnmountFlag.detach);
      await remove();
      await rmdir(target);
    },
  };
}

/** "mount -t overlay overlay /target -o index=off,lowerdir=/a:/b", as ctr prints it. Throws HS_MOUNT. */
export function parseMountCommand(text: string, target: string) {
  const lines = text.trim().split("\n");
  const [, type, source, options] = /^mount -t (\S+) (\S+) \S+ -o (\S+)$/.exec(lines[0]!.trim()) ?? [];
  if (lines.length !== 1 || type === undefined || source === undefined || options === undefined) {
    throw new HeadstartError("HS_MOUNT", { what: `ctr's mount command: ${text.slice(0, 300)}` });
  }
  const words = options.split(",");
  const bind = type === "bind" || words.includes("rbind") || words.includes("bind");
  const data = words.filter((word) => !["ro", "rw", "bind", "rbind"].includes(word)).join(",");
  const flags = bind ? MountFlag.bind | MountFlag.recursive : MountFlag.readOnly;
  return { source, target, type: bind ? "" : type, flags, data };
}
