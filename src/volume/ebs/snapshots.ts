/** Snapshots as EC2 knows them: state, tags, waiting, deletion, fast restore; and the parameter that publishes an id (specs/warm-volume.md 10). */

import type { Clock } from "../../base/clock.ts";
import { type ErrorCode, HeadstartError, isHeadstartError } from "../../base/errors.ts";
import type { AwsClient } from "../aws/client.ts";
import { filters, list, query, queryPages } from "../aws/query.ts";
import { child, descendants, items, textOf, type XmlElement } from "../aws/xml.ts";
import { type EbsApi, parseStatus, SNAPSHOT_ID, type SnapshotStatus } from "./api.ts";

export interface SnapshotInfo {
  readonly id: string;
  readonly status: SnapshotStatus;
  /** EC2's words for an error, or "". */
  readonly message: string;
  readonly volumeSizeGiB: number;
  /** Milliseconds since 1970. */
  readonly startedAt: number;
  readonly tags: ReadonlyMap<string, string>;
  readonly encrypted: boolean;
}

/** Undefined when there is none of this id. Throws what AWS calls throw. */
export async function describeSnapshot(
  client: AwsClient,
  id: string,
  options: { readonly signal?: AbortSignal | undefined; readonly attempts?: number } = {},
): Promise<SnapshotInfo | undefined> {
  try {
    const root = await query(client, "ec2", "DescribeSnapshots", list("SnapshotId", [id]), options);
    return items(root, "snapshotSet")
      .map(parseSnapshot)
      .find((each) => each.id === id);
  } catch (error) {
    // a bare 404 is some other server's
    if (isHeadstartError(error, "HS_AWS_NOT_FOUND") && error.details.fault !== "") return undefined;
    throw error;
  }
}

/** The direct APIs work without EC2, which may be out of reach or not allowed: null then. Undefined when there is none of this id. */
export async function askSnapshot(
  client: AwsClient,
  id: string,
  signal?: AbortSignal,
): Promise<SnapshotInfo | undefined | null> {
  try {
    return await describeSnapshot(client, id, { signal, attempts: 3 });
  } catch (error) {
    if (isHeadstartError(error, ...NO_EC2)) return null;
    throw error;
  }
}

const NO_EC2 = [
  "HS_AWS_DENIED",
  "HS_AWS_UNAVAILABLE",
  "HS_AWS_PROTOCOL",
  "HS_AWS_NOT_FOUND",
] as const satisfies readonly ErrorCode[];

/** Our own account's, by tags. */
export async function findSnapshots(
  client: AwsClient,
  tags: Readonly<Record<string, string>>,
  signal?: AbortSignal,
): Promise<SnapshotInfo[]> {
  const wanted = Object.fromEntries(Object.entries(tags).map(([key, value]) => [`tag:${key}`, [value]]));
  const found: SnapshotInfo[] = [];
  const fields = { ...list("Owner", ["self"]), ...filters(wanted) };
  for await (const root of queryPages(client, "DescribeSnapshots", fields, { signal })) {
    found.push(...items(root, "snapshotSet").map(parseSnapshot));
  }
  // what is found may be deleted: that it is meant is not left to EC2's patterns
  return found.filter((each) => Object.entries(tags).every(([key, value]) => each.tags.get(key) === value));
}

function parseSnapshot(item: XmlElement): SnapshotInfo {
  const id = textOf(item, "snapshotId") ?? "";
  const volumeSizeGiB = Number(textOf(item, "volumeSize"));
  const startedAt = Date.parse(textOf(item, "startTime") ?? "");
  if (!SNAPSHOT_ID.test(id) || !Number.isInteger(volumeSizeGiB) || volumeSizeGiB < 1 || Number.isNaN(startedAt)) {
    throw new HeadstartError("HS_AWS_PROTOCOL", {
      what: `DescribeSnapshots: a snapshot without id, size or time: ${id.slice(0, 60)}`,
    });
  }
  const state = textOf(item, "status");
  return {
    id,
    // recoverable and recovering are in the recycle bin: no good either
    status: state === "recoverable" || state === "recovering" ? "error" : parseStatus(state),
    message: textOf(item, "statusMessage") ?? "",
    volumeSizeGiB,
    startedAt,
    tags: new Map(items(item, "tagSet").map((tag) => [textOf(tag, "key") ?? "", textOf(tag, "value") ?? ""])),
    encrypted: textOf(item, "encrypted") === "true",
  };
}

export interface WaitOptions {
  readonly clock: Clock;
  readonly stepMs?: number;
  readonly onWait?: () => void;
  readonly signal?: AbortSignal | undefined;
}

/** EC2 answers from several places: a state counts when it was said so often in a row (coldsnap has the same). */
const EQUAL_ANSWERS = 3;
const STEP_MS = 2000;
/** A snapshot that is not seen for so many answers does not exist. */
const MISSING_MAX = 75;

/** Without EC2 nobody says that a snapshot has ended in error. */
const LISTING_MS = 30 * 60_000;

/**
 * Waits until it is completed. Where EC2 cannot be asked, a snapshot is completed when its blocks can be listed. Throws HS_EBS_SNAPSHOT when it ends in error or vanishes, HS_AWS_UNAVAILABLE when it
 * is not completed for long and EC2 cannot be asked why.
 */
export async function waitCompleted(api: EbsApi, id: string, options: WaitOptions): Promise<void> {
  const { clock, signal, stepMs = STEP_MS } = options;
  const until = clock.monotonic() + LISTING_MS;
  let last: SnapshotStatus | undefined;
  let equal = 0;
  let missing = 0;
  let ec2 = true;
  for (;;) {
    const info: SnapshotInfo | undefined | null = ec2 ? await askSnapshot(api.client, id, signal) : null;
    ec2 = info !== null;
    if (info === undefined && ++missing > MISSING_MAX) {
      throw new HeadstartError("HS_EBS_SNAPSHOT", { what: `snapshot ${id} does not exist` });
    }
    const status = info === null ? await listedStatus(api, id, signal) : info?.status;
    equal = status !== undefined && status === last ? equal + 1 : 1;
    last = status;
    if (status === "completed" && equal >= EQUAL_ANSWERS) return;
    if (status === "error" && equal >= EQUAL_ANSWERS) {
      const why = info?.message ? `: ${info.message}` : "";
      throw new HeadstartError("HS_EBS_SNAPSHOT", { what: `snapshot ${id} has ended in error${why}` });
    }
    if (!ec2 && clock.monotonic() > until) {
      throw new HeadstartError("HS_AWS_UNAVAILABLE", {
        what: `snapshot ${id} is not completed yet, and EC2, which would say why, cannot be asked`,
      });
    }
    options.onWait?.();
    await clock.sleep(stepMs, signal);
  }
}

/** By the direct APIs alone: blocks can be listed of what is completed, and of nothing else. */
export async function listedStatus(api: EbsApi, id: string, signal?: AbortSignal): Promise<"completed" | "pending"> {
  try {
    for await (const _page of api.list(id, { signal })) break;
    return "completed";
  } catch (error) {
    if (isHeadstartError(error, "HS_AWS_REFUSED", "HS_AWS_NOT_FOUND")) return "pending";
    throw error;
  }
}

/** "in-use": an AMI has it. "gone": somebody else was first. */
export async function deleteSnapshot(
  client: AwsClient,
  id: string,
  signal?: AbortSignal,
): Promise<"deleted" | "in-use" | "gone"> {
  try {
    await query(client, "ec2", "DeleteSnapshot", { SnapshotId: id }, { signal });
    return "deleted";
  } catch (error) {
    if (isHeadstartError(error) && error.details.fault === "InvalidSnapshot.InUse") return "in-use";
    if (isHeadstartError(error, "HS_AWS_NOT_FOUND")) return "gone";
    throw error;
  }
}

export interface FastRestore {
  readonly zone: string;
  readonly state: string;
}

/** Throws HS_AWS_REFUSED for zones that EC2 does not take; the others are on then. */
export async function enableFastRestore(
  client: AwsClient,
  id: string,
  zones: readonly string[],
  signal?: AbortSignal,
): Promise<FastRestore[]> {
  const fields = { ...list("AvailabilityZone", zones), ...list("SourceSnapshotId", [id]) };
  const root = await query(client, "ec2", "EnableFastSnapshotRestores", fields, { signal });
  const refused = child(root, "unsuccessful");
  const zonesOf = refused === undefined ? [] : [...descendants(refused, "availabilityZone")].map(({ text }) => text);
  if (zonesOf.length > 0) {
    const why = [...descendants(refused!, "message")].map(({ text }) => text.slice(0, 100)).join("; ");
    throw new HeadstartError("HS_AWS_REFUSED", { what: `fast restore of ${id} in ${zonesOf.join(", ")}: ${why}` });
  }
  return items(root, "successful").map((item) => ({
    zone: textOf(item, "availabilityZone") ?? "",
    state: textOf(item, "state") ?? "",
  }));
}

/** Writes the id to a name that other tools read. Returns the parameter's version. */
export async function putParameter(
  client: AwsClient,
  name: string,
  value: string,
  signal?: AbortSignal,
): Promise<number> {
  const answer = await client.call({
    service: "ssm",
    operation: "PutParameter",
    method: "POST",
    path: "/",
    headers: { "content-type": "application/x-amz-json-1.1", "x-amz-target": "AmazonSSM.PutParameter" },
    body: Buffer.from(JSON.stringify({ Name: name, Value: value, Type: "String", Overwrite: true })),
    signal,
  });
  const { Version: version } = JSON.parse(Buffer.from(answer.body).toString("utf8")) as { Version?: unknown };
  return typeof version === "number" ? version : 0;
}
