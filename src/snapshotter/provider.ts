/**
 * `LayerProvider`: all that the snapshotter needs of images and layers. image/ and mount/ implement it, daemon/ wires them, tests give a simple one. The
 * snapshotter decides rows, names and mounts; it knows neither formats nor HTTP.
 */

import type { ChainID, Digest } from "../base/digest.ts";

/** Row id of a layer in layer/store.ts: names its file, its FUSE node and its mount. Never reused; 0 is a layer that holds nothing. */
export type LayerId = number;

/** What containerd's labels say at an extraction Prepare (specs/containerd.md 4.2). Everything in it is a claim until the manifest confirms it. */
export interface OfferRequest {
  readonly namespace: string | null;
  /** containerd.io/snapshot.ref: the chainID that shall exist. */
  readonly target: ChainID;
  /** The layers that this snapshot's parents hold, lowest first; empty for the lowest layer. A plain (unpacked) parent is null. */
  readonly parents: readonly (LayerId | null)[];
  readonly reference: string | null;
  readonly manifestDigest: Digest | null;
  readonly layerDigest: Digest | null;
}

export type Offer =
  /** The snapshotter commits a snapshot over this layer and answers ALREADY_EXISTS. */
  | { readonly kind: "lazy" | "eager"; readonly layer: LayerId }
  /** containerd unpacks it itself. `reason` is for the status and the log. */
  | { readonly kind: "no"; readonly reason: string }
  /** Nobody can provide it: the pull fails with this reason, rather than with whatever containerd's unpacker makes of bytes that are no layer. */
  | { readonly kind: "impossible"; readonly reason: string };

export interface LowersOptions {
  readonly signal?: AbortSignal;
  /** containerd's, of the snapshot whose lowers these are. */
  readonly namespace?: string | null;
  /** The chainID that the topmost of the chain was claimed for. */
  readonly target?: ChainID | null;
  /** The snapshot is of before this process, and should get what it had. */
  readonly isAdopted?: boolean;
  /** A layer is unpacked upon the chain, for all images that have it there; no container runs on it. */
  readonly isExtraction?: boolean;
}

export interface LayerProvider {
  /**
   * Called at each extraction Prepare, serially for one image; must answer in round trips, not seconds, and never throws because lazy loading is
   * impossible (that is a "no"). The first call of an image starts everything for all its layers.
   */
  offer(request: OfferRequest, options: { signal?: AbortSignal }): Promise<Offer>;
  /**
   * Directories to use as overlay lowers, lowest first, for a chain of layers (ours by id, plain snapshots by their directory). Waits for tables (lazy) or
   * for the whole layer (eager), mounts what is not mounted, and counts a use of each layer by `owner` (a snapshot id) until `release`.
   * May return more directories than layers (implied directories get one small lower on top), or fewer: a layer may hold nothing, and one directory may stand for the whole chain.
   * Idempotent for one owner. Throws HS_LAYER_BROKEN, HS_REGISTRY_*, HS_MOUNT.
   */
  lowers(owner: string, chain: readonly ChainElement[], options: LowersOptions): Promise<readonly string[]>;
  /** The owner's snapshot is gone: its mounts may go when nobody else uses them. Must be quick; unmounting may come later. */
  release(owner: string): Promise<void>;
  /** Bytes on disk and inodes of a layer now. */
  usage(layer: LayerId): Promise<{ readonly bytes: number; readonly inodes: number }>;
  /**
   * Only these layers are referred to by snapshots: the disk space of all others may go. Idempotent, safe to be cut off and repeated. Never called while an offer is under way or
   * shortly after one (the later layers of an image have no snapshots yet), but an offer may come while it runs: a layer offered from then on must survive.
   */
  collect(inUse: ReadonlySet<LayerId>): Promise<void>;
}

export type ChainElement =
  | { readonly kind: "layer"; readonly layer: LayerId }
  /** A snapshot that containerd unpacked: its directory is a lower as it is. */
  | { readonly kind: "directory"; readonly path: string };
