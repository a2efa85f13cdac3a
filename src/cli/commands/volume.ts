/** `headstart volume build|inspect`: images on a volume that a node boots with. */

import { readFileSync } from "node:fs";
import type { Command } from "commander";
import { HeadstartError } from "../../base/errors.ts";
import { formatPlatform, hostPlatform, type Platform, parsePlatform } from "../../oci/platform.ts";
import { parseSource } from "../../oci/reference.ts";
import {
  type BuildSource,
  buildVolume,
  checkOutput,
  LAYOUTS,
  LAYOUTS_LATER,
  openPlan,
  type VolumeLayout,
} from "../../volume/build.ts";
import { inspectRoot } from "../../volume/inspect.ts";
import { type VolumeManifest, volumeManifest } from "../../volume/manifest.ts";
import { describePlan, planSizes, type VolumePlan } from "../../volume/plan.ts";
import { openProgress } from "../progress.ts";
import { type AccessOptions, addSourceOptions, openOptions } from "../sources.ts";
import { formatBytes, formatTable } from "../table.ts";

interface BuildOptions extends AccessOptions {
  readonly output: string;
  readonly layout: string;
  readonly platform?: string;
  readonly pin: boolean;
  readonly blobs: string;
  readonly name?: readonly string[];
  readonly include?: string;
  readonly dryRun?: boolean;
  readonly json?: boolean;
}

export function registerVolume(program: Command): void {
  const volume = program
    .command("volume")
    .summary("images on a volume that a node boots with")
    .description("Warm volumes: images in the place where a new node's containerd looks for them.")
    .addHelpText(
      "after",
      `
Examples:
  headstart volume build HOST/APP:1 --output ./containerd
  headstart volume inspect ./containerd
`,
    );
  registerBuild(volume);
  registerInspectVolume(volume);
}

function registerBuild(volume: Command): void {
  const command = volume
    .command("build [sources...]")
    .summary("put images, unpacked, where containerd finds them")
    .description(
      "Put images, unpacked, where containerd finds them at its first start: nothing is pulled or unpacked then.",
    )
    .requiredOption("--output <PATH>", "what to make; must not exist. PATH.json beside it gets the provenance")
    .option("--layout <LAYOUT>", "containerd: PATH is a directory, the root of a containerd", "containerd")
    .option("--platform <OS/ARCH,...>", "one, or several: a volume each (default: this machine's)")
    .option("--no-pin", "let kubelet's garbage collection remove the images")
    .option("--blobs <keep|drop>", "drop: leave out the compressed layers (see below)", "keep")
    .option("--name <REF>", "a further name; with several sources NUMBER=REF, counted from 1", collect)
    .option("--include <FILE>", "more sources: one a line, # begins a comment")
    .option("--dry-run", "print what would be made; no layer is fetched");
  addSourceOptions(command, { platform: false })
    .option("--json", "one object for each volume")
    .addHelpText("after", BUILD_HELP)
    .action(build);
}

const BUILD_HELP = `
An image gets its name by tag and by digest: kubelet may ask for either. One of a layout or
an archive that has no whole name there needs --name. It takes root: owners, devices and
attributes are real. The same input gives the same bytes: all times are SOURCE_DATE_EPOCH,
or the newest image's creation.

--blobs drop saves about a third. Containers start; but on a node with another snapshotter
than overlayfs they cannot be created, which nothing repairs but removing the image, and
peers (Spegel and others) have nothing to serve.

Examples:
  headstart volume build HOST/APP:1 HOST/SIDECAR:2 --output ./containerd
  headstart volume build oci:./layout:v1 --name HOST/APP:1 --output ./containerd
  headstart volume build --include images.txt --output ./containerd --dry-run
`;

function collect(value: string, before: readonly string[] = []): readonly string[] {
  return [...before, value];
}

async function build(named: readonly string[], options: BuildOptions): Promise<void> {
  const layout = parseLayout(options.layout);
  const blobs = parseBlobs(options.blobs);
  const sources = readSources(named, options);
  const platforms = options.platform?.split(",").map((text) => parsePlatform(text.trim())) ?? [hostPlatform()];
  const outputs = platforms.map((platform) => ({
    platform,
    output: platforms.length === 1 ? options.output : `${options.output}-${platformSuffix(platform)}`,
  }));
  if (!options.dryRun) for (const { output } of outputs) checkOutput(output);
  if (!blobs && !options.json) {
    process.stderr.write(
      "Without the layers' blobs a node with another snapshotter than overlayfs cannot create these containers.\n",
    );
  }
  const time = sourceDateEpoch();
  using interrupt = new Interrupt();
  for (const { platform, output } of outputs) {
    const { signal } = interrupt;
    await using opened = await openPlan({ sources, platform, pinned: options.pin, blobs, time, signal });
    const { plan } = opened;
    if (options.dryRun) {
      const manifest = volumeManifest(plan, { layout, usage: new Map() });
      print(
        options,
        { dryRun: true, output, sizes: planSizes(plan), ...manifest },
        plan,
        manifest,
        `${output}: would hold`,
      );
      continue;
    }
    const progress = openProgress({ quiet: options.json === true });
    const total = planSizes(plan);
    const { predicate } = await buildVolume(opened, {
      output,
      layout,
      signal,
      onProgress: ({ fetchedBytes, layersDone }) =>
        progress.update(
          `${formatBytes(fetchedBytes)} of ${formatBytes(total.layerBytes)} fetched, ${layersDone} of ${total.snapshots} layers unpacked`,
        ),
    });
    progress.done();
    const manifest = predicate.headstart_volume;
    print(options, { output, ...manifest }, plan, manifest, `${output}:`);
  }
}

function print(
  options: BuildOptions,
  object: Readonly<Record<string, unknown>>,
  plan: VolumePlan,
  manifest: VolumeManifest,
  intro: string,
): void {
  if (options.json) {
    process.stdout.write(`${JSON.stringify(object)}\n`);
    return;
  }
  const rows = manifest.images.map((image) => {
    const bytes = image.layers.reduce((sum, layer) => sum + layer.blobBytes, 0);
    return [
      image.refs.find((ref) => !ref.includes("@")) ?? image.refs[0]!,
      String(image.layers.length),
      formatBytes(bytes),
    ];
  });
  process.stdout.write(
    `${intro} ${describePlan(plan)}\n${formatTable([["image", "layers", "compressed"], ...rows])}\n`,
  );
}

/** Throws HS_USAGE. */
function parseLayout(text: string): VolumeLayout {
  const found = LAYOUTS.find((layout) => layout === text);
  if (found !== undefined) return found;
  const later = LAYOUTS_LATER.some((layout) => layout === text);
  throw new HeadstartError("HS_USAGE", {
    what: later
      ? `--layout ${text} is not in this version, which writes: ${LAYOUTS.join(", ")}`
      : `--layout ${text}: no such layout`,
  });
}

function parseBlobs(text: string): boolean {
  if (text === "keep" || text === "drop") return text === "keep";
  throw new HeadstartError("HS_USAGE", { what: `--blobs ${text}: keep or drop` });
}

/** Throws HS_USAGE, HS_REFERENCE, HS_NOT_FOUND. */
function readSources(named: readonly string[], options: BuildOptions): BuildSource[] {
  const texts = [...named, ...(options.include === undefined ? [] : readList(options.include))];
  if (texts.length === 0) throw new HeadstartError("HS_USAGE", { what: "no image is named" });
  const names = texts.map((): string[] => []);
  for (const text of options.name ?? []) {
    const [, number, name] = /^(\d{1,4})=(.+)$/.exec(text) ?? (texts.length === 1 ? [text, "1", text] : []);
    const list = names[Number(number) - 1];
    if (list === undefined || name === undefined) {
      throw new HeadstartError("HS_USAGE", { what: `--name ${text}: with ${texts.length} sources write NUMBER=REF` });
    }
    list.push(name);
  }
  return texts.map((text, index) => {
    const source = parseSource(text);
    const access = source.kind === "registry" ? options : { ...options, creds: undefined };
    return { source, names: names[index]!, open: openOptions(source, access) };
  });
}

function readList(file: string): string[] {
  let text: string;
  try {
    text = readFileSync(file, "utf8");
  } catch (cause) {
    throw new HeadstartError("HS_NOT_FOUND", { what: `--include ${file}`, cause });
  }
  return text
    .split("\n")
    .map((line) => line.replace(/(^|\s)#.*$/, "").trim())
    .filter((line) => line !== "");
}

function platformSuffix(platform: Platform): string {
  return formatPlatform(platform).split("/").slice(1).join("-");
}

/** Seconds; undefined when it is not set. Throws HS_USAGE. */
function sourceDateEpoch(): number | undefined {
  const text = process.env.SOURCE_DATE_EPOCH;
  if (text === undefined || text === "") return undefined;
  if (/^\d{1,11}$/.test(text)) return Number(text);
  throw new HeadstartError("HS_USAGE", { what: `SOURCE_DATE_EPOCH=${text} is no number of seconds since 1970` });
}

/** The first SIGINT or SIGTERM ends the work in order, so that nothing is left; the next one ends the process. */
class Interrupt implements Disposable {
  readonly #controller = new AbortController();
  readonly #listener = (name: string) => {
    this[Symbol.dispose]();
    this.#controller.abort(new HeadstartError("HS_CANCELED", { what: `interrupted by ${name}` }));
  };

  constructor() {
    for (const name of ["SIGINT", "SIGTERM"] as const) process.on(name, this.#listener);
  }

  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  [Symbol.dispose](): void {
    for (const name of ["SIGINT", "SIGTERM"] as const) process.off(name, this.#listener);
  }
}

function registerInspectVolume(volume: Command): void {
  volume
    .command("inspect <path>")
    .summary("what is on a volume")
    .description("What is on a volume, or in any containerd's root: read from its databases, without a containerd.")
    .option("--json", "one object")
    .addHelpText(
      "after",
      "\nExamples:\n  headstart volume inspect ./containerd\n  headstart volume inspect /var/lib/containerd --json\n",
    )
    .action((path: string, options: { readonly json?: boolean }) => {
      const found = inspectRoot(path);
      if (options.json) {
        process.stdout.write(`${JSON.stringify(found)}\n`);
        return;
      }
      const blocks = found.namespaces.map(({ name, images, blobs, snapshots }) => {
        const bytes = blobs.reduce((sum, blob) => sum + (blob.size ?? 0), 0);
        const rows = images.map((image) => [image.name, image.digest.slice(0, 19), image.pinned ? "pinned" : ""]);
        return `namespace ${name}: ${blobs.length} blobs (${formatBytes(bytes)}), ${snapshots.length} snapshots\n${formatTable([["image", "target", ""], ...rows])}\n`;
      });
      const size = found.overlayfs.reduce((sum, snapshot) => sum + (snapshot.size ?? 0), 0);
      process.stdout.write(
        `${blocks.join("\n")}\noverlayfs: ${found.overlayfs.length} snapshots, ${formatBytes(size)} unpacked\n`,
      );
    });
}
