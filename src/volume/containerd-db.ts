/**
 * containerd's two databases as buckets: meta.db (namespaces, images, content, snapshots, leases) and the overlayfs snapshotter's metadata.db
 * (specs/warm-volume.md 5.3, 5.4). Pure. What lives in containerd lives by labels: image -> manifest -> configuration and layers, configuration -> snapshot ->
 * parents; a record without its label is gone with the first garbage collection.
 */

import { Writer } from "../base/bytes.ts";
import type { ChainID } from "../base/digest.ts";
import { HeadstartError } from "../base/errors.ts";
import type { Bucket } from "./bolt/ondisk.ts";
import type { PlanImage, VolumePlan } from "./plan.ts";
import type { SnapshotUsage } from "./usage.ts";

/** CRI's. */
export const NAMESPACE = "k8s.io";
/** containerd 1.6 and 1.7 have 3; 2.x takes it and writes 4. */
const SCHEMA_VERSION = 3;
const KIND_COMMITTED = 3;

type Value = Uint8Array | Bucket;

function bucket(entries: readonly (readonly [string, Value] | null)[], sequence = 0): Bucket {
  return { sequence, entries: new Map(entries.filter((entry) => entry !== null)) };
}

const EMPTY = bucket([]);
const NOTHING = new Uint8Array(0);
const text = (value: string) => Buffer.from(value);

/** Absent when empty, as containerd has it. */
function labelsEntry(labels: readonly (readonly [string, string])[]): readonly [string, Bucket] | null {
  return labels.length === 0 ? null : ["labels", bucket(labels.map(([name, value]) => [name, text(value)]))];
}

export function metaDatabase(plan: VolumePlan): Bucket {
  const time = goTime(plan.time);
  const stamps: readonly (readonly [string, Value])[] = [
    ["createdat", time],
    ["updatedat", time],
  ];
  const blobs = plan.blobs
    .filter((blob) => blob.kept)
    .map(({ descriptor, labels }): [string, Bucket] => [
      descriptor.digest,
      bucket([...stamps, ["size", varint(descriptor.size)], labelsEntry(labels)]),
    ]);
  const children = childrenOf(plan);
  const snapshots = plan.snapshots.map(({ id, chainID, parent }): [string, Bucket] => {
    const above = children.get(chainID);
    return [
      chainID,
      bucket([
        ...stamps,
        ["name", text(backendName(id, chainID))],
        parent === null ? null : ["parent", text(parent)],
        above === undefined ? null : ["children", bucket(above.map((child) => [child, NOTHING]))],
      ]),
    ];
  });
  const namespace = bucket([
    [
      "content",
      bucket([
        ["blob", bucket(blobs)],
        ["ingests", EMPTY],
      ]),
    ],
    ["images", bucket(imageRecords(plan, stamps))],
    ["leases", EMPTY],
    ["snapshots", bucket([[plan.snapshotter, bucket(snapshots, plan.sequence)]])],
  ]);
  return bucket([
    [
      "v1",
      bucket([
        ["version", varint(SCHEMA_VERSION)],
        [NAMESPACE, namespace],
      ]),
    ],
  ]);
}

/** Every name, and the image's id: the digest of its configuration. */
function imageRecords(plan: VolumePlan, stamps: readonly (readonly [string, Value])[]): [string, Bucket][] {
  const labels: [string, string][] = [["io.cri-containerd.image", "managed"]];
  if (plan.pinned) labels.push(["io.cri-containerd.pinned", "pinned"]);
  const records = new Map<string, Bucket>();
  const add = (name: string, image: PlanImage) => {
    const { digest, mediaType, size } = image.target;
    const target = bucket([
      ["digest", text(digest)],
      ["mediatype", text(mediaType)],
      ["size", varint(size)],
    ]);
    records.set(name, bucket([...stamps, ["target", target], labelsEntry(labels)]));
  };
  for (const image of plan.images) {
    // several images may share a configuration (one image in two compressions): the first has the id
    if (!records.has(image.config.digest)) add(image.config.digest, image);
    for (const name of image.names) add(name, image);
  }
  return [...records];
}

function childrenOf(plan: VolumePlan): Map<ChainID, ChainID[]> {
  const children = new Map<ChainID, ChainID[]>();
  for (const { chainID, parent } of plan.snapshots) {
    if (parent === null) continue;
    const known = children.get(parent);
    if (known === undefined) children.set(parent, [chainID]);
    else known.push(chainID);
  }
  return children;
}

export function snapshotDatabase(plan: VolumePlan, usage: ReadonlyMap<ChainID, SnapshotUsage>): Bucket {
  const time = goTime(plan.time);
  const byChain = new Map(plan.snapshots.map((snapshot) => [snapshot.chainID, snapshot]));
  const parents: [string, Uint8Array][] = [];
  const snapshots = plan.snapshots.map(({ id, chainID, parent }): [string, Bucket] => {
    const used = usage.get(chainID);
    if (used === undefined) throw new HeadstartError("HS_INTERNAL", { what: `snapshot ${chainID} was not unpacked` });
    const below = parent === null ? null : byChain.get(parent)!;
    if (below !== null) parents.push([parentKey(below.id, id), text(backendName(id, chainID))]);
    return [
      backendName(id, chainID),
      bucket([
        ["id", uvarint(id)],
        ["kind", Uint8Array.of(KIND_COMMITTED)],
        below === null ? null : ["parent", text(backendName(below.id, below.chainID))],
        ["inodes", varint(used.inodes)],
        ["size", varint(used.size)],
        ["createdat", time],
        ["updatedat", time],
      ]),
    ];
  });
  return bucket([
    [
      "v1",
      bucket([
        parents.length === 0 ? null : ["parents", bucket(parents)],
        ["snapshots", bucket(snapshots, plan.sequence)],
      ]),
    ],
  ]);
}

/** The snapshot's name in the snapshotter: unique by its number. */
export function backendName(id: number, chainID: ChainID): string {
  return `${NAMESPACE}/${id}/${chainID}`;
}

function parentKey(parent: number, child: number): string {
  return Buffer.concat([uvarint(parent), Uint8Array.of(0), uvarint(child)]).toString("latin1");
}

/** Go's binary.PutUvarint: 7 bits a byte, low first. */
export function uvarint(value: number): Uint8Array {
  const bytes: number[] = [];
  let rest = value;
  for (; rest >= 0x80; rest = Math.floor(rest / 0x80)) bytes.push((rest % 0x80) | 0x80);
  bytes.push(rest);
  return Uint8Array.from(bytes);
}

/** Go's binary.PutVarint (zig-zag) of a number that is not negative. */
export function varint(value: number): Uint8Array {
  return uvarint(value * 2);
}

/** Reads either back: the number before zig-zag is half of it. Null when the bytes are no uvarint below 2^53. */
export function readUvarint(bytes: Uint8Array): number | null {
  let value = 0;
  for (let index = 0; index < bytes.byteLength; index++) {
    const byte = bytes[index]!;
    value += (byte & 0x7f) * 2 ** (7 * index);
    if (!Number.isSafeInteger(value)) return null;
    if ((byte & 0x80) === 0) return index === bytes.byteLength - 1 ? value : null;
  }
  return null;
}

/** From year 1 to 1970. */
const GO_EPOCH_SECONDS = 62_135_596_800;

/** Go's time.MarshalBinary, version 1, of a whole second in UTC. */
export function goTime(seconds: number): Uint8Array {
  const bytes = new Writer(15).u8(1).zeros(12).u8(0xff).u8(0xff).finish();
  new DataView(bytes.buffer, bytes.byteOffset).setBigInt64(1, BigInt(seconds + GO_EPOCH_SECONDS));
  return bytes;
}
