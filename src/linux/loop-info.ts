/** What sysfs says about loop devices; touches neither device nor file. */

import { readFileSync } from "node:fs";
import { basename } from "node:path";

/** The file behind "/dev/loopN", or null. A deleted file has " (deleted)" at its end. */
export function loopBackingFile(device: string): string | null {
  if (!/^\/dev\/loop\d+$/.test(device)) return null;
  try {
    return readFileSync(`/sys/block/${basename(device)}/loop/backing_file`, "utf8").trimEnd();
  } catch {
    return null;
  }
}
