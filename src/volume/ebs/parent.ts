/**
 * What a parent snapshot holds, block by block. A description beside the earlier volume says so for nothing; but it is believed only when it is shown to be of this snapshot: by the id that it names,
 * and by the content digest that the snapshot was tagged with. Otherwise the parent is read back, which EBS charges for.
 */

import { existsSync, readFileSync } from "node:fs";
import { HeadstartError } from "../../base/errors.ts";
import type { EbsApi, ListedBlock } from "./api.ts";
import { type BlockMap, contentDigest, type DescribedBlocks, parseDescription, ZERO_BLOCK } from "./blocks.ts";
import type { Pace } from "./pace.ts";
import { eachAtOnce } from "./parallel.ts";
import { TAG } from "./plan.ts";
import { askSnapshot, type SnapshotInfo } from "./snapshots.ts";
import { BlockBuffers } from "./source.ts";

export interface Parent {
  readonly id: string;
  readonly blocks: BlockMap;
  /** Undefined when EC2 cannot be asked. */
  readonly info: SnapshotInfo | undefined;
  /** "unknown": nothing describes it, and it was not to be read; `blocks` are empty. */
  readonly from: "description" | "read-back" | "unknown";
}

export interface ParentOptions {
  readonly api: EbsApi;
  readonly pace: Pace;
  readonly id: string;
  /** `--parent-manifest`: must fit. */
  readonly description?: string | undefined;
  /** Tried if it exists: what an earlier push of the same path has left. */
  readonly record: string;
  readonly volumeSizeGiB: number;
  /** False: a parent that nothing describes is not read back. */
  readonly readBack?: boolean | undefined;
  readonly onRead?: (done: number) => void;
  readonly signal?: AbortSignal | undefined;
}

/** Throws HS_EBS_PARENT when it cannot be one: absent, not completed, larger, or not what --parent-manifest describes. */
export async function resolveParent(options: ParentOptions): Promise<Parent> {
  const { id } = options;
  const info = await parentInfo(options);
  const described = describedParent(options, info);
  if (described !== undefined) return { id, blocks: described.blocks, info, from: "description" };
  if (options.readBack === false) return { id, blocks: new Map(), info, from: "unknown" };
  return { id, blocks: await readBack(options), info, from: "read-back" };
}

/** Undefined when EC2 cannot be asked: EBS itself will say what is wrong with it then. */
async function parentInfo({ api, id, volumeSizeGiB, signal }: ParentOptions): Promise<SnapshotInfo | undefined> {
  const info = await askSnapshot(api.client, id, signal);
  if (info === null) return undefined;
  const wrong =
    info === undefined
      ? "does not exist in this account and region"
      : info.status !== "completed"
        ? `is ${info.status}`
        : info.volumeSizeGiB > volumeSizeGiB
          ? `has ${info.volumeSizeGiB} GiB, the volume ${volumeSizeGiB}`
          : undefined;
  if (wrong !== undefined) throw new HeadstartError("HS_EBS_PARENT", { what: `--parent ${id} ${wrong}` });
  return info;
}

/** A description that is shown to be of this parent. Throws HS_EBS_PARENT when the one that was named is not. */
export function describedParent(
  options: Pick<ParentOptions, "id" | "description" | "record">,
  info: SnapshotInfo | undefined,
): DescribedBlocks | undefined {
  const { id, description: named, record } = options;
  const path = named ?? record;
  if (named === undefined && !existsSync(record)) return undefined;
  let bytes: Uint8Array;
  try {
    bytes = readFileSync(path);
  } catch (cause) {
    throw new HeadstartError("HS_NOT_FOUND", { what: `--parent-manifest ${path}`, cause });
  }
  const found = parseDescription(bytes, path);
  const tag = info?.tags.get(TAG.volume);
  const fits = found !== undefined && (tag === undefined ? found.snapshot === id : tag === contentDigest(found.blocks));
  if (fits) return found;
  if (named === undefined) return undefined;
  const why =
    found === undefined
      ? "it describes no blocks"
      : tag === undefined
        ? "it names another snapshot or none, and the snapshot has no tag that would show it"
        : "the snapshot was made of another volume";
  throw new HeadstartError("HS_EBS_PARENT", { what: `--parent-manifest ${path} does not describe ${id}: ${why}` });
}

async function readBack({ api, pace, id, onRead, signal }: ParentOptions): Promise<Map<number, string>> {
  const blocks = new Map<number, string>();
  const buffers = new BlockBuffers();
  let done = 0;
  async function* listed(): AsyncGenerator<ListedBlock> {
    for await (const page of api.list(id, { signal })) yield* page.blocks;
  }
  await eachAtOnce(
    listed(),
    () => pace.window,
    (block, each) =>
      buffers.using(async (buffer) => {
        const { sha256 } = await api.getFresh(id, block, buffer, { pacer: pace, signal: each });
        if (sha256 !== ZERO_BLOCK) blocks.set(block.index, sha256);
        onRead?.(++done);
      }),
    { signal },
  );
  return blocks;
}
