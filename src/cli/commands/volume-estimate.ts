/** `headstart volume estimate`: bytes, blocks, dollars and seconds before anything is built or sent. */

import { existsSync } from "node:fs";
import type { Command } from "commander";
import { hostPlatform, parsePlatform } from "../../oci/platform.ts";
import { openPlan } from "../../volume/build.ts";
import { readVolumeFile } from "../../volume/doctor/volume-facts.ts";
import { estimateImages, estimateVolume, type VolumeEstimate } from "../../volume/estimate.ts";
import { readFormer } from "../../volume/former.ts";
import { openProgress } from "../progress.ts";
import { formatBytes } from "../table.ts";
import {
  addVolumeSources,
  parseBlobs,
  parseLayout,
  type VolumeSourceOptions,
  volumeSources,
} from "../volume-sources.ts";

interface EstimateOptions extends VolumeSourceOptions {
  readonly layout: string;
  readonly platform?: string;
  readonly blobs: string;
  readonly previous?: string;
  readonly json?: boolean;
}

export function registerVolumeEstimate(volume: Command): void {
  const command = volume
    .command("estimate [sources...]")
    .summary("what a volume will be and cost")
    .description(
      "What a volume will be and cost, before anything is built or sent: of images, or of a volume that was built.",
    )
    .option("--layout <LAYOUT>", "bottlerocket or al2023", "bottlerocket")
    .option("--platform <OS/ARCH>", "default: this machine's")
    .option("--blobs <keep|drop>", "drop: without the compressed layers", "keep")
    .option("--previous <VOLUME>", "the last build or its .json: what is in it already is not sent");
  addVolumeSources(command).option("--json", "one object").addHelpText("after", HELP).action(estimate);
}

const HELP = `
A source that is a volume (a disk image with its PATH.json, or the .json) is told exactly. Of
images the unpacked sizes come from the last bytes of each layer where it is gzip of one piece,
else they are guessed. Nothing else is fetched.

Prices are the public ones of us-east-1 in 2026, and no promise: blocks sent, storage,
VolumeInitializationRate, fast snapshot restore. A volume made from a snapshot is loaded as
it is read; what EBS does without a paid rate is not documented: users report 25 MiB/s.

Examples:
  headstart volume estimate HOST/APP:1 HOST/SIDECAR:2
  headstart volume estimate new.img --previous data.img --json
`;

async function estimate(named: readonly string[], options: EstimateOptions): Promise<void> {
  const result = isVolume(named) ? estimateBuilt(named[0]!, options) : await estimateSources(named, options);
  process.stdout.write(options.json ? `${JSON.stringify(result)}\n` : report(result));
}

function isVolume(named: readonly string[]): boolean {
  return named.length === 1 && existsSync(named[0]!) && (named[0]!.endsWith(".json") || existsSync(`${named[0]}.json`));
}

function estimateBuilt(path: string, options: EstimateOptions): VolumeEstimate {
  const parent = options.previous === undefined ? null : (readVolumeFile(options.previous).disk?.blocks ?? null);
  return estimateVolume(readVolumeFile(path), parent);
}

async function estimateSources(named: readonly string[], options: EstimateOptions): Promise<VolumeEstimate> {
  const sources = await volumeSources(named, options);
  const signal = new AbortController().signal;
  await using opened = await openPlan({
    sources,
    platform: options.platform === undefined ? hostPlatform() : parsePlatform(options.platform),
    layout: parseLayout(options.layout),
    pinned: true,
    blobs: parseBlobs(options.blobs),
    former: options.previous === undefined ? undefined : readFormer(options.previous),
    signal,
  });
  const progress = openProgress({ quiet: options.json === true });
  const result = await estimateImages(opened, {
    signal,
    onLayer: (done, total) => progress.update(`${done} of ${total} layers`),
  });
  progress.done();
  return result;
}

function report({ layers, usedBytes, sizeGib, nodeSizeGib, push, nodes }: VolumeEstimate): string {
  const kept = layers.filter((layer) => layer.kept).length;
  const guessed = layers.filter(({ from }) => from === "guess").length;
  const seconds = (value: number) => `${Math.ceil(value)} s`;
  const { rate, fastRestore } = nodes;
  const lines = [
    `${layers.length} layers${kept === 0 ? "" : `, ${kept} of them in the last build`}: ${formatBytes(usedBytes)} on a disk of ${sizeGib} GiB${guessed === 0 ? "" : ` (${guessed} layers guessed)`}`,
    `send      ${push.blocks} blocks, ${formatBytes(push.bytes)}: $${push.dollars.toFixed(2)}, ${seconds(push.secondsAtLeast)} at least`,
    `keep      $${push.storageDollarsMonth.toFixed(2)} a month for what is sent`,
    `nodes     disks of ${nodeSizeGib} GiB or more`,
    `load      about ${seconds(nodes.seconds.default)} (${rate.default} MiB/s, as users report)${nodes.seconds.hotDefault === null ? "" : `, the hot part ${seconds(nodes.seconds.hotDefault)}`}`,
    `          ${seconds(nodes.seconds.atRate)} at ${rate.paid} MiB/s (volumeInitializationRate): $${nodes.rateDollarsPerNode.toFixed(3)} for each node`,
    `          at once with fast snapshot restore: $${fastRestore.dollarsPerZoneMonth.toFixed(0)} a month and zone, ${fastRestore.disksPerHour.toFixed(1)} disks an hour`,
  ];
  return `${lines.join("\n")}\n`;
}
