/** containerd's meta.db as records (specs/warm-volume.md 5.3): its form is checked here, what the records mean in graph.ts and snapshots.ts. */

import type { Digest } from "../../base/digest.ts";
import { isDigest } from "../../base/digest.ts";
import type { Bucket } from "../bolt/ondisk.ts";
import { NAMESPACE } from "../containerd-db.ts";
import type { Findings } from "./findings.ts";
import { RecordReader } from "./records.ts";

export interface ImageRecord {
  readonly name: string;
  readonly place: string;
  readonly target: { readonly digest: Digest; readonly mediaType: string; readonly size: number | null };
  readonly labels: ReadonlyMap<string, string>;
}

export interface BlobRecord {
  readonly place: string;
  readonly size: number | null;
  readonly labels: ReadonlyMap<string, string>;
}

export interface SnapshotRecord {
  readonly place: string;
  /** In the snapshotter. */
  readonly name: string;
  readonly parent: string | null;
  readonly children: ReadonlySet<string>;
}

export interface MetaRecords {
  readonly images: readonly ImageRecord[];
  readonly blobs: ReadonlyMap<Digest, BlobRecord>;
  /** Of the one snapshotter, by chainID. */
  readonly snapshots: ReadonlyMap<string, SnapshotRecord>;
  readonly sequence: number;
}

export interface RecordOptions {
  readonly findings: Findings;
  readonly snapshotter: string;
  /** Nanoseconds since 1970 that every record has; null: any. */
  readonly time: bigint | null;
  /** Sequence of the snapshots in both databases; null: any above their numbers. */
  readonly sequence: number | null;
  /** True: the volume is as it was built; nothing may be there that a build does not write. */
  readonly exact: boolean;
}

const VERSIONS = [3, 4];

export function readMetaRecords(root: Bucket, options: RecordOptions): MetaRecords {
  const { findings, exact } = options;
  const top = new RecordReader(root, "meta.db", findings);
  const v1 = top.bucket("v1");
  top.finish();
  const version = v1.varint("version");
  if (version !== null && !VERSIONS.includes(version)) {
    findings.differs("database", `${v1.place}/version`, "the schema's version", version, VERSIONS.join(" or "));
  }
  const namespace = v1.bucket(NAMESPACE);
  for (const name of v1.keys) {
    if (name === NAMESPACE || name === "version" || exact) continue;
    v1.optionalBucket(name);
    findings.open(`namespace ${name}`, `kubelet sees ${NAMESPACE} alone`);
  }
  v1.finish();
  const content = namespace.bucket("content");
  const blobs = readBlobs(content.bucket("blob"), options);
  mustBeEmpty(content, "ingests", options);
  content.finish();
  const named = namespace.bucket("images");
  const images = named.buckets().map(([name, record]) => readImage(name, record, options));
  named.finish();
  const snapshotters = namespace.bucket("snapshots");
  const own = snapshotters.bucket(options.snapshotter);
  const snapshots = readSnapshots(own, options);
  checkSequence(own, options);
  for (const name of snapshotters.keys) {
    if (name === options.snapshotter || exact) continue;
    snapshotters.optionalBucket(name);
    findings.open(`snapshots of ${name}`, `the volume is for ${options.snapshotter}`);
  }
  snapshotters.finish();
  mustBeEmpty(namespace, "leases", options);
  if (!exact) {
    for (const name of ["labels", "containers", "sandboxes"]) {
      const found = namespace.optionalBucket(name);
      const count = found === null ? 0 : [...found.keys].length;
      if (count > 0) findings.open(`meta.db: ${name}`, "it is no part of what a node is given", count);
    }
  }
  namespace.finish();
  return { images, blobs, snapshots, sequence: own.sequence };
}

/** Ingests and leases of a volume that nobody uses: there are none. */
function mustBeEmpty(parent: RecordReader, name: string, { exact, findings }: RecordOptions): void {
  const found = exact ? parent.bucket(name) : parent.optionalBucket(name);
  const count = found === null ? 0 : [...found.keys].length;
  if (found === null) return;
  if (exact && found.sequence !== 0) findings.differs("database", found.place, "its sequence", found.sequence, 0);
  if (count === 0) return;
  if (exact) findings.add("database", found.place, `holds ${count} records, should be empty`);
  else findings.open(`meta.db: ${name}`, "it was left by a containerd", count);
}

/** As built, where that is known: a number that was handed out is never given again. */
export function checkSequence(snapshots: RecordReader, { sequence, findings }: RecordOptions): void {
  if (sequence !== null && snapshots.sequence !== sequence) {
    findings.differs("database", snapshots.place, "the sequence", snapshots.sequence, sequence);
  }
}

export function stamps(record: RecordReader, { time, findings }: Pick<RecordOptions, "time" | "findings">): void {
  for (const name of ["createdat", "updatedat"]) {
    const found = record.time(name);
    if (time !== null && found !== null && found !== time) {
      findings.differs("database", `${record.place}/${name}`, "the time in ns", found, time);
    }
  }
}

function readBlobs(bucket: RecordReader, options: RecordOptions): Map<Digest, BlobRecord> {
  const blobs = new Map<Digest, BlobRecord>();
  for (const [digest, record] of bucket.buckets()) {
    if (!isDigest(digest)) {
      options.findings.add("database", record.place, "its key is no digest");
      continue;
    }
    stamps(record, options);
    const { place } = record;
    blobs.set(digest, { place, size: record.varint("size"), labels: record.labels() });
    record.finish();
  }
  bucket.finish();
  return blobs;
}

function readImage(name: string, record: RecordReader, options: RecordOptions): ImageRecord {
  stamps(record, options);
  const target = record.bucket("target");
  const found = {
    digest: target.digest("digest") ?? ("" as Digest),
    mediaType: target.text("mediatype") ?? "",
    size: target.varint("size"),
  };
  target.finish();
  // `ctr images import` leaves the descriptor's annotations
  if (!options.exact) record.optionalBucket("annotations");
  const labels = record.labels();
  record.finish();
  return { name: Buffer.from(name, "latin1").toString(), place: record.place, target: found, labels };
}

function readSnapshots(bucket: RecordReader, options: RecordOptions): Map<string, SnapshotRecord> {
  const snapshots = new Map<string, SnapshotRecord>();
  for (const [chainID, record] of bucket.buckets()) {
    stamps(record, options);
    const children = record.optionalBucket("children");
    for (const child of children?.keys ?? []) {
      const value = children!.bytes(child);
      if (value !== null && value.byteLength > 0) children!.wrong(child, "a value where there is none");
    }
    children?.finish();
    const labels = record.labels();
    checkSnapshotLabels(labels, chainID, record.place, options);
    snapshots.set(chainID, {
      place: record.place,
      name: record.text("name") ?? "",
      parent: record.optionalText("parent"),
      children: new Set(children?.keys),
    });
    record.finish();
  }
  bucket.finish("any");
  return snapshots;
}

const SNAPSHOT_REF = "containerd.io/snapshot.ref";
/** CRI hands these to snapshotters that fetch by themselves. */
const CRI_HINTS = "containerd.io/snapshot/cri.";

/** containerd 2.x writes the name it asked for; a pull leaves its hints. */
export function checkSnapshotLabels(
  labels: ReadonlyMap<string, string>,
  chainID: string,
  place: string,
  { findings, exact }: Pick<RecordOptions, "findings" | "exact">,
): void {
  for (const [name, value] of labels) {
    if (!exact && name === SNAPSHOT_REF && value === chainID) continue;
    if (!exact && name.startsWith(CRI_HINTS)) findings.open("labels of snapshots", "overlayfs does not read them");
    else findings.add("database", `${place}/labels`, `${name}=${value} does not belong to this snapshot`);
  }
}
