/** The same image in three lazy forms, each started on a fresh node from one registry at one rate: SOCI v2, Nydus native, Nydus over the unmodified layers; and a plain pull. */

import { join } from "node:path";
import { convertToNydus } from "../../src/convert/to-nydus.ts";
import { convertToSoci } from "../../src/convert/to-soci.ts";
import { NYDUS_DEFAULTS } from "../../src/formats/nydus/write/options.ts";
import { openDestination, openSource } from "../../src/oci/open.ts";
import { parseSource } from "../../src/oci/reference.ts";
import { writeDebianImage } from "../../src/sandbox/debian-image.ts";
import type { RunFigures } from "../../src/sandbox/figures.ts";
import { measureStart } from "../../src/sandbox/measure.ts";
import { pushImage } from "../../src/sandbox/push.ts";
import { prints } from "../../src/sandbox/ready.ts";
import { Session } from "../../src/sandbox/session.ts";
import { type BenchCase, type Report, say } from "../case.ts";
import { PYTHON_IMAGE, PYTHON_READY } from "../fixtures.ts";

const LINK = { bytesPerSecond: 25_000_000, latencyMs: 1 };
const FORMS = ["soci", "nydus", "nydus-ref"] as const;

async function convert(host: string, name: string, form: (typeof FORMS)[number]): Promise<void> {
  await using source = await openSource(parseSource(`docker://${host}/bench/${name}:1`));
  await using destination = await openDestination(parseSource(`docker://${host}/bench/${name}:${form}`));
  const { tag } = destination;
  if (form === "soci") await convertToSoci({ source, destination, tag, spanSize: 1 << 20, minLayerSize: 1 << 20 });
  else
    await convertToNydus({
      source,
      destination,
      tag,
      mode: form === "nydus" ? "native" : "ref",
      build: NYDUS_DEFAULTS,
    });
}

async function run(report: Report): Promise<void> {
  await using session = await Session.open({ say, meter: LINK });
  const { name } = PYTHON_IMAGE;
  const layout = join(session.root, "layout");
  await writeDebianImage(layout, PYTHON_IMAGE, say);
  await pushImage(layout, name, `${session.registry.host}/bench/${name}:1`);
  for (const form of FORMS) {
    say(`converting to ${form}`);
    await convert(session.registry.host, name, form);
  }
  const start = async (mode: string, tag: string, lazy: boolean): Promise<RunFigures> => {
    say(`starting it: ${mode}`);
    const image = `${session.meter.host}/bench/${name}:${tag}`;
    const figures = await measureStart({
      version: "1.6.20",
      sandboxImage: session.sandboxImage,
      directory: session.directory("n"),
      meter: session.meter,
      workload: { name: "bench", image, ready: prints(PYTHON_READY) },
      say,
      ...(lazy ? { headstart: { policy: "bound" as const } } : {}),
    });
    report(`${mode}: ready`, figures.readyMs, "ms");
    report(`${mode}: fetched`, figures.bytes / 1e6, "MB");
    report(`${mode}: requests`, figures.requests, "");
    report(`${mode}: reads that waited`, figures.faults, "");
    return figures;
  };
  const plain = await start("overlayfs", "1", false);
  for (const form of FORMS) {
    const figures = await start(form, form, true);
    report(`ready, ${form} / overlayfs`, figures.readyMs / plain.readyMs, "x");
    report(`fetched, ${form} / overlayfs`, figures.bytes / plain.bytes, "x");
  }
}

export const NYDUS_START_CASES: readonly BenchCase[] = [
  {
    name: "nydus.start",
    about: "python image started from SOCI, Nydus native, Nydus OCI-ref and by a plain pull, 200 Mbit/s, 1 ms",
    run,
  },
];
