/**
 * One start, measured: a fresh node, an image pulled through the meter, a workload until it is ready; what it cost. The same for lazy and plain pulls,
 * so that their figures can stand beside each other.
 */

import { rm } from "node:fs/promises";
import type { DaemonSettings } from "./daemon.ts";
import { type RunFigures, runFigures } from "./figures.ts";
import type { Meter } from "./meter.ts";
import { type NodeOptions, SandboxNode } from "./node.ts";
import { type Started, startWorkload, type Workload } from "./ready.ts";

export interface MeasureOptions extends Omit<NodeOptions, "headstart" | "registries"> {
  readonly meter: Meter;
  readonly workload: Workload;
  /** Further registries of plain HTTP, that of the pause image for one. */
  readonly registries?: readonly string[];
  /** Absent: a plain pull by overlayfs. */
  readonly headstart?: Pick<DaemonSettings, "policy" | "config" | "env" | "command">;
  /** With the container running and ready, before the node ends. */
  readonly ready?: (node: SandboxNode, started: Started) => Promise<void>;
}

/** The daemon's counter of reads that waited for the registry. */
const FAULTS = "headstart_fault_wait_seconds_count";

/** The node's folder is removed afterwards. */
export async function measureStart(options: MeasureOptions): Promise<RunFigures> {
  const { meter, workload, ready, registries = [], ...node } = options;
  try {
    await using running = await SandboxNode.start({ ...node, registries: [meter.host, ...registries] });
    const pod = await running.cri.runPod(workload.name);
    const mark = meter.mark();
    const started = await startWorkload(running.cri, pod, workload);
    const fetched = meter.since(mark);
    const faults = options.headstart === undefined ? 0 : await running.headstart.metric(FAULTS);
    await ready?.(running, started);
    return runFigures(options.headstart === undefined ? "overlayfs" : "lazy", started, fetched, faults);
  } finally {
    await rm(options.directory, { recursive: true, force: true });
  }
}
