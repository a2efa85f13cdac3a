/**
 * The same workload started in several ways, one after the other, each on a fresh node, from the same registry at the same rate: the figures of `run` and
 * `npm start`.
 */

import { join } from "node:path";
import type { DaemonSettings } from "./daemon.ts";
import { type Figures, figures, type RunFigures } from "./figures.ts";
import { measureStart } from "./measure.ts";
import type { Meter } from "./meter.ts";
import type { NodeOptions, SandboxNode } from "./node.ts";
import { type Say, sayOnStderr } from "./packages.ts";
import type { Started, Workload } from "./ready.ts";

export interface RaceOptions extends Pick<NodeOptions, "version" | "sandboxImage" | "mirrors"> {
  /** As MeasureOptions. */
  readonly registries?: readonly string[];
  /** For the nodes, one after the other; removed afterwards. */
  readonly directory: string;
  readonly meter: Meter;
  readonly image: Figures["image"];
  /** Made anew for each start: a port is not free twice in a row. */
  readonly workload: () => Workload | Promise<Workload>;
  readonly headstart: Pick<DaemonSettings, "policy" | "config" | "env" | "command">;
  /** Default: lazy, then overlayfs. */
  readonly modes?: readonly ("lazy" | "overlayfs")[];
  /** With the container running and ready. */
  readonly ready?: (mode: RunFigures["mode"], node: SandboxNode, started: Started) => Promise<void>;
  readonly say?: Say;
}

export async function race(options: RaceOptions): Promise<Figures> {
  const { directory, workload, headstart, modes = ["lazy", "overlayfs"], ready, image, say = sayOnStderr } = options;
  const { version, sandboxImage, mirrors, meter, registries = [] } = options;
  const runs: RunFigures[] = [];
  for (const mode of modes) {
    say(mode === "lazy" ? "starting it lazily" : "starting it by a plain overlayfs pull");
    runs.push(
      await measureStart({
        version,
        sandboxImage,
        meter,
        registries,
        say,
        directory: join(directory, mode.slice(0, 1)),
        workload: await workload(),
        ...(mirrors === undefined ? {} : { mirrors }),
        ...(mode === "lazy" ? { headstart } : {}),
        ...(ready === undefined ? {} : { ready: (node, started) => ready(mode, node, started) }),
      }),
    );
  }
  return figures(image, runs);
}
