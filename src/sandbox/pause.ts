/** The sandbox ("pause") image: Debian's static busybox, sleeping. Small enough that nobody notices it. */

import { readFile } from "node:fs/promises";
import { layerOf, writeImage } from "./image-builder.ts";
import type { Say } from "./packages.ts";
import { busyboxProgram } from "./tools.ts";

export const PAUSE_NAME = "pause";

/** Entries of a root file system whose only program is busybox, under the names given. */
export async function busyboxEntries(applets: readonly string[], say?: Say) {
  const data = await readFile(await busyboxProgram(say));
  return [
    { path: "bin/" },
    { path: "bin/busybox", data, mode: 0o755 },
    ...applets.map((name) => ({ path: `bin/${name}`, type: "symlink" as const, target: "busybox" })),
    { path: "tmp/", mode: 0o1777 },
  ];
}

/** Writes the image into the layout as `pause`. */
export async function writePauseImage(layout: string, say?: Say): Promise<void> {
  const layer = layerOf(await busyboxEntries(["sleep"], say), { createdBy: "busybox-static" });
  await writeImage(layout, [layer], { name: PAUSE_NAME, entrypoint: ["/bin/sleep", "2147483647"] });
}
