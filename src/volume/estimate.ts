/**
 * What a volume will be and cost before anything is fetched, built or sent: bytes by layer, blocks that EBS is sent, dollars, and the seconds that a node waits for what it holds
 * (specs/warm-volume.md 9, 10, 13). Of a volume that was built all is known; of images the unpacked sizes are told by the end of each gzip layer, one small read a layer.
 */

import type { Digest } from "../base/digest.ts";
import { GiB, MiB } from "../base/limits.ts";
import type { ImageReader } from "../oci/store.ts";
import type { OpenPlan } from "./build.ts";
import { sizeFor } from "./doctor/checks.ts";
import type { VolumeFacts } from "./doctor/volume-facts.ts";
import { BLOCK_BYTES } from "./ebs/blocks.ts";
import { EBS_PRICES, estimatePush, type PushEstimate } from "./ebs/prices.ts";
import type { FormerVolume } from "./former.ts";
import { DEFAULT_RATE, hydrationSeconds, RATE_MAX } from "./hydration.ts";

export interface EstimatedLayer {
  readonly digest: Digest;
  readonly chainID: Digest;
  readonly blobBytes: number;
  readonly unpackedBytes: number;
  /** How the unpacked size is known: counted when it was built, said at the end of the gzip data, or guessed from the compressed size. */
  readonly from: "built" | "gzip" | "guess";
  /** `--previous` has it: nothing of it is sent. */
  readonly kept: boolean;
}

export interface VolumeEstimate {
  /** The volume that was read; null: nothing is built yet. */
  readonly volume: string | null;
  readonly layers: readonly EstimatedLayer[];
  readonly usedBytes: number;
  /** Of the disk, and of the snapshot. */
  readonly sizeGib: number;
  /** That leaves 30 % to the node. */
  readonly nodeSizeGib: number;
  readonly push: PushEstimate;
  readonly nodes: {
    /** Seconds until everything is on a node's disk. */
    readonly seconds: { readonly default: number; readonly atRate: number; readonly hotDefault: number | null };
    /** MiB/s that they are reckoned with. */
    readonly rate: { readonly default: number; readonly paid: number };
    readonly rateDollarsPerNode: number;
    readonly fastRestore: { readonly dollarsPerZoneMonth: number; readonly disksPerHour: number };
  };
}

/** Of unpacked layers against their compressed size, where nothing better is known. */
const RATIO_GUESS = 2.6;
/** Files are rounded up to blocks, tars carry headers: about this much more on ext4. */
const ON_DISK = 1.04;
/** Padding of a layer's region, twice with its blob. */
const REGION_PADDING = BLOCK_BYTES / 2;
/** Superblocks, descriptors, bitmaps, inode tables and databases of a small volume, for each MiB of files. */
const METADATA = { base: 12 * MiB, each: 0.012 };
const JOURNAL_BYTES = 64 * MiB;
const HOURS_A_MONTH = 730;

/** Reads the last bytes of each distinct layer. `former`: the next build follows it. Throws what the registry throws. */
export async function estimateImages(
  opened: OpenPlan,
  options: { readonly signal?: AbortSignal | undefined; readonly onLayer?: (done: number, total: number) => void },
): Promise<VolumeEstimate> {
  const { plan, readers, former } = opened;
  const kept = keptLayers(former);
  const layers: EstimatedLayer[] = [];
  for (const { layer, chainID, diffID } of plan.snapshots) {
    const images = plan.blobs.find(({ descriptor }) => descriptor.digest === layer.digest)!.images;
    const size = await unpackedSize(readers[images[0]!]!, layer, options.signal);
    layers.push({ digest: layer.digest, chainID, blobBytes: layer.size, ...size, kept: kept.has(diffID) });
    options.onLayer?.(layers.length, plan.snapshots.length);
  }
  const bytesOf = (each: readonly EstimatedLayer[]) => {
    const blobs = new Map(each.map(({ digest, blobBytes }) => [digest, blobBytes]));
    const blobBytes = plan.blobsKept ? [...blobs.values()].reduce((sum, bytes) => sum + bytes + REGION_PADDING, 0) : 0;
    return each.reduce((sum, { unpackedBytes }) => sum + unpackedBytes * ON_DISK + REGION_PADDING, blobBytes);
  };
  const files = bytesOf(layers);
  const metadata = METADATA.base + files * METADATA.each;
  const usedBytes = Math.ceil(files + metadata + JOURNAL_BYTES);
  // what an unchanged layer keeps is not sent; the few blocks of metadata are
  const sent = bytesOf(layers.filter((layer) => !layer.kept)) + metadata;
  const sizeGib = Math.max(1, Math.ceil((usedBytes * 1.02 + 2 * MiB) / GiB));
  return finish({ volume: null, layers, usedBytes, sizeGib, blocks: Math.ceil(sent / BLOCK_BYTES), hotBytes: null });
}

/** Of a disk that was built: its manifest tells all. `parent`: block digests of what is there already. */
export function estimateVolume(volume: VolumeFacts, parent: ReadonlyMap<string, string> | null): VolumeEstimate {
  const { disk } = volume;
  const changed = [...(disk?.blocks ?? [])].filter(([index, digest]) => parent?.get(index) !== digest).length;
  const zeroed = [...(parent?.keys() ?? [])].filter((index) => !disk?.blocks.has(index)).length;
  return finish({
    volume: volume.where,
    layers: volume.layers,
    usedBytes: disk?.usedBytes ?? 0,
    sizeGib: (disk?.bytes ?? 0) / GiB,
    blocks: changed + zeroed,
    hotBytes: disk?.hotRange?.[1] ?? null,
  });
}

function finish(known: {
  readonly volume: string | null;
  readonly layers: readonly EstimatedLayer[];
  readonly usedBytes: number;
  readonly sizeGib: number;
  readonly blocks: number;
  readonly hotBytes: number | null;
}): VolumeEstimate {
  const { usedBytes, sizeGib, hotBytes } = known;
  return {
    volume: known.volume,
    layers: known.layers,
    usedBytes,
    sizeGib,
    nodeSizeGib: sizeFor({ bytes: sizeGib * GiB, usedBytes }),
    push: estimatePush(known.blocks),
    nodes: {
      seconds: {
        default: hydrationSeconds(usedBytes, null),
        atRate: hydrationSeconds(usedBytes, RATE_MAX),
        hotDefault: hotBytes === null ? null : hydrationSeconds(hotBytes, null),
      },
      rate: { default: DEFAULT_RATE, paid: RATE_MAX },
      rateDollarsPerNode: (usedBytes / GiB) * EBS_PRICES.initializationPerGiB,
      fastRestore: {
        dollarsPerZoneMonth: EBS_PRICES.fastRestoreZoneHour * HOURS_A_MONTH,
        // credits by the size of the snapshot's volume
        disksPerHour: sizeGib === 0 ? 0 : Math.min(10, 1024 / sizeGib),
      },
    },
  };
}

function keptLayers(former: FormerVolume | null): ReadonlySet<string> {
  return new Set((former?.layers ?? []).map(({ diffID }) => diffID));
}

/**
 * A gzip stream ends with its length modulo 2^32; a stream of several members with that of the last alone, which is told by its being too small.
 */
async function unpackedSize(
  reader: ImageReader,
  layer: Parameters<ImageReader["openBlob"]>[0],
  signal: AbortSignal | undefined,
): Promise<Pick<EstimatedLayer, "unpackedBytes" | "from">> {
  const guess = { unpackedBytes: Math.round(layer.size * RATIO_GUESS), from: "guess" as const };
  if (/\btar$/.test(layer.mediaType)) return { unpackedBytes: layer.size, from: "built" };
  if (!/gzip/.test(layer.mediaType) || layer.size < 18) return guess;
  const end = await reader.openBlob(layer).readRange(layer.size - 4, layer.size, { signal });
  const length = Buffer.from(end).readUInt32LE(0);
  const turns = Math.max(0, Math.round((guess.unpackedBytes - length) / 2 ** 32));
  const unpackedBytes = length + turns * 2 ** 32;
  return unpackedBytes >= layer.size ? { unpackedBytes, from: "gzip" } : guess;
}
