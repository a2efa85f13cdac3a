/**
 * What each layer of an image becomes: lazy with an index, pulled whole, part of a Nydus image, or what stands in for one that cannot be had. A plan declares rows (ids that snapshots may
 * name); making them is layer-maker.ts's work.
 *
 *   OCI manifest     an index that the manifest binds > its Nydus form, where policy trusts what names it > an attached index > whole
 *   Nydus manifest   its bootstrap's tree > the layers of its OCI form > refused: containerd cannot unpack its blobs
 */

import { type ChainID, chainIDs, type Digest } from "../base/digest.ts";
import { describeError, HeadstartError } from "../base/errors.ts";
import { publish } from "../base/events.ts";
import type { LayerIdentity, LayerRole, MergedImage } from "../formats/format.ts";
import { isNydusManifest } from "../formats/nydus/manifest.ts";
import { nydusInvalid } from "../formats/nydus/ondisk.ts";
import type { LayerKey, LayerRow } from "../layer/rows.ts";
import { EAGER, type LayerStore } from "../layer/store.ts";
import { type LoadedImage, loadManifest } from "../oci/manifest.ts";
import { type ImageReference, parseReference } from "../oci/reference.ts";
import type { ImageReader } from "../oci/store.ts";
import { type Choice, chooseIndex, missedByPolicy } from "./choose.ts";
import type { LayerMaker } from "./layer-maker.ts";
import { NYDUS, openNydus } from "./nydus.ts";
import { describeManifest, imageOf, type ManifestSource, type OpenedImage, preferLocal } from "./open.ts";
import { type Found, findNydus, findOci, type Sibling } from "./siblings.ts";
import { type Owner, PROBE_BYTES, packSource, unpackSource } from "./source.ts";
import { EMPTY_LAYER, type Substitutes } from "./substitutes.ts";
import { allowsReferrers, type TrustPolicy } from "./trust.ts";

export interface PlannerParts {
  readonly store: LayerStore;
  readonly maker: LayerMaker;
  readonly substitutes: Substitutes;
  readonly repository: (reference: ImageReference) => Promise<ImageReader>;
  readonly manifests: ManifestSource;
  readonly policy: TrustPolicy;
  /** Compressed bytes below which an indexed layer is pulled whole. */
  readonly minLayerSize: number;
  /** False: this node cannot mount images whose data lie in other files. */
  readonly dataFiles: boolean;
}

export interface PlannedLayer {
  readonly digest: Digest;
  /** The row that the layer's snapshot names; EMPTY_LAYER for one that holds nothing. */
  readonly layer: number;
  readonly mode: "lazy" | "eager";
  readonly reason: string | null;
}

export interface Plan {
  readonly chain: readonly ChainID[];
  /** Lowest first, as in the manifest. */
  readonly layers: readonly PlannedLayer[];
  /** Rows that are made at once. */
  readonly start: readonly number[];
  /** All rows that the image needs. */
  readonly uses: ReadonlySet<number>;
  /** Why the image does not start as lazily as it might; null when it does. */
  readonly reason: string | null;
  /** Finds out whether it is the policy that costs a lazy start; null when that is known. */
  readonly missed: ((signal: AbortSignal) => Promise<string | null>) | null;
}

interface Context {
  readonly reference: string;
  readonly parsed: ImageReference;
  readonly remote: ImageReader;
  /** `remote`, with containerd's manifests and configurations. */
  readonly reader: ImageReader;
  readonly loaded: LoadedImage;
  readonly signal: AbortSignal;
  /** Before rows are declared: one that is being removed must not be planned again under its old id. */
  readonly settled: () => Promise<void>;
}

export class Planner {
  readonly #parts: PlannerParts;

  constructor(parts: PlannerParts) {
    this.#parts = parts;
  }

  /** Throws HS_IMAGE_UNCLAIMED when containerd shall pull the image itself, HS_NYDUS_UNUSABLE when nobody can, HS_REGISTRY_*, HS_MANIFEST and others. */
  async plan(
    image: { readonly reference: string; readonly manifest: Digest; readonly namespace: string | null },
    options: { signal: AbortSignal; settled: () => Promise<void> },
  ): Promise<Plan> {
    const context = await this.#open(image, options);
    return isNydusManifest(context.loaded.manifest) ? await this.#planNydus(context) : await this.#planOci(context);
  }

  /** The OCI form of a Nydus image that was claimed, of which some bytes cannot be had. Throws as `plan`. */
  async planInstead(
    nydus: LayerRow,
    why: string,
    options: { namespace: string | null; signal: AbortSignal; settled: () => Promise<void> },
  ): Promise<Plan> {
    const { reference, table } = unpackSource(nydus.source);
    if (table === null) throw new HeadstartError("HS_NYDUS_UNUSABLE", { what: `layer ${nydus.id} names no manifest` });
    const { namespace } = options;
    const context = await this.#open({ reference, manifest: table.digest, namespace }, options);
    return await this.#planTwin(context, why, [nydus.id]);
  }

  async #open(
    image: { readonly reference: string; readonly manifest: Digest; readonly namespace: string | null },
    options: { signal: AbortSignal; settled: () => Promise<void> },
  ): Promise<Context> {
    const { manifests } = this.#parts;
    const { reference, namespace } = image;
    const { signal, settled } = options;
    const parsed = parseReference(reference);
    const remote = await this.#parts.repository(parsed);
    const { descriptor } = await describeManifest(remote, manifests, image.manifest, { namespace, signal });
    const reader = preferLocal(remote, manifests, { namespace, manifest: descriptor });
    const loaded = await loadManifest(reader, descriptor, signal);
    return { reference, parsed, remote, reader, loaded, signal, settled };
  }

  async #planOci(context: Context): Promise<Plan> {
    const { policy } = this.#parts;
    const { reader, remote, loaded, signal } = context;
    const image = imageOf(loaded);
    const [choice, alternative] = await Promise.all([
      chooseIndex(image, reader, { policy, signal }),
      this.#findAlternative(context, image),
      proveAccess(remote, image, context.parsed, signal),
    ]);
    await context.settled();
    let reason = choice.index === null ? (alternative?.reason ?? choice.reason) : choice.reason;
    if (alternative?.opened !== undefined && choice.index?.bound !== true && !this.#isHere(image)) {
      try {
        return await this.#planAlternative(context, image, alternative.sibling, alternative.opened);
      } catch (error) {
        signal.throwIfAborted();
        if (choice.index === null) reason = unusable(alternative.sibling, error);
      }
    }
    const layers = image.layers.map((_, position) => this.#planLayer(context.reference, image, choice, position));
    const ids = layers.map((planned) => planned.layer);
    const missed = choice.index === null && !allowsReferrers(policy);
    return {
      chain: image.chain,
      layers,
      start: ids,
      uses: new Set(ids),
      reason,
      missed: missed ? (later) => this.#findMissed(context, image, later) : null,
    };
  }

  /** The Nydus form of an OCI image, opened, or why it cannot be used; null when there is none or the policy does not trust what names it. */
  async #findAlternative(
    context: Context,
    image: OpenedImage,
  ): Promise<
    | { readonly opened: MergedImage; readonly sibling: Sibling; readonly reason: null }
    | { readonly opened?: undefined; readonly reason: string }
    | null
  > {
    if (!this.#parts.dataFiles || !allowsReferrers(this.#parts.policy) || this.#isHere(image)) return null;
    const { remote, loaded, signal } = context;
    let sibling: Sibling | null = null;
    try {
      sibling = await findNydus(remote, loaded, { referrers: true, signal });
      if (sibling === null) return null;
      return { sibling, opened: await openNydus(remote, sibling.loaded, signal, this.#parts.store), reason: null };
    } catch (error) {
      signal.throwIfAborted();
      return {
        reason:
          sibling === null ? `looking for a Nydus form failed: ${describeError(error)}` : unusable(sibling, error),
      };
    }
  }

  /** The layers are declared, for whoever else builds upon them; containers upon the whole chain get the Nydus form. */
  async #planAlternative(context: Context, image: OpenedImage, sibling: Sibling, opened: MergedImage): Promise<Plan> {
    const { substitutes } = this.#parts;
    const { reference } = context;
    const nydus = await this.#makeNydus(reference, sibling.loaded, opened);
    const none: Choice = { index: null, reason: null };
    const own = image.layers.map((_, position) => this.#planLayer(reference, image, none, position));
    const covers = own.map((planned) => planned.layer);
    const alternative = await substitutes.declareAlternative(image.chain.at(-1)!, {
      layer: nydus.id,
      owner: ownerBy(sibling.found, { reference }),
      reference,
      covers,
    });
    return {
      chain: image.chain,
      layers: own.map((planned) => ({ ...planned, mode: "lazy", reason: null })),
      start: [nydus.id],
      uses: new Set([nydus.id, alternative, ...covers]),
      reason: null,
      missed: null,
    };
  }

  async #planNydus(context: Context): Promise<Plan> {
    const { loaded, reader, reference, signal } = context;
    let nydus: LayerRow;
    try {
      if (!this.#parts.dataFiles)
        throw new HeadstartError("HS_KERNEL_UNSUPPORTED", { what: "EROFS with data in other files cannot be mounted" });
      const opened = await openNydus(reader, loaded, signal, this.#parts.store);
      checkBlobDiffIDs(loaded);
      await context.settled();
      nydus = await this.#makeNydus(reference, loaded, opened);
    } catch (error) {
      signal.throwIfAborted();
      return await this.#planTwin(context, error, []);
    }
    return {
      ...nydusLayers(loaded, { layer: nydus.id, mode: "lazy", reason: null }),
      start: [nydus.id],
      uses: new Set([nydus.id]),
      reason: null,
      missed: null,
    };
  }

  /** A Nydus image that cannot be had: its bootstrap's snapshot shows the layers of its OCI form. Throws HS_NYDUS_UNUSABLE when there is none. */
  async #planTwin(context: Context, error: unknown, covers: readonly number[]): Promise<Plan> {
    const { policy, substitutes } = this.#parts;
    const { loaded, remote, reference, parsed, signal } = context;
    const { digest } = loaded.manifestDescriptor;
    const why = describeError(error);
    const twin = await findOci(remote, loaded, signal).catch((cause) => {
      throw new HeadstartError("HS_NYDUS_UNUSABLE", {
        what: `Nydus image ${digest}: ${why}; looking for its OCI form`,
        cause,
      });
    });
    if (twin === null)
      throw new HeadstartError("HS_NYDUS_UNUSABLE", {
        what: `Nydus image ${digest} has no OCI form beside it`,
        cause: error,
      });
    const image = imageOf(twin.loaded);
    const [choice] = await Promise.all([
      chooseIndex(image, remote, { policy, signal }),
      proveAccess(remote, image, parsed, signal),
    ]);
    await context.settled();
    const reason = `the OCI image ${twin.loaded.manifestDescriptor.digest} stands in (${twin.found.how}): ${why}`;
    publish("image:nydus-refused", { reference, manifest: digest, reason });
    const own = image.layers.map((_, position) => this.#planLayer(reference, image, choice, position));
    const ids = own.map((planned) => planned.layer);
    const substitute = substitutes.declare(chainIDs(loaded.diffIDs).at(-1)!, {
      layers: ids,
      covers,
      owner: ownerBy(twin.found, { reference, manifest: digest }),
      reference,
      reason,
    });
    return {
      ...nydusLayers(loaded, { layer: substitute, mode: "eager", reason }),
      start: ids,
      uses: new Set([substitute, ...ids]),
      reason,
      missed: null,
    };
  }

  async #findMissed(context: Context, image: OpenedImage, signal: AbortSignal): Promise<string | null> {
    const { policy } = this.#parts;
    const sibling = await findNydus(context.remote, context.loaded, { referrers: true, signal }).catch(() => null);
    if (sibling?.found.how === "index") return `index has a Nydus alternative, policy is ${policy}`;
    if (sibling !== null) return `a Nydus alternative is attached, policy is ${policy}`;
    return await missedByPolicy(image, context.reader, policy, signal);
  }

  /** True when all layers can be mounted already: nothing is better. */
  #isHere(image: OpenedImage): boolean {
    return image.layers.every(
      (identity, position) => this.#parts.store.findUsable(identity, roleAt(position)) !== null,
    );
  }

  /** Made at once, without its data: what cannot be laid out or written is found before the image is claimed. */
  async #makeNydus(reference: string, loaded: LoadedImage, opened: MergedImage): Promise<LayerRow> {
    const { store, maker } = this.#parts;
    const key: LayerKey = {
      kind: "image",
      identity: bootstrapIdentity(loaded),
      role: "lowest",
      format: NYDUS,
      indexDigest: loaded.manifestDescriptor.digest,
    };
    const row = store.declare(key, packSource({ reference, table: loaded.manifestDescriptor }));
    maker.offerNydus(row, reference, opened);
    await maker.ready(row.id);
    return row;
  }

  #planLayer(reference: string, image: OpenedImage, choice: Choice, position: number): PlannedLayer {
    const { store, maker } = this.#parts;
    const identity = image.layers[position]!;
    const role = roleAt(position);
    // a layer that is here already is the best source, whatever format it came in
    const here = store.findUsable(identity, role);
    const tables = choice.index?.tables.get(identity.digest);
    let reason: string | null = null;
    if (here !== null) {
      if (here.state.t !== "sealed") maker.addSource(here, reference);
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
    else if (identity.size < this.#parts.minLayerSize) reason = `smaller than min_layer_size (${identity.size} bytes)`;
    const lazy = reason === null && lazyKey !== null && tables !== undefined;
    const source = packSource({
      reference,
      table: lazy ? tables.table : null,
      extras: lazy ? tables.extras : [],
      reason,
      position,
    });
    const key = lazy ? lazyKey : { identity, role, format: EAGER, indexDigest: null };
    return { digest: identity.digest, layer: store.declare(key, source).id, mode: lazy ? "lazy" : "eager", reason };
  }
}

function unusable(sibling: Sibling, error: unknown): string {
  return `its Nydus form ${sibling.loaded.manifestDescriptor.digest} cannot be used: ${describeError(error)}`;
}

function roleAt(position: number): LayerRole {
  return position === 0 ? "lowest" : "upper";
}

/** Snapshots of blobs hold nothing, so no layer's chainID may be one of theirs: a blob's diffID is its digest. Throws HS_NYDUS_INVALID. */
function checkBlobDiffIDs(loaded: LoadedImage): void {
  for (const [position, { digest }] of loaded.layers.slice(0, -1).entries()) {
    if (loaded.diffIDs[position] !== digest)
      throw nydusInvalid(
        `Nydus image ${loaded.manifestDescriptor.digest}`,
        `blob ${digest} has the diffID ${loaded.diffIDs[position]}`,
      );
  }
}

/** Whose images may have what was found: those that say the same of it. */
function ownerBy(found: Found, image: { readonly reference: string; readonly manifest?: Digest }): Owner {
  if (found.how === "index") return { by: "index", digest: found.index };
  if (found.how === "subject" && image.manifest !== undefined) return { by: "manifest", digest: image.manifest };
  return { by: "repository", reference: image.reference };
}

function bootstrapIdentity(loaded: LoadedImage): LayerIdentity {
  const { digest, size, mediaType } = loaded.layers.at(-1)!;
  return { digest, size, mediaType, diffID: loaded.diffIDs.at(-1)! };
}

/** Snapshots of a Nydus image: its blobs' hold nothing, the bootstrap's everything. */
function nydusLayers(loaded: LoadedImage, bootstrap: Omit<PlannedLayer, "digest">): Pick<Plan, "chain" | "layers"> {
  const blobs = loaded.layers
    .slice(0, -1)
    .map(({ digest }) => ({ ...bootstrap, digest, layer: EMPTY_LAYER, reason: null }));
  return {
    chain: chainIDs(loaded.diffIDs),
    layers: [...blobs, { ...bootstrap, digest: loaded.layers.at(-1)!.digest }],
  };
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
