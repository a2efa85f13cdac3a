/**
 * An EBS snapshot becomes a raw disk image again: every block checked against the checksum that comes with it, zeros left as holes, and the whole against the content digest that a push has tagged
 * the snapshot with. Nothing has the name PATH before all of it is there and on disk.
 */

import { existsSync } from "node:fs";
import { open, rm } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import type { Clock } from "../../base/clock.ts";
import { type Digest, isDigest } from "../../base/digest.ts";
import { HeadstartError, kindOf } from "../../base/errors.ts";
import { fsyncDirectory, giveName } from "../../base/files.ts";
import { GiB } from "../../base/limits.ts";
import type { AwsClient } from "../aws/client.ts";
import { EbsApi, type ListedBlock, SNAPSHOT_ID } from "./api.ts";
import { BLOCK_BYTES, contentDigest, ZERO_BLOCK } from "./blocks.ts";
import { EBS_PACE, Pace, type PaceLimits } from "./pace.ts";
import { eachAtOnce } from "./parallel.ts";
import { TAG } from "./plan.ts";
import { writeRecord } from "./record.ts";
import { askSnapshot, type SnapshotInfo } from "./snapshots.ts";
import { BlockBuffers } from "./source.ts";

export interface PullOptions {
  readonly client: AwsClient;
  readonly clock: Clock;
  readonly snapshot: string;
  readonly path: string;
  readonly pace?: Partial<PaceLimits>;
  readonly onProgress?: (done: number) => void;
  readonly signal?: AbortSignal | undefined;
}

export interface PullResult {
  readonly snapshot: string;
  readonly region: string;
  readonly path: string;
  readonly sizeBytes: number;
  readonly volumeSizeGiB: number;
  /** That are not zero. */
  readonly blocks: number;
  readonly content: Digest;
  /** The snapshot's tag named this content. Null: it has no such tag, or EC2 cannot be asked; each block's own checksum was right. */
  readonly verified: true | null;
  readonly requests: number;
  readonly retries: number;
  readonly seconds: number;
}

/** Throws HS_OUTPUT_EXISTS, HS_NOT_FOUND for the folder, HS_DISK_FULL, HS_EBS_BLOCK, HS_VOLUME_CHANGED when the whole is not what was pushed, and what AWS calls throw. */
export async function pullVolume(options: PullOptions): Promise<PullResult> {
  const { client, clock, snapshot, path } = options;
  if (!SNAPSHOT_ID.test(snapshot))
    throw new HeadstartError("HS_USAGE", { what: `${snapshot} is no snapshot id (snap-…)` });
  if (existsSync(path)) throw new HeadstartError("HS_OUTPUT_EXISTS", { what: path });
  if (!existsSync(dirname(path))) throw new HeadstartError("HS_NOT_FOUND", { what: `the folder ${dirname(path)}` });
  const startedAt = clock.monotonic();
  const info = await snapshotInfo(options);
  const part = join(dirname(path), `.${basename(path)}.part-${process.pid}`);
  try {
    const { blocks, volumeSizeGiB, sizeBytes } = await download(options, part, info);
    const content = contentDigest(blocks);
    const tag = info?.tags.get(TAG.volume);
    if (isDigest(tag) && tag !== content) {
      throw new HeadstartError("HS_VOLUME_CHANGED", { what: `${snapshot} holds ${content}, its tag names ${tag}` });
    }
    giveName(part, path);
    fsyncDirectory(dirname(path));
    writeRecord(path, {
      snapshot,
      status: "completed",
      parent: null,
      region: client.region,
      sizeBytes,
      volumeSizeGiB,
      blocks,
    });
    return {
      snapshot,
      region: client.region,
      path,
      sizeBytes,
      volumeSizeGiB,
      blocks: blocks.size,
      content,
      verified: isDigest(tag) ? true : null,
      requests: client.requests,
      retries: client.retries,
      seconds: (clock.monotonic() - startedAt) / 1000,
    };
  } catch (cause) {
    if (cause instanceof HeadstartError || kindOf(cause) !== "exhausted") throw cause;
    throw new HeadstartError("HS_DISK_FULL", { what: path, cause });
  } finally {
    await rm(part, { force: true });
  }
}

/** Null when EC2 cannot be asked: the direct APIs alone are enough. */
async function snapshotInfo({ client, snapshot, signal }: PullOptions): Promise<SnapshotInfo | null> {
  const info = await askSnapshot(client, snapshot, signal);
  if (info === undefined) throw new HeadstartError("HS_AWS_NOT_FOUND", { what: `snapshot ${snapshot}` });
  if (info !== null && info.status !== "completed") {
    throw new HeadstartError("HS_EBS_SNAPSHOT", { what: `snapshot ${snapshot} is ${info.status}` });
  }
  return info;
}

async function download(options: PullOptions, part: string, info: SnapshotInfo | null) {
  const { client, clock, snapshot, onProgress, signal } = options;
  const api = new EbsApi(client);
  const pace = new Pace({ ...EBS_PACE, ...options.pace }, clock);
  const blocks = new Map<number, string>();
  let volumeSizeGiB = info?.volumeSizeGiB ?? 1;
  let last = -1;
  await using file = await open(part, "wx", 0o600);
  async function* listed(): AsyncGenerator<ListedBlock> {
    for await (const page of api.list(snapshot, { signal })) {
      volumeSizeGiB = page.volumeSizeGiB;
      yield* page.blocks;
    }
  }
  const buffers = new BlockBuffers();
  let done = 0;
  await eachAtOnce(
    listed(),
    () => pace.window,
    (block, each) =>
      buffers.using(async (buffer) => {
        const { bytes, sha256 } = await api.getFresh(snapshot, block, buffer, { pacer: pace, signal: each });
        if (sha256 !== ZERO_BLOCK) {
          const { bytesWritten } = await file.write(bytes, 0, BLOCK_BYTES, block.index * BLOCK_BYTES);
          if (bytesWritten !== BLOCK_BYTES) throw new HeadstartError("HS_DISK_FULL", { what: options.path });
          blocks.set(block.index, sha256);
          last = Math.max(last, block.index);
        }
        onProgress?.(++done);
      }),
    { signal },
  );
  const tagged = Number(info?.tags.get(TAG.size));
  // what was pushed need not be whole GiB
  const sizeBytes =
    Number.isSafeInteger(tagged) && tagged > last * BLOCK_BYTES && tagged <= volumeSizeGiB * GiB && tagged > 0
      ? tagged
      : volumeSizeGiB * GiB;
  await file.truncate(sizeBytes);
  await file.sync();
  return { blocks, volumeSizeGiB, sizeBytes };
}
