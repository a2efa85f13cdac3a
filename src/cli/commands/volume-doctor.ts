/** `headstart volume doctor`: what makes a volume useless on the nodes that shall use it. */

import type { Command } from "commander";
import { HeadstartError } from "../../base/errors.ts";
import { diagnose } from "../../volume/doctor/doctor.ts";
import { AnswerIsNo } from "../exit.ts";

interface DoctorOptions {
  readonly volume?: string;
  readonly live?: string | true;
  readonly json?: boolean;
}

export function registerVolumeDoctor(volume: Command): void {
  volume
    .command("doctor [files...]")
    .summary("name what keeps nodes from using a volume")
    .description("Name what keeps nodes from using a volume, or makes it slow: from their configuration, or on a node.")
    .option("--volume <PATH>", "the volume, or the PATH.json beside it")
    .option("--live [ROOT]", "this node; ROOT: where its file systems are seen (default: /)")
    .option("--json", "one object")
    .addHelpText("after", HELP)
    .action(doctor);
}

const HELP = `
FILES are recognised by what they hold: Karpenter's EC2NodeClass, launch templates as the EC2
API has them, user data (Bottlerocket's TOML, AL2023's NodeConfig, MIME parts), configurations
of kubelet and containerd, Nodes, and anything with pods: YAML, JSON or TOML. Where two
disagree the first is believed. Nothing is changed, and nobody is asked: whether a tag has
moved, or a snapshot is complete, is not seen here.

Checked are: the system and platform the volume is made for, snapshotter, instance store, the
disk made of the snapshot, its size and speed, encryption, how it loads, pins, kubelet's image
collection, pull policies, the names that pods use, the sandbox image; on a node also what
containerd's databases hold, and that the disk is the volume, grown. Exit 1 when a check fails.

Examples:
  headstart volume doctor nodeclass.yaml --volume data.img
  headstart volume doctor nodeclass.yaml deployments.yaml data.img.json --json
  headstart volume doctor --live /.bottlerocket/rootfs --volume data.img.json
`;

function doctor(files: readonly string[], options: DoctorOptions): void {
  if (files.length === 0 && options.live === undefined)
    throw new HeadstartError("HS_USAGE", { what: "name files, or --live" });
  const live = options.live === true ? "/" : options.live;
  const diagnosis = diagnose({ files, volume: options.volume, live });
  if (options.json) process.stdout.write(`${JSON.stringify(diagnosis)}\n`);
  else {
    const lines = diagnosis.findings.flatMap(({ check, level, what, advice, where }) => [
      `${level.padEnd(7)}  ${check}: ${what}${where === null || level === "ok" ? "" : ` (${where})`}`,
      ...(advice === null ? [] : [`         ${advice}`]),
    ]);
    for (const { value, where } of diagnosis.unread) lines.push(`not read ${where}${value}`);
    process.stdout.write(`${lines.join("\n")}\n`);
  }
  if (!diagnosis.ok) throw new AnswerIsNo();
}
