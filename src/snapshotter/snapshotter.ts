/**
 * The snapshotter: rows (snapshots.ts, store.ts), directories and the provider's layers brought together. Everything that containerd may call, without gRPC.
 * Order of things in Prepare: row and directories in one transaction, then the layers' mounts, then the answer; when the mounts fail the row goes again. Commit and Update
 * run inside containerd's write transaction: one transaction here, nothing else. Remove drops the row; gc.ts does the rest.
 * Invariant: whoever holds mounts of a layer (owner) is a snapshot id with a row, or is being released.
 */

import { lstat } from "node:fs/promises";
import { join } from "node:path";
import { type Clock, systemClock } from "../base/clock.ts";
import { type ChainID, isDigest } from "../base/digest.ts";
import { describeError, HeadstartError, isHeadstartError, kindOf } from "../base/errors.ts";
import { publish } from "../base/events.ts";
import { failpoint } from "../base/failpoint.ts";
import { Limit } from "../base/limit.ts";
import { SnapshotDirectories } from "./directories.ts";
import { Garbage } from "./gc.ts";
import { type IdMapping, mapsMountedLowers, readIdMapping } from "./idmap.ts";
import { explainProblems, isNeverUnpacked, namespaceOf, readExtraction } from "./labels.ts";
import { type Mount, overlayDefaults, planMounts } from "./mounts.ts";
import type { ChainElement, LayerId, LayerProvider, Offer, OfferRequest } from "./provider.ts";
import { isSameBoot, mountedRows, reconcileDirectories, reconcileLayers } from "./reconcile.ts";
import {
  type CommitSnapshot,
  type CreateSnapshot,
  checkChain,
  checkCreate,
  claimSnapshot,
  commitSnapshot,
  createSnapshot,
  find,
  listSnapshots,
  removeSnapshot,
  updateSnapshot,
} from "./snapshots.ts";
import { type Labels, REF_LABEL, type SnapshotKind, type SnapshotRow, SnapshotStore } from "./store.ts";
import { type Usage, UsageCache } from "./usage.ts";

export interface SnapshotterOptions {
  /** Absolute, short, without blanks, commas and colons: `<root>/snapshots.db`, `<root>/snapshots/`. */
  readonly root: string;
  readonly provider: LayerProvider;
  readonly clock?: Clock;
  /** Further options for every overlay, e.g. "redirect_dir=on", "volatile"; the last one wins. */
  readonly overlayOptions?: readonly string[];
  /** containerd's version, asked for when a user namespace is to stand upon layers (idmap.ts). Without it those are refused. */
  readonly containerdVersion?: (signal: AbortSignal) => Promise<string>;
  /** Called once after the start, when every snapshot that uses layers has told the provider so again: mounts without an owner are nobody's then. */
  readonly onRecovered?: () => Promise<void>;
  /** How long an offer may take before containerd unpacks the layer itself. Default 30 s. */
  readonly offerTimeoutMs?: number;
  /** How long after an offer no layer is collected. Default 5 s. */
  readonly quietMs?: number;
}

export interface PrepareOptions {
  /** The metadata header `containerd-namespace`, if there was one. */
  readonly namespace?: string | null;
  readonly signal?: AbortSignal;
}

/** What `headstart status` shows of one snapshot. */
export interface SnapshotStatus {
  readonly id: number;
  readonly name: string;
  readonly parent: string;
  readonly kind: SnapshotKind;
  readonly layer: LayerId | null;
  readonly createdMs: number;
  /** Why containerd unpacked it itself; null for claimed ones and for containers. */
  readonly reason: string | null;
  readonly broken: string | null;
  readonly imageReference: string | null;
}

export interface Snapshotter extends AsyncDisposable {
  /** Throws HS_SNAPSHOT_EXISTS also when the extraction's target was claimed: containerd then looks for it by its label. */
  prepare(request: CreateSnapshot, options?: PrepareOptions): Promise<readonly Mount[]>;
  view(request: CreateSnapshot, options?: PrepareOptions): Promise<readonly Mount[]>;
  mounts(key: string, options?: { signal?: AbortSignal }): Promise<readonly Mount[]>;
  commit(request: CommitSnapshot): void;
  remove(key: string): void;
  stat(key: string): SnapshotRow;
  update(update: { name: string; labels: Labels; mask: readonly string[] }): SnapshotRow;
  /** Pages of at most `pageSize` rows (default 100). */
  list(filters: readonly string[], pageSize?: number): Iterable<readonly SnapshotRow[]>;
  usage(key: string): Promise<Usage>;
  /** What Remove left: directories, mounts, layers that nobody refers to. */
  cleanup(): Promise<void>;
  status(): SnapshotStatus[];
}

/** Opens (and repairs) the state under `root`. Throws HS_CONFIG, HS_STATE_BUSY, HS_STATE_DAMAGED, HS_STATE_VERSION. */
export async function openSnapshotter(options: SnapshotterOptions): Promise<Snapshotter> {
  const directories = new SnapshotDirectories(options.root);
  const store = new SnapshotStore(join(options.root, "snapshots.db"));
  try {
    return new LayeredSnapshotter(options, directories, store);
  } catch (error) {
    store.close();
    throw error;
  }
}

const OFFER_TIMEOUT_MS = 30_000;
const QUIET_MS = 5_000;
/** Enough to fill a 16 MiB message with labels of 4096 bytes only in theory; containerd's own batch. */
const PAGE_ROWS = 100;
/** How long closing waits for calls that do not heed their signal. */
const CLOSE_MS = 5_000;
/** Owners whose mounts are taken up again at a time, after a restart. */
const ADOPT_PARALLEL = 2;

class LayeredSnapshotter implements Snapshotter {
  readonly #store: SnapshotStore;
  readonly #directories: SnapshotDirectories;
  readonly #provider: LayerProvider;
  readonly #clock: Clock;
  readonly #microseconds: () => number;
  readonly #overlayOptions: readonly string[];
  readonly #containerdVersion: ((signal: AbortSignal) => Promise<string>) | undefined;
  readonly #offerTimeoutMs: number;
  readonly #usage: UsageCache;
  readonly #garbage: Garbage;
  readonly #closing = new AbortController();
  readonly #pending = new Set<Promise<unknown>>();
  /** Offers of one image come one after the other. */
  readonly #images = new Map<string, Limit>();
  #closed: Promise<void> | null = null;

  constructor(options: SnapshotterOptions, directories: SnapshotDirectories, store: SnapshotStore) {
    this.#store = store;
    this.#directories = directories;
    this.#provider = options.provider;
    this.#clock = options.clock ?? systemClock;
    this.#microseconds = options.clock === undefined ? wallMicroseconds : () => Math.round(this.#clock.now() * 1000);
    this.#overlayOptions = overlayDefaults(options.overlayOptions ?? []);
    this.#containerdVersion = options.containerdVersion;
    this.#offerTimeoutMs = options.offerTimeoutMs ?? OFFER_TIMEOUT_MS;
    this.#usage = new UsageCache(this.#clock);
    this.#garbage = new Garbage({
      store,
      directories,
      provider: this.#provider,
      clock: this.#clock,
      quietMs: options.quietMs ?? QUIET_MS,
      signal: this.#closing.signal,
    });
    reconcileDirectories(store, directories);
    const sameBoot = isSameBoot(store);
    this.#background("reconcile", async () => {
      if (sameBoot) await this.#adoptOwners();
      await options.onRecovered?.();
      await reconcileLayers(store, this.#provider, this.#closing.signal);
    });
    this.#garbage.schedule();
  }

  async prepare(request: CreateSnapshot, options: PrepareOptions = {}): Promise<readonly Mount[]> {
    this.#checkOpen();
    return this.#track(async () => {
      const extraction = readExtraction({ ...request, namespace: options.namespace ?? null });
      if (extraction.kind === "none") return this.#create("active", request, null, options.signal);
      const reason =
        extraction.kind === "refused" ? extraction.reason : await this.#claim(request, extraction, options.signal);
      publish("snapshotter:declined", { key: request.key, reason });
      if (isNeverUnpacked(request.labels))
        throw new HeadstartError("HS_SNAPSHOT_NOT_UNPACKED", { what: `a layer of a Nydus image: ${reason}` });
      return this.#create("active", request, reason, options.signal);
    });
  }

  async view(request: CreateSnapshot, options: PrepareOptions = {}): Promise<readonly Mount[]> {
    this.#checkOpen();
    return this.#track(() => this.#create("view", request, null, options.signal));
  }

  async mounts(key: string, options: { signal?: AbortSignal } = {}): Promise<readonly Mount[]> {
    this.#checkOpen();
    const row = find(this.#store, key, "mounts");
    if (row.kind === "committed") {
      throw new HeadstartError("HS_SNAPSHOT_KIND", { what: `mounts: ${JSON.stringify(key)} is committed` });
    }
    const mapping = readIdMapping(row.labels);
    return this.#track(async () => {
      const lowers = await this.#lowers(row, options.signal);
      return this.#plan(row, row.kind as "active" | "view", lowers, mapping);
    });
  }

  commit(request: CommitSnapshot): void {
    this.#checkOpen();
    const row = commitSnapshot(this.#store, request, this.#microseconds());
    this.#usage.forget(row.id);
    // the mounts that the unpacking needed; whoever stands upon this snapshot later takes his own
    this.#background("release", () => this.#garbage.release(String(row.id)));
    publish("snapshotter:committed", { id: row.id, name: row.name, reason: row.reason });
  }

  remove(key: string): void {
    this.#checkOpen();
    const row = removeSnapshot(this.#store, key);
    this.#usage.forget(row.id);
    if (row.kind !== "committed") this.#background("release", () => this.#garbage.release(String(row.id)));
    this.#garbage.schedule();
    publish("snapshotter:removed", { id: row.id, name: row.name });
  }

  stat(key: string): SnapshotRow {
    this.#checkOpen();
    return find(this.#store, key, "stat");
  }

  update(update: { name: string; labels: Labels; mask: readonly string[] }): SnapshotRow {
    this.#checkOpen();
    return updateSnapshot(this.#store, update, this.#microseconds());
  }

  list(filters: readonly string[], pageSize: number = PAGE_ROWS): Iterable<readonly SnapshotRow[]> {
    this.#checkOpen();
    return listSnapshots(this.#store, filters, pageSize);
  }

  async usage(key: string): Promise<Usage> {
    this.#checkOpen();
    const row = find(this.#store, key, "usage");
    return this.#track(async () => {
      if (row.layer !== null) return this.#layerUsage(row.layer);
      if (row.usage !== null) return row.usage;
      if (row.kind === "view") return { bytes: 0, inodes: 0 };
      const usage = await this.#measure(row);
      const now = this.#store.byId(row.id);
      // a measurement that began before the Commit may lack what came after it
      if (row.kind === "committed" && now?.kind === "committed") this.#store.setUsage(row.id, usage);
      return usage;
    });
  }

  async cleanup(): Promise<void> {
    this.#checkOpen();
    await this.#track(async () => {
      await this.#garbage.run();
    });
  }

  status(): SnapshotStatus[] {
    this.#checkOpen();
    return [...this.list([])].flat().map((row) => ({
      id: row.id,
      name: row.name,
      parent: row.parent,
      kind: row.kind,
      layer: row.layer,
      createdMs: row.createdUs / 1000,
      reason: row.reason,
      broken: row.broken,
      imageReference: row.labels["containerd.io/snapshot/cri.image-ref"] ?? null,
    }));
  }

  [Symbol.asyncDispose](): Promise<void> {
    this.#closed ??= this.#close();
    return this.#closed;
  }

  async #close(): Promise<void> {
    this.#closing.abort(new HeadstartError("HS_CANCELED", { what: "the snapshotter is being closed" }));
    const rest = Promise.allSettled([...this.#pending, this.#garbage.close()]);
    const timer = new AbortController();
    await Promise.race([rest, this.#clock.sleep(CLOSE_MS, timer.signal).catch(() => undefined)]);
    timer.abort();
    this.#store.close();
  }

  /** The reason why containerd shall unpack it itself, or HS_SNAPSHOT_EXISTS: then it is claimed. Fails otherwise only if the request is wrong or the caller has gone. */
  async #claim(
    request: CreateSnapshot,
    extraction: { offer: Omit<OfferRequest, "parents">; problems: readonly string[] },
    signal: AbortSignal | undefined,
  ): Promise<string> {
    const parent = checkCreate(this.#store, request);
    const parents = parent === null ? [] : this.#store.chain(parent.id);
    if (parents.some((row) => row.broken !== null)) return "a layer below is broken";
    const offer = await this.#offer(
      { ...extraction.offer, parents: parents.toReversed().map((row) => row.layer) },
      signal,
    );
    if (offer.kind === "impossible") {
      publish("snapshotter:declined", { key: request.key, reason: offer.reason });
      throw new HeadstartError("HS_SNAPSHOT_NOT_UNPACKED", { what: offer.reason });
    }
    if (offer.kind === "no") {
      return [offer.reason, explainProblems(extraction.problems)].filter((part) => part !== "").join("; ");
    }
    const { target } = extraction.offer;
    const { row, isNew } = claimSnapshot(this.#store, request, {
      target,
      layer: offer.layer,
      nowUs: this.#microseconds(),
    });
    failpoint("snapshotter:claimed");
    publish("snapshotter:claimed", { id: row.id, target, layer: row.layer, how: offer.kind, isNew });
    throw new HeadstartError("HS_SNAPSHOT_EXISTS", {
      what: `target ${target} is provided as ${JSON.stringify(row.name)}`,
    });
  }

  /** Never a failure because a layer cannot be had lazily: whatever goes wrong is a "no" with its reason. */
  async #offer(request: OfferRequest, signal: AbortSignal | undefined): Promise<Offer> {
    const image = request.manifestDigest ?? request.reference ?? request.target;
    const timeout = AbortSignal.timeout(this.#offerTimeoutMs);
    const combined = this.#combine(signal, timeout);
    try {
      return await this.#garbage.duringOffer(() =>
        this.#serially(image, combined, () => settle(this.#provider.offer(request, { signal: combined }), combined)),
      );
    } catch (error) {
      signal?.throwIfAborted();
      this.#closing.signal.throwIfAborted();
      if (timeout.aborted) return { kind: "no", reason: `no answer within ${this.#offerTimeoutMs} ms` };
      return { kind: "no", reason: describeError(error) };
    }
  }

  async #serially<T>(image: string, signal: AbortSignal, work: () => Promise<T>): Promise<T> {
    let limit = this.#images.get(image);
    if (limit === undefined) {
      limit = new Limit(1);
      this.#images.set(image, limit);
    }
    try {
      return await limit.run(work, { signal });
    } finally {
      if (limit.running === 0 && limit.waiting === 0) this.#images.delete(image);
    }
  }

  async #create(
    kind: "active" | "view",
    request: CreateSnapshot,
    reason: string | null,
    signal: AbortSignal | undefined,
  ): Promise<readonly Mount[]> {
    const mapping = readIdMapping(request.labels);
    const row = createSnapshot(this.#store, request, {
      kind,
      nowUs: this.#microseconds(),
      reason,
      withId: (id) => this.#directories.create(id, { work: kind === "active" }),
    });
    failpoint("snapshotter:created");
    try {
      const lowers = await this.#lowers(row, signal);
      if (kind === "active") await this.#setOwner(row.id, lowers.at(-1), mapping);
      publish("snapshotter:created", { id: row.id, key: row.name, kind, lowers: lowers.length });
      return this.#plan(row, kind, lowers, mapping);
    } catch (error) {
      this.#undo(row);
      throw error;
    }
  }

  /** containerd never heard of this snapshot: as if it had not been. */
  #undo(row: SnapshotRow): void {
    if (this.#store.byId(row.id)?.name === row.name && !this.#store.hasChildren(row.id)) this.#store.remove(row.id);
    this.#background("release", () => this.#garbage.release(String(row.id)));
    this.#garbage.schedule();
  }

  async #setOwner(id: number, top: string | undefined, mapping: IdMapping | null): Promise<void> {
    if (mapping !== null) this.#directories.setOwner(id, mapping.root);
    // asynchronous: the directory may be a mount that this very process serves
    else if (top !== undefined) this.#directories.setOwner(id, await lstat(top));
  }

  /** Directories below `row`, lowest first. Layers are mounted, plain snapshots are where they are; without layers the provider is not asked. */
  async #lowers(
    row: SnapshotRow,
    signal: AbortSignal | undefined,
    options: { isAdopted?: boolean } = {},
  ): Promise<readonly string[]> {
    const chain = this.#store.chain(row.id);
    checkChain(chain);
    const elements = chain
      .slice(1)
      .toReversed()
      .map((parent) => this.#element(parent));
    const paths = elements.map((element) => (element.kind === "directory" ? element.path : null));
    if (paths.every((path) => path !== null)) return paths;
    const owner = String(row.id);
    const combined = this.#combine(signal);
    if (readIdMapping(row.labels) !== null) await this.#checkMapsLayers(combined);
    const namespace = namespaceOf({ namespace: null, key: row.name });
    const ref = chain[1]?.labels[REF_LABEL];
    const target = isDigest(ref) ? (ref as ChainID) : null;
    const isExtraction = row.kind === "active" && row.labels[REF_LABEL] !== undefined;
    const asked = this.#provider.lowers(owner, elements, {
      signal: combined,
      namespace,
      target,
      isExtraction,
      ...options,
    });
    const lowers = await settle(asked, combined).catch((error) => {
      // a provider that comes to an end only now has counted an owner that may be gone
      asked.then(() => this.#releaseIfGone(row.id)).catch(() => undefined);
      throw error;
    });
    this.#closing.signal.throwIfAborted();
    if (await this.#releaseIfGone(row.id)) {
      throw new HeadstartError("HS_SNAPSHOT_NOT_FOUND", { what: `${JSON.stringify(row.name)} was removed meanwhile` });
    }
    return lowers;
  }

  async #checkMapsLayers(signal: AbortSignal): Promise<void> {
    const version = (await this.#containerdVersion?.(signal)) ?? "of unknown version";
    if (mapsMountedLowers(version)) return;
    throw new HeadstartError("HS_KERNEL_UNSUPPORTED", {
      what: `a user namespace upon lazily mounted layers: containerd ${version} cannot map their ids (2.3 and newer can)`,
    });
  }

  async #releaseIfGone(id: number): Promise<boolean> {
    if (this.#closing.signal.aborted || this.#store.byId(id) !== null) return false;
    await this.#garbage.release(String(id));
    return true;
  }

  #element(row: SnapshotRow): ChainElement {
    return row.layer === null
      ? { kind: "directory", path: this.#directories.upper(row.id) }
      : { kind: "layer", layer: row.layer };
  }

  #plan(row: SnapshotRow, kind: "active" | "view", lowers: readonly string[], mapping: IdMapping | null): Mount[] {
    return planMounts({
      kind,
      upper: this.#directories.upper(row.id),
      work: this.#directories.work(row.id),
      lowers,
      overlayOptions: this.#overlayOptions,
      idmapOptions: mapping?.mountOptions ?? [],
    });
  }

  async #layerUsage(layer: LayerId): Promise<Usage> {
    try {
      return await this.#provider.usage(layer);
    } catch (error) {
      // a lost layer takes no space; containerd would log an error every ten seconds
      if (kindOf(error) === "not-found") return { bytes: 0, inodes: 0 };
      throw error;
    }
  }

  async #measure(row: SnapshotRow): Promise<Usage> {
    try {
      return await this.#usage.measure(row.id, this.#directories.upper(row.id));
    } catch (error) {
      // removed while being measured, or its directory is missing: it takes no space
      if ((error as NodeJS.ErrnoException).code === "ENOENT") return { bytes: 0, inodes: 0 };
      throw error;
    }
  }

  async #adoptOwners(): Promise<void> {
    const limit = new Limit(ADOPT_PARALLEL);
    const { signal } = this.#closing;
    const adopt = async (row: SnapshotRow) => {
      if (signal.aborted || this.#store.byId(row.id) === null) return;
      try {
        await this.#lowers(row, signal, { isAdopted: true });
      } catch (error) {
        if (!signal.aborted && !isHeadstartError(error, "HS_SNAPSHOT_BROKEN")) {
          publish("snapshotter:adopt-failed", { id: row.id, name: row.name, error: describeError(error) });
        }
      }
    };
    await Promise.all(mountedRows(this.#store).map((row) => limit.run(() => adopt(row))));
  }

  #combine(...signals: readonly (AbortSignal | undefined)[]): AbortSignal {
    return AbortSignal.any([this.#closing.signal, ...signals.filter((signal) => signal !== undefined)]);
  }

  #checkOpen(): void {
    if (this.#closing.signal.aborted) throw new HeadstartError("HS_CANCELED", { what: "the snapshotter is closed" });
  }

  async #track<T>(work: () => Promise<T>): Promise<T> {
    const running = work();
    this.#pending.add(running);
    try {
      return await running;
    } finally {
      this.#pending.delete(running);
    }
  }

  #background(what: string, work: () => Promise<void>): void {
    this.#track(work).catch((error) => publish("snapshotter:background-failed", { what, error: describeError(error) }));
  }
}

/** The result, or the signal's reason as soon as it aborts: also for a provider that does not heed it. */
async function settle<T>(work: Promise<T>, signal: AbortSignal): Promise<T> {
  const aborted = Promise.withResolvers<never>();
  const onAbort = () => aborted.reject(signal.reason);
  if (signal.aborted) onAbort();
  signal.addEventListener("abort", onAbort, { once: true });
  try {
    return await Promise.race([work, aborted.promise]);
  } finally {
    signal.removeEventListener("abort", onAbort);
  }
}

/** `Date` has milliseconds only; a client that compares with its own clock sees the difference. `Temporal` is there from Node 26 on. */
function wallMicroseconds(): number {
  const { Temporal } = globalThis as { Temporal?: { Now: { instant(): { epochNanoseconds: bigint } } } };
  return Temporal === undefined ? Date.now() * 1000 : Number(Temporal.Now.instant().epochNanoseconds / 1000n);
}
