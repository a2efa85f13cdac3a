/**
 * What a volume will hold, as plain data: images and their names, distinct blobs with containerd's labels, distinct snapshots with their numbers. Pure: the
 * same images give the same plan, in whatever order they are named (specs/warm-volume.md 5.3, 8.3).
 *
 * Snapshots are numbered 1, 2, 3 … by depth, then by chainID; one that an earlier volume had keeps its number (former.ts).
 */

import { type ChainID, chainIDs, type DiffID, type Digest } from "../base/digest.ts";
import { HeadstartError } from "../base/errors.ts";
import type { LayerRole } from "../formats/format.ts";
import type { Descriptor } from "../oci/descriptor.ts";
import { formatPlatform, type Platform } from "../oci/platform.ts";

/** One image as a source gave it (images.ts). */
export interface ResolvedImage {
  /** The source as the user wrote it, without credentials. */
  readonly source: string;
  /** Whole references under which containerd shall know it, normalised. */
  readonly names: readonly string[];
  /** What the names point to: an index or the manifest. */
  readonly target: Descriptor;
  /** Indexes from the target down to the manifest, each with the entry that leads on. Empty when the target is the manifest. */
  readonly indexes: readonly { readonly descriptor: Descriptor; readonly child: Digest }[];
  readonly manifest: Descriptor;
  readonly config: Descriptor;
  /** Lowest first. */
  readonly layers: readonly { readonly descriptor: Descriptor; readonly diffID: DiffID }[];
  /** Seconds since 1970, from the configuration; null when it does not say. */
  readonly created: number | null;
  /** Where a registry has it, for containerd's distribution labels. */
  readonly repository: { readonly host: string; readonly repository: string } | null;
}

export interface PlanOptions {
  readonly platform: Platform;
  readonly snapshotter: string;
  readonly pinned: boolean;
  /** False: layer blobs are left out. */
  readonly blobs: boolean;
  /** Seconds since 1970 for all records; default: the newest image's creation. */
  readonly time?: number | undefined;
  /** Gives each snapshot its number; parents come first. Default: 1, 2, 3 … */
  readonly numbering?: ((snapshots: readonly NumberedLayer[]) => Numbering) | undefined;
}

export type NumberedLayer = Pick<PlanSnapshot, "chainID" | "diffID" | "role">;

export interface Numbering {
  /** One for each, all different, from 1. */
  readonly ids: readonly number[];
  /** No lower than any number that was ever given: containerd counts on from here. */
  readonly sequence: number;
}

export type BlobKind = "index" | "manifest" | "config" | "layer";

export interface PlanBlob {
  readonly kind: BlobKind;
  readonly descriptor: Descriptor;
  /** Ascending by name. */
  readonly labels: readonly (readonly [name: string, value: string])[];
  /** On the volume; a layer's blob that is not is only read to unpack it. */
  readonly kept: boolean;
  /** Indices of images that have it: any of their sources will do. */
  readonly images: readonly number[];
}

export interface PlanSnapshot {
  /** Directory name and number in both databases, from 1. */
  readonly id: number;
  readonly chainID: ChainID;
  readonly parent: ChainID | null;
  /** The layer that it is unpacked from. */
  readonly layer: Descriptor;
  readonly diffID: DiffID;
  readonly role: LayerRole;
}

export interface PlanImage extends ResolvedImage {
  /** One for each layer, lowest first. */
  readonly chain: readonly ChainID[];
}

export interface VolumePlan {
  readonly platform: Platform;
  readonly snapshotter: string;
  readonly pinned: boolean;
  readonly blobsKept: boolean;
  /** Seconds since 1970 of every record and of every directory that belongs to no layer. */
  readonly time: number;
  readonly images: readonly PlanImage[];
  /** By digest. */
  readonly blobs: readonly PlanBlob[];
  /** By depth, then by chainID: parents first. */
  readonly snapshots: readonly PlanSnapshot[];
  /** The highest snapshot number that was ever given. */
  readonly sequence: number;
}

/** Throws HS_USAGE when one name is given to two images, HS_MANIFEST when two of them contradict each other. */
export function makePlan(resolved: readonly ResolvedImage[], options: PlanOptions): VolumePlan {
  if (resolved.length === 0) throw new HeadstartError("HS_USAGE", { what: "a volume of no images" });
  const images = mergeImages(resolved);
  const { snapshots, sequence } = planSnapshots(images, options.numbering ?? countFromOne);
  return {
    platform: options.platform,
    snapshotter: options.snapshotter,
    pinned: options.pinned,
    blobsKept: options.blobs,
    time: options.time ?? Math.max(0, ...images.map((image) => image.created ?? 0)),
    images,
    blobs: planBlobs(images, options),
    snapshots,
    sequence,
  };
}

function countFromOne(snapshots: readonly NumberedLayer[]): Numbering {
  return { ids: snapshots.map((_, index) => index + 1), sequence: snapshots.length };
}

/** Sums that `--dry-run` and the manifest show. */
export function planSizes(plan: VolumePlan) {
  const sum = (blobs: readonly PlanBlob[]) => blobs.reduce((total, blob) => total + blob.descriptor.size, 0);
  return {
    images: plan.images.length,
    snapshots: plan.snapshots.length,
    /** To be fetched. */
    fetchBytes: sum(plan.blobs),
    /** Stored as blobs. */
    blobBytes: sum(plan.blobs.filter((blob) => blob.kept)),
    layerBytes: sum(plan.blobs.filter((blob) => blob.kind === "layer")),
  };
}

/** Sources of one target become one image; images are sorted by their first name. */
function mergeImages(resolved: readonly ResolvedImage[]): PlanImage[] {
  const owner = new Map<string, Digest>();
  const byTarget = new Map<string, ResolvedImage>();
  const sorted = [...resolved].sort((a, b) => compare(a.source, b.source));
  for (const image of sorted) {
    for (const name of image.names) {
      const other = owner.get(name);
      if (other !== undefined && other !== image.target.digest) {
        throw new HeadstartError("HS_USAGE", {
          what: `two images want the name ${name}: ${other} and ${image.target.digest}`,
        });
      }
      owner.set(name, image.target.digest);
    }
    const key = `${image.target.digest} ${image.manifest.digest}`;
    const known = byTarget.get(key);
    const names = [...new Set([...(known?.names ?? []), ...image.names])].sort();
    byTarget.set(key, { ...(known ?? image), names, repository: known?.repository ?? image.repository });
  }
  return [...byTarget.values()]
    .map((image) => ({ ...image, chain: chainIDs(image.layers.map((layer) => layer.diffID)) }))
    .sort((a, b) => compare(a.names[0] ?? a.target.digest, b.names[0] ?? b.target.digest));
}

function planSnapshots(
  images: readonly PlanImage[],
  numbering: (snapshots: readonly NumberedLayer[]) => Numbering,
): { snapshots: PlanSnapshot[]; sequence: number } {
  const found = new Map<ChainID, Omit<PlanSnapshot, "id"> & { readonly depth: number }>();
  for (const image of images) {
    for (const [depth, { descriptor, diffID }] of image.layers.entries()) {
      const chainID = image.chain[depth]!;
      const known = found.get(chainID);
      // one layer compressed in two ways: whatever the order of the images, the same blob is unpacked
      if (known !== undefined && known.layer.digest <= descriptor.digest) continue;
      const parent = depth === 0 ? null : image.chain[depth - 1]!;
      found.set(chainID, { chainID, parent, layer: descriptor, diffID, role: depth === 0 ? "lowest" : "upper", depth });
    }
  }
  const sorted = [...found.values()].sort((a, b) => a.depth - b.depth || compare(a.chainID, b.chainID));
  const { ids, sequence } = numbering(sorted);
  const snapshots = sorted.map(({ depth: _depth, ...snapshot }, index) => ({ id: ids[index]!, ...snapshot }));
  return { snapshots, sequence };
}

class BlobRecord {
  readonly labels = new Map<string, string>();
  readonly repositories = new Map<string, Set<string>>();
  readonly images = new Set<number>();
  readonly kind: BlobKind;
  readonly descriptor: Descriptor;

  constructor(kind: BlobKind, descriptor: Descriptor) {
    this.kind = kind;
    this.descriptor = descriptor;
  }
}

function planBlobs(images: readonly PlanImage[], options: PlanOptions): PlanBlob[] {
  const found = new Map<Digest, BlobRecord>();
  for (const [index, image] of images.entries()) {
    const add = (kind: BlobKind, descriptor: Descriptor) => {
      let record = found.get(descriptor.digest);
      if (record === undefined) {
        record = new BlobRecord(kind, descriptor);
        found.set(descriptor.digest, record);
      }
      if (record.descriptor.size !== descriptor.size || record.kind !== kind) {
        throw new HeadstartError("HS_MANIFEST", {
          what: `${descriptor.digest} is a ${record.kind} of ${record.descriptor.size} bytes and a ${kind} of ${descriptor.size} bytes`,
        });
      }
      record.images.add(index);
      if (image.repository !== null) {
        const { host, repository } = image.repository;
        const name = `containerd.io/distribution.source.${host}`;
        if (!record.repositories.has(name)) record.repositories.set(name, new Set());
        record.repositories.get(name)!.add(repository);
      }
      return record.labels;
    };
    for (const { descriptor, child } of image.indexes) addIndexed(add("index", descriptor), child);
    const manifest = add("manifest", image.manifest);
    manifest.set("containerd.io/gc.ref.content.config", image.config.digest);
    for (const [position, { descriptor, diffID }] of image.layers.entries()) {
      manifest.set(`containerd.io/gc.ref.content.l.${position}`, descriptor.digest);
      add("layer", descriptor).set("containerd.io/uncompressed", diffID);
    }
    const config = add("config", image.config);
    const top = image.chain.at(-1);
    if (top !== undefined) config.set(`containerd.io/gc.ref.snapshot.${options.snapshotter}`, top);
  }
  return [...found.values()]
    .sort((a, b) => compare(a.descriptor.digest, b.descriptor.digest))
    .map((record) => {
      for (const [name, repositories] of record.repositories)
        record.labels.set(name, [...repositories].sort().join(","));
      return {
        kind: record.kind,
        descriptor: record.descriptor,
        labels: [...record.labels].sort((a, b) => compare(a[0], b[0])),
        kept: record.kind !== "layer" || options.blobs,
        images: [...record.images],
      };
    });
}

/** Two images may come out of one index by different manifests: each is kept alive. */
function addIndexed(labels: Map<string, string>, child: Digest): void {
  if ([...labels.values()].includes(child)) return;
  labels.set(`containerd.io/gc.ref.content.m.${labels.size}`, child);
}

function compare(a: string, b: string): number {
  return a < b ? -1 : a > b ? 1 : 0;
}

/** One line for messages: "2 images, 5 layers for linux/amd64". */
export function describePlan(plan: VolumePlan): string {
  const count = (number: number, word: string) => `${number} ${word}${number === 1 ? "" : "s"}`;
  return `${count(plan.images.length, "image")}, ${count(plan.snapshots.length, "layer")} for ${formatPlatform(plan.platform)}`;
}
