/**
 * Unmounting everything that an instance of ours left below its state directory, in the order that the kernel allows: overlays over our layers, then the layers
 * (EROFS, with their loop devices), then binds and the rest, then FUSE, which is EBUSY as long as anything over it lives.
 */

import { isHeadstartError } from "../base/errors.ts";
import { abortFuse } from "./fusectl.ts";
import { loopBackingFile } from "./loop-info.ts";
import { UnmountFlag, unmountAsync } from "./mount.ts";
import { isUnder, type MountInfo, readMountInfo } from "./mountinfo.ts";

export interface UnmountOptions {
  /** Abort FUSE connections and detach what is busy: pending reads fail with EIO, containers on these mounts lose their files. */
  readonly force?: boolean;
}

/** Mount points that are still there afterwards. Never throws because of a single mount. */
export async function unmountTree(directory: string, options: UnmountOptions = {}): Promise<string[]> {
  // first of all: unmounting waits for pages that are being read, in a sleep that no signal ends, and nobody may be left to answer
  if (options.force) for (const mount of ours(directory)) if (isFuse(mount)) abortFuse(mount.minor);
  // several passes: mounts may be stacked on one mount point
  for (let pass = 0; pass < 8; pass++) {
    const mounts = inOrder(ours(directory));
    if (mounts.length === 0) return [];
    let progress = false;
    for (const mount of mounts) {
      if (await tryUnmount(mount.mountPoint, options.force ? UnmountFlag.detach : 0)) progress = true;
    }
    if (!progress) break;
  }
  return ours(directory).map((mount) => mount.mountPoint);
}

/** Mounts below `directory`; and anywhere: EROFS mounts of files in it, overlays that name a lower directory in it. */
function ours(directory: string): MountInfo[] {
  return readMountInfo().filter(
    (mount) =>
      (isUnder(mount.mountPoint, directory) && mount.mountPoint !== directory) ||
      (mount.type === "erofs" && isUnder(loopBackingFile(mount.source) ?? mount.source, directory)) ||
      (mount.type === "overlay" && lowerDirectories(mount).some((lower) => isUnder(lower, directory))),
  );
}

export function lowerDirectories(mount: MountInfo): string[] {
  return mount.superOptions
    .filter((option) => option.startsWith("lowerdir="))
    .flatMap((option) => option.slice("lowerdir=".length).split(":"));
}

export function isFuse(mount: MountInfo): boolean {
  return mount.type === "fuse" || mount.type.startsWith("fuse.");
}

function inOrder(mounts: readonly MountInfo[]): MountInfo[] {
  const rank = (mount: MountInfo) =>
    mount.type === "overlay" ? 0 : mount.type === "erofs" ? 1 : isFuse(mount) ? 3 : 2;
  // within a rank the deepest first; later mounts of one path lie on top
  return mounts
    .map((mount, index) => ({ mount, index }))
    .sort(
      (a, b) =>
        rank(a.mount) - rank(b.mount) || b.mount.mountPoint.length - a.mount.mountPoint.length || b.index - a.index,
    )
    .map(({ mount }) => mount);
}

async function tryUnmount(target: string, flags: number): Promise<boolean> {
  try {
    await unmountAsync(target, flags | UnmountFlag.noFollow);
    return true;
  } catch (error) {
    // EBUSY: in use, another pass or the caller's list tells; EINVAL: it went meanwhile
    if (isHeadstartError(error, "HS_SYSCALL")) return false;
    throw error;
  }
}
