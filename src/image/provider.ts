/**
 * What the snapshotter asks about images: may we provide this layer? The first question about an image opens it (manifest, configuration, index, one authenticated ranged read) and
 * starts making all its layers; the answers for the others come from memory. An image is claimed whole or not at all: one refused layer makes containerd download all later ones.
 *
 * Invariant: nothing of a request is believed that the manifest, found by its digest, does not confirm.
 */

import { type Clock, systemClock } from "../base/clock.ts";
import type { ChainID, Digest } from "../base/digest.ts";
import { describeError, HeadstartError, isHeadstartError } from "../base/errors.ts";
import { publish } from "../base/events.ts";
import type { LayerImage } from "../layer/layer-image.ts";
import type { LayerRow } from "../layer/rows.ts";
import { ChainLayers } from "./chain-layers.ts";
import { LayerMaker, type LayerMakerOptions } from "./layer-maker.ts";
import type { ManifestSource } from "./open.ts";
import { type Plan, type PlannedLayer, Planner } from "./plan.ts";
import { type ImageNames, PrivateChains } from "./private-chains.ts";
import { unpackSource } from "./source.ts";
import { EMPTY_LAYER, Substitutes } from "./substitutes.ts";
import type { TrustPolicy } from "./trust.ts";

export interface ImageProviderOptions extends LayerMakerOptions {
  readonly manifests: ManifestSource;
  /** containerd's images, asked before an alternative that no manifest binds is used. */
  readonly names: ImageNames;
  readonly policy: TrustPolicy;
  /** Compressed bytes below which an indexed layer is pulled whole. */
  readonly minLayerSize: number;
  /** False: this node cannot mount images whose data lie in other files. */
  readonly dataFiles: boolean;
  readonly clock?: Clock;
}

export interface ImageRequest {
  readonly namespace: string | null;
  readonly target: ChainID;
  readonly reference: string | null;
  readonly manifestDigest: Digest | null;
  readonly layerDigest: Digest | null;
}

export type ImageOffer =
  | { readonly kind: "lazy" | "eager"; readonly layer: number }
  | { readonly kind: "no"; readonly reason: string }
  /** Neither we nor containerd can provide it. */
  | { readonly kind: "impossible"; readonly reason: string };

interface ImageRecord {
  readonly reference: string;
  readonly manifest: Digest;
  readonly openedAtMs: number;
  plan: Plan | null;
  /** Why we do not provide it. `impossible`: nobody can. */
  refusal: { readonly kind: "no" | "impossible"; readonly reason: string } | null;
  refusedAtMs: number;
}

export interface ImageStatus {
  readonly reference: string;
  readonly manifest: Digest;
  readonly mode: "lazy" | "eager" | "mixed" | "unclaimed" | "opening";
  readonly reason: string | null;
  readonly layers: readonly PlannedLayer[];
}

/** A refusal may be a registry's bad moment: the next pull after this asks again (specs/soci.md B35). */
const REFUSAL_MS = 5000;
const RECORDS_MAX = 512;

export class ImageProvider {
  readonly maker: LayerMaker;
  readonly #options: ImageProviderOptions;
  readonly #clock: Clock;
  readonly #substitutes: Substitutes;
  readonly #planner: Planner;
  /** What containers upon a chain of snapshots are given. */
  readonly chains: ChainLayers;
  /** When a layer was last offered: a collection that began before must leave it alone. */
  readonly #offeredAtMs = new Map<number, number>();
  readonly #collecting = new Set<Promise<void>>();
  readonly #records = new Map<string, { record: ImageRecord; opening: Promise<void> }>();

  constructor(options: ImageProviderOptions) {
    this.#options = options;
    this.#clock = options.clock ?? systemClock;
    this.maker = new LayerMaker(options);
    this.#substitutes = new Substitutes(options.store);
    this.#planner = new Planner({ ...options, maker: this.maker, substitutes: this.#substitutes });
    this.chains = new ChainLayers({
      store: options.store,
      maker: this.maker,
      substitutes: this.#substitutes,
      privateChains: new PrivateChains(options),
      open: ({ name, manifest }, { namespace, signal }) => this.#open(name, manifest, namespace, signal),
      planInstead: (nydus, why, namespace) => this.#planInstead(nydus, why, namespace),
    });
  }

  /** Never throws but for the caller's signal: what cannot be provided is a "no" with its reason. */
  async offer(request: ImageRequest, options: { signal?: AbortSignal | undefined } = {}): Promise<ImageOffer> {
    const { reference, manifestDigest, layerDigest } = request;
    if (reference === null || manifestDigest === null || layerDigest === null)
      return no("containerd sent no image labels");
    const { plan, refusal } = await this.#open(reference, manifestDigest, request.namespace, options.signal);
    if (plan === null) return refusal ?? no("the image cannot be opened");
    // the same layer may stand in an image twice: its chainID tells the places apart
    const position = plan.chain.indexOf(request.target);
    if (position < 0) return no(`the manifest ${manifestDigest} has no layer with chainID ${request.target}`);
    const planned = plan.layers[position]!;
    if (planned.digest !== layerDigest)
      return no(`the manifest names ${planned.digest} where containerd says ${layerDigest}`);
    this.#noteOffered(plan);
    return { kind: planned.mode, layer: planned.layer };
  }

  /** The layer's file (or that of the one that stands in for it), mountable. */
  ready(layer: number, signal?: AbortSignal): Promise<LayerImage> {
    return this.maker.ready(layer, signal);
  }

  /** After a restart: goes on with what was claimed. */
  resume(claimed: ReadonlySet<number>): void {
    const covered = this.#substitutes.covered();
    for (const id of this.#substitutes.kept(claimed)) {
      const isWanted = !covered.has(id) || this.#options.store.row(id)?.state.t !== "opening";
      if (isWanted && String(this.#substitutes.parts(id)) === String(id)) this.maker.start(id);
    }
  }

  /** Bytes on disk and inodes of what a snapshot over `layer` shows; data that images share are counted for each of them. Throws HS_NOT_FOUND. */
  usage(layer: number): { readonly bytes: number; readonly inodes: number } {
    const { store } = this.#options;
    let bytes = 0;
    let inodes = 0;
    for (const id of this.#substitutes.parts(layer)) {
      const standIn = this.maker.standIn(id);
      const row = store.row(standIn ?? id);
      if (row === null) throw new HeadstartError("HS_NOT_FOUND", { what: `layer ${id}` });
      for (const each of new Set([id, row.id, ...row.devices])) bytes += store.diskBytes(each);
      inodes += row.inodeCount;
    }
    return { bytes, inodes };
  }

  images(): ImageStatus[] {
    return [...this.#records.values()].map(({ record }) => {
      const { plan, refusal } = record;
      const withheld = plan === null ? null : this.chains.withheld(plan.chain.at(-1)!);
      const layers = (plan?.layers ?? []).map((layer) => this.#layerNow(layer, withheld));
      const modes = new Set(layers.map((layer) => layer.mode));
      const mode = modes.size > 1 ? "mixed" : ([...modes][0] ?? "eager");
      return {
        reference: record.reference,
        manifest: record.manifest,
        mode: plan !== null ? mode : refusal === null ? "opening" : "unclaimed",
        reason: refusal?.reason ?? withheld ?? plan?.reason ?? this.#unsound(plan),
        layers,
      };
    });
  }

  /** What is wrong with a Nydus image of which bytes came wrong from everywhere. */
  #unsound(plan: Plan | null): string | null {
    const top = this.#options.store.opened(plan?.layers.at(-1)?.layer ?? EMPTY_LAYER);
    return top?.kind === "image" ? top.unsound : null;
  }

  /** What became of a plan: an index that turned out bad makes a layer eager. */
  #layerNow(layer: PlannedLayer, withheld: string | null): PlannedLayer {
    const { store } = this.#options;
    const failure = this.maker.trouble(layer.layer) ?? store.opened(layer.layer)?.unsound ?? null;
    const standIn = this.maker.standIn(layer.layer);
    if (withheld !== null) return { ...layer, mode: "eager", reason: failure ?? withheld };
    if (standIn === null) return { ...layer, reason: failure ?? layer.reason };
    return { ...layer, mode: "eager", reason: failure ?? reasonOf(store.row(standIn)) ?? layer.reason };
  }

  /** Layers that may be removed: no snapshot refers to them, nor to one that they stand in for. Data files follow the images that refer to them. */
  unused(inUse: ReadonlySet<number>): number[] {
    const kept = this.#substitutes.kept(inUse);
    for (const id of [...kept]) {
      const standIn = this.maker.standIn(id);
      if (standIn !== null) kept.add(standIn);
    }
    return this.#options.store
      .list()
      .filter((row) => row.kind !== "data" && !kept.has(row.id))
      .map((row) => row.id);
  }

  /**
   * Removes the layers that `unused` names, but for those that are offered meanwhile, then data files that no image refers to. `unmount` is called before each; when it throws, the layer
   * stays for the next time. Images that are opened meanwhile are planned afterwards.
   */
  async collect(inUse: ReadonlySet<number>, unmount: (layer: number) => Promise<void>): Promise<void> {
    const collection = this.#collectAll(inUse, unmount);
    this.#collecting.add(collection);
    await collection.finally(() => this.#collecting.delete(collection));
  }

  async #collectAll(inUse: ReadonlySet<number>, unmount: (layer: number) => Promise<void>): Promise<void> {
    const begunAtMs = this.#clock.monotonic();
    for (const layer of this.unused(inUse)) await this.#collectOne(layer, begunAtMs, unmount);
    for (const layer of this.#options.store.unreferenced()) await this.#collectOne(layer, begunAtMs, unmount);
  }

  async #collectOne(layer: number, begunAtMs: number, unmount: (layer: number) => Promise<void>): Promise<void> {
    if ((this.#offeredAtMs.get(layer) ?? -1) >= begunAtMs) return;
    // images that planned it are opened anew at their next pull
    for (const [key, { record }] of this.#records) if (record.plan?.uses.has(layer)) this.#records.delete(key);
    this.#offeredAtMs.delete(layer);
    this.chains.forget(layer);
    try {
      await unmount(layer);
      await this.maker.remove(layer);
    } catch (error) {
      publish("image:collect-failed", { layer, error: describeError(error) });
    }
  }

  async #planInstead(row: LayerRow, why: string, namespace: string | null): Promise<Plan> {
    const plan = await this.#planner.planInstead(row, why, { namespace, ...this.#planOptions() });
    this.#noteOffered(plan);
    for (const layer of plan.start) this.maker.start(layer);
    return plan;
  }

  #planOptions(): { signal: AbortSignal; settled: () => Promise<void> } {
    return {
      signal: AbortSignal.timeout(OPEN_MS_MAX),
      settled: async () => {
        while (this.#collecting.size > 0) await Promise.allSettled(this.#collecting);
      },
    };
  }

  async #open(
    reference: string,
    manifest: Digest,
    namespace: string | null,
    signal: AbortSignal | undefined,
  ): Promise<ImageRecord> {
    const key = `${reference} ${manifest}`;
    let known = this.#records.get(key);
    if (
      known !== undefined &&
      known.record.refusal !== null &&
      this.#clock.monotonic() - known.record.refusedAtMs > REFUSAL_MS
    )
      known = undefined;
    if (known === undefined) {
      const record: ImageRecord = {
        reference,
        manifest,
        openedAtMs: this.#clock.now(),
        plan: null,
        refusal: null,
        refusedAtMs: 0,
      };
      known = { record, opening: this.#plan(record, namespace) };
      this.#records.delete(key);
      this.#records.set(key, known);
      if (this.#records.size > RECORDS_MAX) this.#records.delete(this.#records.keys().next().value!);
    }
    await known.opening;
    signal?.throwIfAborted();
    return known.record;
  }

  /** Not bound to one caller's signal: other layers of the image wait for it too. */
  async #plan(record: ImageRecord, namespace: string | null): Promise<void> {
    const { reference, manifest } = record;
    try {
      const plan = await this.#planner.plan({ reference, manifest, namespace }, this.#planOptions());
      this.#noteOffered(plan);
      for (const layer of plan.start) this.maker.start(layer);
      // snapshots that name these rows survive a power loss: a row that did not would leave its id to another layer
      await this.#options.store.sync();
      record.plan = plan;
      if (plan.missed !== null) void this.#noteMissed(record, plan, plan.missed);
      publish("image:opened", {
        reference,
        manifest,
        layers: plan.layers.length,
        lazy: plan.layers.filter((planned) => planned.mode === "lazy").length,
        reason: plan.reason,
        ms: this.#clock.now() - record.openedAtMs,
      });
    } catch (error) {
      const kind = isHeadstartError(error, "HS_NYDUS_UNUSABLE") ? "impossible" : "no";
      record.refusal = { kind, reason: describeError(error) };
      record.refusedAtMs = this.#clock.monotonic();
      publish("image:unclaimed", { reference, manifest, reason: record.refusal.reason });
    }
  }

  /** Costs a round trip that no pull waits for. */
  async #noteMissed(
    record: ImageRecord,
    plan: Plan,
    find: (signal: AbortSignal) => Promise<string | null>,
  ): Promise<void> {
    const reason = await find(AbortSignal.timeout(OPEN_MS_MAX));
    if (reason === null) return;
    const layers = plan.layers.map((layer) => (layer.reason === plan.reason ? { ...layer, reason } : layer));
    record.plan = { ...plan, layers, reason };
    publish("image:missed", { reference: record.reference, manifest: record.manifest, reason });
  }

  #noteOffered(plan: Plan): void {
    const now = this.#clock.monotonic();
    for (const layer of plan.uses) this.#offeredAtMs.set(layer, now);
  }
}

/** Opening is a handful of round trips; a registry that takes longer is no source for a lazy start. */
const OPEN_MS_MAX = 30_000;

function reasonOf(row: LayerRow | null): string | null {
  return row === null ? null : unpackSource(row.source).reason;
}

function no(reason: string): ImageOffer {
  return { kind: "no", reason };
}
