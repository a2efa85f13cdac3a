/** V8's room for new objects, which doubles up to 64 MiB while many of them live for a moment longer than usual. */

import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";

/**
 * For the whole process, and for good: the room shrinks to its least, some 2 MiB, and stays so. For a command that walks a hundred thousand entries in its main thread
 * (threads have resourceLimits). Takes 0.1 s. Measured on a verification of 80,000 files: 230 MiB at the peak instead of 320, for 5 % more CPU.
 */
export function keepYoungGenerationSmall(): void {
  setFlagsFromString("--semi-space-growth-factor=1");
  setFlagsFromString("--expose-gc");
  const collect = runInNewContext("gc") as (options: Readonly<Record<string, string>>) => void;
  // the only way of collecting that shrinks it, too
  collect({ type: "major", execution: "sync", flavor: "last-resort" });
}
