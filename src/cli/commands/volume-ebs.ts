/** `headstart volume push|pull`: a disk image to an EBS snapshot and back. */

import { existsSync } from "node:fs";
import { type Command, Option } from "commander";
import { systemClock } from "../../base/clock.ts";
import { HeadstartError } from "../../base/errors.ts";
import { type AwsConnection, connectAws } from "../../volume/aws/connect.ts";
import { readVolumeFile } from "../../volume/doctor/volume-facts.ts";
import { BLOCK_BYTES } from "../../volume/ebs/blocks.ts";
import { EBS_PACE } from "../../volume/ebs/pace.ts";
import {
  type DryRun,
  dryRunPublish,
  type PublishOptions,
  type PublishResult,
  publishVolume,
} from "../../volume/ebs/publish.ts";
import { pullVolume } from "../../volume/ebs/pull.ts";
import type { PushProgress } from "../../volume/ebs/push.ts";
import { SNIPPETS, type SnippetKind, snippet } from "../../volume/snippets/snippets.ts";
import { Interrupt } from "../interrupt.ts";
import { openProgress, type Progress } from "../progress.ts";
import { formatBytes } from "../table.ts";

interface AwsOptions {
  readonly region?: string;
  readonly profile?: string;
  readonly endpoint?: string;
  readonly json?: boolean;
}

interface PushFlags extends AwsOptions {
  readonly parent?: string;
  readonly parentManifest?: string;
  readonly scrub?: boolean;
  readonly encrypted?: boolean;
  readonly kmsKey?: string;
  readonly tag?: readonly string[];
  readonly description?: string;
  readonly resume?: boolean;
  readonly wait?: boolean;
  readonly fastRestore?: string;
  readonly ssmParameter?: string;
  readonly keep?: string;
  readonly nodeClass?: readonly string[];
  readonly snippet?: SnippetKind;
  readonly dryRun?: boolean;
}

const collect = (value: string, before: readonly string[] = []): readonly string[] => [...before, value];

export function registerVolumePush(volume: Command): void {
  const group = (flags: string, text: string, heading: string) => new Option(flags, text).helpGroup(heading);
  const after = "When it is completed (each waits for that):";
  const command = volume
    .command("push <path>")
    .summary("make an EBS snapshot of a disk image")
    .description("Make an EBS snapshot of a raw disk image through the EBS direct APIs: no instance, no volume.")
    .option("--parent <SNAPSHOT>", "send only what differs from this one")
    .option("--parent-manifest <FILE>", "what the parent holds: its PATH.snapshot.json or PATH.json (see below)")
    .option("--scrub", "with --parent: overwrite what the volume no longer uses with zeros")
    .option("--encrypted", "encrypt with the account's default key")
    .option("--kms-key <ARN>", "encrypt with this key")
    .addOption(
      new Option("--tag <K=V>", "a tag of the snapshot; may be repeated. Name defaults to the file's").argParser(
        collect,
      ),
    )
    .option("--description <TEXT>", "of the snapshot")
    .option("--resume", "go on with a push that was interrupted")
    .option("--wait", "until the snapshot is completed")
    .option("--dry-run", "say what would be sent, cost and deleted; send nothing")
    .addOption(group("--fast-restore <ZONE,...>", "enable fast snapshot restore there ($0.75 an hour and zone)", after))
    .addOption(group("--ssm-parameter <NAME>", "write the snapshot's id to this parameter", after))
    .addOption(
      group("--keep <N>", "of the snapshots of the same Name keep the newest N, delete older ones (see below)", after),
    )
    .addOption(
      group("--node-class <FILE>", "with --keep: what is named in this file stays; may be repeated", after).argParser(
        collect,
      ),
    )
    .addOption(group("--snippet <TOOL>", "print what makes nodes use it", after).choices(SNIPPETS));
  addAwsOptions(command).addHelpText("after", PUSH_HELP).action(push);
}

export function registerVolumePull(volume: Command): void {
  const command = volume
    .command("pull <snapshot> <path>")
    .summary("read an EBS snapshot into a disk image")
    .description("Read an EBS snapshot into a raw, sparse disk image through the EBS direct APIs.");
  addAwsOptions(command).addHelpText("after", PULL_HELP).action(pull);
}

function addAwsOptions(command: Command): Command {
  const option = (flags: string, text: string) => command.addOption(new Option(flags, text).helpGroup("AWS:"));
  option("--region <REGION>", "default: AWS_REGION, the profile's, the instance's");
  option("--profile <NAME>", "of ~/.aws/config; default: AWS_PROFILE");
  option("--endpoint <URL>", "of the EBS direct APIs alone; others: AWS_ENDPOINT_URL_EC2, …_SSM, …_STS");
  return command.option("--json", "one object");
}

const PUSH_HELP = `
Blocks of zeros and holes are not sent. With --parent the child gets the blocks that
differ. What the parent holds is read from --parent-manifest, else from
PATH.snapshot.json (which every push and pull writes) when the snapshot's tag shows
that it fits; else the parent is read back, which EBS charges for. What the volume
uses no more keeps the parent's bytes unless --scrub. A volume that the parent holds
already makes no new snapshot: the parent is the answer.

PATH.json beside the image (volume build writes it) saves hashing it twice; a file
that is not what PATH.json describes is refused.

A push that fails or is interrupted leaves a pending snapshot, which EBS drops after
a day, and PATH.push; --resume sends the rest. The same command without it finds the
same snapshot too, and sends everything again.

--keep never deletes what is younger than 7 days, pending, or named by a launch
template version, an AMI or a --node-class file; it needs the rights to read those.

Credentials are those of the AWS provider chain: environment, web identity (GitHub,
GitLab, EKS), profile, container, instance.

Examples:
  headstart volume push data.img --wait --tag Name=app --tag team=web
  headstart volume push next.img --parent snap-0123456789abcdef0 --keep 3
  headstart volume push data.img --resume --wait
  headstart volume push data.img --snippet karpenter > nodeclass.yaml
`;

const PULL_HELP = `
Every block is checked against its checksum, and the whole against the tag that a
push has set. PATH must not exist; PATH.snapshot.json beside it says what the
snapshot holds.

Examples:
  headstart volume pull snap-0123456789abcdef0 data.img
`;

function connect(options: AwsOptions): Promise<AwsConnection> {
  const { region, profile, endpoint } = options;
  return connectAws({ region, profile, endpoint, connections: EBS_PACE.max });
}

async function push(path: string, flags: PushFlags): Promise<void> {
  if (flags.snippet !== undefined && !existsSync(`${path}.json`)) {
    throw new HeadstartError("HS_USAGE", {
      what: `--snippet: ${path}.json, which says what the volume is for, does not exist`,
    });
  }
  // what a snippet needs is read before anything is sent
  const volume = flags.snippet === undefined ? undefined : readVolumeFile(path);
  await using aws = await connect(flags);
  using interrupt = new Interrupt();
  const progress = openProgress({ quiet: flags.json === true });
  try {
    const options = publishOptions(path, flags, aws, progress, interrupt.signal);
    if (flags.dryRun) {
      const found = await dryRunPublish(options);
      progress.done();
      process.stdout.write(flags.json ? `${JSON.stringify(found)}\n` : describeDryRun(found));
      return;
    }
    const result = await publishVolume(options);
    progress.done();
    const { snapshot } = result;
    const input = { snapshot, name: kubernetesName(result.name), kmsKey: flags.kmsKey ?? null };
    const text = volume === undefined ? undefined : snippet(flags.snippet!, { ...input, volume });
    if (flags.json) process.stdout.write(`${JSON.stringify({ ...result, snippet: text })}\n`);
    else if (text === undefined) process.stdout.write(describePush(result));
    else {
      process.stderr.write(describePush(result));
      process.stdout.write(text);
    }
  } finally {
    progress.done();
  }
}

function kubernetesName(name: string): string {
  const allowed = name.toLowerCase().replace(/[^a-z0-9.-]+/g, "-");
  return allowed.replace(/^[.-]+|[.-]+$/g, "") || "warm";
}

function publishOptions(
  path: string,
  flags: PushFlags,
  aws: AwsConnection,
  progress: Progress,
  signal: AbortSignal,
): PublishOptions {
  const zones = flags.fastRestore?.split(",").map((zone) => zone.trim());
  if (zones?.some((zone) => !/^[a-z0-9-]{3,40}$/.test(zone))) {
    throw new HeadstartError("HS_USAGE", {
      what: `--fast-restore ${flags.fastRestore}: zones separated by commas are wanted`,
    });
  }
  if (flags.keep !== undefined && !/^[1-9]\d{0,3}$/.test(flags.keep)) {
    throw new HeadstartError("HS_USAGE", { what: `--keep ${flags.keep}: a number from 1 on is wanted` });
  }
  if (flags.nodeClass !== undefined && flags.keep === undefined) {
    throw new HeadstartError("HS_USAGE", { what: "--node-class says what --keep leaves alone: give both" });
  }
  if (flags.parentManifest !== undefined && flags.parent === undefined) {
    throw new HeadstartError("HS_USAGE", { what: "--parent-manifest says what --parent holds: give both" });
  }
  return {
    client: aws.client,
    clock: systemClock,
    path,
    parent: flags.parent,
    parentManifest: flags.parentManifest,
    scrub: flags.scrub,
    encrypted: flags.encrypted === true,
    kmsKey: flags.kmsKey,
    tags: parseTags(flags.tag ?? []),
    description: flags.description,
    resume: flags.resume === true,
    wait: flags.wait === true || flags.snippet !== undefined,
    fastRestore: zones ?? [],
    ssmParameter: flags.ssmParameter,
    keep: flags.keep === undefined ? undefined : Number(flags.keep),
    nodeClasses: flags.nodeClass ?? [],
    onProgress: (fact) => progress.update(describeProgress(fact)),
    note: (text) => progress.note(`headstart: ${text}`),
    signal,
  };
}

/** Throws HS_USAGE. */
function parseTags(texts: readonly string[]): Record<string, string> {
  const tags: Record<string, string> = {};
  for (const text of texts) {
    const [, key, value] = /^([^=]+)=(.*)$/s.exec(text) ?? [];
    if (key === undefined || value === undefined)
      throw new HeadstartError("HS_USAGE", { what: `--tag ${text}: write KEY=VALUE` });
    tags[key] = value;
  }
  return tags;
}

function describeProgress({ phase, done, total }: PushProgress): string {
  const bytes = formatBytes(done * BLOCK_BYTES);
  switch (phase) {
    case "hash":
      return `${bytes} read`;
    case "parent":
      return `${bytes} of the parent read back`;
    case "send":
      return total === undefined ? `${bytes} compared` : `${bytes} of ${formatBytes(total * BLOCK_BYTES)} sent`;
    case "wait":
      return "waiting for EBS to complete the snapshot";
  }
}

function describePush(result: PublishResult): string {
  const { snapshot, status, blocks, parent, region } = result;
  const lines = [
    `${snapshot} in ${region}: ${status}${result.unchanged ? ", the parent: it holds this volume already" : ""}`,
    `${blocks.sent} of ${blocks.total} blocks sent${parent === null ? "" : ` (child of ${parent})`}${blocks.resumed === 0 ? "" : `, ${blocks.resumed} were there`}: ${formatBytes(result.sentBytes)} in ${result.seconds.toFixed(1)} s`,
    ...(result.fastRestore.length === 0
      ? []
      : [`fast restore: ${result.fastRestore.map(({ zone, state }) => `${zone} ${state}`).join(", ")}`]),
    ...(result.ssmParameter === null
      ? []
      : [`parameter ${result.ssmParameter.name}, version ${result.ssmParameter.version}`]),
    ...(result.deleted.length === 0 ? [] : [`deleted: ${result.deleted.join(", ")}`]),
    ...(status === "pending" ? ["EBS is completing it; nodes can use it then (--wait waits)"] : []),
  ];
  return `${lines.join("\n")}\n`;
}

function describeDryRun(found: DryRun): string {
  const { estimate, readBack } = found;
  const lines = [
    `${found.blocks} blocks of ${formatBytes(found.sizeBytes)} are not zero; a snapshot of ${found.volumeSizeGiB} GiB in ${found.region}`,
    ...(found.unchanged ? [`${found.parent} holds this volume already: no snapshot would be made`] : []),
    ...(estimate === null
      ? [`what differs from ${found.parent} is not known: nothing describes it`]
      : [
          `would send ${estimate.blocks} blocks, ${formatBytes(estimate.bytes)}: about $${estimate.dollars.toFixed(2)}, ${Math.ceil(estimate.secondsAtLeast)} s at least`,
        ]),
    ...(readBack === null
      ? []
      : [`would read back ${readBack.blocks} blocks of the parent: about $${readBack.dollars.toFixed(2)}`]),
    ...found.wouldDelete.map((snapshot) => `would delete ${snapshot}`),
    ...found.kept.map(({ snapshot, why }) => `would keep ${snapshot}: ${why}`),
  ];
  return `${lines.join("\n")}\n`;
}

async function pull(snapshot: string, path: string, options: AwsOptions): Promise<void> {
  await using aws = await connect(options);
  using interrupt = new Interrupt();
  const progress = openProgress({ quiet: options.json === true });
  const result = await pullVolume({
    client: aws.client,
    clock: systemClock,
    snapshot,
    path,
    onProgress: (done) => progress.update(`${formatBytes(done * BLOCK_BYTES)} read`),
    signal: interrupt.signal,
  });
  progress.done();
  const proof = result.verified === null ? "each block as its checksum says" : "verified against the snapshot's tag";
  process.stdout.write(
    options.json
      ? `${JSON.stringify(result)}\n`
      : `${path}: ${formatBytes(result.sizeBytes)}, ${result.blocks} blocks that are not zero, ${proof}\n`,
  );
}
