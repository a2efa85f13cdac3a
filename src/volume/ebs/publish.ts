/**
 * All that `volume push` does, in its order: the snapshot, and only when it is completed what others will see of it: fast restore, the parameter, and the end of older ones. Also its dry run, which
 * asks and sends nothing that costs or changes anything.
 */

import { HeadstartError } from "../../base/errors.ts";
import { EbsApi } from "./api.ts";
import { EBS_PRICES, estimatePush, type PushEstimate } from "./prices.ts";
import { type PushOptions, type PushResult, preparePush, pushVolume, unchangedParent } from "./push.ts";
import { namedSnapshots, type Retention, retain } from "./retention.ts";
import { enableFastRestore, type FastRestore, putParameter } from "./snapshots.ts";
import { DiskImage } from "./source.ts";

export interface PublishOptions extends PushOptions {
  /** Availability zones. */
  readonly fastRestore?: readonly string[];
  readonly ssmParameter?: string | undefined;
  readonly keep?: number | undefined;
  readonly nodeClasses?: readonly string[];
}

export interface PublishResult extends PushResult {
  readonly fastRestore: readonly FastRestore[];
  readonly ssmParameter: { readonly name: string; readonly version: number } | null;
  readonly deleted: readonly string[];
  readonly kept: Retention["kept"];
}

/**
 * Waits for completion where something follows it. Throws HS_USAGE, HS_NOT_FOUND and HS_LIMIT for what is to follow before anything is sent; then what `pushVolume`, EC2 and
 * SSM throw: the snapshot is there then, and its id is in the message.
 */
export async function publishVolume(options: PublishOptions): Promise<PublishResult> {
  const { client, clock, fastRestore: zones = [], ssmParameter: name, keep, nodeClasses = [], signal } = options;
  checkParameter(name);
  const named = namedSnapshots(nodeClasses);
  const follows = zones.length > 0 || name !== undefined || keep !== undefined;
  const pushed = await pushVolume(follows ? { ...options, wait: true } : options);
  const { snapshot } = pushed;
  try {
    const fastRestore = zones.length === 0 ? [] : await enableFastRestore(client, snapshot, zones, signal);
    const version = name === undefined ? 0 : await putParameter(client, name, snapshot, signal);
    const retention =
      keep === undefined
        ? { deleted: [], kept: [] }
        : await retain({
            client,
            name: pushed.name,
            keep,
            current: snapshot,
            named,
            now: clock.now(),
            dryRun: false,
            signal,
          });
    return { ...pushed, fastRestore, ssmParameter: name === undefined ? null : { name, version }, ...retention };
  } catch (cause) {
    if (!(cause instanceof HeadstartError)) throw cause;
    throw new HeadstartError(cause.code, { what: `snapshot ${snapshot} is completed; then`, cause });
  }
}

/** As Systems Manager takes it; what else is wrong with it only AWS knows. Throws HS_USAGE. */
function checkParameter(name: string | undefined): void {
  if (name === undefined || /^(?:[\w.-]+|(?:\/[\w.-]+)+)$/.test(name)) return;
  const what = `--ssm-parameter ${name}: write NAME or /PATH/NAME, of letters, digits, "_", "." and "-"`;
  throw new HeadstartError("HS_USAGE", { what });
}

export interface DryRun {
  readonly dryRun: true;
  /** The parent holds just this already: no snapshot would be made. */
  readonly unchanged: boolean;
  readonly parent: string | null;
  readonly region: string;
  readonly volumeSizeGiB: number;
  readonly sizeBytes: number;
  readonly blocks: number;
  /** Null: only reading the parent back, which costs, would tell. */
  readonly estimate: PushEstimate | null;
  readonly readBack: { readonly blocks: number; readonly dollars: number } | null;
  readonly wouldDelete: readonly string[];
  readonly kept: Retention["kept"];
}

/** Throws what preparing a push throws. */
export async function dryRunPublish(options: PublishOptions): Promise<DryRun> {
  const { client, clock, keep, signal } = options;
  checkParameter(options.ssmParameter);
  const named = namedSnapshots(options.nodeClasses ?? []);
  await using image = await DiskImage.open(options.path);
  const prepared = await preparePush({ ...options, readBack: false }, image);
  const { plan, parent, name } = prepared;
  const answer = unchangedParent(prepared);
  const unknown = parent?.from === "unknown";
  const listed = unknown ? await countBlocks(new EbsApi(client), parent.id, signal) : 0;
  const retention =
    keep === undefined
      ? { deleted: [], kept: [] }
      : await retain({ client, name, keep, current: answer?.id, named, now: clock.now(), dryRun: true, signal });
  return {
    dryRun: true,
    unchanged: answer !== undefined,
    parent: parent?.id ?? null,
    region: client.region,
    volumeSizeGiB: plan.volumeSizeGiB,
    sizeBytes: plan.sizeBytes,
    blocks: plan.blocks.size,
    estimate: unknown ? null : estimatePush(plan.changed.size),
    readBack: unknown ? { blocks: listed, dollars: (listed / 1000) * EBS_PRICES.getPer1000 } : null,
    wouldDelete: retention.deleted,
    kept: retention.kept,
  };
}

async function countBlocks(api: EbsApi, snapshot: string, signal: AbortSignal | undefined): Promise<number> {
  let count = 0;
  for await (const { blocks } of api.list(snapshot, { signal })) count += blocks.length;
  return count;
}
