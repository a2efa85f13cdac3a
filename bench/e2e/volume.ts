/**
 * Two images of five layers of Debian packages (2.5 GB in 95 000 files, 780 MB compressed) onto a Bottlerocket disk, as a user does it from the command line: against writing the disk's bytes to a
 * file (dd), and against containerd's own pull of the images and `mkfs.ext4 -d` of its root. Rounds are interleaved. Then rebuilds after the disk: of the same images, and with one layer changed.
 */

import { rmSync } from "node:fs";
import { readFile, rm } from "node:fs/promises";
import { join } from "node:path";
import { type BuiltLayer, writeImage } from "../../src/sandbox/image-builder.ts";
import { SandboxNode } from "../../src/sandbox/node.ts";
import { execute } from "../../src/sandbox/process.ts";
import { pushImage } from "../../src/sandbox/push.ts";
import { Session } from "../../src/sandbox/session.ts";
import type { Provenance } from "../../src/volume/manifest.ts";
import { type BenchCase, percentile, type Report, say } from "../case.ts";
import { bigLayers, noiseLayer } from "../fixtures.ts";

const ROUNDS = 3;

interface Run {
  readonly ms: number;
  readonly cpuMs: number;
  readonly peakBytes: number;
}

/** Under time(1): what a child has taken is known to its parent alone. */
async function timed(command: string, args: readonly string[]): Promise<Run> {
  const { stderr } = await execute("/usr/bin/time", ["-f", "%e %U %S %M", command, ...args]);
  const [elapsed, user, system, peak] = stderr.trim().split("\n").at(-1)!.split(" ").map(Number) as [
    number,
    number,
    number,
    number,
  ];
  return { ms: elapsed * 1000, cpuMs: (user + system) * 1000, peakBytes: peak * 1024 };
}

async function manifestOf(path: string) {
  const statement = JSON.parse(await readFile(`${path}.json`, "utf8")) as Provenance;
  return statement.predicate.headstart_volume;
}

async function volume(report: Report): Promise<void> {
  const layers = [...(await bigLayers(5)), await noiseLayer()];
  await using session = await Session.open({ say });
  // as it is installed: the sources are compiled anew by every thread
  const installed = join(session.root, "b");
  await execute(process.execPath, [join(import.meta.dirname, "../../scripts/bundle.ts"), "--out", installed]);
  const command = join(installed, "bin/headstart");
  const layout = join(session.root, "layout");
  const push = async (name: string, indices: readonly number[]) => {
    await writeImage(
      layout,
      indices.map((index): BuiltLayer => layers[index]!),
      { name },
    );
    // past the meter: it costs a core of its own
    const image = `${session.registry.host}/bench/${name}:1`;
    await pushImage(layout, name, image);
    return image;
  };
  const images = [await push("one", [0, 1, 2]), await push("two", [0, 3, 4])];
  const output = (name: string) => join(session.root, `${name}.img`);
  const build = async (name: string, more: readonly string[] = []) => {
    for (const path of [output(name), `${output(name)}.json`]) rmSync(path, { force: true });
    return await timed(command, [
      "volume",
      "build",
      ...images,
      "--layout",
      "bottlerocket",
      "--output",
      output(name),
      ...more,
    ]);
  };

  const builds: Run[] = [];
  const copies: number[] = [];
  const classic: number[] = [];
  let bytes = 0;
  for (let round = 0; round < ROUNDS; round++) {
    builds.push(await build("disk"));
    const { blocks } = await manifestOf(output("disk"));
    bytes = Object.keys(blocks!.sha256).length * blocks!.size;
    copies.push((await timed("dd", [`if=${output("disk")}`, `of=${output("copy")}`, "bs=1M", "conv=sparse,fsync"])).ms);
    rmSync(output("copy"));
    classic.push(await pullAndFormat(session, images, output("classic"), bytes));
    rmSync(output("classic"));
    say(
      `round ${round + 1}: build ${builds.at(-1)!.ms} ms, dd ${copies.at(-1)} ms, pull and mkfs ${Math.round(classic.at(-1)!)} ms`,
    );
  }
  const buildMs = percentile(
    builds.map(({ ms }) => ms),
    0.5,
  );
  report("bytes on the disk", bytes / 1e6, "MB");
  report("build", bytes / 1e3 / buildMs, "MB/s");
  report(
    "CPU of a build",
    percentile(
      builds.map(({ cpuMs }) => cpuMs),
      0.5,
    ) /
      (bytes / 1e9),
    "ms/GB",
  );
  report("memory at the peak", Math.max(...builds.map(({ peakBytes }) => peakBytes)) / 2 ** 20, "MiB");
  report("dd of the same bytes", bytes / 1e3 / percentile(copies, 0.5), "MB/s");
  report("build to dd", buildMs / percentile(copies, 0.5), "x");
  report("ctr pull and mkfs.ext4 -d", bytes / 1e3 / percentile(classic, 0.5), "MB/s");
  report("ctr pull and mkfs.ext4 -d to build", percentile(classic, 0.5) / buildMs, "x");

  await build("same", ["--previous", output("disk")]);
  report("unchanged rebuild: blocks that differ", await changedBlocks(output("disk"), output("same")), "blocks");
  rmSync(output("same"));
  images[0] = await push("one", [0, 5, 2]);
  await build("changed", ["--previous", output("disk")]);
  const manifest = await manifestOf(output("changed"));
  const layer = manifest.images
    .flatMap((image) => image.layers)
    .find(({ digest }) => digest === layers[5]!.descriptor.digest)!;
  const own = layer.bytes! + layer.blobBytes;
  const changed = await changedBlocks(output("disk"), output("changed"));
  report("one layer changed: blocks that differ", changed, "blocks");
  report("one layer changed: their bytes to the layer's", (changed * manifest.blocks!.size) / own, "x");
}

/** Of those that hold anything now. */
async function changedBlocks(before: string, after: string): Promise<number> {
  const [left, right] = [await manifestOf(before), await manifestOf(after)];
  return Object.entries(right.blocks!.sha256).filter(([index, digest]) => left.blocks!.sha256[index] !== digest).length;
}

/** What one did before: a containerd pulls and unpacks, mkfs copies its root. Milliseconds. */
async function pullAndFormat(
  session: Session,
  images: readonly string[],
  output: string,
  bytes: number,
): Promise<number> {
  const directory = session.directory("n");
  await using node = await SandboxNode.start({
    directory,
    version: "1.7.24",
    registries: [session.registry.host],
    sandboxImage: session.sandboxImage,
    say,
  });
  const start = performance.now();
  for (const image of images) await node.ctr.pull(image);
  await node.containerd.stop();
  const size = Math.ceil((bytes * 1.2) / 2 ** 20);
  await execute("mkfs.ext4", ["-q", "-d", node.containerd.places.root, output, `${size}M`]);
  await execute("sync", ["-d", output]);
  const ms = performance.now() - start;
  await rm(directory, { recursive: true, force: true });
  return ms;
}

export const VOLUME_CASES: readonly BenchCase[] = [
  {
    name: "volume",
    about: "a Bottlerocket disk of 3.4 GB against dd and against ctr pull + mkfs.ext4 -d; rebuilds after it",
    run: volume,
  },
];
