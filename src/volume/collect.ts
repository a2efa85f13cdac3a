/**
 * Everything that a plan takes from its sources: each blob is fetched once, several at a time, and each snapshot's layer is read as soon as its blob is there. What is
 * known then is the layer's tree as it is in its chain; where the data go is the layout's business.
 */

import { mkdirSync } from "node:fs";
import { writeFile } from "node:fs/promises";
import type { ChainID, Digest } from "../base/digest.ts";
import { Limit } from "../base/limit.ts";
import type { FileTree } from "../erofs/file-tree.ts";
import { resolveChain } from "../erofs/implied.ts";
import type { ImageReader } from "../oci/store.ts";
import { fetchBlob } from "./fetch.ts";
import type { PlanBlob, PlanSnapshot, VolumePlan } from "./plan.ts";
import type { VolumeWorkers } from "./workers.ts";

export interface CollectOptions {
  /** Where a blob goes: a path that is not there. */
  readonly blobPath: (blob: PlanBlob) => string;
  /** A folder to be made for the data of a layer's files (stage.ts); without it only trees are read. */
  readonly staging?: (snapshot: PlanSnapshot) => string;
  /** One for each image of the plan. */
  readonly readers: readonly ImageReader[];
  readonly signal: AbortSignal;
  /** Bytes of blobs that arrived since the last call. */
  readonly onBytes?: ((count: number) => void) | undefined;
}

/** Blobs under way at once: registries give one connection a part of a link only. */
const FETCHES_MAX = 4;

export class Collection {
  /** Path of each blob, once it is there whole and verified. */
  readonly blobs = new Map<Digest, Promise<string>>();
  /** The final trees of a snapshot and of all below it, lowest first. */
  readonly chains = new Map<ChainID, Promise<readonly FileTree[]>>();
  readonly #options: CollectOptions;
  readonly #workers: VolumeWorkers;
  readonly #fetches = new Limit(FETCHES_MAX);

  /** Begins. Every promise of both maps must be watched. */
  constructor(plan: VolumePlan, options: CollectOptions, workers: VolumeWorkers) {
    this.#options = options;
    this.#workers = workers;
    for (const blob of plan.blobs) this.blobs.set(blob.descriptor.digest, this.#fetch(blob));
    for (const snapshot of plan.snapshots) {
      const below = snapshot.parent === null ? Promise.resolve([]) : this.chains.get(snapshot.parent)!;
      this.chains.set(snapshot.chainID, this.#stage(snapshot, below));
    }
  }

  async #fetch(blob: PlanBlob): Promise<string> {
    const { readers, signal, onBytes } = this.#options;
    const { descriptor } = blob;
    const path = this.#options.blobPath(blob);
    const reader = readers[blob.images[0]!]!;
    await this.#fetches.run(
      async () => {
        if (blob.kind === "index" || blob.kind === "manifest") {
          await writeFile(path, await reader.readManifest(descriptor, signal), { flag: "wx" });
        } else {
          await fetchBlob(reader.openBlob(descriptor), path, { signal, onBytes });
        }
      },
      { signal },
    );
    return path;
  }

  async #stage(snapshot: PlanSnapshot, parents: Promise<readonly FileTree[]>): Promise<readonly FileTree[]> {
    const { signal } = this.#options;
    const { digest, mediaType } = snapshot.layer;
    const { diffID, role } = snapshot;
    const request = { blob: await this.blobs.get(digest)!, mediaType, digest, diffID, role };
    const staging = this.#options.staging?.(snapshot);
    if (staging !== undefined) mkdirSync(staging);
    const { tree } = await this.#workers.run({ t: "stage", request: { ...request, staging } }, signal);
    const lowers = await parents;
    if (!takesFromBelow(tree, lowers)) return [...lowers, tree];
    // read again for its tree alone: addresses, and so the staged data, stay
    const again = await this.#workers.run({ t: "stage", request: { ...request, lowers } }, signal);
    return [...lowers, again.tree];
  }
}

/** True when a directory of the layer is another one in this chain. */
function takesFromBelow(tree: FileTree, lowers: readonly FileTree[]): boolean {
  if (lowers.length === 0 || !tree.flags.some((flags) => flags !== 0)) return false;
  const own = resolveChain([...lowers, tree]).at(-1)!;
  return own.taken.size > 0 || own.leftOut.size > 0;
}

/**
 * Waits for all parts of one work and throws the first error of any of them when all have ended. `begin` gets a signal that also stops the others then.
 */
export async function together(
  signal: AbortSignal,
  begin: (signal: AbortSignal) => Iterable<Promise<unknown>>,
): Promise<void> {
  const stop = new AbortController();
  let failure: { readonly error: unknown } | undefined;
  const watched = [...begin(AbortSignal.any([signal, stop.signal]))].map((part) =>
    part.catch((error: unknown) => {
      failure ??= { error };
      stop.abort(error);
    }),
  );
  await Promise.all(watched);
  signal.throwIfAborted();
  if (failure !== undefined) throw failure.error;
}
