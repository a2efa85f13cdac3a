/**
 * Mounting one EROFS image from a file, and from the files that hold its data where these are others: directly, or through a loop device for each; then looking whether the kernel did what
 * was asked.
 */

import { HeadstartError, isHeadstartError } from "../base/errors.ts";
import { Limit } from "../base/limit.ts";
import { mountReadOnlyAsync } from "../linux/fs-context.ts";
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
  /** Files with the image's data, in the order of its device table. */
  readonly devices?: readonly string[];
}

/** What one option of fsconfig(2) may have. */
const OPTION_BYTES_MAX = 255;

/** Throws HS_MOUNT; details.errnoName is ENOTBLK where the kernel cannot mount a file. HS_MOUNT_OPTIONS for a path that is too long to be one of several. */
export async function mountErofs(request: ErofsMount): Promise<void> {
  const { file, devices = [] } = request;
  if (devices.length > 0 && [file, ...devices].some((path) => Buffer.byteLength(path) > OPTION_BYTES_MAX))
    throw new HeadstartError("HS_MOUNT_OPTIONS", {
      what: `EROFS ${file}: paths of more than ${OPTION_BYTES_MAX} bytes; choose a shorter --root or --state`,
    });
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
  const { file, target, directio, devices = [] } = request;
  if (devices.length > 0) await mountDevices(file, target, devices, directio);
  else await mountAsync({ source: file, target, type: "erofs", flags: LAYER_FLAGS, data: directio ? "directio" : "" });
  const mounted = findMount(readMountInfo(), target);
  if (mounted?.type === "erofs" && mounted.source === file) return;
  await unmountAsync(target);
  throw new HeadstartError("HS_MOUNT", { what: `${target} shows ${mounted?.type} ${mounted?.source}, not ${file}` });
}

async function mountLoop(request: ErofsMount): Promise<void> {
  const { file, target, devices = [] } = request;
  await using stack = new AsyncDisposableStack();
  const image = stack.use(await attachLoop(file));
  if (devices.length === 0) {
    await mountAsync({ source: image.path, target, type: "erofs", flags: LAYER_FLAGS });
    return;
  }
  const loops: string[] = [];
  for (const device of devices) loops.push(stack.use(await attachLoop(device)).path);
  await mountDevices(image.path, target, loops, false);
}

/** One option after the other: the paths of many data files do not fit into mount(2)'s page. */
async function mountDevices(
  source: string,
  target: string,
  devices: readonly string[],
  directio: boolean,
): Promise<void> {
  await mountReadOnlyAsync({
    source,
    target,
    type: "erofs",
    options: [...(directio ? ([["directio"]] as const) : []), ...devices.map((device) => ["device", device] as const)],
  });
}
