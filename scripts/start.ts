/**
 * `npm start`: the main job, with real parts and real figures. Makes an image of a few hundred MB from Debian packages (once; cached), pushes it unmodified to a private registry, attaches a
 * SOCI index to it, starts it lazily under a private containerd, then by a plain overlayfs pull, and prints both. Leaves nothing mounted or running.
 *
 *   npm start [-- --json] [-- --rate BYTES_PER_SECOND]
 */

import { join } from "node:path";
import { parseArgs } from "node:util";
import { reportError } from "../src/cli/exit.ts";
import { startsTable } from "../src/cli/starts.ts";
import { formatBytes } from "../src/cli/table.ts";
import { createIndex } from "../src/convert/index.ts";
import { loadImage } from "../src/oci/manifest.ts";
import { openDestination, openSource } from "../src/oci/open.ts";
import { parseSource } from "../src/oci/reference.ts";
import { writeDebianImage } from "../src/sandbox/debian-image.ts";
import type { Figures } from "../src/sandbox/figures.ts";
import { debianPackages } from "../src/sandbox/packages.ts";
import { pushImage } from "../src/sandbox/push.ts";
import { race } from "../src/sandbox/race.ts";
import { prints } from "../src/sandbox/ready.ts";
import { Session } from "../src/sandbox/session.ts";

const PACKAGES = ["runc", "containerd", "docker-registry", "mmdebstrap", "busybox-static"];
const NAME = "python-app";
/** 200 Mbit/s: over an uncapped loopback the background fill would have fetched everything before the container is ready. */
const RATE = 25_000_000;
const SPAN_SIZE = 2 * 1024 * 1024;
const PROGRAM = `
import asyncio, decimal, http.server, json, sqlite3, ssl, sys
answer = sqlite3.connect(":memory:").execute("select 6 * 7").fetchone()[0]
print("python", sys.version.split()[0], "ready", answer, flush=True)
import time
time.sleep(3600)
`;

async function main(options: { json: boolean; rate: number }): Promise<Figures> {
  const say = (text: string) => process.stderr.write(`headstart: ${text}\n`);
  await debianPackages(PACKAGES, say);
  const meter = { bytesPerSecond: options.rate };
  await using session = await Session.open({ say, meter });
  const layout = join(session.root, "layout");
  const application = [{ path: "app/" }, { path: "app/main.py", data: PROGRAM }];
  await writeDebianImage(
    layout,
    { name: NAME, layers: ["python", "science"], application, command: ["/usr/bin/python3", "/app/main.py"] },
    say,
  );
  const target = `${session.registry.host}/demo/${NAME}:1`;
  await pushImage(layout, NAME, target);
  say("attaching a SOCI index to it (the image stays as it is)");
  const source = parseSource(`docker://${target}`);
  await using reader = await openSource(source);
  await using destination = await openDestination(source);
  await createIndex({ source: reader, destination, spanSize: SPAN_SIZE, minLayerSize: 1024 * 1024 });
  const { layers, configDescriptor, manifestDescriptor } = await loadImage(reader);
  const reference = `${session.meter.host}/demo/${NAME}:1`;
  say(`the registry gives ${formatBytes(options.rate)} a second; index policy: referrers`);
  return await race({
    version: "1.6.20",
    sandboxImage: session.sandboxImage,
    directory: session.directory("n"),
    meter: session.meter,
    image: {
      ref: reference,
      digest: manifestDescriptor.digest,
      bytes: layers.reduce((sum, layer) => sum + layer.size, configDescriptor.size),
      layers: layers.length,
    },
    headstart: { policy: "referrers" },
    workload: () => ({ name: "demo", image: reference, ready: prints(/^python 3\S* ready 42$/m) }),
    say,
  });
}

try {
  const { values } = parseArgs({
    options: { json: { type: "boolean", default: false }, rate: { type: "string", default: String(RATE) } },
  });
  if (process.getuid?.() !== 0) throw new Error("npm start mounts file systems: run it as root");
  const figures = await main({ json: values.json, rate: Number(values.rate) });
  process.stdout.write(values.json ? `${JSON.stringify(figures)}\n` : `\n${startsTable(figures)}\n`);
} catch (error) {
  process.exitCode = reportError(error, { debug: true });
}
