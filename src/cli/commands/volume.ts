/** `headstart volume`: images on a volume that a node boots with. The commands below it are in files of their own, but for `inspect`. */

import type { Command } from "commander";
import { type InspectedDisk, inspectVolume } from "../../volume/inspect.ts";
import { formatBytes, formatTable } from "../table.ts";
import { registerVolumeBuild } from "./volume-build.ts";
import { registerVolumeDiff } from "./volume-diff.ts";
import { registerVolumeDoctor } from "./volume-doctor.ts";
import { registerVolumePull, registerVolumePush } from "./volume-ebs.ts";
import { registerVolumeEstimate } from "./volume-estimate.ts";
import { registerVolumeVerify } from "./volume-verify.ts";

export function registerVolume(program: Command): void {
  const volume = program
    .command("volume")
    .summary("images on a volume that a node boots with")
    .description("Warm volumes: images in the place where a new node's containerd looks for them.")
    .addHelpText(
      "after",
      `
Examples:
  headstart volume build HOST/APP:1 --layout bottlerocket --output data.img
  headstart volume inspect data.img
  headstart volume verify data.img
`,
    );
  registerVolumeBuild(volume);
  registerInspectVolume(volume);
  registerVolumeVerify(volume);
  registerVolumeDiff(volume);
  registerVolumeEstimate(volume);
  registerVolumeDoctor(volume);
  registerVolumePush(volume);
  registerVolumePull(volume);
}

function registerInspectVolume(volume: Command): void {
  volume
    .command("inspect <path>")
    .summary("what is on a volume")
    .description(
      "What is on a volume, a directory or a disk, or in any containerd's root: read from its databases, without a containerd or a mount.",
    )
    .option("--json", "one object")
    .addHelpText(
      "after",
      "\nExamples:\n  headstart volume inspect data.img\n  headstart volume inspect /var/lib/containerd --json\n",
    )
    .action((path: string, options: { readonly json?: boolean }) => {
      const found = inspectVolume(path);
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
        `${found.disk === null ? "" : describeDisk(found.disk)}${blocks.join("\n")}\noverlayfs: ${found.overlayfs.length} snapshots, ${formatBytes(size)} unpacked\n`,
      );
    });
}

function describeDisk({ size, partition, uuid, bytes, freeBytes, root }: InspectedDisk): string {
  const table = partition === null ? "no partition table" : `partition ${partition}`;
  return `disk of ${formatBytes(size)}, ${table}; ext4 ${uuid}: ${formatBytes(freeBytes)} of ${formatBytes(bytes)} free; containerd at ${root}\n\n`;
}
