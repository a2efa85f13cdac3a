/**
 * All layers of a plan, from their sources into a containerd root: each blob is fetched once, each snapshot unpacked once, several at a time. A layer is staged as soon
 * as its blob is there; it is placed once the layers below are known, since directories that it only implies take their attributes from them.
 */

import { mkdirSync } from "node:fs";
import { rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { type ChainID, type Digest, digestHex } from "../base/digest.ts";
import { Limit } from "../base/limit.ts";
import type { FileTree } from "../erofs/file-tree.ts";
import { resolveChain } from "../erofs/implied.ts";
import type { ImageReader } from "../oci/store.ts";
import { fetchBlob } from "./fetch.ts";
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

/** Blobs under way at once: registries give one connection a part of a link only. */
const FETCHES_MAX = 4;

/** Usage of every snapshot, by chainID. Throws the first error of any of them, when all work has ended. */
export async function unpackImages(plan: VolumePlan, options: UnpackOptions): Promise<Map<ChainID, SnapshotUsage>> {
  const stop = new AbortController();
  const signal = AbortSignal.any([options.signal, stop.signal]);
  await using workers = new VolumeWorkers();
  const unpacking = new Unpacking(plan, { ...options, signal }, workers);
  let failure: { readonly error: unknown } | undefined;
  const watched = unpacking.start().map((part) =>
    part.catch((error: unknown) => {
      failure ??= { error };
      stop.abort(error);
    }),
  );
  await Promise.all(watched);
  options.signal.throwIfAborted();
  if (failure !== undefined) throw failure.error;
  return unpacking.usage;
}

class Unpacking {
  readonly usage = new Map<ChainID, SnapshotUsage>();
  readonly #plan: VolumePlan;
  readonly #options: UnpackOptions;
  readonly #workers: VolumeWorkers;
  readonly #fetches = new Limit(FETCHES_MAX);
  readonly #blobs = new Map<Digest, Promise<string>>();
  /** The final trees of a snapshot and all below it, lowest first. */
  readonly #chains = new Map<ChainID, Promise<readonly FileTree[]>>();
  #fetchedBytes = 0;

  constructor(plan: VolumePlan, options: UnpackOptions, workers: VolumeWorkers) {
    this.#plan = plan;
    this.#options = options;
    this.#workers = workers;
  }

  /** Everything that must end well. */
  start(): Promise<unknown>[] {
    for (const blob of this.#plan.blobs) this.#blobs.set(blob.descriptor.digest, this.#fetch(blob));
    const placed: Promise<void>[] = [];
    for (const snapshot of this.#plan.snapshots) {
      const staging = join(this.#options.work, `staging-${snapshot.id}`);
      const below = snapshot.parent === null ? Promise.resolve([]) : this.#chains.get(snapshot.parent)!;
      const chain = this.#stage(snapshot, staging, below);
      this.#chains.set(snapshot.chainID, chain);
      placed.push(this.#place(snapshot, staging, chain));
    }
    return [...this.#blobs.values(), ...this.#chains.values(), ...placed];
  }

  /** Where the blob lies: in the content store, or for a layer that is not kept in the work folder. */
  async #fetch(blob: PlanBlob): Promise<string> {
    const { root, work, readers, signal } = this.#options;
    const { descriptor } = blob;
    const path = blob.kept
      ? join(root, ContainerdPaths.blob(descriptor.digest))
      : join(work, digestHex(descriptor.digest));
    const reader = readers[blob.images[0]!]!;
    await this.#fetches.run(
      async () => {
        if (blob.kind === "index" || blob.kind === "manifest") {
          await writeFile(path, await reader.readManifest(descriptor, signal), { flag: "wx" });
          return;
        }
        const onBytes = (count: number) => {
          this.#fetchedBytes += count;
          this.#report();
        };
        await fetchBlob(reader.openBlob(descriptor), path, { signal, onBytes });
      },
      { signal },
    );
    if (blob.kept) finishBlob(root, descriptor.digest);
    return path;
  }

  async #stage(
    snapshot: PlanSnapshot,
    staging: string,
    parents: Promise<readonly FileTree[]>,
  ): Promise<readonly FileTree[]> {
    const { signal } = this.#options;
    const { digest, mediaType } = snapshot.layer;
    const { diffID, role } = snapshot;
    const request = { blob: await this.#blobs.get(digest)!, mediaType, digest, diffID, role };
    mkdirSync(staging);
    const { tree } = await this.#workers.run({ t: "stage", request: { ...request, staging } }, signal);
    const lowers = await parents;
    if (!takesFromBelow(tree, lowers)) return [...lowers, tree];
    // read again for its tree alone: addresses, and so the staged data, stay
    const again = await this.#workers.run({ t: "stage", request: { ...request, lowers } }, signal);
    return [...lowers, again.tree];
  }

  async #place(snapshot: PlanSnapshot, staging: string, chain: Promise<readonly FileTree[]>): Promise<void> {
    const { root, signal } = this.#options;
    const tree = (await chain).at(-1)!;
    makeSnapshot(root, snapshot.id);
    const target = join(root, ContainerdPaths.files(snapshot.id));
    await this.#workers.run({ t: "place", request: { tree, staging, target } }, signal);
    // what later entries of the layer replaced
    await rm(staging, { recursive: true });
    this.usage.set(snapshot.chainID, snapshotUsage(tree));
    this.#report();
  }

  #report(): void {
    this.#options.onProgress?.({ fetchedBytes: this.#fetchedBytes, layersDone: this.usage.size });
  }
}

/** True when a directory of the layer is another one in this chain. */
function takesFromBelow(tree: FileTree, lowers: readonly FileTree[]): boolean {
  if (lowers.length === 0 || !tree.flags.some((flags) => flags !== 0)) return false;
  const own = resolveChain([...lowers, tree]).at(-1)!;
  return own.taken.size > 0 || own.leftOut.size > 0;
}
