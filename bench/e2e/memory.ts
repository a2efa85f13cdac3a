/** What supervisor and server hold in memory: idle, and with an image mounted, started lazily and then filled whole. From the bundle (as installed) and from the sources. */

import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { convertToSoci } from "../../src/convert/to-soci.ts";
import { openDestination, openSource } from "../../src/oci/open.ts";
import { parseSource } from "../../src/oci/reference.ts";
import type { HeadstartDaemon } from "../../src/sandbox/daemon.ts";
import { writeDebianImage } from "../../src/sandbox/debian-image.ts";
import { SandboxNode } from "../../src/sandbox/node.ts";
import { execute } from "../../src/sandbox/process.ts";
import { pushImage } from "../../src/sandbox/push.ts";
import { prints, startWorkload } from "../../src/sandbox/ready.ts";
import { Session } from "../../src/sandbox/session.ts";
import { memoryOf } from "../../test/tools/memory.ts";
import { type BenchCase, type Report, say } from "../case.ts";
import { PYTHON_IMAGE, PYTHON_READY } from "../fixtures.ts";

const SETTLE_MS = 5_000;
/** Threads that have nothing to do end after half a minute. */
const IDLE_MS = 40_000;
const SEALED_MS = 120_000;

async function measure(report: Report, from: "bundle" | "sources"): Promise<void> {
  await using session = await Session.open({ say });
  let command = {};
  if (from === "bundle") {
    const out = join(session.root, "b");
    await execute(process.execPath, [join(import.meta.dirname, "../../scripts/bundle.ts"), "--out", out]);
    command = { command: join(out, "bin/headstart") };
  }
  const { name } = PYTHON_IMAGE;
  const layout = join(session.root, "layout");
  await writeDebianImage(layout, PYTHON_IMAGE, say);
  const target = `${session.registry.host}/bench/${name}`;
  await pushImage(layout, name, `${target}:1`);
  {
    await using reader = await openSource(parseSource(`docker://${target}:1`));
    await using destination = await openDestination(parseSource(`docker://${target}:soci`));
    await convertToSoci({ source: reader, destination, tag: destination.tag });
  }
  await using node = await SandboxNode.start({
    directory: session.directory("n"),
    version: "1.6.20",
    registries: [session.registry.host, session.meter.host],
    sandboxImage: session.sandboxImage,
    headstart: { policy: "bound", ...command },
    say,
  });
  const daemon = node.headstart;
  const tell = (when: string) => {
    for (const [who, pid] of [
      ["supervisor", daemon.pid],
      ["server", daemon.serverPid],
    ] as const) {
      const { rss, anonymous } = memoryOf(pid);
      report(`${who}, ${when}: resident`, rss / 2 ** 20, "MiB");
      report(`${who}, ${when}: of its own`, anonymous / 2 ** 20, "MiB");
    }
  };
  await sleep(SETTLE_MS);
  tell("idle");
  const pod = await node.cri.runPod("bench");
  const workload = { name: "bench", image: `${target}:soci`, ready: prints(PYTHON_READY) };
  await startWorkload(node.cri, pod, workload);
  tell("at ready");
  await sealed(daemon);
  tell("image whole");
  await sleep(IDLE_MS);
  tell("40 s later");
  report("server, at its peak", memoryOf(daemon.serverPid).peak / 2 ** 20, "MiB");
}

async function sealed(daemon: HeadstartDaemon): Promise<void> {
  const deadline = performance.now() + SEALED_MS;
  for (;;) {
    const layers = (await daemon.status("/v1/layers")) as { state: string }[];
    if (layers.every((layer) => layer.state === "sealed")) return;
    if (performance.now() > deadline) throw new Error(`not sealed: ${JSON.stringify(layers)}`);
    await sleep(100);
  }
}

export const MEMORY_CASES: readonly BenchCase[] = (["bundle", "sources"] as const).map((from) => ({
  name: `memory.${from}`,
  about: `resident memory of the daemon from the ${from}: idle, with a python image lazily mounted, with it whole`,
  run: (report) => measure(report, from),
}));
