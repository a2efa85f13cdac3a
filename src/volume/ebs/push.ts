/**
 * A disk image becomes an EBS snapshot: what is to be put is planned from block digests, put many blocks at once, and completed with the count and checksum of the whole. No step trusts an earlier
 * one: every block is read, hashed once, and compared with the plan before it is put; EBS compares it with the same hash on arrival, and the aggregate at the end. So a snapshot either completes with
 * the planned bytes or does not complete.
 *
 * A plan's digest makes the client token, so whoever pushes the same volume with the same options again is given the same pending snapshot; PATH.push (state.ts) saves him the blocks that are there.
 */

import { basename } from "node:path";
import type { Clock } from "../../base/clock.ts";
import type { Digest } from "../../base/digest.ts";
import { HeadstartError } from "../../base/errors.ts";
import { VERSION } from "../../base/version.ts";
import type { AwsClient } from "../aws/client.ts";
import { EbsApi, type SnapshotStatus } from "./api.ts";
import { BLOCK_BYTES, contentDigest, keepFreed } from "./blocks.ts";
import { hashImage, readDescription } from "./description.ts";
import { EBS_PACE, Pace, type PaceLimits } from "./pace.ts";
import { type Parent, resolveParent } from "./parent.ts";
import { type PushPlan, planPush, pushTags } from "./plan.ts";
import { recordPath, writeRecord } from "./record.ts";
import type { SnapshotInfo } from "./snapshots.ts";
import { DiskImage } from "./source.ts";
import { Upload } from "./upload.ts";

export interface PushOptions {
  readonly client: AwsClient;
  readonly clock: Clock;
  readonly path: string;
  readonly parent?: string | undefined;
  readonly parentManifest?: string | undefined;
  readonly tags?: Readonly<Record<string, string>>;
  readonly description?: string | undefined;
  /** Zeros go where the volume uses nothing and the parent has old bytes; otherwise those stay, unseen by a file system but readable. */
  readonly scrub?: boolean | undefined;
  readonly encrypted?: boolean;
  readonly kmsKey?: string | undefined;
  readonly resume?: boolean;
  readonly wait?: boolean;
  readonly pace?: Partial<PaceLimits>;
  readonly waitStepMs?: number;
  readonly onProgress?: (progress: PushProgress) => void;
  /** What the user should know though nothing is wrong. */
  readonly note?: (text: string) => void;
  readonly signal?: AbortSignal | undefined;
}

export interface PushProgress {
  readonly phase: "hash" | "parent" | "send" | "wait";
  readonly done: number;
  readonly total: number | undefined;
}

export interface PushResult {
  readonly snapshot: string;
  readonly status: SnapshotStatus;
  /** The parent holds just this already: it is the answer, and no snapshot was made. */
  readonly unchanged: boolean;
  readonly parent: string | null;
  readonly region: string;
  readonly content: Digest;
  readonly sizeBytes: number;
  readonly volumeSizeGiB: number;
  readonly blocks: {
    /** Of the file: that are not zero. */
    readonly total: number;
    /** Of the parent, where the volume uses nothing. */
    readonly freed: number;
    /** ChangedBlocksCount. */
    readonly changed: number;
    readonly sent: number;
    /** Were there from an earlier run. */
    readonly resumed: number;
  };
  readonly sentBytes: number;
  readonly requests: number;
  readonly retries: number;
  readonly inFlightMax: number;
  readonly seconds: number;
  readonly name: string;
}

/** All that `--dry-run` needs, too. */
export interface PreparedPush {
  readonly plan: PushPlan;
  readonly parent: Parent | undefined;
  readonly name: string;
  /** The digests were made from the file just now, not read from PATH.json. */
  readonly hashed: boolean;
}

/** Throws HS_NOT_FOUND, HS_USAGE, HS_MANIFEST, HS_VOLUME_CHANGED, HS_EBS_PARENT and what AWS calls throw. */
export async function preparePush(
  options: PushOptions & { readonly readBack?: boolean },
  image: DiskImage,
): Promise<PreparedPush> {
  const { client, clock, path, signal, encrypted = false, kmsKey } = options;
  if (options.parent !== undefined && (encrypted || kmsKey !== undefined)) {
    throw new HeadstartError("HS_USAGE", {
      what: "--encrypted and --kms-key: a child is encrypted as its --parent is",
    });
  }
  if (kmsKey !== undefined && !KEY_ARN.test(kmsKey))
    throw new HeadstartError("HS_USAGE", {
      what: `--kms-key ${kmsKey}: EBS takes the key's ARN alone (arn:aws:kms:REGION:ACCOUNT:key/ID), no id or alias`,
    });
  const described = readDescription(path, image);
  const blocks =
    described.blocks ??
    (await hashImage(image, {
      signal,
      onHashed: (done) => options.onProgress?.({ phase: "hash", done, total: undefined }),
    }));
  const { sizeBytes, volumeSizeGiB } = image;
  const parent =
    options.parent === undefined
      ? undefined
      : await resolveParent({
          api: new EbsApi(client),
          pace: new Pace({ ...EBS_PACE, ...options.pace }, clock),
          id: options.parent,
          description: options.parentManifest,
          record: recordPath(path),
          volumeSizeGiB,
          readBack: options.readBack,
          onRead: (done) => options.onProgress?.({ phase: "parent", done, total: undefined }),
          signal,
        });
  const held = options.scrub ? blocks : keepFreed(blocks, parent?.blocks ?? new Map(), described.unused);
  const name = options.tags?.Name ?? basename(path);
  const tags = pushTags(options.tags ?? {}, {
    name,
    content: contentDigest(held),
    sizeBytes,
    images: described.images,
    manifest: described.digest,
  });
  const description = describe(options.description, name);
  const plan = planPush({
    blocks,
    held,
    sizeBytes,
    volumeSizeGiB,
    parent,
    tags,
    description,
    encrypted: encrypted || kmsKey !== undefined,
    kmsKey,
  });
  return { plan, parent, name, hashed: described.blocks === undefined };
}

const KEY_ARN = /^arn:aws[a-z-]*:kms:[^:]+:\d{12}:key\/.+$/;
const DESCRIPTION_MAX = 255;

function describe(own: string | undefined, name: string): string {
  const by = `, by headstart ${VERSION}`;
  if (own === undefined) return `${name.slice(0, DESCRIPTION_MAX - by.length)}${by}`;
  if (own !== "" && own.length <= DESCRIPTION_MAX) return own;
  throw new HeadstartError("HS_USAGE", {
    what: `--description: ${own.length} characters; EBS takes 1 to ${DESCRIPTION_MAX}`,
  });
}

/** The parent, when it holds just this volume already: then it is the answer. */
export function unchangedParent({ plan, parent }: PreparedPush): SnapshotInfo | undefined {
  const isSame = plan.changed.size === 0 && parent?.info?.volumeSizeGiB === plan.volumeSizeGiB;
  return isSame && parent.from !== "unknown" ? parent.info : undefined;
}

/** Throws what `preparePush` throws, HS_EBS_UNFINISHED (--resume goes on), HS_EBS_STATE, HS_EBS_SNAPSHOT. */
export async function pushVolume(options: PushOptions): Promise<PushResult> {
  const { client, clock } = options;
  const startedAt = clock.monotonic();
  await using image = await DiskImage.open(options.path);
  const prepared = await preparePush(options, image);
  const { plan, parent, name } = prepared;
  const upload = new Upload(options, image, prepared);
  const result = (
    status: SnapshotStatus,
    more: { readonly snapshot: string; readonly unchanged: boolean },
  ): PushResult => ({
    ...more,
    status,
    parent: parent?.id ?? null,
    region: client.region,
    content: plan.content,
    sizeBytes: plan.sizeBytes,
    volumeSizeGiB: plan.volumeSizeGiB,
    blocks: {
      total: plan.blocks.size,
      freed: plan.held.size - plan.blocks.size,
      changed: plan.changed.size,
      sent: upload.sent,
      resumed: upload.resumed,
    },
    sentBytes: upload.sent * BLOCK_BYTES,
    requests: client.requests,
    retries: client.retries,
    inFlightMax: upload.pace.peak,
    seconds: (clock.monotonic() - startedAt) / 1000,
    name,
  });
  const answer = unchangedParent(prepared);
  if (answer !== undefined) {
    const { id: snapshot, status } = answer;
    await upload.verify();
    writeRecord(options.path, { ...plan, snapshot, status, parent: null, region: client.region });
    return result(status, { snapshot, unchanged: true });
  }
  const { snapshot, status } = await upload.run();
  return result(status, { snapshot, unchanged: false });
}
