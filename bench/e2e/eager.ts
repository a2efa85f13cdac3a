/**
 * An image without an index: pulled by headstart into EROFS, against containerd's own pull into overlayfs, by CRI and by `ctr`, from the same registry without any cap. Rounds are interleaved,
 * each on a fresh node; the medians are compared.
 */

import { rm } from "node:fs/promises";
import { join } from "node:path";
import { writeImage } from "../../src/sandbox/image-builder.ts";
import { SandboxNode } from "../../src/sandbox/node.ts";
import { pushImage } from "../../src/sandbox/push.ts";
import { ends, startWorkload } from "../../src/sandbox/ready.ts";
import { Session } from "../../src/sandbox/session.ts";
import { memoryOf } from "../../test/tools/memory.ts";
import { type BenchCase, percentile, type Report, say } from "../case.ts";
import { bigLayer } from "../fixtures.ts";

const ROUNDS = 3;

async function eager(report: Report): Promise<void> {
  const layer = await bigLayer();
  await using session = await Session.open({ say });
  const layout = join(session.root, "layout");
  await writeImage(layout, [layer], { name: "big" });
  // past the meter: it costs a core of its own
  const image = `${session.registry.host}/bench/big:1`;
  await pushImage(layout, "big", image);
  const times: Record<"headstart" | "overlayfs" | "ctr", number[]> = { headstart: [], overlayfs: [], ctr: [] };
  let peak = 0;
  for (let round = 0; round < ROUNDS; round++) {
    for (const mode of ["headstart", "overlayfs", "ctr"] as const) {
      const directory = session.directory("n");
      {
        await using node = await SandboxNode.start({
          directory,
          version: "1.6.20",
          registries: [session.registry.host, session.meter.host],
          sandboxImage: session.sandboxImage,
          ...(mode === "headstart" && { headstart: { policy: "bound" } }),
          say,
        });
        if (mode === "ctr") {
          const start = performance.now();
          await node.ctr.pull(image);
          times.ctr.push(performance.now() - start);
        } else {
          const pod = await node.cri.runPod("bench");
          const workload = { name: "bench", image, command: ["/bin/true"], ready: ends(node.cri) };
          const { readyMs } = await startWorkload(node.cri, pod, workload);
          times[mode].push(readyMs);
          if (mode === "headstart") {
            peak = Math.max(peak, memoryOf(node.headstart.serverPid).peak);
            const layers = (await node.headstart.status("/v1/layers")) as { state: string }[];
            // a start before the pull is over would be no eager pull
            if (layers.length === 0 || layers.some((layer) => layer.state !== "sealed"))
              throw new Error(`not whole when the container ran: ${JSON.stringify(layers)}`);
          }
        }
      }
      await rm(directory, { recursive: true, force: true });
      say(`round ${round + 1}, ${mode}: ${Math.round(times[mode].at(-1)!)} ms`);
    }
  }
  const median = (mode: keyof typeof times) => percentile([...times[mode]], 0.5);
  for (const mode of ["headstart", "overlayfs", "ctr"] as const) {
    const what = mode === "ctr" ? "ctr pull (overlayfs)" : `${mode}: pulled and run`;
    report(what, median(mode), "ms");
    report(`${what}, uncompressed`, layer.size / 1000 / median(mode), "MB/s");
  }
  report("server: peak", peak / 2 ** 20, "MiB");
  report("time, headstart / overlayfs", median("headstart") / median("overlayfs"), "x");
  report("time, headstart / ctr", median("headstart") / median("ctr"), "x");
}

export const EAGER_CASES: readonly BenchCase[] = [
  { name: "eager", about: "one layer of 510 MB without an index, containerd 1.6.20, no rate cap", run: eager },
];
