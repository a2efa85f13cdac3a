/**
 * What is written beside a volume, as PATH.json: an in-toto statement with SLSA provenance (v1) that names every input and the databases by digest, and in it the volume
 * manifest (specs/warm-volume.md 8.4). No time of day, no host name: the same build writes the same bytes.
 */

import { createHash } from "node:crypto";
import { type Digest, digestAlgorithm, digestHex, sha256 } from "../base/digest.ts";
import { VERSION } from "../base/version.ts";
import { formatPlatform } from "../oci/platform.ts";
import { backendName } from "./containerd-db.ts";
import type { DiskBlocks, WrittenDisk } from "./disk.ts";
import { uuidText } from "./disk-layout.ts";
import type { RegionPlace } from "./ext4/place.ts";
import { SNAPSHOT_BLOCK } from "./fill.ts";
import type { FormerVolume } from "./former.ts";
import { type HotList, hotRange } from "./hot.ts";
import type { VolumePlan } from "./plan.ts";
import type { SnapshotUsage } from "./usage.ts";

export const MANIFEST_SCHEMA = "headstart.volume/1";
const BUILD_TYPE = "https://headstart.dev/volume/build/v1";

export interface BuildRecord {
  readonly layout: string;
  readonly sources: readonly string[];
  readonly usage: ReadonlyMap<Digest, SnapshotUsage>;
  /** Files of the volume by path. */
  readonly files: Readonly<Record<string, Uint8Array>>;
  readonly disk?: DiskRecord | undefined;
}

/** How a disk was made, beside its plan. */
export interface DiskRecord extends DiskOptions {
  readonly written: WrittenDisk;
  readonly planDigest: Digest;
  /** What it followed; null: nothing. */
  readonly former: FormerVolume | null;
}

export interface DiskOptions {
  readonly selinux: boolean;
  readonly partitioned: boolean;
  /** As asked for, in GiB. */
  readonly sizeGib: number | "auto";
  readonly hot: HotList | null;
}

export interface VolumeManifest extends Partial<DiskManifest> {
  readonly schema: typeof MANIFEST_SCHEMA;
  readonly target: string;
  readonly platform: string;
  readonly snapshotter: string;
  readonly images: readonly VolumeImage[];
  /** The highest number that any snapshot of the volume, or of those before it, ever had. */
  readonly snapshotSequence: number;
  readonly options: {
    readonly blobs: boolean;
    readonly pinned: boolean;
    readonly time: number;
    readonly selinux?: boolean;
    readonly size?: number | "auto";
  };
  readonly tool: { readonly version: string };
}

/** What only a disk has. */
export interface DiskManifest {
  /** Digest of what was asked for: equal ones make equal disks. */
  readonly plan: Digest;
  /** Digest of the disk that this one follows (as the statement's subject has it), hexadecimal. */
  readonly previous?: string;
  /** Bytes of the disk: whole GiB. */
  readonly size: number;
  readonly diskGuid?: string;
  readonly fs: {
    /** First byte on the disk. */
    readonly offset: number;
    readonly uuid: string;
    readonly hashSeed: string;
    /** Of 4096 bytes. */
    readonly blocks: number;
    readonly groups: number;
    readonly inodesPerGroup: number;
    /** Reserved descriptor blocks: for growing online. */
    readonly rsv: number;
    /** [first block, blocks]. */
    readonly journal: readonly [number, number];
    /** Blocks that hold nothing. */
    readonly free: number;
  };
  readonly regions: {
    readonly rest: ManifestPlace;
    readonly stores: ManifestPlace;
    readonly records: ManifestPlace;
    readonly hot?: ManifestPlace;
  };
  readonly hot?: {
    /** [first byte of the disk, bytes]. */
    readonly region: readonly [number, number];
    readonly source: Digest;
    readonly files: number;
    /** Of the list: what no image has. */
    readonly missing: readonly string[];
  };
  readonly blocks: {
    readonly size: number;
    /** By index; what is not named is zeros. */
    readonly sha256: Readonly<Record<string, string>>;
    /** SHA-256 over the raw digests, ascending by index; base64. */
    readonly linear: string;
    /** [first, count]: runs of blocks that nothing lies in. */
    readonly unused: readonly (readonly [number, number])[];
  };
}

/** Where something lies: [first block, blocks] of 4096 bytes of the file system, [first, count] of its inode numbers. */
export interface ManifestPlace {
  readonly region: readonly [number, number];
  readonly inodes: readonly [number, number];
}

export interface VolumeImage {
  readonly refs: readonly string[];
  readonly digest: Digest;
  readonly mediaType: string;
  readonly manifest: Digest;
  readonly config: Digest;
  readonly pinned: boolean;
  readonly layers: readonly VolumeLayer[];
}

/** On a disk with the place of its snapshot. */
export interface VolumeLayer extends Partial<ManifestPlace> {
  readonly digest: Digest;
  readonly diffID: Digest;
  readonly chainID: Digest;
  readonly snapshotId: number;
  readonly backendName: string;
  /** Compressed, as the registry has it. */
  readonly blobBytes: number;
  /** Unpacked, as containerd counts; null where nothing was unpacked (a plan). */
  readonly bytes: number | null;
  readonly files: number | null;
  /** On a disk, when its blob was kept. */
  readonly blob?: ManifestPlace;
}

export function volumeManifest(
  plan: VolumePlan,
  record: Pick<BuildRecord, "layout" | "usage" | "disk"> & { readonly options?: DiskOptions | undefined },
): VolumeManifest {
  const ids = new Map(plan.snapshots.map((snapshot) => [snapshot.chainID, snapshot.id]));
  const { disk } = record;
  const options = disk ?? record.options;
  const layout = disk?.written.layout;
  return {
    schema: MANIFEST_SCHEMA,
    target: record.layout,
    platform: formatPlatform(plan.platform),
    snapshotter: plan.snapshotter,
    images: plan.images.map((image) => ({
      refs: image.names,
      digest: image.target.digest,
      mediaType: image.target.mediaType,
      manifest: image.manifest.digest,
      config: image.config.digest,
      pinned: plan.pinned,
      layers: image.layers.map(({ descriptor, diffID }, index) => {
        const chainID = image.chain[index]!;
        const snapshotId = ids.get(chainID)!;
        const usage = record.usage.get(chainID);
        const blob = layout?.placeOf.blob(descriptor.digest) ?? null;
        return {
          digest: descriptor.digest,
          diffID,
          chainID,
          snapshotId,
          backendName: backendName(snapshotId, chainID),
          blobBytes: descriptor.size,
          bytes: usage?.size ?? null,
          files: usage?.inodes ?? null,
          ...(layout === undefined ? {} : manifestPlace(layout.placeOf.snapshot(snapshotId))),
          ...(blob === null ? {} : { blob: manifestPlace(blob) }),
        };
      }),
    })),
    snapshotSequence: plan.sequence,
    options: {
      blobs: plan.blobsKept,
      pinned: plan.pinned,
      time: plan.time,
      ...(options === undefined ? {} : { selinux: options.selinux, size: options.sizeGib }),
    },
    ...(disk === undefined ? {} : diskManifest(disk)),
    tool: { version: VERSION },
  };
}

/** The volume that the places of this one come from: of an unchanged rebuild, which is the same disk, the one that the first had. */
function previousOf({ former, planDigest }: DiskRecord): string | null {
  if (former === null) return null;
  return former.plan === planDigest ? former.previous : former.digest;
}

function diskManifest(record: DiskRecord): DiskManifest {
  const { written, planDigest, partitioned, hot } = record;
  const previous = previousOf(record);
  const { layout, blocks } = written;
  const { geometry, used } = layout.ext4;
  const { rest, stores, records, hot: hotPlace } = layout.placeOf;
  return {
    plan: planDigest,
    ...(previous === null ? {} : { previous }),
    size: layout.diskSize,
    ...(partitioned ? { diskGuid: layout.identity.diskGuid } : {}),
    fs: {
      offset: layout.base,
      uuid: uuidText(layout.identity.uuid),
      hashSeed: uuidText(layout.identity.hashSeed),
      blocks: geometry.blocks,
      groups: geometry.groups,
      inodesPerGroup: geometry.inodesPerGroup,
      rsv: geometry.reservedDescBlocks,
      journal: [geometry.journal.start, geometry.journal.end - geometry.journal.start],
      free: geometry.blocks - used.reduce((sum, { start, end }) => sum + (end - start), 0),
    },
    regions: {
      rest: manifestPlace(rest),
      stores: manifestPlace(stores),
      records: manifestPlace(records),
      ...(hotPlace === null ? {} : { hot: manifestPlace(hotPlace) }),
    },
    ...(hot === null || written.hot === null
      ? {}
      : { hot: { region: hotRange(layout), source: hot.digest, ...written.hot } }),
    blocks: {
      size: SNAPSHOT_BLOCK,
      sha256: Object.fromEntries(blocks.indices.map((index, at) => [index, blocks.digests[at]!])),
      linear: linearDigest(blocks).toString("base64"),
      unused: blocks.unused,
    },
  };
}

/** As CompleteSnapshot of the EBS direct APIs wants it (specs/warm-volume.md 9). */
function linearDigest({ digests }: DiskBlocks): Buffer {
  const hash = createHash("sha256");
  for (const digest of digests) hash.update(digest, "hex");
  return hash.digest();
}

function manifestPlace({ startBlock, blockCount, firstInode, inodeCount }: RegionPlace): ManifestPlace {
  return { region: [startBlock, blockCount], inodes: [firstInode, inodeCount] };
}

export function provenance(plan: VolumePlan, record: BuildRecord) {
  const { disk } = record;
  const previous = disk === undefined ? null : previousOf(disk);
  const subject: { name: string; digest: Record<string, string> }[] = Object.entries(record.files).map(
    ([name, bytes]) => ({ name, digest: digestSet(sha256(bytes)) }),
  );
  if (disk !== undefined) {
    // a plain digest would read all holes of the disk: this one is over the digests of its blocks of 512 KiB
    subject.unshift({
      name: "disk",
      digest: { sha256Blocks512KiB: linearDigest(disk.written.blocks).toString("hex") },
    });
  }
  return {
    _type: "https://in-toto.io/Statement/v1",
    subject,
    predicateType: "https://slsa.dev/provenance/v1",
    predicate: {
      buildDefinition: {
        buildType: BUILD_TYPE,
        externalParameters: {
          sources: [...record.sources].sort(),
          layout: record.layout,
          platform: formatPlatform(plan.platform),
          names: Object.fromEntries(plan.images.map((image) => [image.source, image.names])),
          blobs: plan.blobsKept ? "keep" : "drop",
          pin: plan.pinned,
          // SOURCE_DATE_EPOCH gives the same one again
          time: plan.time,
          ...(disk === undefined ? {} : { selinux: disk.selinux, size: disk.sizeGib, hot: disk.hot?.digest ?? null }),
        },
        resolvedDependencies: [
          ...plan.images.map((image) => ({
            name: "image",
            uri: image.source,
            digest: digestSet(image.target.digest),
            mediaType: image.target.mediaType,
          })),
          ...plan.blobs.map(({ kind, descriptor }) => ({
            name: kind,
            digest: digestSet(descriptor.digest),
            mediaType: descriptor.mediaType,
          })),
          // places on the disk, and so its bytes, follow from it
          ...(previous === null ? [] : [{ name: "previous volume", digest: { sha256Blocks512KiB: previous } }]),
        ],
      },
      runDetails: { builder: { id: "https://headstart.dev/volume", version: { headstart: VERSION } } },
      headstart_volume: volumeManifest(plan, record),
    },
  };
}

export type Provenance = ReturnType<typeof provenance>;

function digestSet(digest: Digest): Record<string, string> {
  return { [digestAlgorithm(digest)]: digestHex(digest) };
}

/** The manifest in what stands beside a volume, or one alone, without the digests of its blocks; null: it is none. For people to look at: nothing of it is checked. */
export function describeManifest(document: Readonly<Record<string, unknown>>): Record<string, unknown> | null {
  const inner = (document.predicate as { readonly headstart_volume?: unknown } | null | undefined)?.headstart_volume;
  const manifest = (inner ?? document) as Readonly<Record<string, unknown>>;
  if (manifest.schema !== MANIFEST_SCHEMA) return null;
  const { blocks, ...rest } = manifest;
  if (typeof blocks !== "object" || blocks === null) return rest;
  const { size, linear, sha256: digests } = blocks as Readonly<Record<string, unknown>>;
  return { ...rest, blocks: { size, count: Object.keys(digests ?? {}).length, linear } };
}
