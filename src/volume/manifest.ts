/**
 * What is written beside a volume, as PATH.json: an in-toto statement with SLSA provenance (v1) that names every input and the databases by digest, and in it the volume
 * manifest (specs/warm-volume.md 8.4). No time of day, no host name: the same build writes the same bytes.
 */

import { type Digest, digestAlgorithm, digestHex, sha256 } from "../base/digest.ts";
import { VERSION } from "../base/version.ts";
import { formatPlatform } from "../oci/platform.ts";
import { backendName } from "./containerd-db.ts";
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
}

export interface VolumeManifest {
  readonly schema: typeof MANIFEST_SCHEMA;
  readonly target: string;
  readonly platform: string;
  readonly snapshotter: string;
  readonly images: readonly VolumeImage[];
  readonly options: { readonly blobs: boolean; readonly pinned: boolean; readonly time: number };
  readonly tool: { readonly version: string };
}

export interface VolumeImage {
  readonly refs: readonly string[];
  readonly digest: Digest;
  readonly mediaType: string;
  readonly manifest: Digest;
  readonly config: Digest;
  readonly pinned: boolean;
  readonly layers: readonly {
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
  }[];
}

export function volumeManifest(plan: VolumePlan, record: Pick<BuildRecord, "layout" | "usage">): VolumeManifest {
  const ids = new Map(plan.snapshots.map((snapshot) => [snapshot.chainID, snapshot.id]));
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
        return {
          digest: descriptor.digest,
          diffID,
          chainID,
          snapshotId,
          backendName: backendName(snapshotId, chainID),
          blobBytes: descriptor.size,
          bytes: usage?.size ?? null,
          files: usage?.inodes ?? null,
        };
      }),
    })),
    options: { blobs: plan.blobsKept, pinned: plan.pinned, time: plan.time },
    tool: { version: VERSION },
  };
}

export function provenance(plan: VolumePlan, record: BuildRecord) {
  const subject = Object.entries(record.files).map(([name, bytes]) => ({ name, digest: digestSet(sha256(bytes)) }));
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
          blobs: plan.blobsKept ? "keep" : "drop",
          pin: plan.pinned,
        },
        resolvedDependencies: [
          ...plan.images.map((image) => ({
            uri: image.source,
            digest: digestSet(image.target.digest),
            mediaType: image.target.mediaType,
          })),
          ...plan.blobs.map(({ descriptor }) => ({
            digest: digestSet(descriptor.digest),
            mediaType: descriptor.mediaType,
          })),
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
