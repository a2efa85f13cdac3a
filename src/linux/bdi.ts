/** Read-ahead windows in sysfs. Best effort: sysfs may be read-only, and a wrong window costs speed, never data. */

import { readFileSync, writeFileSync } from "node:fs";

/** `name` is "0:<minor>" of a FUSE mount, or "erofs-<N>" as in /sys/fs/erofs (specs/erofs-fuse.md 10). */
export function readAheadKiB(name: string): number | null {
  try {
    return Number(readFileSync(`/sys/class/bdi/${name}/read_ahead_kb`, "latin1"));
  } catch {
    return null;
  }
}

/** True if the kernel took it. */
export function setReadAheadKiB(name: string, kiB: number): boolean {
  try {
    writeFileSync(`/sys/class/bdi/${name}/read_ahead_kb`, String(kiB));
    return true;
  } catch {
    return false;
  }
}
