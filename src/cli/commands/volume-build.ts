/** `headstart volume build`: images, unpacked, where containerd finds them; as a directory or a disk. */

import { extname } from "node:path";
import { type Command, Option } from "commander";
import { HeadstartError } from "../../base/errors.ts";
import { formatPlatform, hostPlatform, type Platform, parsePlatform } from "../../oci/platform.ts";
import {
  type BuildProgress,
  buildVolume,
  checkOutput,
  type DiskSettings,
  diskOptions,
  openPlan,
  type VolumeLayout,
} from "../../volume/build.ts";
import { readFormer } from "../../volume/former.ts";
import { readHotList } from "../../volume/hot.ts";
import { describeManifest, type VolumeManifest, volumeManifest } from "../../volume/manifest.ts";
import { planNotes } from "../../volume/notes.ts";
import { describePlan, planSizes, type VolumePlan } from "../../volume/plan.ts";
import { Interrupt } from "../interrupt.ts";
import { openProgress } from "../progress.ts";
import { formatBytes, formatTable } from "../table.ts";
import {
  addVolumeSources,
  parseBlobs,
  parseLayout,
  type VolumeSourceOptions,
  volumeSources,
} from "../volume-sources.ts";

interface BuildOptions extends VolumeSourceOptions {
  readonly output: string;
  readonly layout: string;
  readonly platform?: string;
  readonly pin: boolean;
  readonly blobs: string;
  readonly size: string;
  readonly selinux: boolean;
  readonly previous?: string;
  readonly hot?: string;
  readonly dryRun?: boolean;
  readonly json?: boolean;
}

export function registerVolumeBuild(volume: Command): void {
  const command = volume
    .command("build [sources...]")
    .summary("put images, unpacked, where containerd finds them")
    .description(
      "Put images, unpacked, where containerd finds them at its first start: nothing is pulled or unpacked then.",
    )
    .requiredOption("--output <PATH>", "what to make; must not exist. PATH.json beside it gets the provenance")
    .option(
      "--layout <LAYOUT>",
      "containerd: PATH is a directory, the root of a containerd; bottlerocket, al2023: PATH is a disk image",
      "containerd",
    )
    .option("--platform <OS/ARCH,...>", "one, or several: a volume each (default: this machine's)")
    .option("--no-pin", "let kubelet's garbage collection remove the images")
    .option("--blobs <keep|drop>", "drop: leave out the compressed layers (see below)", "keep")
    .addOption(new Option("--size <auto|GIB>", "of the disk, in whole GiB").default("auto").helpGroup(DISKS))
    .addOption(
      new Option(
        "--no-selinux",
        "no labels on containerd's stores (default: as a node of the layout has them)",
      ).helpGroup(DISKS),
    )
    .addOption(
      new Option("--previous <VOLUME>", "the last build or its .json: what is still there keeps its place").helpGroup(
        DISKS,
      ),
    )
    .addOption(new Option("--hot <FILE>", "paths and patterns whose files come first, in this order").helpGroup(DISKS))
    .option("--dry-run", "print what would be made; no layer is fetched");
  addVolumeSources(command)
    .option("--json", "one object for each volume")
    .addHelpText("after", BUILD_HELP)
    .action(build);
}

const DISKS = "Disk images:";

const BUILD_HELP = `
An image gets its name by tag and by digest: kubelet may ask for either. One of a layout or
an archive that has no whole name there needs --name. A directory takes root: owners, devices
and attributes are real. A disk does not. The same input gives the same bytes: all times are
SOURCE_DATE_EPOCH, or the newest image's creation, or those of --previous.

--blobs drop saves about a third. Containers start; but on a node with another snapshotter
than overlayfs they cannot be created, which nothing repairs but removing the image, and
peers (Spegel and others) have nothing to serve.

Examples:
  headstart volume build HOST/APP:1 HOST/SIDECAR:2 --output ./containerd
  headstart volume build HOST/APP:1 --layout bottlerocket --output data.img
  headstart volume build HOST/APP:2 --layout bottlerocket --output new.img --previous data.img
  headstart volume build oci:./layout:v1 --name HOST/APP:1 --output ./containerd
  headstart volume build --include images.txt --output ./containerd --dry-run
  headstart volume build --from-cluster --layout bottlerocket --output data.img
`;

async function build(named: readonly string[], options: BuildOptions): Promise<void> {
  const layout = parseLayout(options.layout);
  const blobs = parseBlobs(options.blobs);
  const disk = diskSettings(layout, options);
  const sources = await volumeSources(named, options);
  const platforms = options.platform?.split(",").map((text) => parsePlatform(text.trim())) ?? [hostPlatform()];
  const outputs = platforms.map((platform) => ({
    platform,
    output: platforms.length === 1 ? options.output : outputOf(options.output, layout, platform),
  }));
  if (options.previous !== undefined && platforms.length > 1) {
    throw new HeadstartError("HS_USAGE", { what: "--previous is one volume: build one platform at a time with it" });
  }
  const former = options.previous === undefined ? undefined : readFormer(options.previous);
  if (!options.dryRun) for (const { output } of outputs) checkOutput(output, layout);
  const time = sourceDateEpoch();
  using interrupt = new Interrupt();
  for (const { platform, output } of outputs) {
    const { signal } = interrupt;
    const request = { sources, platform, layout, pinned: options.pin, blobs, time, former, signal };
    await using opened = await openPlan(request);
    const { plan } = opened;
    if (!options.json) for (const note of planNotes(plan, layout)) process.stderr.write(`${note}\n`);
    if (options.dryRun) {
      const planned = diskOptions(layout, disk) ?? undefined;
      const manifest = volumeManifest(plan, { layout, usage: new Map(), options: planned });
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
    const onProgress = (state: BuildProgress) => progress.update(progressLine(state, total));
    const { record, followed } = await buildVolume(opened, { output, disk, signal, onProgress });
    if (followed?.kept === false) {
      progress.note(`${output}: nothing has its former place: ${followed.reason}`);
    }
    for (const pattern of record.predicate.headstart_volume.hot?.missing ?? []) {
      progress.note(`--hot: no image has ${pattern}`);
    }
    progress.done();
    const manifest = record.predicate.headstart_volume;
    print(options, { output, previous: followed, ...describeManifest({ ...manifest }) }, plan, manifest, `${output}:`);
  }
}

/** Throws HS_USAGE, HS_NOT_FOUND. */
function diskSettings(layout: VolumeLayout, options: BuildOptions): DiskSettings | undefined {
  const size = /^(\d{1,4})(?:GiB|G|Gi)?$/i.exec(options.size);
  if (options.size !== "auto" && (size === null || Number(size[1]) === 0)) {
    throw new HeadstartError("HS_USAGE", { what: `--size ${options.size}: auto, or a whole number of GiB` });
  }
  if (layout === "containerd") {
    const given = [
      size === null ? [] : ["size"],
      options.selinux ? [] : ["no-selinux"],
      ...(["previous", "hot"] as const).map((name) => (options[name] === undefined ? [] : [name])),
    ].flat();
    if (given.length === 0) return undefined;
    throw new HeadstartError("HS_USAGE", { what: `--${given[0]} is for disk images: --layout bottlerocket or al2023` });
  }
  if (/\.(qcow2|vmdk|vhdx?)$/i.test(options.output)) {
    throw new HeadstartError("HS_USAGE", {
      what: `--output ${options.output}: a raw image is what is made; qemu-img convert makes other formats of it`,
    });
  }
  return {
    sizeGib: size === null ? "auto" : Number(size[1]),
    selinux: options.selinux ? undefined : false,
    hot: options.hot === undefined ? undefined : readHotList(options.hot),
  };
}

/** The architecture before the ending of a file, behind the name of a directory. */
function outputOf(output: string, layout: VolumeLayout, platform: Platform): string {
  const suffix = formatPlatform(platform).split("/").slice(1).join("-");
  const ending = layout === "containerd" ? "" : extname(output);
  return `${output.slice(0, output.length - ending.length)}-${suffix}${ending}`;
}

function progressLine(state: BuildProgress, total: ReturnType<typeof planSizes>): string {
  const { fetchedBytes, layersDone, written } = state;
  if (written) return `${formatBytes(written.bytes)} of ${formatBytes(written.of)} written`;
  return `${formatBytes(fetchedBytes)} of ${formatBytes(total.layerBytes)} fetched, ${layersDone} of ${total.snapshots} layers unpacked`;
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

/** Seconds; undefined when it is not set. Throws HS_USAGE. */
function sourceDateEpoch(): number | undefined {
  const text = process.env.SOURCE_DATE_EPOCH;
  if (text === undefined || text === "") return undefined;
  if (/^\d{1,11}$/.test(text)) return Number(text);
  throw new HeadstartError("HS_USAGE", { what: `SOURCE_DATE_EPOCH=${text} is no number of seconds since 1970` });
}
