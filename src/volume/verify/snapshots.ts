/**
 * Snapshots in both databases (specs/warm-volume.md 5.3, 5.4): the chains of the images and nothing else, each with its parent, children and number; the two
 * databases tell of the same ones; numbers are never handed out twice, since the sequences lie above them.
 */

import type { ChainID } from "../../base/digest.ts";
import type { Bucket } from "../bolt/ondisk.ts";
import { backendName, NAMESPACE, uvarint } from "../containerd-db.ts";
import type { Findings } from "./findings.ts";
import type { Chain } from "./graph.ts";
import { checkSequence, checkSnapshotLabels, type MetaRecords, type RecordOptions, stamps } from "./meta-db.ts";
import { printable, RecordReader } from "./records.ts";

export interface BackendRecord {
  readonly name: string;
  readonly place: string;
  /** Directory below `snapshots`. */
  readonly id: number;
  readonly parent: string | null;
  readonly inodes: number | null;
  readonly size: number | null;
}

/** The snapshotter's metadata.db. */
export function readBackendRecords(root: Bucket, options: RecordOptions): BackendRecord[] {
  const { findings } = options;
  const top = new RecordReader(root, "metadata.db", findings);
  const v1 = top.bucket("v1");
  top.finish();
  const snapshots = v1.bucket("snapshots");
  const records: BackendRecord[] = [];
  for (const [name, record] of snapshots.buckets()) {
    stamps(record, options);
    const { place } = record;
    const id = record.uvarint("id");
    const kind = record.bytes("kind");
    if (kind !== null && !(kind.byteLength === 1 && kind[0] === COMMITTED)) {
      findings.differs("snapshot", `${place}/kind`, "the kind", Buffer.from(kind).toString("hex"), "03 (committed)");
    }
    checkSnapshotLabels(record.labels(), chainOf(name), place, options);
    const parent = record.optionalText("parent");
    const found = { name, place, parent, inodes: record.varint("inodes"), size: record.varint("size") };
    record.finish();
    if (id !== null) records.push({ ...found, id });
  }
  snapshots.finish("any");
  checkSequence(snapshots, options);
  const highest = Math.max(0, ...records.map((record) => record.id));
  if (snapshots.sequence < highest) {
    findings.add("snapshot", snapshots.place, `its sequence is ${snapshots.sequence}, the highest id is ${highest}`);
  }
  checkParents(v1, records, findings);
  v1.finish();
  return records;
}

const COMMITTED = 3;

function chainOf(name: string): string {
  return name.slice(name.lastIndexOf("/") + 1);
}

/** `parents`: (parent id, child id) -> the child's name. */
function checkParents(v1: RecordReader, records: readonly BackendRecord[], findings: Findings): void {
  const byName = new Map(records.map((record) => [record.name, record]));
  const wanted = new Map<string, string>();
  const ids = new Set<number>();
  for (const { id, parent, name, place } of records) {
    if (ids.has(id)) findings.add("snapshot", `${place}/id`, `the id ${id} is given twice`);
    ids.add(id);
    if (parent === null) continue;
    const below = byName.get(parent);
    if (below === undefined) findings.add("snapshot", `${place}/parent`, `there is no snapshot ${parent}`);
    else wanted.set(Buffer.concat([uvarint(below.id), Uint8Array.of(0), uvarint(id)]).toString("latin1"), name);
  }
  const parents = wanted.size > 0 ? v1.bucket("parents") : v1.optionalBucket("parents");
  for (const [key, name] of wanted) {
    const found = parents!.optionalText(key);
    if (found !== name) findings.differs("snapshot", `${parents!.place}/${printable(key)}`, "the child", found, name);
  }
  for (const key of parents?.keys ?? []) {
    if (!wanted.has(key)) parents!.wrong(key, "no snapshot has this parent");
    parents!.optionalBytes(key);
  }
  parents?.finish();
}

/** By chainID, of those that can be compared with their layer. */
export function checkSnapshots(
  records: MetaRecords,
  backend: readonly BackendRecord[],
  chains: ReadonlyMap<ChainID, Chain>,
  findings: Findings,
): Map<ChainID, BackendRecord> {
  const byName = new Map(backend.map((record) => [record.name, record]));
  const found = new Map<ChainID, BackendRecord>();
  const children = new Map<string, Set<string>>();
  for (const { chainID, parent } of chains.values()) {
    if (parent !== null) children.set(parent, (children.get(parent) ?? new Set()).add(chainID));
  }
  const numbers = new Set<number>();
  for (const [key, record] of records.snapshots) {
    const chain = chains.get(key as ChainID);
    if (chain === undefined) {
      findings.add("gc-reference", record.place, "no image needs this snapshot: it would be collected");
    } else if (record.parent !== chain.parent) {
      findings.differs("snapshot", `${record.place}/parent`, "the parent", record.parent, chain.parent);
    }
    const wanted = children.get(key) ?? new Set<string>();
    for (const child of wanted) {
      if (!record.children.has(child)) findings.add("snapshot", `${record.place}/children`, `${child} is missing`);
    }
    for (const child of record.children) {
      if (!wanted.has(child)) findings.add("snapshot", `${record.place}/children`, `${child} is no child of it`);
    }
    checkNumber(key, record, records.sequence, numbers, findings);
    const own = byName.get(record.name);
    byName.delete(record.name);
    if (own === undefined) {
      findings.add("snapshot", `${record.place}/name`, `metadata.db has no snapshot ${record.name}`);
      continue;
    }
    const below = record.parent === null ? null : (records.snapshots.get(record.parent)?.name ?? null);
    if (own.parent !== below) findings.differs("snapshot", `${own.place}/parent`, "the parent", own.parent, below);
    if (chain !== undefined) found.set(chain.chainID, own);
  }
  for (const { place } of byName.values()) findings.add("snapshot", place, "meta.db does not know this snapshot");
  for (const { chainID } of chains.values()) {
    if (!records.snapshots.has(chainID)) {
      findings.add("snapshot", `meta.db: snapshots/${chainID}`, "missing: an image would be unpacked again");
    }
  }
  return found;
}

/** `k8s.io/<n>/<chainID>`: n is unique, and the sequence not below it, or the next snapshot collides. */
function checkNumber(
  key: string,
  record: { readonly name: string; readonly place: string },
  sequence: number,
  numbers: Set<number>,
  findings: Findings,
): void {
  const number = Number(/^[^/]+\/([1-9]\d{0,14})\//.exec(record.name)?.[1] ?? Number.NaN);
  if (Number.isNaN(number) || record.name !== backendName(number, key as ChainID)) {
    findings.differs("snapshot", `${record.place}/name`, "the name", record.name, `${NAMESPACE}/<number>/${key}`);
    return;
  }
  if (numbers.has(number)) findings.add("snapshot", `${record.place}/name`, `the number ${number} is given twice`);
  numbers.add(number);
  if (number > sequence) {
    findings.add("snapshot", `${record.place}/name`, `its number is above the bucket's sequence ${sequence}`);
  }
}
