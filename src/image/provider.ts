/**
 * What the snapshotter asks about images: may we provide this layer? The first question about an image opens it (manifest, configuration, index, one authenticated ranged read) and
 * starts making all its layers; the answers for the others come from memory. An image is claimed whole or not at all: one refused layer makes containerd download all later ones.
 *
 * Invariant: nothing of a request is believed that the manifest, found by its digest, does not confirm.
 */

import { type Clock, systemClock } from "../base/clock.ts";
import type { ChainID, Digest } from "../base/digest.ts";
import { describeError, HeadstartError } from "../base/errors.ts";
import { publish } from "../base/events.ts";
import type { LayerRole } from "../formats/format.ts";
import type { LayerImage } from "../layer/layer-image.ts";
import type { LayerKey, LayerRow } from "../layer/rows.ts";
import { EAGER } from "../layer/store.ts";
import { type ImageReference, parseReference } from "../oci/reference.ts";
import type { ImageReader } from "../oci/store.ts";
import { type Choice, chooseIndex, missedByPolicy } from "./choose.ts";
import { LayerMaker, type LayerMakerOptions } from "./layer-maker.ts";
import { describeManifest, type ManifestSource, type OpenedImage, openImage, preferLocal } from "./open.ts";
import { PROBE_BYTES, packSource, unpackSource } from "./source.ts";
import { allowsReferrers, type TrustPolicy } from "./trust.ts";

export interface ImageProviderOptions extends LayerMakerOptions {
  readonly manifests: ManifestSource;
  readonly policy: TrustPolicy;
  /** Compressed bytes below which an indexed layer is pulled whole. */
  readonly minLayerSize: number;
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
  | { readonly kind: "no"; readonly reason: string };

interface PlannedLayer {
  readonly digest: Digest;
  readonly layer: number;
  readonly mode: "lazy" | "eager";
  readonly reason: string | null;
}

interface ImageRecord {
  readonly reference: string;
  readonly manifest: Digest;
  readonly openedAtMs: number;
  planned: { readonly image: OpenedImage; readonly layers: readonly PlannedLayer[]; readonly choice: Choice } | null;
  /** Why we do not provide it. */
  refusal: string | null;
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
  /** When a layer was last offered: a collection that began before must leave it alone. */
  readonly #offeredAtMs = new Map<number, number>();
  readonly #removing = new Set<Promise<void>>();
  readonly #records = new Map<string, { record: ImageRecord; opening: Promise<void> }>();

  constructor(options: ImageProviderOptions) {
    this.#options = options;
    this.#clock = options.clock ?? systemClock;
    this.maker = new LayerMaker(options);
  }

  /** Never throws but for the caller's signal: what cannot be provided is a "no" with its reason. */
  async offer(request: ImageRequest, options: { signal?: AbortSignal | undefined } = {}): Promise<ImageOffer> {
    const { reference, manifestDigest, layerDigest } = request;
    if (reference === null || manifestDigest === null || layerDigest === null)
      return no("containerd sent no image labels");
    const record = await this.#open(reference, manifestDigest, request.namespace, options.signal);
    if (record.planned === null) return no(record.refusal ?? "the image cannot be opened");
    const { image, layers } = record.planned;
    // the same layer may stand in an image twice: its chainID tells the places apart
    const position = image.chain.indexOf(request.target);
    if (position < 0) return no(`the manifest ${manifestDigest} has no layer with chainID ${request.target}`);
    if (layers[position]!.digest !== layerDigest)
      return no(`the manifest names ${layers[position]!.digest} where containerd says ${layerDigest}`);
    const planned = layers[position]!;
    this.#offeredAtMs.set(planned.layer, this.#clock.monotonic());
    return { kind: planned.mode, layer: planned.layer };
  }

  /** The layer's file (or that of the one that stands in for it), mountable. */
  ready(layer: number, signal?: AbortSignal): Promise<LayerImage> {
    return this.maker.ready(layer, signal);
  }

  images(): ImageStatus[] {
    return [...this.#records.values()].map(({ record }) => {
      const layers = (record.planned?.layers ?? []).map((layer) => this.#layerNow(layer));
      const modes = new Set(layers.map((layer) => layer.mode));
      return {
        reference: record.reference,
        manifest: record.manifest,
        mode:
          record.planned === null
            ? record.refusal === null
              ? "opening"
              : "unclaimed"
            : modes.size > 1
              ? "mixed"
              : ([...modes][0] ?? "eager"),
        reason: record.refusal ?? record.planned?.choice.reason ?? null,
        layers,
      };
    });
  }

  /** What became of a plan: an index that turned out bad makes a layer eager. */
  #layerNow(layer: PlannedLayer): PlannedLayer {
    const { store } = this.#options;
    const failure = this.maker.trouble(layer.layer);
    const standIn = this.maker.standIn(layer.layer);
    if (standIn === null) return { ...layer, reason: failure ?? layer.reason };
    return { ...layer, mode: "eager", reason: failure ?? reasonOf(store.row(standIn)) ?? layer.reason };
  }

  /** Layers that may be removed: no snapshot refers to them, nor to one that they stand in for. */
  unused(inUse: ReadonlySet<number>): number[] {
    const kept = new Set(inUse);
    for (const id of inUse) {
      const standIn = this.maker.standIn(id);
      if (standIn !== null) kept.add(standIn);
    }
    return this.#options.store
      .list()
      .filter((row) => !kept.has(row.id))
      .map((row) => row.id);
  }

  /**
   * Removes the layers that `unused` names, but for those that are offered meanwhile. `unmount` is called before each; when it throws, the layer stays for the next time.
   */
  async collect(inUse: ReadonlySet<number>, unmount: (layer: number) => Promise<void>): Promise<void> {
    const begunAtMs = this.#clock.monotonic();
    for (const layer of this.unused(inUse)) {
      const removal = this.#collectOne(layer, begunAtMs, unmount);
      this.#removing.add(removal);
      await removal.finally(() => this.#removing.delete(removal));
    }
  }

  async #collectOne(layer: number, begunAtMs: number, unmount: (layer: number) => Promise<void>): Promise<void> {
    if ((this.#offeredAtMs.get(layer) ?? -1) >= begunAtMs) return;
    // images that planned it are opened anew at their next pull
    for (const [key, { record }] of this.#records) {
      if (record.planned?.layers.some((planned) => planned.layer === layer)) this.#records.delete(key);
    }
    this.#offeredAtMs.delete(layer);
    try {
      await unmount(layer);
      await this.maker.remove(layer);
    } catch (error) {
      publish("image:collect-failed", { layer, error: describeError(error) });
    }
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
        planned: null,
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
    const signal = AbortSignal.timeout(OPEN_MS_MAX);
    try {
      const reference = parseReference(record.reference);
      const remote = await this.#options.repository(reference);
      const { descriptor } = await describeManifest(remote, this.#options.manifests, record.manifest, {
        namespace,
        signal,
      });
      const reader = preferLocal(remote, this.#options.manifests, { namespace, manifest: descriptor });
      const image = await openImage(reader, descriptor, signal);
      const [choice] = await Promise.all([
        chooseIndex(image, reader, { policy: this.#options.policy, signal }),
        proveAccess(remote, image, reference, signal),
      ]);
      // a layer that is being removed must not be planned again under its old row
      while (this.#removing.size > 0) await Promise.allSettled(this.#removing);
      const layers = image.layers.map((_, position) => this.#planLayer(record, image, choice, position));
      record.planned = { image, layers, choice };
      for (const planned of layers) this.maker.start(planned.layer);
      if (choice.index === null) void this.#noteMissed(record, reader);
      const lazy = layers.filter((planned) => planned.mode === "lazy").length;
      publish("image:opened", {
        reference: record.reference,
        manifest: record.manifest,
        layers: layers.length,
        lazy,
        reason: choice.reason,
        ms: this.#clock.now() - record.openedAtMs,
      });
    } catch (error) {
      record.refusal = describeError(error);
      record.refusedAtMs = this.#clock.monotonic();
      publish("image:unclaimed", { reference: record.reference, manifest: record.manifest, reason: record.refusal });
    }
  }

  /** Costs a round trip that no pull waits for. */
  async #noteMissed(record: ImageRecord, reader: ImageReader): Promise<void> {
    const { policy } = this.#options;
    const { planned } = record;
    if (planned === null || allowsReferrers(policy)) return;
    const reason = await missedByPolicy(planned.image, reader, policy, AbortSignal.timeout(OPEN_MS_MAX));
    if (reason === null) return;
    const layers = planned.layers.map((layer) =>
      layer.reason === planned.choice.reason ? { ...layer, reason } : layer,
    );
    record.planned = { ...planned, layers, choice: { index: null, reason } };
    publish("image:missed", { reference: record.reference, manifest: record.manifest, reason });
  }

  #planLayer(record: ImageRecord, image: OpenedImage, choice: Choice, position: number): PlannedLayer {
    const { store } = this.#options;
    const identity = image.layers[position]!;
    const role: LayerRole = position === 0 ? "lowest" : "upper";
    // a layer that is here already is the best source, whatever format it came in
    const here = store.findUsable(identity, role);
    const tables = choice.index?.tables.get(identity.digest);
    let reason: string | null = null;
    if (here !== null) {
      if (here.state.t !== "sealed") this.maker.addSource(here, record.reference);
      return { digest: identity.digest, layer: here.id, mode: here.format === EAGER ? "eager" : "lazy", reason: null };
    }
    const lazyKey: LayerKey | null =
      choice.index === null || tables === undefined
        ? null
        : { identity, role, format: choice.index.format.name, indexDigest: tables.table.digest };
    const failure = lazyKey === null ? null : store.indexFailure(lazyKey);
    if (choice.index === null) reason = choice.reason;
    else if (lazyKey === null) reason = `the ${choice.index.format.name} index has no table for it`;
    else if (failure !== null) reason = `its ${lazyKey.format} index cannot be used: ${failure}`;
    else if (identity.size < this.#options.minLayerSize)
      reason = `smaller than min_layer_size (${identity.size} bytes)`;
    const lazy = reason === null && lazyKey !== null && tables !== undefined;
    const source = packSource({
      reference: record.reference,
      table: lazy ? tables.table : null,
      extras: lazy ? tables.extras : [],
      reason,
      position,
    });
    const key = lazy ? lazyKey : { identity, role, format: EAGER, indexDigest: null };
    return { digest: identity.digest, layer: store.declare(key, source).id, mode: lazy ? "lazy" : "eager", reason };
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

/**
 * One authenticated ranged read in the image's own repository: whoever pulls must be allowed to, even if every byte is here already, and a claim must not find out later
 * that it cannot be kept. Throws HS_IMAGE_UNCLAIMED.
 */
async function proveAccess(
  remote: ImageReader,
  image: OpenedImage,
  reference: ImageReference,
  signal: AbortSignal,
): Promise<void> {
  const smallest = image.loaded.layers.reduce<OpenedImage["loaded"]["layers"][number] | null>(
    (best, layer) => (layer.size > 0 && (best === null || layer.size < best.size) ? layer : best),
    null,
  );
  if (smallest === null) return;
  try {
    await remote.openBlob(smallest).readRange(0, Math.min(PROBE_BYTES, smallest.size), { signal });
  } catch (cause) {
    throw new HeadstartError("HS_IMAGE_UNCLAIMED", {
      what: `no blob of ${reference.host}/${reference.repository} can be read with the credentials of this node`,
      cause,
    });
  }
}
