/** Mounting one EROFS image from a file: directly, or through a loop device; then looking whether the kernel did what was asked. */

import { HeadstartError, isHeadstartError } from "../base/errors.ts";
import { Limit } from "../base/limit.ts";
import { attachLoop } from "../linux/loop.ts";
import { MountFlag, mountAsync, unmountAsync } from "../linux/mount.ts";
import { findMount, readMountInfo } from "../linux/mountinfo.ts";

export type Backing = "file" | "loop";

/**
 * Not nosuid, nodev, noexec: a view of one layer is a bind mount of this, and would inherit them (specs/erofs-fuse.md 7). Through overlayfs they change nothing. The 0700
 * directory above keeps the host's users away from setuid files of images.
 */
const LAYER_FLAGS = MountFlag.readOnly;
/** These wait on threads of libuv's pool, of which there are four: others need some too. */
const mounting = new Limit(2);

export interface ErofsMount {
  readonly file: string;
  /** An existing directory. */
  readonly target: string;
  readonly backing: Backing;
  readonly directio: boolean;
}

/** Throws HS_MOUNT; details.errnoName is ENOTBLK where the kernel cannot mount a file. */
export async function mountErofs(request: ErofsMount): Promise<void> {
  try {
    await mounting.run(() => (request.backing === "file" ? mountFile(request) : mountLoop(request)));
  } catch (error) {
    if (!isHeadstartError(error, "HS_SYSCALL")) throw error;
    throw new HeadstartError("HS_MOUNT", {
      what: `EROFS ${request.file} at ${request.target}`,
      cause: error,
      errnoName: error.details.errnoName,
    });
  }
}

async function mountFile(request: ErofsMount): Promise<void> {
  const { file, target } = request;
  await mountAsync({
    source: file,
    target,
    type: "erofs",
    flags: LAYER_FLAGS,
    data: request.directio ? "directio" : "",
  });
  const mounted = findMount(readMountInfo(), target);
  if (mounted?.type === "erofs" && mounted.source === file) return;
  await unmountAsync(target);
  throw new HeadstartError("HS_MOUNT", { what: `${target} shows ${mounted?.type} ${mounted?.source}, not ${file}` });
}

async function mountLoop(request: ErofsMount): Promise<void> {
  await using device = await attachLoop(request.file);
  await mountAsync({ source: device.path, target: request.target, type: "erofs", flags: LAYER_FLAGS });
}
