/** Read-ahead windows in sysfs. Best effort: sysfs may be read-only, and a wrong window costs speed, never data. */

import { writeFileSync } from "node:fs";

/** True if the kernel took it. */
export function setReadAheadKiB(name: string, kiB: number): boolean {
  try {
    writeFileSync(`/sys/class/bdi/${name}/read_ahead_kb`, String(kiB));
    return true;
  } catch {
    return false;
  }
}
