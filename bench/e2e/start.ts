/** The main job: time to ready, bytes and requests of a lazy start against a plain pull, from the same registry at the same rate. What `npm start` does, with other rates too. */

import { join } from "node:path";
import { createIndex } from "../../src/convert/index.ts";
import { loadImage } from "../../src/oci/manifest.ts";
import { openDestination, openSource } from "../../src/oci/open.ts";
import { parseSource } from "../../src/oci/reference.ts";
import { writeDebianImage } from "../../src/sandbox/debian-image.ts";
import type { Figures, RunFigures } from "../../src/sandbox/figures.ts";
import { pushImage } from "../../src/sandbox/push.ts";
import { race } from "../../src/sandbox/race.ts";
import { prints } from "../../src/sandbox/ready.ts";
import { Session } from "../../src/sandbox/session.ts";
import { type BenchCase, type Report, say } from "../case.ts";
import { PYTHON_IMAGE, PYTHON_READY } from "../fixtures.ts";

const MIN_LAYER_SIZE = 1024 * 1024;
const SPAN_SIZE = 1024 * 1024;

interface Link {
  readonly bytesPerSecond?: number;
  readonly latencyMs?: number;
}

async function start(link: Link): Promise<Figures> {
  await using session = await Session.open({ say, meter: link });
  const { name } = PYTHON_IMAGE;
  const layout = join(session.root, "layout");
  await writeDebianImage(layout, PYTHON_IMAGE, say);
  const target = `${session.registry.host}/bench/${name}:1`;
  await pushImage(layout, name, target);
  const source = parseSource(`docker://${target}`);
  await using reader = await openSource(source);
  await using destination = await openDestination(source);
  await createIndex({ source: reader, destination, spanSize: SPAN_SIZE, minLayerSize: MIN_LAYER_SIZE });
  const { layers, configDescriptor, manifestDescriptor } = await loadImage(reader);
  const ref = `${session.meter.host}/bench/${name}:1`;
  return await race({
    version: "1.6.20",
    sandboxImage: session.sandboxImage,
    directory: session.directory("n"),
    meter: session.meter,
    image: {
      ref,
      digest: manifestDescriptor.digest,
      bytes: layers.reduce((sum, layer) => sum + layer.size, configDescriptor.size),
      layers: layers.length,
    },
    headstart: { policy: "referrers" },
    workload: () => ({ name: "bench", image: ref, ready: prints(PYTHON_READY) }),
    say,
  });
}

function tell(report: Report, { image, runs }: Figures): void {
  const [lazy, plain] = runs as [RunFigures, RunFigures];
  for (const run of [lazy, plain]) {
    report(`${run.mode}: ready`, run.readyMs, "ms");
    report(`${run.mode}: pull`, run.pullMs, "ms");
    report(`${run.mode}: fetched`, run.bytes / 1e6, "MB");
    report(`${run.mode}: requests`, run.requests, "");
  }
  report("lazy: reads that waited", lazy.faults, "");
  report("image", image.bytes / 1e6, "MB");
  report("ready, lazy / overlayfs", lazy.readyMs / plain.readyMs, "x");
  report("fetched, lazy / image", lazy.bytes / image.bytes, "x");
}

const LINKS: Readonly<Record<string, readonly [string, Link]>> = {
  "start.200mbit": ["200 Mbit/s, as npm start", { bytesPerSecond: 25_000_000 }],
  "start.1gbit": ["1 Gbit/s, 1 ms", { bytesPerSecond: 125_000_000, latencyMs: 1 }],
  "start.50mbit": ["50 Mbit/s, 50 ms", { bytesPerSecond: 6_250_000, latencyMs: 50 }],
};

export const START_CASES: readonly BenchCase[] = Object.entries(LINKS).map(([name, [text, link]]) => ({
  name,
  about: `python image started lazily and by a plain pull, containerd 1.6.20, ${text}`,
  async run(report) {
    tell(report, await start(link));
  },
}));
