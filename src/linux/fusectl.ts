/**
 * The fusectl file system: `waiting` and `abort` of a FUSE connection, named by the minor number of its st_dev. Where /sys/fs/fuse/connections is not
 * mounted (containers, small systems) it is mounted privately for the length of one call.
 */

import { existsSync, mkdtempSync, readFileSync, rmdirSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { MountFlag, mount, UnmountFlag, unmount } from "./mount.ts";

const STANDARD = "/sys/fs/fuse/connections";

function withConnection<T>(minor: number, work: (directory: string) => T): T | null {
  const standard = join(STANDARD, String(minor));
  if (existsSync(standard)) return work(standard);
  const own = mkdtempSync(join(tmpdir(), "headstart-fusectl-"));
  try {
    mount({
      source: "fusectl",
      target: own,
      type: "fusectl",
      flags: MountFlag.noSuid | MountFlag.noDev | MountFlag.noExec,
    });
    try {
      const directory = join(own, String(minor));
      return existsSync(directory) ? work(directory) : null;
    } finally {
      unmount(own, UnmountFlag.detach);
    }
  } finally {
    rmdirSync(own);
  }
}

/** Requests that the kernel waits for, or null when there is no such connection. */
export function fuseWaiting(minor: number): number | null {
  return withConnection(minor, (directory) => Number(readFileSync(join(directory, "waiting"), "latin1")));
}

/** Every pending and future request of the connection fails at once. False when there is no such connection. */
export function abortFuse(minor: number): boolean {
  return withConnection(minor, (directory) => writeFileSync(join(directory, "abort"), "1")) !== null;
}
