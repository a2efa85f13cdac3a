/** What is synced to disk by this thread through `FileHandle.sync`, for tests of what a power loss leaves. */

import { readlinkSync } from "node:fs";
import { type FileHandle, open } from "node:fs/promises";
import type { TestContext } from "node:test";

/** Until the test ends `work` is called for each sync, with the file's path, and does it by `sync` or does not. */
export async function onSync(
  t: TestContext,
  work: (path: string, sync: () => Promise<void>) => Promise<void>,
): Promise<void> {
  const handle = await open("/dev/null");
  const handles = Object.getPrototypeOf(handle) as FileHandle;
  await handle.close();
  const { sync } = handles;
  t.mock.method(handles, "sync", function (this: FileHandle) {
    return work(readlinkSync(`/proc/self/fd/${this.fd}`), () => sync.call(this));
  });
}
