/**
 * All layers of a plan, from their sources into a containerd root. A layer is staged as soon as its blob is there (collect.ts); it is placed once the layers below are
 * known, since directories that it only implies take their attributes from them.
 */

import { rm } from "node:fs/promises";
import { join } from "node:path";
import { type ChainID, digestHex } from "../base/digest.ts";
import type { FileTree } from "../erofs/file-tree.ts";
import type { ImageReader } from "../oci/store.ts";
import { Collection, together } from "./collect.ts";
import { ContainerdPaths, finishBlob, makeSnapshot } from "./layout/containerd.ts";
import type { PlanBlob, PlanSnapshot, VolumePlan } from "./plan.ts";
import { type SnapshotUsage, snapshotUsage } from "./usage.ts";
import { VolumeWorkers } from "./workers.ts";

export interface UnpackOptions {
  /** The containerd root, with its skeleton. */
  readonly root: string;
  /** A folder on the same file system for what is under way; removed by the caller. */
  readonly work: string;
  /** One for each image of the plan. */
  readonly readers: readonly ImageReader[];
  readonly signal: AbortSignal;
  readonly onProgress?: ((progress: UnpackProgress) => void) | undefined;
}

export interface UnpackProgress {
  readonly fetchedBytes: number;
  readonly layersDone: number;
}

/** Usage of every snapshot, by chainID. Throws the first error of any of them, when all work has ended. */
export async function unpackImages(plan: VolumePlan, options: UnpackOptions): Promise<Map<ChainID, SnapshotUsage>> {
  const { root, work, readers, onProgress } = options;
  await using workers = new VolumeWorkers();
  const usage = new Map<ChainID, SnapshotUsage>();
  let fetchedBytes = 0;
  const report = () => onProgress?.({ fetchedBytes, layersDone: usage.size });
  const staging = (snapshot: PlanSnapshot) => join(work, `staging-${snapshot.id}`);
  // kept blobs are fetched to where they stay
  const blobPath = ({ descriptor, kept }: PlanBlob) =>
    kept ? join(root, ContainerdPaths.blob(descriptor.digest)) : join(work, digestHex(descriptor.digest));
  const onBytes = (count: number) => {
    fetchedBytes += count;
    report();
  };

  async function place(
    snapshot: PlanSnapshot,
    chain: Promise<readonly FileTree[]>,
    signal: AbortSignal,
  ): Promise<void> {
    const tree = (await chain).at(-1)!;
    makeSnapshot(root, snapshot.id);
    const target = join(root, ContainerdPaths.files(snapshot.id));
    await workers.run({ t: "place", request: { tree, staging: staging(snapshot), target } }, signal);
    // what later entries of the layer replaced
    await rm(staging(snapshot), { recursive: true });
    usage.set(snapshot.chainID, snapshotUsage(tree));
    report();
  }

  await together(options.signal, (signal) => {
    const collection = new Collection(plan, { blobPath, staging, readers, signal, onBytes }, workers);
    const placed = plan.snapshots.map((each) => place(each, collection.chains.get(each.chainID)!, signal));
    return [...collection.blobs.values(), ...collection.chains.values(), ...placed];
  });
  for (const blob of plan.blobs) if (blob.kept) finishBlob(root, blob.descriptor.digest);
  return usage;
}
