/**
 * Taking a whole instance down: layer mounts, then FUSE. For private instances (`run`, `npm start`, tests) and for uninstalling; a daemon that stops leaves its mounts, since
 * containers run on them. The hole server must have stopped, or be in another process: unmounting may wait for it.
 */

import { HeadstartError } from "../base/errors.ts";
import { unmountTree } from "../linux/unmount-tree.ts";

/**
 * Unmounts everything below and over these directories, in order; overlays that use them first. `force` aborts the FUSE connection and detaches what is busy: pending reads
 * fail, and containers on lazy layers lose them. Throws HS_MOUNT with what is still there.
 */
export async function teardown(directories: readonly string[], options: { force?: boolean } = {}): Promise<void> {
  const left = new Set<string>();
  for (const directory of directories) for (const path of await unmountTree(directory, options)) left.add(path);
  if (left.size > 0) throw new HeadstartError("HS_MOUNT", { what: `still mounted: ${[...left].join(", ")}` });
}
