/**
 * A pulled image's tree, mounted for reading: a view of its topmost snapshot. For images that CRI pulled `ctr images mount` is no help: that of containerd 1.6 unpacks
 * with the default snapshotter whatever it is told.
 */

import { mkdir, rmdir } from "node:fs/promises";
import { createClient } from "@connectrpc/connect";
import { HeadstartError } from "../base/errors.ts";
import { Snapshots } from "../gen/github.com/containerd/containerd/api/services/snapshots/v1/snapshots_pb.ts";
import { MountFlag, type MountRequest, mountAsync, UnmountFlag, unmountAsync } from "../linux/mount.ts";
import type { SandboxNode } from "./node.ts";

const CALL = { headers: { "containerd-namespace": "k8s.io" }, timeoutMs: 60_000 };

/** Mounts an image that CRI has pulled at `target`, which is made, until the result is disposed of. Throws HS_MOUNT, HS_SYSCALL. */
export async function mountCriImage(node: SandboxNode, image: string, target: string): Promise<AsyncDisposable> {
  const { snapshotter } = node;
  const parent = await node.cri.chainID(image);
  const snapshots = createClient(Snapshots, node.cri.transport);
  const key = `tree-${process.pid}-${target.replaceAll("/", "-")}`;
  // nothing refers to it: without this the next garbage collection takes it away
  const labels = { "containerd.io/gc.root": new Date().toISOString() };
  await mkdir(target, { recursive: true });
  const { mounts } = await snapshots.view({ snapshotter, key, parent, labels }, CALL);
  const remove = () => snapshots.remove({ snapshotter, key }, CALL);
  try {
    if (mounts.length !== 1) throw new HeadstartError("HS_MOUNT", { what: `${image}: ${mounts.length} mounts` });
    await mountAsync(mountRequest(mounts[0]!, target));
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

/** containerd's mount (specs/containerd.md 5.1) as a call of mount(2). */
export function mountRequest(
  mount: { readonly type: string; readonly source: string; readonly options: readonly string[] },
  target: string,
): MountRequest {
  const { type, source, options } = mount;
  const bind = type === "bind" || options.includes("rbind") || options.includes("bind");
  const data = options.filter((word) => !["ro", "rw", "bind", "rbind"].includes(word)).join(",");
  const flags = bind ? MountFlag.bind | MountFlag.recursive : MountFlag.readOnly;
  return { source, target, type: bind ? "" : type, flags, data };
}
