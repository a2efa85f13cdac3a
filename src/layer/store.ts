/**
 * `LayerStore`: all layers of one root directory. Makes them, finds them, opens them again after a restart, removes them.
 *
 *   <root>/layers.db                rows (rows.ts)
 *   <root>/layers/<id>/image        the layer file: sparse EROFS, mode 0400 once sealed
 *                      units        which units are filled (unit-log.ts): the truth about the holes
 *                      placement    where data lie in the image (placement-file.ts): the mounted metadata fixed it
 *                      index        the format's table as it was fetched (a zTOC); its digest is checked at every opening
 *                      rest         stream bytes that belong to no file (rest.ts)
 *                      tree         the FileTree (tree-file.ts)
 *   A sealed layer has `image` and `tree` only. Images over several blobs and their data files: data-store.ts.
 *
 * Orders that crashes cannot break: files, then the row's state; on removal the row, then the files. What is not sealed is believed only within one boot: after another one an
 * unsealed lazy layer keeps its index and begins with holes only, an eager one is pulled again.
 */

import { createHash } from "node:crypto";
import { constants, existsSync, openSync, readdirSync, statSync } from "node:fs";
import { chmod, mkdir, open, rm } from "node:fs/promises";
import { join } from "node:path";
import { Bitmap } from "../base/bitmap.ts";
import { type Clock, systemClock } from "../base/clock.ts";
import { type Digest, sha256 } from "../base/digest.ts";
import { describeError, type ErrorCode, HeadstartError, isHeadstartError, kindOf } from "../base/errors.ts";
import { publish } from "../base/events.ts";
import { failpoint } from "../base/failpoint.ts";
import { makePrivateDirectory } from "../base/files.ts";
import { Flights } from "../base/limit.ts";
import { MiB } from "../base/limits.ts";
import type { FileTree } from "../erofs/file-tree.ts";
import { BLOCK_SIZE } from "../erofs/placement.ts";
import type { BoundBlob, LayerIdentity, LayerRole, LazyLayer, MergedImage } from "../formats/format.ts";
import type { NydusBootstrap } from "../formats/nydus/bootstrap.ts";
import type { ChunkInfo } from "../formats/nydus/chunk-info.ts";
import { ByteBudget } from "./byte-budget.ts";
import { DataStore } from "./data-store.ts";
import { Decoders } from "./decoders.ts";
import { pullEager } from "./eager.ts";
import { FillState } from "./fill-state.ts";
import { Filler } from "./filler.ts";
import type { BlobStream, UnitFetcher } from "./interfaces.ts";
import { LayerWorkers } from "./jobs.ts";
import { type LayerContent, type LayerHost, LayerImage } from "./layer-image.ts";
import { type OpenLazy, type Prepared, type PrepareRequest, prepareAgain, prepareNew } from "./prepare.ts";
import { keyText, type LayerKey, type LayerRow, LayerRows, type LayerSource } from "./rows.ts";
import type { LayerState } from "./state.ts";
import { readTree } from "./tree-file.ts";
import { UnitLog } from "./unit-log.ts";

export interface LayerStoreOptions {
  readonly fetcher: UnitFetcher;
  /** Reads tables in the main thread: for tests with formats of their own. By default a thread does, with those of formats/all.ts. */
  readonly openLazy?: OpenLazy;
  readonly decoders?: Decoders;
  readonly clock?: Clock;
  /** What the kernel says in /proc/sys/kernel/random/boot_id. */
  readonly bootId: string;
  /** Stored bytes that all background fills together may have in memory. */
  readonly backgroundBytes?: number;
  /** What a demand waits at most. */
  readonly deadlineMs?: number;
  /** A layer's index turned out wrong: the owner may want an eager layer in its place. */
  readonly onIndexFailure?: (layer: LayerImage, error: HeadstartError) => void;
}

/** A row as `headstart status` shows it. */
export interface LayerStatus extends LayerRow {
  /** Of a data file: the images that refer to it. */
  readonly users: readonly number[];
  /** Bytes that the layer's files take on disk. */
  readonly diskBytes: number;
  /** What keeps it from being complete: of the last pull or of the background fill. */
  readonly trouble: string | null;
  /** Null while the layer is not open. */
  readonly fill: {
    readonly unitsFilled: number;
    readonly unitsTotal: number;
    readonly bytesFilled: number;
    readonly bytesTotal: number;
  } | null;
}

export class LayerStore implements AsyncDisposable {
  readonly root: string;
  readonly #options: LayerStoreOptions;
  readonly #rows: LayerRows;
  readonly #decoders: Decoders;
  readonly #workers: LayerWorkers;
  readonly #open = new Map<number, LayerImage>();
  readonly #opening = new Flights<number, LayerImage>();
  readonly #creating = new Flights<string, LayerImage>();
  readonly #host: LayerHost;
  readonly #data: DataStore;

  private constructor(root: string, options: LayerStoreOptions, rows: LayerRows) {
    this.root = root;
    this.#options = options;
    this.#rows = rows;
    this.#decoders = options.decoders ?? new Decoders();
    this.#workers = new LayerWorkers();
    this.#host = {
      clock: options.clock ?? systemClock,
      budget: new ByteBudget(options.backgroundBytes ?? 32 * MiB),
      save: (layer, state) => this.#save(layer, state),
      makeDurable: (layer) => this.#makeDurable(layer),
      dropHelpers: async (layer) => {
        await this.#rows.sync();
        if (layer.kind === "layer") await this.#dropHelpers(layer.id);
      },
      treePath: (layer) => this.#file(layer.id, "tree"),
      whenQuiet: async (signal) => await options.fetcher.whenQuiet?.(signal),
      checkWhole: async (request, signal) => {
        await this.#workers.run({ t: "seal", request }, { signal });
      },
      readTree: (layer) => this.#readTree(layer),
      onIndexFailure: (layer, error) => this.#options.onIndexFailure?.(layer, error),
      forget: (layer) => this.#open.delete(layer.id),
    };
    this.#data = new DataStore({
      rows: this.#rows,
      workers: this.#workers,
      decoders: this.#decoders,
      host: this.#host,
      options,
      directory: (id) => this.#directory(id),
      opened: (id) => this.#open.get(id),
      open: (id) => this.get(id),
      keep: (layer) => this.#open.set(layer.id, layer),
      uuid: layerUuid,
    });
  }

  /** Opens the store and repairs what a crash left. Opens no layer: that happens when one is wanted. */
  static async open(root: string, options: LayerStoreOptions): Promise<LayerStore> {
    makePrivateDirectory(join(root, "layers"));
    const rows = new LayerRows(join(root, "layers.db"));
    const store = new LayerStore(root, options, rows);
    try {
      await store.#reconcile();
    } catch (error) {
      rows[Symbol.dispose]();
      throw error;
    }
    return store;
  }

  /** The row of that key that is not broken. */
  find(key: LayerKey): LayerRow | null {
    return this.#rows.find(key);
  }

  /** A layer of that content that can be mounted now, in whatever format it came: the most complete one. */
  findUsable(identity: LayerIdentity, role: LayerRole): LayerRow | null {
    const rank = (row: LayerRow) => USABLE.indexOf(row.state.t);
    const found = this.#rows
      .ofDigest(identity.digest)
      .filter(
        (row) => row.kind === "layer" && row.identity.diffID === identity.diffID && row.role === role && rank(row) >= 0,
      );
    return found.toSorted((a, b) => rank(a) - rank(b) || a.id - b.id)[0] ?? null;
  }

  /** Why a layer of that key that is still here broke, if it was its index that was wrong: another one of that key would break too. */
  indexFailure(key: LayerKey): string | null {
    const wanted = keyText(key);
    const row = this.#rows
      .ofDigest(key.identity.digest)
      .findLast((one) => one.state.t === "broken" && keyText(one) === wanted);
    return row?.state.t === "broken" && SERVED_WHEN_BROKEN.includes(row.state.code) ? row.state.reason : null;
  }

  row(id: number): LayerRow | null {
    return this.#rows.get(id);
  }

  /** Gives a layer its id before its tables are there. Returns the row of that key if there is one. */
  declare(key: LayerKey, source: LayerSource): LayerRow {
    return this.#rows.find(key) ?? this.#rows.insert(key, source, this.#host.clock.now());
  }

  /**
   * Makes a lazy layer of its format's table (`indexBytes`, verified, whose digest `indexDigest` is), or returns the one that is there. `lazy`: what the adapter made of the table, if that
   * is known already; else a thread asks it. `extras` are the hints that the format keeps beside. Nothing is fetched. Throws HS_INDEX_*, HS_LAYER_REFUSED, HS_EROFS_LIMIT,
   * HS_LIMIT, HS_DISK_FULL; then nothing is left of it but a declared row.
   */
  async createLazy(options: {
    identity: LayerIdentity;
    role: LayerRole;
    format: string;
    indexBytes: Uint8Array;
    indexDigest?: Digest;
    extras?: readonly (Uint8Array | null)[];
    lazy?: LazyLayer;
    source: LayerSource;
  }): Promise<LayerImage> {
    const { identity, role, format, lazy } = options;
    const indexDigest = options.indexDigest ?? sha256(options.indexBytes);
    const key = { identity, role, format, indexDigest };
    return await this.#creating.join(keyText(key), async () => {
      const row = this.declare(key, options.source);
      if (row.state.t !== "opening") return await this.get(row.id);
      const request = { ...this.#prepareRequest(row), table: options.indexBytes, extras: options.extras ?? [] };
      try {
        const openLazy = lazy === undefined ? this.#options.openLazy : () => lazy;
        const prepared =
          openLazy === undefined
            ? await this.#workers.run({ t: "prepare", request })
            : await prepareNew(request, openLazy);
        const layer = this.#assemble(row, prepared, null);
        try {
          this.#rows.setFacts(row.id, {
            imageSize: prepared.imageSize,
            inodeCount: prepared.lazy.tree.inodeCount,
            streamLength: prepared.lazy.streamLength,
          });
          layer.become({ t: "lazy" });
        } catch (error) {
          await layer.close();
          throw error;
        }
        this.#open.set(row.id, layer);
        return layer;
      } catch (error) {
        await rm(this.#directory(row.id), { recursive: true, force: true });
        throw isFull(error) ? diskFull(`layer ${identity.digest}`, error) : error;
      }
    });
  }

  /**
   * Pulls a whole layer, or joins the pull that runs, or returns the layer that is there. `layer` has its id at once and its file when `done` resolves (its state is then "syncing" or "sealed").
   * `done` throws as EagerPuller.pull; what may pass leaves the row "opening", and the next call tries again under the same id.
   */
  async createEager(options: {
    identity: LayerIdentity;
    role: LayerRole;
    blob: BlobStream;
    source: LayerSource;
    onProgress?: (storedBytes: number) => void;
  }): Promise<{ layer: LayerImage; done: Promise<void> }> {
    const key = { identity: options.identity, role: options.role, format: EAGER, indexDigest: null };
    const declared = this.declare(key, options.source);
    // (a pull that failed while not even that could be noted)
    const isLeft = declared.state.t === "pulling" && !this.#open.has(declared.id);
    const row: LayerRow = isLeft ? { ...declared, state: { t: "opening" } } : declared;
    if (row.state.t !== "opening") {
      const layer = this.#open.get(row.id) ?? (await this.get(row.id));
      return { layer, done: layer.whenComplete() };
    }
    const layer = this.#image(row, null);
    this.#open.set(row.id, layer);
    layer.become({ t: "pulling" });
    const done = this.#pull(row, layer, options.blob, options.onProgress);
    // who only wants the layer need not listen
    done.catch(() => {});
    layer.hold(done.catch(() => {}));
    return { layer, done };
  }

  /**
   * Makes the image of a merged tree over several blobs, or returns the one of that key (of kind "image") that is there. Data files that other images have are shared, where both say the same of
   * every chunk that both know; else the image gets its own. Nothing is fetched. `dataSource`: where the blob of a new data file can be fetched again. Throws HS_INDEX_INVALID, HS_EROFS_LIMIT
   * (more than 254 blobs), HS_LIMIT, HS_DISK_FULL; then nothing is left of it but a declared row, and data files that nobody refers to.
   */
  async createImage(options: {
    key: LayerKey;
    merged: MergedImage;
    source: LayerSource;
    dataSource: (blob: BoundBlob["blob"], space: number) => LayerSource;
  }): Promise<LayerImage> {
    return await this.#creating.join(keyText(options.key), async () => {
      const row = this.declare(options.key, options.source);
      if (row.state.t !== "opening") return await this.get(row.id);
      try {
        return await this.#data.createImage(row, options);
      } catch (error) {
        await rm(this.#directory(row.id), { recursive: true, force: true });
        throw isFull(error) ? diskFull(`image over ${row.identity.digest}`, error) : error;
      }
    });
  }

  /** What a bootstrap says, read in a thread: 100 k files take it most of a second. Throws as `readBootstrap` of formats/nydus. */
  readBootstrap(bytes: Uint8Array, what: string): Promise<NydusBootstrap> {
    return this.#workers.run({ t: "read-bootstrap", bytes, what });
  }

  /** What `createImage` takes, of what was fetched; in a thread too. Throws as `mergedNydus`. */
  mergeNydus(
    bootstrap: NydusBootstrap,
    infos: readonly (ChunkInfo | null)[],
    sizes: readonly number[],
    what: string,
  ): Promise<MergedImage> {
    return this.#workers.run({ t: "merge-nydus", bootstrap, infos, sizes, what });
  }

  /** Rows that were declared before this survive a power loss when it resolves: to be waited for before anybody keeps an id. */
  async sync(): Promise<void> {
    await this.#rows.sync();
  }

  /** Data files that no image refers to, and that none which is being made is going to: they may be removed. */
  unreferenced(): number[] {
    return this.#rows
      .all()
      .filter((row) => row.kind === "data" && !this.#data.isUsed(row.id))
      .map((row) => row.id);
  }

  /** The open layer. Throws HS_NOT_FOUND, HS_LAYER_BROKEN when its files cannot be used, HS_LAYER_STATE when it has none yet. */
  async get(id: number): Promise<LayerImage> {
    const open = this.#open.get(id);
    if (open !== undefined) return open;
    return await this.#opening.join(id, () => this.#reopen(id));
  }

  /** The layer if it is open now. */
  opened(id: number): LayerImage | null {
    return this.#open.get(id) ?? null;
  }

  /** Closes the layer and frees its disk space. The caller has unmounted it. Idempotent. Throws HS_LAYER_STATE for a data file that an image refers to. */
  async remove(id: number): Promise<void> {
    if (this.#data.isUsed(id))
      throw new HeadstartError("HS_LAYER_STATE", { what: `data file ${id} is part of an image` });
    // at once: an image that is made meanwhile shall not be given it
    if (this.#rows.get(id)?.kind === "data") this.#rows.delete(id);
    await this.#open.get(id)?.close();
    this.#rows.delete(id);
    this.#data.forget(id);
    failpoint("layer:remove");
    await rm(this.#directory(id), { recursive: true, force: true });
    publish("layer:removed", { layer: id });
  }

  /** Every layer, also broken ones. */
  list(): LayerStatus[] {
    return this.#rows.all().map((row) => ({
      ...row,
      users: row.kind === "data" ? this.#rows.usersOf(row.id) : [],
      diskBytes: this.diskBytes(row.id),
      fill: this.#open.get(row.id)?.statistics() ?? null,
      trouble: (row.state.t === "opening" ? row.state.reason : this.#open.get(row.id)?.trouble) ?? null,
    }));
  }

  /** Bytes that the layer's files take on disk now. */
  diskBytes(id: number): number {
    const directory = this.#directory(id);
    if (!existsSync(directory)) return 0;
    return readdirSync(directory).reduce((sum, name) => sum + statSync(join(directory, name)).blocks * 512, 0);
  }

  /** Closes all layers. Filled units stay filled. */
  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all([...this.#open.values()].map((layer) => layer.close()));
    await this.#workers[Symbol.asyncDispose]();
    if (this.#options.decoders === undefined) await this.#decoders[Symbol.asyncDispose]();
    this.#rows[Symbol.dispose]();
  }

  #directory(id: number): string {
    return join(this.root, "layers", String(id));
  }

  #file(id: number, name: "image" | "units" | "placement" | "index" | "rest" | "tree"): string {
    return join(this.#directory(id), name);
  }

  async #pull(
    row: LayerRow,
    layer: LayerImage,
    blob: BlobStream,
    onProgress: ((storedBytes: number) => void) | undefined,
  ): Promise<void> {
    const startedMs = performance.now();
    const directory = this.#directory(row.id);
    try {
      await rm(directory, { recursive: true, force: true });
      await mkdir(directory, { mode: 0o700 });
      const request = {
        identity: row.identity,
        role: row.role,
        path: layer.path,
        uuid: layerUuid(row),
        treePath: this.#file(row.id, "tree"),
      };
      const { inodeCount, imageSize, streamLength } = await pullEager(request, blob, {
        workers: this.#workers,
        clock: this.#host.clock,
        signal: layer.closing,
        onProgress,
      });
      layer.closing.throwIfAborted();
      this.#rows.setFacts(row.id, { imageSize, inodeCount, streamLength });
      layer.adopt(this.#completeContent(layer.path, imageSize));
      publish("layer:pulled", {
        layer: row.id,
        storedBytes: blob.size,
        streamLength,
        pullMs: performance.now() - startedMs,
      });
    } catch (cause) {
      const error = isFull(cause) ? diskFull(layer.what, cause) : cause;
      this.#open.delete(row.id);
      await rm(directory, { recursive: true, force: true });
      layer.fail(error);
      publish("layer:pull-failed", { layer: row.id, error });
      throw error;
    }
    layer.hold(this.#sync(layer));
  }

  /** Makes a complete layer durable. Never throws: what is not synced is pulled again after a reboot, or synced by the next start. */
  async #sync(layer: LayerImage): Promise<void> {
    try {
      await this.#makeDurable(layer).catch((error: unknown) => {
        if (isHeadstartError(error, "HS_LAYER_BROKEN"))
          layer.become({ t: "broken", code: error.code, reason: describeError(error) });
        throw error;
      });
      layer.become({ t: "sealed" });
      await this.#rows.sync();
    } catch (error) {
      publish("layer:sync-failed", { layer: layer.id, error });
    }
  }

  /** What stays of a sealed layer is on disk when this resolves. In the thread pool: a large file may take seconds. Throws HS_LAYER_BROKEN when it cannot be written. */
  async #makeDurable(layer: LayerImage): Promise<void> {
    await chmod(layer.path, 0o400);
    const directory = this.#directory(layer.id);
    // a data file's log is believed as long as its row says that it is whole
    const beside = this.#file(layer.id, layer.kind === "data" ? "units" : "tree");
    try {
      for (const path of [layer.path, beside, directory, join(this.root, "layers")]) {
        await using file = await open(path, constants.O_RDONLY);
        await file.sync();
      }
    } catch (cause) {
      if ((cause as NodeJS.ErrnoException).code !== "EIO") throw cause;
      // the kernel says so once and forgets the pages: a second attempt would succeed, and nobody knows what is in the file
      throw new HeadstartError("HS_LAYER_BROKEN", { what: `${layer.what}: the disk does not take its file`, cause });
    }
  }

  #completeContent(path: string, size: number): LayerContent {
    const fillMap = new Bitmap(size / BLOCK_SIZE);
    fillMap.setRange(0, fillMap.length);
    return { fd: openSync(path, constants.O_RDONLY), size, fillMap, lazy: null };
  }

  /** `filled`: bitmap of the unit log to go on with; null begins a new one. */
  #assemble(row: LayerRow, prepared: Prepared, filled: { log: UnitLog; filled: Uint8Array } | null): LayerImage {
    const { lazy, placement, imageSize, pieces, rest } = prepared;
    const what = `layer ${row.identity.digest}`;
    const headers = lazy.streamLength > 0;
    const state = new FillState({ table: lazy.units, pieces, placement, imageSize, headers });
    if (filled !== null) {
      const bitmap = new Bitmap(lazy.units.unitCount);
      bitmap.bytes.set(filled.filled);
      const count = lazy.units.unitCount;
      for (let unit = bitmap.nextSet(0, count); unit < count; unit = bitmap.nextSet(unit + 1, count))
        state.markUnit(unit);
    }
    const log = filled?.log ?? UnitLog.create(this.#file(row.id, "units"), lazy.units.unitCount, this.#options.bootId);
    const fd = openSync(this.#file(row.id, "image"), constants.O_RDWR);
    const restFd = openSync(this.#file(row.id, "rest"), constants.O_RDWR);
    this.#decoders.open({
      layer: row.id,
      what,
      imageFd: fd,
      restFd,
      units: lazy.units,
      pieces,
      placement,
      rest: rest.gapCount > 0 ? rest : null,
      decode: lazy.decode,
    });
    const filler = new Filler({
      layer: row.id,
      what,
      table: lazy.units,
      state,
      log,
      fetcher: this.#options.fetcher,
      decoders: this.#decoders,
      deadlineMs: this.#options.deadlineMs,
      onIndexFailure: (error) => {
        if (layer.state.t !== "broken")
          layer.become({ t: "broken", code: error.code, reason: `the index is wrong: ${describeError(error)}` });
        this.#host.onIndexFailure(layer, error);
      },
    });
    const content: LayerContent = {
      fd,
      size: imageSize,
      fillMap: state.fillMap,
      lazy: {
        filler,
        prefetchUnits: lazy.prefetchUnits,
        stream: { restFd, placement, rest, streamLength: lazy.streamLength },
      },
    };
    const layer = this.#image(row, content);
    return layer;
  }

  #image(row: LayerRow, content: LayerContent | null): LayerImage {
    return new LayerImage({
      id: row.id,
      kind: row.kind,
      path: this.#file(row.id, "image"),
      identity: row.identity,
      role: row.role,
      format: row.format,
      state: row.state,
      content,
      host: this.#host,
    });
  }

  async #reopen(id: number): Promise<LayerImage> {
    const row = this.#rows.get(id);
    if (row === null) throw new HeadstartError("HS_NOT_FOUND", { what: `layer ${id}` });
    let layer: LayerImage;
    if (row.kind !== "layer") {
      layer = await this.#data.reopen(row);
      this.#open.set(id, layer);
      return layer;
    }
    switch (row.state.t) {
      case "sealed":
        layer = this.#image(row, this.#completeContent(this.#file(id, "image"), row.imageSize));
        break;
      case "syncing":
        layer = this.#image(row, this.#completeContent(this.#file(id, "image"), row.imageSize));
        layer.hold(this.#sync(layer));
        break;
      case "lazy":
      case "filling":
      case "verifying":
        layer = await this.#openLazy(row);
        break;
      case "broken":
        // one whose index or whole is wrong may be mounted: what can be verified by unit goes on being served
        if (!SERVED_WHEN_BROKEN.includes(row.state.code) || !existsSync(this.#file(id, "units")))
          throw new HeadstartError("HS_LAYER_BROKEN", { what: `layer ${row.identity.digest}: ${row.state.reason}` });
        layer = await this.#openLazy(row);
        break;
      case "opening":
      case "pulling":
        throw new HeadstartError("HS_LAYER_STATE", {
          what: `layer ${row.identity.digest} has no file: it is ${row.state.t}`,
        });
      default:
        throw row.state satisfies never;
    }
    this.#open.set(id, layer);
    return layer;
  }

  /** Throws HS_LAYER_BROKEN, and marks the row, when the files cannot be used. */
  async #openLazy(row: LayerRow): Promise<LayerImage> {
    const { bootId } = this.#options;
    const isSameBoot = row.bootId === bootId;
    try {
      // after another boot: what is in the files may have been lost in part. Begin with holes only; nothing has the file mounted
      if (!isSameBoot) publish("layer:boot-changed", { layer: row.id });
      const request = { ...this.#prepareRequest(row), rebuild: !isSameBoot };
      const prepared =
        this.#options.openLazy === undefined
          ? await this.#workers.run({ t: "prepare-again", request })
          : await prepareAgain(request, this.#options.openLazy);
      const unitCount = prepared.lazy.units.unitCount;
      const filled = isSameBoot ? UnitLog.open(this.#file(row.id, "units"), unitCount, bootId) : null;
      if (isSameBoot && filled === null)
        throw new HeadstartError("HS_MALFORMED", { what: "its unit log is of another boot" });
      try {
        const layer = this.#assemble(row, prepared, filled);
        // from now on the files are of this boot
        this.#rows.setState(row.id, row.state, bootId);
        return layer;
      } catch (error) {
        filled?.log.close();
        throw error;
      }
    } catch (error) {
      if (kindOf(error) === "exhausted" || kindOf(error) === "canceled") throw error;
      const reason = `its files cannot be used: ${describeError(error)}`;
      if (!isSameBoot && row.state.t !== "broken") {
        // lost with the power: nothing is mounted, so it may simply be made again
        this.#rows.setState(row.id, { t: "opening", reason }, bootId);
        throw new HeadstartError("HS_LAYER_STATE", { what: `layer ${row.identity.digest}: ${reason}`, cause: error });
      }
      this.#rows.setState(row.id, { t: "broken", code: "HS_LAYER_BROKEN", reason }, bootId);
      throw new HeadstartError("HS_LAYER_BROKEN", { what: `layer ${row.identity.digest}: ${reason}`, cause: error });
    }
  }

  #prepareRequest(row: LayerRow): PrepareRequest {
    const { identity, role, format, indexDigest } = row;
    const directory = this.#directory(row.id);
    return { directory, identity, role, format, indexDigest: indexDigest!, uuid: layerUuid(row) };
  }

  #save(layer: LayerImage, state: LayerState): void {
    if (state.t === "sealed") failpoint("layer:sealed");
    try {
      this.#rows.setState(layer.id, state, this.#options.bootId);
    } catch (error) {
      // a full disk; between these the next start makes no difference
      if (!HAS_HOLES.includes(layer.state.t) || !HAS_HOLES.includes(state.t)) throw error;
      publish("layer:state-not-saved", { layer: layer.id, state: state.t, error });
    }
  }

  async #dropHelpers(id: number): Promise<void> {
    for (const name of ["rest", "units", "placement", "index"] as const)
      await rm(this.#file(id, name), { force: true });
  }

  async #readTree(layer: LayerImage): Promise<FileTree> {
    return await readTree(this.#file(layer.id, "tree"));
  }

  async #reconcile(): Promise<void> {
    const rows = new Map(this.#rows.all().map((row) => [row.id, row]));
    for (const name of readdirSync(join(this.root, "layers"))) {
      const row = rows.get(Number(name));
      // what is being made or pulled begins anew; its row stays, since a snapshot may name it
      if (row === undefined || row.state.t === "opening" || row.state.t === "pulling" || this.#isLost(row))
        await rm(join(this.root, "layers", name), { recursive: true, force: true });
    }
    for (const row of rows.values()) {
      const become = (state: LayerState) => this.#rows.setState(row.id, state, this.#options.bootId);
      switch (row.state.t) {
        case "pulling":
          become({ t: "opening", reason: "the pull was cut off" });
          break;
        case "syncing":
          if (this.#isLost(row)) become({ t: "opening", reason: "the machine went down before it was synced" });
          break;
        case "filling":
        case "verifying":
          // of the boot that it was of: what follows from that is decided when it is opened
          this.#rows.setState(row.id, { t: "lazy" }, row.bootId);
          break;
        case "sealed":
          if (row.kind === "layer") await this.#dropHelpers(row.id);
          break;
        case "lazy":
        case "opening":
        case "broken":
          break;
        default:
          row.state satisfies never;
      }
      const shouldHaveFile = row.state.t !== "opening" && row.state.t !== "pulling" && row.state.t !== "broken";
      // (a row that was removed may be back after a power loss, and its files in part)
      const names =
        row.state.t === "sealed" && row.kind !== "data" ? (["image", "tree"] as const) : (["image"] as const);
      if (shouldHaveFile && !this.#isLost(row) && !names.every((name) => existsSync(this.#file(row.id, name))))
        become({ t: "broken", code: "HS_LAYER_BROKEN", reason: "its file is gone" });
    }
  }

  /** Complete but not synced when the machine went down. */
  #isLost(row: LayerRow): boolean {
    return row.state.t === "syncing" && row.bootId !== this.#options.bootId;
  }
}

const HAS_HOLES: readonly LayerState["t"][] = ["lazy", "filling", "verifying"];

/** Most complete first. */
const USABLE: readonly LayerState["t"][] = ["sealed", "syncing", "verifying", "filling", "lazy"];

/** `format` of layers that were pulled whole. */
export const EAGER = "eager";

const SERVED_WHEN_BROKEN: readonly ErrorCode[] = ["HS_UNIT_DECODE", "HS_INDEX_MISMATCH", "HS_DIFFID_MISMATCH"];

/** Derived from the key alone: the same layer always gives the same image. */
function layerUuid(row: LayerRow): Uint8Array {
  return createHash("sha256").update(keyText(row)).digest().subarray(0, 16);
}

function isFull(error: unknown): boolean {
  return kindOf(error) === "exhausted";
}

function diskFull(what: string, cause: unknown): HeadstartError {
  return cause instanceof HeadstartError ? cause : new HeadstartError("HS_DISK_FULL", { what, cause });
}
