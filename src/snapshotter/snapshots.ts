/**
 * The rules of containerd's snapshots service (specs/containerd.md 2 and 4.3), over the rows of store.ts alone: which names may exist, which kind may become
 * which, who may be removed. No directory, no mount, no layer, no wait: every function is one transaction, and throws before it has changed anything.
 *
 *   prepare -> active -- commit --> committed (parent of others)        claim -> committed
 *   view    -> view                                                     remove: any kind without children
 */

import type { ChainID } from "../base/digest.ts";
import { HeadstartError } from "../base/errors.ts";
import { type Fields, parseFilters } from "./filters.ts";
import type { LayerId } from "./provider.ts";
import { type Labels, REF_LABEL, type SnapshotKind, type SnapshotRow, type SnapshotStore } from "./store.ts";

/** containerd refuses longer ones itself: key and value together (services/snapshots API). */
const LABEL_BYTES_MAX = 4096;
/** containerd's own names are about 150 bytes; SQLite indexes them. */
const NAME_BYTES_MAX = 4096;

export interface CreateSnapshot {
  readonly key: string;
  /** "" for none. */
  readonly parent: string;
  readonly labels: Labels;
}

/** Whether `request` could be made a new snapshot now; its parent's row. Throws HS_SNAPSHOT_EXISTS, _NOT_FOUND, _INVALID, _BROKEN. */
export function checkCreate(store: SnapshotStore, request: CreateSnapshot): SnapshotRow | null {
  checkName(request.key, "key");
  checkLabels(request.labels);
  if (store.byName(request.key) !== null) throw exists(request.key);
  if (request.parent === "") return null;
  const parent = find(store, request.parent, `parent of ${quote(request.key)}`);
  if (parent.kind !== "committed") {
    throw new HeadstartError("HS_SNAPSHOT_INVALID", {
      what: `parent ${quote(parent.name)} of ${quote(request.key)} is ${parent.kind}, not committed`,
    });
  }
  return parent;
}

/** A new active snapshot or view. `withId` runs inside the transaction (it makes the directories): if it throws, there is no row. */
export function createSnapshot(
  store: SnapshotStore,
  request: CreateSnapshot,
  options: {
    kind: Exclude<SnapshotKind, "committed">;
    nowUs: number;
    reason: string | null;
    withId: (id: number) => void;
  },
): SnapshotRow {
  return store.transaction(() => {
    const parent = checkCreate(store, request);
    const id = store.insert({
      name: request.key,
      parentId: parent?.id ?? null,
      kind: options.kind,
      nowUs: options.nowUs,
      labels: request.labels,
      layer: null,
      reason: options.reason,
    });
    options.withId(id);
    return store.byId(id)!;
  });
}

/**
 * A committed snapshot over a layer of ours, or the one that already stands for the same target upon the same parent. Its name is fresh (id and chainID):
 * by the bare chainID two namespaces with different parents would exclude each other (specs/containerd.md 4.3). `isNew` false: somebody was faster, or another namespace has it.
 */
export function claimSnapshot(
  store: SnapshotStore,
  request: CreateSnapshot,
  claim: { target: ChainID; layer: LayerId; nowUs: number },
): { row: SnapshotRow; isNew: boolean } {
  return store.transaction(() => {
    const parent = checkCreate(store, request);
    const known = store.findByRef(claim.target, parent?.id ?? null);
    if (known !== null) return { row: known, isNew: false };
    const id = store.insert({
      name: request.key,
      parentId: parent?.id ?? null,
      kind: "committed",
      nowUs: claim.nowUs,
      labels: request.labels,
      layer: claim.layer,
      reason: null,
    });
    store.rename(id, `${id}/${claim.target}`);
    return { row: store.byId(id)!, isNew: true };
  });
}

export interface CommitSnapshot {
  readonly name: string;
  readonly key: string;
  readonly labels: Labels;
  /** containerd 2.2 and newer with the `rebase` capability; "" otherwise. */
  readonly parent: string;
}

/** Throws HS_SNAPSHOT_EXISTS, _NOT_FOUND, _KIND, _INVALID. */
export function commitSnapshot(store: SnapshotStore, request: CommitSnapshot, nowUs: number): SnapshotRow {
  checkName(request.name, "name");
  checkLabels(request.labels);
  return store.transaction(() => {
    if (store.byName(request.name) !== null) throw exists(request.name);
    const row = find(store, request.key, "commit");
    if (row.kind !== "active") {
      throw new HeadstartError("HS_SNAPSHOT_KIND", { what: `commit: ${quote(row.name)} is ${row.kind}, not active` });
    }
    if (row.broken !== null) throw brokenError(row);
    const parentId = newParent(store, row, request.parent);
    store.commit(row.id, { name: request.name, parentId, labels: request.labels, nowUs });
    return store.byId(row.id)!;
  });
}

function newParent(store: SnapshotStore, row: SnapshotRow, parent: string): number | null {
  if (parent === "" || parent === row.parent) return row.parentId;
  if (row.parent !== "") {
    throw new HeadstartError("HS_SNAPSHOT_INVALID", {
      what: `commit: ${quote(row.name)} has the parent ${quote(row.parent)}, not ${quote(parent)}`,
    });
  }
  const found = find(store, parent, `new parent of ${quote(row.name)}`);
  if (found.kind !== "committed") {
    throw new HeadstartError("HS_SNAPSHOT_KIND", {
      what: `commit: new parent ${quote(parent)} is ${found.kind}, not committed`,
    });
  }
  return found.id;
}

/** Only the record: directories and mounts go later. Throws HS_SNAPSHOT_NOT_FOUND, HS_SNAPSHOT_CHILDREN. Returns what was removed. */
export function removeSnapshot(store: SnapshotStore, key: string): SnapshotRow {
  return store.transaction(() => {
    const row = find(store, key, "remove");
    // containerd's suite looks for the word "remove" in this message (specs/containerd.md 8, case 1)
    if (store.hasChildren(row.id)) {
      throw new HeadstartError("HS_SNAPSHOT_CHILDREN", { what: `cannot remove ${quote(key)}: it has children` });
    }
    store.remove(row.id);
    return row;
  });
}

/**
 * Changes labels, and nothing else that `info` may say. An empty mask and the path `labels` replace them all; `labels.X` sets one, or deletes it when it is
 * empty or absent in `labels`: X is everything behind the first dot. Throws HS_SNAPSHOT_NOT_FOUND, HS_SNAPSHOT_INVALID.
 */
export function updateSnapshot(
  store: SnapshotStore,
  update: { name: string; labels: Labels; mask: readonly string[] },
  nowUs: number,
): SnapshotRow {
  return store.transaction(() => {
    const row = find(store, update.name, "update");
    const labels = update.mask.length === 0 ? update.labels : maskedLabels(row.labels, update.labels, update.mask);
    checkLabels(labels);
    store.setLabels(row.id, labels, nowUs);
    return store.byId(row.id)!;
  });
}

function maskedLabels(current: Labels, wanted: Labels, mask: readonly string[]): Labels {
  let labels = new Map(Object.entries(current));
  for (const path of mask) {
    if (path === "labels") {
      labels = new Map(Object.entries(wanted));
      continue;
    }
    if (!path.startsWith("labels.")) {
      throw new HeadstartError("HS_SNAPSHOT_INVALID", { what: `update: ${quote(path)} cannot be changed` });
    }
    const key = path.slice("labels.".length);
    const value = Object.hasOwn(wanted, key) ? wanted[key]! : "";
    if (value === "") labels.delete(key);
    else labels.set(key, value);
  }
  return Object.fromEntries(labels);
}

/** Throws HS_SNAPSHOT_NOT_FOUND. */
export function find(store: SnapshotStore, name: string, doing: string): SnapshotRow {
  const row = store.byName(name);
  if (row === null) throw new HeadstartError("HS_SNAPSHOT_NOT_FOUND", { what: `${doing}: ${quote(name)}` });
  return row;
}

/**
 * Pages of at most `pageSize` matching rows, some perhaps empty. Nothing is held between two pages, so anything may be called meanwhile (specs/containerd.md 8, case 17), and
 * the caller may let others have their turn. Throws HS_FILTER at once, not at the first page.
 */
export function listSnapshots(
  store: SnapshotStore,
  filters: readonly string[],
  pageSize: number,
): Iterable<readonly SnapshotRow[]> {
  const filter = parseFilters(filters);
  const ref = filter.required(["labels", REF_LABEL]);
  const pages = ref === undefined ? allPages(store, pageSize) : refPages(store, ref, pageSize);
  return pages.map((page) => page.filter((row) => filter.matches(fieldsOf(row))));
}

function* allPages(store: SnapshotStore, pageSize: number): Generator<SnapshotRow[]> {
  for (let page = store.page(0, pageSize); page.length > 0; page = store.page(page.at(-1)!.id, pageSize)) yield page;
}

/** What containerd asks after each claim: found by index. */
function* refPages(store: SnapshotStore, ref: string, pageSize: number): Generator<SnapshotRow[]> {
  const rows = store.byRef(ref);
  for (let start = 0; start < rows.length; start += pageSize) yield rows.slice(start, start + pageSize);
}

function fieldsOf(row: SnapshotRow): Fields {
  return ([first, ...rest]) => {
    switch (first) {
      case "name":
        return row.name;
      case "parent":
        return row.parent;
      case "kind":
        return row.kind;
      case "labels": {
        const key = rest.join(".");
        return Object.hasOwn(row.labels, key) ? row.labels[key] : undefined;
      }
      default:
        return undefined;
    }
  };
}

/** Throws HS_SNAPSHOT_BROKEN when one of the chain cannot be used. */
export function checkChain(chain: readonly SnapshotRow[]): void {
  const broken = chain.find((row) => row.broken !== null);
  if (broken !== undefined) throw brokenError(broken);
}

function brokenError(row: SnapshotRow): HeadstartError {
  return new HeadstartError("HS_SNAPSHOT_BROKEN", { what: `${quote(row.name)}: ${row.broken}` });
}

function exists(name: string): HeadstartError {
  return new HeadstartError("HS_SNAPSHOT_EXISTS", { what: quote(name) });
}

function checkName(name: string, what: string): void {
  if (name === "") throw new HeadstartError("HS_SNAPSHOT_INVALID", { what: `the ${what} is empty` });
  if (Buffer.byteLength(name) > NAME_BYTES_MAX) {
    throw new HeadstartError("HS_SNAPSHOT_INVALID", { what: `the ${what} is longer than ${NAME_BYTES_MAX} bytes` });
  }
}

function checkLabels(labels: Labels): void {
  for (const [key, value] of Object.entries(labels)) {
    const size = Buffer.byteLength(key) + Buffer.byteLength(value);
    if (size > LABEL_BYTES_MAX) {
      throw new HeadstartError("HS_SNAPSHOT_INVALID", {
        what: `label ${quote(key.slice(0, 100))}: key and value take ${size} bytes, ${LABEL_BYTES_MAX} are allowed`,
      });
    }
  }
}

function quote(text: string): string {
  return JSON.stringify(text);
}
