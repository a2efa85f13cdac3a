/**
 * Makes layers and makes them again: whoever needs layer `id` asks `ready(id)` and gets its file, whether that takes nothing, a table, or a whole pull.
 *
 *   declared row ── lazy ──> tables fetched, verified, parsed ──> LayerImage with holes ──> background fill
 *        │            └─ the index is bad, or turns out to lie ──> an eager layer of the same identity stands in
 *        └──── eager ─────> whole blob streamed into the same kind of file ──> LayerImage
 *
 *        └──── nydus ─────> bootstrap layer, chunk arrays ──> LayerImage of a merged tree over data files with holes
 *
 * One promise per layer: whoever asks meanwhile joins. A failure is forgotten when it has been told, so the next asker tries again. Claims (rows) stay what they were: which layer
 * stands in for a bad one follows from its row alone, so a restart finds it again.
 */

import { describeError, HeadstartError, isHeadstartError, kindOf } from "../base/errors.ts";
import { publish } from "../base/events.ts";
import { Flights, Limit } from "../base/limit.ts";
import type { FetchScheduler } from "../fetch/scheduler.ts";
import { FORMATS } from "../formats/all.ts";
import type { FormatAdapter, MergedImage } from "../formats/format.ts";
import type { LayerImage } from "../layer/layer-image.ts";
import type { LayerRow } from "../layer/rows.ts";
import { EAGER, type LayerStore } from "../layer/store.ts";
import type { Descriptor } from "../oci/descriptor.ts";
import { loadManifest } from "../oci/manifest.ts";
import { type ImageReference, parseReference } from "../oci/reference.ts";
import type { BlobHandle, ImageReader } from "../oci/store.ts";
import { openNydus } from "./nydus.ts";
import { PROBE_BYTES, packSource, unpackSource } from "./source.ts";

export interface LayerMakerOptions {
  readonly store: LayerStore;
  readonly scheduler: FetchScheduler;
  /** Reads hosts.toml; connects to nothing. */
  readonly repository: (reference: ImageReference) => Promise<ImageReader>;
  /** Whole layers pulled at once. */
  readonly eagerParallel: number;
  /** Complete lazy layers in the background. */
  readonly background: boolean;
}

export class LayerMaker {
  readonly #options: LayerMakerOptions;
  readonly #making = new Flights<number, LayerImage>();
  readonly #pulls: Limit;
  /** Each ends the use of a blob's source, by layer and reference. */
  readonly #sources = new Map<number, Map<string, () => void>>();
  /** Those whose sources end when they are complete. */
  readonly #attached = new WeakSet<LayerImage>();
  /** Layers whose completion waits for their first mount. */
  readonly #waiting = new Map<number, { readonly layer: LayerImage; readonly timer: NodeJS.Timeout }>();
  /** What went wrong last, by layer, for the status. */
  readonly #failures = new Map<number, string>();
  /** Nydus images that were opened for a plan, until they are made. */
  readonly #opened = new Map<number, MergedImage>();
  /** Layers whose index was found bad, and why. */
  readonly #refused = new Map<number, string>();

  constructor(options: LayerMakerOptions) {
    this.#options = options;
    this.#pulls = new Limit(options.eagerParallel);
  }

  /** Starts what `ready` would do; failures are told to whoever asks later. */
  start(id: number): void {
    this.ready(id).catch(() => {});
  }

  /** A Nydus image was opened to see whether it can be had: it need not be fetched again. */
  offerNydus(row: LayerRow, reference: string, merged: MergedImage): void {
    const image = this.#options.store.opened(row.id);
    if (image === null) {
      if (row.state.t === "opening") this.#opened.set(row.id, merged);
      return;
    }
    this.#addDataSources(image, reference);
  }

  /** Why the layer could not be made the last time, or why another stands in for it; null when all is well. */
  trouble(id: number): string | null {
    return this.#failures.get(id) ?? this.#refused.get(id) ?? null;
  }

  /** Layers that stand in for `id` because its index is bad, or its files are: they live as long as it does. */
  standIn(id: number): number | null {
    const row = this.#options.store.row(id);
    if (row === null) return null;
    if (row.kind === "image" || row.format === EAGER)
      return row.state.t === "broken" ? (this.#options.store.find(row)?.id ?? null) : null;
    const eager = this.#options.store.find({
      identity: row.identity,
      role: row.role,
      format: EAGER,
      indexDigest: null,
    });
    return eager?.id ?? null;
  }

  /**
   * The layer's file, mountable. Throws HS_NOT_FOUND for an unknown id, HS_REGISTRY_* and HS_DISK_FULL when a pull cannot be done now, HS_LAYER_REFUSED, HS_DIGEST_MISMATCH and
   * HS_DIFFID_MISMATCH when it never can.
   */
  async ready(id: number, signal?: AbortSignal): Promise<LayerImage> {
    const made = this.#making.join(id, () => this.#make(id));
    if (signal === undefined) return await made;
    signal.throwIfAborted();
    let onAbort = () => {};
    const aborted = new Promise<never>((_, reject) => {
      onAbort = () => reject(signal.reason);
      signal.addEventListener("abort", onAbort, { once: true });
    });
    try {
      return await Promise.race([made, aborted]);
    } finally {
      signal.removeEventListener("abort", onAbort);
    }
  }

  /** The layer's use is over: no source, no work. The caller has unmounted it. Throws HS_LAYER_STATE for a data file that an image has been given meanwhile, which keeps its sources. */
  async remove(id: number): Promise<void> {
    await this.#making
      .join(id, () => Promise.reject(new HeadstartError("HS_CANCELED", { what: `layer ${id} is being removed` })))
      .catch(() => {});
    clearTimeout(this.#waiting.get(id)?.timer);
    this.#waiting.delete(id);
    try {
      await this.#options.store.remove(id);
    } finally {
      if (this.#options.store.row(id) === null) this.#forget(id);
    }
  }

  #forget(id: number): void {
    this.#endSources(id);
    this.#failures.delete(id);
    this.#refused.delete(id);
    this.#opened.delete(id);
  }

  async #make(id: number): Promise<LayerImage> {
    try {
      const layer = await this.#makeOrReplace(id);
      this.#failures.delete(id);
      return layer;
    } catch (error) {
      if (kindOf(error) !== "canceled") this.#failures.set(id, describeError(error));
      throw error;
    }
  }

  async #makeOrReplace(id: number): Promise<LayerImage> {
    const { store } = this.#options;
    const row = store.row(id);
    if (row === null) throw new HeadstartError("HS_NOT_FOUND", { what: `layer ${id}` });
    if (row.format === EAGER) return await this.#eager(row);
    if (row.kind === "image") return await this.#nydus(row);
    if (row.kind === "data") return await store.get(id);
    const standIn = this.#refused.has(id) ? this.standIn(id) : this.#wholeStandIn(row);
    if (standIn !== null) return await this.ready(standIn);
    try {
      const layer = row.state.t === "opening" ? await this.#lazy(row) : await store.get(id);
      if (layer.state.t === "broken")
        throw new HeadstartError("HS_LAYER_BROKEN", { what: `${layer.what}: ${layer.state.reason}` });
      this.#serve(layer, row);
      return layer;
    } catch (error) {
      if (!isHeadstartError(error) || !(await this.#mayReplace(error, row))) throw error;
      // fail open to eager, never to wrong data
      const reason = `its ${row.format} index cannot be used: ${describeError(error)}`;
      publish("image:index-refused", { layer: id, digest: row.identity.digest, reason });
      // what may pass is tried again the next time (specs/soci.md B35)
      if (REPLACEABLE.has(error.kind)) this.#refused.set(id, reason);
      const source = { ...unpackSource(row.source), table: null, extras: [], reason };
      return await this.ready(
        store.declare({ identity: row.identity, role: row.role, format: EAGER, indexDigest: null }, packSource(source))
          .id,
      );
    }
  }

  /** A whole layer beside one that is not lazy yet or no longer: it needs no registry. */
  #wholeStandIn(row: LayerRow): number | null {
    if (row.state.t !== "opening" && row.state.t !== "broken") return null;
    const { identity, role } = row;
    const found = this.#options.store.find({ identity, role, format: EAGER, indexDigest: null });
    return found?.state.t === "sealed" || found?.state.t === "syncing" ? found.id : null;
  }

  /** Failures of the index, and a table alone that cannot be had although the layer can (specs/soci.md B34). */
  async #mayReplace(error: HeadstartError, row: LayerRow): Promise<boolean> {
    if (REPLACEABLE.has(error.kind)) return true;
    if (error.kind !== "unavailable" && error.kind !== "denied") return false;
    try {
      const blob = await this.#openBlob(unpackSource(row.source).reference, row);
      await blob.readRange(0, Math.min(PROBE_BYTES, row.identity.size));
      return true;
    } catch {
      return false;
    }
  }

  async #lazy(row: LayerRow): Promise<LayerImage> {
    const source = unpackSource(row.source);
    const format = formatNamed(row.format);
    if (source.table === null)
      throw new HeadstartError("HS_INDEX_INVALID", { what: `layer ${row.identity.digest}: its row names no table` });
    if (source.table.size > format.tableBytesMax) {
      throw new HeadstartError("HS_LIMIT", {
        what: `${format.name} table of ${row.identity.digest}: ${source.table.size} bytes, at most ${format.tableBytesMax}`,
      });
    }
    const reader = await this.#options.repository(parseReference(source.reference));
    const [table, ...extras] = await Promise.all([
      reader.openBlob(source.table).readAll({ limit: format.tableBytesMax }),
      // hints: one that cannot be had is done without
      ...source.extras.map((extra) =>
        reader
          .openBlob(extra)
          .readAll({ limit: EXTRA_BYTES_MAX })
          .catch(() => null),
      ),
    ]);
    return await this.#options.store.createLazy({
      identity: row.identity,
      role: row.role,
      format: row.format,
      indexBytes: table!,
      indexDigest: source.table.digest,
      extras,
      source: row.source,
    });
  }

  /** Its blobs are served from their own rows, which are shared with other images. */
  async #nydus(row: LayerRow): Promise<LayerImage> {
    const { store } = this.#options;
    const image = row.state.t === "opening" ? await this.#newNydus(row) : await this.#openedNydus(row);
    // its own row too where a data file broke while it was open: one that lists that file never comes right
    if (image?.state.t === "broken" && store.row(row.id)?.state.t !== "broken") image.become(image.state);
    if (image === null || image.state.t === "broken") {
      // its files are damaged: another takes its place, made anew; data files that are sound are shared again
      const { kind, identity, role, format, indexDigest, source } = row;
      const again = store.declare({ kind, identity, role, format, indexDigest }, source);
      if (again.id !== row.id) return await this.ready(again.id);
      throw new HeadstartError("HS_LAYER_BROKEN", { what: `Nydus image ${identity.digest}` });
    }
    this.#serve(image, row);
    return image;
  }

  /** Null when its files cannot be used. */
  async #openedNydus(row: LayerRow): Promise<LayerImage | null> {
    try {
      return await this.#options.store.get(row.id);
    } catch (error) {
      if (isHeadstartError(error, "HS_LAYER_BROKEN")) return null;
      throw error;
    }
  }

  async #newNydus(row: LayerRow): Promise<LayerImage> {
    const { reference, table } = unpackSource(row.source);
    const merged = this.#opened.get(row.id) ?? (await this.#openNydus(reference, table));
    const image = await this.#options.store.createImage({
      key: row,
      merged,
      source: row.source,
      dataSource: () => packSource({ reference }),
    });
    this.#opened.delete(row.id);
    return image;
  }

  async #openNydus(reference: string, manifest: Descriptor | null): Promise<MergedImage> {
    if (manifest === null)
      throw new HeadstartError("HS_NYDUS_INVALID", { what: `Nydus image of ${reference}: its row names no manifest` });
    const reader = await this.#options.repository(parseReference(reference));
    return await openNydus(reader, await loadManifest(reader, manifest), undefined, this.#options.store);
  }

  /** A row that is broken stays so: the pull is tried again under another, since its file may be another. */
  async #eager(row: LayerRow): Promise<LayerImage> {
    const { store } = this.#options;
    const { identity, role, source } = row;
    const { reference } = unpackSource(source);
    const isWaiting = store.find({ identity, role, format: EAGER, indexDigest: null })?.state.t === "opening";
    const pull = async () => {
      const blob = await this.#openBlob(reference, row);
      const { layer, done } = await store.createEager({
        identity,
        role,
        source,
        blob: {
          digest: identity.digest,
          size: identity.size,
          stream: (offset, options) => blob.stream(offset, { ...options, callerVerifies: true }),
        },
      });
      await done;
      return layer;
    };
    return isWaiting ? await this.#pulls.run(pull) : await pull();
  }

  /** From here on reads of the layer's holes have a source, and it is being completed. */
  #serve(layer: LayerImage, row: LayerRow): void {
    if (layer.isComplete) return;
    this.#attach(layer, row);
    const hasHoles = layer.state.t === "lazy" || layer.kind === "image";
    if (this.#options.background && hasHoles && !this.#waiting.has(layer.id)) {
      // nobody may ever mount it: a pull ahead of time
      const timer = setTimeout(() => this.#complete(layer.id), UNMOUNTED_MS).unref();
      this.#waiting.set(layer.id, { layer, timer });
    }
  }

  /** The holes of a layer that is mounted already, by a process of before, have a source from now on. Before it is served again; then `start`. */
  attach(layer: LayerImage): void {
    const row = this.#options.store.row(layer.id);
    if (row !== null && !layer.isComplete) this.#attach(layer, row);
  }

  #attach(layer: LayerImage, row: LayerRow): void {
    const { reference } = unpackSource(row.source);
    if (row.kind !== "layer") {
      this.#addDataSources(layer, reference);
      return;
    }
    if (this.#attached.has(layer)) return;
    this.#attached.add(layer);
    this.addSource(row, reference);
    const end = () => this.#endSources(layer.id);
    // one that broke may be mounted: `remove` ends its sources
    layer.whenComplete().then(end, (error) => {
      if (!isHeadstartError(error, "HS_LAYER_BROKEN")) end();
    });
  }

  /** Sources of data files last as long as they do: a complete one may have holes again, when another image wants more of its blob. */
  #addDataSources(layer: LayerImage, reference: string): void {
    const files = layer.kind === "data" ? [layer] : layer.devices.map((device) => device.layer);
    for (const { id } of files) {
      const row = this.#options.store.row(id);
      if (row !== null) this.addSource(row, reference);
    }
  }

  /**
   * These layers are mounted: from now on they are completed in the background. Not before: until a container can read, the link belongs to the tables of its other layers.
   */
  mounted(ids: readonly number[]): void {
    this.#options.scheduler.expectDemand();
    for (const id of ids) this.#complete(id);
  }

  #complete(id: number): void {
    const waiting = this.#waiting.get(id);
    if (waiting === undefined) return;
    clearTimeout(waiting.timer);
    this.#waiting.delete(id);
    waiting.layer.startBackground();
  }

  /** Another image holds the same layer: its repository and credentials are the fresher ones. */
  addSource(row: LayerRow, reference: string): void {
    const known = this.#sources.get(row.id) ?? new Map<string, () => void>();
    if (known.has(reference)) return;
    let opening: Promise<BlobHandle> | null = null;
    const end = this.#options.scheduler.registerBlob(row.identity.digest, {
      readRange: async (start, stop, options) => {
        opening ??= this.#openBlob(reference, row);
        try {
          return await (await opening).readRange(start, stop, options);
        } catch (error) {
          // hosts.toml and credentials may have been mended meanwhile: the next read looks again
          opening = null;
          throw error;
        }
      },
    });
    this.#sources.set(row.id, known.set(reference, end));
  }

  async #openBlob(reference: string, row: LayerRow): Promise<BlobHandle> {
    const { digest, size, mediaType } = row.identity;
    return (await this.#options.repository(parseReference(reference))).openBlob({ mediaType, digest, size });
  }

  #endSources(id: number): void {
    for (const end of this.#sources.get(id)?.values() ?? []) end();
    this.#sources.delete(id);
  }
}

/** After this a layer that was pulled but not mounted is completed all the same. */
const UNMOUNTED_MS = 10_000;

/** A prefetch artifact: a few ranges. */
const EXTRA_BYTES_MAX = 8 * 1024 * 1024;

/** Failures of an index that a whole pull does not share. */
const REPLACEABLE: ReadonlySet<string> = new Set(["corrupt", "invalid", "unsupported", "not-found"]);

function formatNamed(name: string): FormatAdapter {
  const format = FORMATS.find((candidate) => candidate.name === name);
  if (format === undefined) throw new HeadstartError("HS_FORMAT_UNSUPPORTED", { what: `layer format ${name}` });
  return format;
}
