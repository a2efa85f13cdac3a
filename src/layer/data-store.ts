/**
 * Images over several blobs, and the data files that they share: the part of `LayerStore` that makes, shares, opens and counts them. Files: prepare-data.ts; what is filled: data-fill.ts.
 *
 *   sharing    an image opens the data file of its blob's table if it says of every chunk that both know the same digest; then what it knows besides is added. Otherwise the next
 *              `variant` of that blob: who lies has a file of his own
 *   adding     digests (synced), then in memory, then the image's row. A file that was sealed becomes lazy first (row synced): what is sealed is believed after a reboot. Before
 *              that its log becomes one of this boot: what is lazy is believed within its boot alone
 *   counting   rows refer to data files; an image that is being made holds its own meanwhile
 */

import { constants, openSync } from "node:fs";
import { rm } from "node:fs/promises";
import { join } from "node:path";
import { Bitmap } from "../base/bitmap.ts";
import type { Digest } from "../base/digest.ts";
import { describeError, HeadstartError, kindOf } from "../base/errors.ts";
import { publish } from "../base/events.ts";
import { failpoint } from "../base/failpoint.ts";
import { Limit } from "../base/limit.ts";
import { LIMITS } from "../base/limits.ts";
import type { BoundBlob, MergedImage } from "../formats/format.ts";
import { ChunkIndex } from "./chunk-index.ts";
import { DataFill } from "./data-fill.ts";
import type { Decoders } from "./decoders.ts";
import { Filler } from "./filler.ts";
import type { Priority, UnitFetcher } from "./interfaces.ts";
import type { LayerWorkers } from "./jobs.ts";
import { agrees, readKnownDigests, unknownOf, withDigests, writeKnownDigests } from "./known-digests.ts";
import { type DeviceUse, type LayerContent, type LayerHost, LayerImage, type LazyContent } from "./layer-image.ts";
import { PieceSet } from "./piece-set.ts";
import { knownOf, type PreparedData, readUses } from "./prepare-data.ts";
import type { LayerKey, LayerRow, LayerRows, LayerSource } from "./rows.ts";
import { UnitLog } from "./unit-log.ts";

/** `format` of data files. */
const DATA_FORMAT = "data";
/** Each differs from the others about a chunk: images that do so by the hundred are no accident. */
const VARIANTS_MAX = 256;

export interface DataStoreParts {
  readonly rows: LayerRows;
  readonly workers: LayerWorkers;
  readonly decoders: Decoders;
  readonly host: LayerHost;
  readonly options: {
    readonly fetcher: UnitFetcher;
    readonly bootId: string;
    readonly deadlineMs?: number | undefined;
  };
  directory(id: number): string;
  opened(id: number): LayerImage | undefined;
  /** Opens a layer of the store. */
  open(id: number): Promise<LayerImage>;
  /** It is open from now on. */
  keep(layer: LayerImage): void;
  /** Of an image file. */
  uuid(row: LayerRow): Uint8Array;
}

export class DataStore {
  readonly #parts: DataStoreParts;
  readonly #index = new ChunkIndex();
  /** One change of the data files of one table at a time. */
  readonly #changes = new Map<string, Limit>();
  /** How many images that are being made need a data file. */
  readonly #held = new Map<number, number>();

  constructor(parts: DataStoreParts) {
    this.#parts = parts;
  }

  isUsed(id: number): boolean {
    return this.#held.has(id) || this.#parts.rows.usersOf(id).length > 0;
  }

  /** A removed one. */
  forget(id: number): void {
    this.#index.remove(id);
  }

  async createImage(
    row: LayerRow,
    options: { merged: MergedImage; dataSource: (blob: BoundBlob["blob"], space: number) => LayerSource },
  ): Promise<LayerImage> {
    const { workers, rows } = this.#parts;
    const { merged } = options;
    const used = merged.blobs.flatMap((blob, space) => (blob === null ? [] : [{ blob, space }]));
    checkSize(used.map(({ blob }) => blob));
    const digests = await workers.run({ t: "data-keys", tables: used.map(({ blob }) => blob.table) });
    // all of them end before this does: what each holds is given back below
    const made = await Promise.allSettled(
      used.map(({ blob, space }, index) => this.#dataFile(blob, digests[index]!, options.dataSource(blob.blob, space))),
    );
    const devices = made.flatMap((each) => (each.status === "fulfilled" ? [each.value] : []));
    try {
      for (const each of made) if (each.status === "rejected") throw each.reason;
      const slots = merged.blobs.map((): { tag: string; size: number } | null => null);
      used.forEach(({ blob, space }, index) => {
        slots[space] = { tag: blob.blob.digest.slice(-64), size: devices[index]!.size };
      });
      const request = { directory: this.#parts.directory(row.id), merged, devices: slots, uuid: this.#parts.uuid(row) };
      const { imageSize, inodeCount } = await workers.run({ t: "make-image", request });
      rows.setDevices(
        row.id,
        devices.map((device) => device.id),
      );
      rows.setFacts(row.id, { imageSize, inodeCount, streamLength: 0 });
      failpoint("layer:image-made");
      const layer = await this.#openImage(row, devices, imageSize);
      layer.become({ t: "sealed" });
      this.#parts.keep(layer);
      return layer;
    } finally {
      for (const device of devices) this.#release(device.id);
    }
  }

  /** A data file or image of before. Throws as LayerStore.get. */
  async reopen(row: LayerRow): Promise<LayerImage> {
    return row.kind === "data" ? await this.#reopenData(row) : await this.#reopenImage(row);
  }

  async #reopenImage(row: LayerRow): Promise<LayerImage> {
    const { rows, options, open } = this.#parts;
    const what = `image over ${row.identity.digest}`;
    if (row.state.t === "broken") throw new HeadstartError("HS_LAYER_BROKEN", { what: `${what}: ${row.state.reason}` });
    if (row.state.t !== "sealed")
      throw new HeadstartError("HS_LAYER_STATE", { what: `${what} has no file: it is ${row.state.t}` });
    try {
      const devices = await Promise.all(row.devices.map((id) => open(id)));
      return await this.#openImage(row, devices, row.imageSize);
    } catch (error) {
      if (kindOf(error) === "exhausted" || kindOf(error) === "canceled") throw error;
      const reason = `its files cannot be used: ${describeError(error)}`;
      rows.setState(row.id, { t: "broken", code: "HS_LAYER_BROKEN", reason }, options.bootId);
      throw new HeadstartError("HS_LAYER_BROKEN", { what: `${what}: ${reason}`, cause: error });
    }
  }

  async #openImage(row: LayerRow, devices: readonly LayerImage[], size: number): Promise<LayerImage> {
    const directory = this.#parts.directory(row.id);
    const { pieces, prefetch } = await readUses(join(directory, "uses"));
    const uses: DeviceUse[] = [];
    const deviceOf: (LayerImage | undefined)[] = [];
    pieces.forEach((each, space) => {
      if (each === null) return;
      const layer = devices[uses.length];
      if (layer === undefined)
        throw new HeadstartError("HS_MALFORMED", { what: `${directory}/uses: more than ${devices.length} devices` });
      deviceOf[space] = layer;
      const set = new PieceSet(each);
      if (layer.dataFill !== null) layer.dataFill.watch(set);
      // (lazy without anything to fill it: it was complete, and another image is about to add to it)
      else if (layer.isComplete || layer.state.t === "lazy") set.allThere();
      else throw new HeadstartError("HS_LAYER_STATE", { what: `${layer.what} is ${layer.state.t}` });
      uses.push({ layer, set });
    });
    if (uses.length !== devices.length)
      throw new HeadstartError("HS_MALFORMED", { what: `${directory}/uses: not of ${devices.length} devices` });
    const path = join(directory, "image");
    const fillMap = new Bitmap(size / 4096);
    fillMap.setRange(0, fillMap.length);
    return new LayerImage({
      id: row.id,
      kind: "image",
      path,
      identity: row.identity,
      role: row.role,
      format: row.format,
      state: row.state,
      content: { fd: openSync(path, constants.O_RDONLY), size, fillMap, lazy: null },
      devices: uses,
      prefetch: { pairs: prefetch, deviceOf },
      host: this.#parts.host,
    });
  }

  /** The data file of a blob that this image can share, made if there is none; held until `#release`. */
  async #dataFile(blob: BoundBlob, indexDigest: Digest, source: LayerSource): Promise<LayerImage> {
    const text = `${blob.blob.digest} ${indexDigest}`;
    const changes = this.#changes.get(text) ?? new Limit(1);
    this.#changes.set(text, changes);
    try {
      return await changes.run(async () => {
        for (let variant = 0; variant < VARIANTS_MAX; variant++) {
          const layer = await this.#variant(dataKey(blob, indexDigest, variant), blob, source);
          if (layer !== null) return layer;
        }
        const what = `${VARIANTS_MAX} images disagree about chunks of blob ${blob.blob.digest}`;
        throw new HeadstartError("HS_LIMIT", { what });
      });
    } finally {
      if (changes.running === 0 && changes.waiting === 0) this.#changes.delete(text);
    }
  }

  /** Null when this data file and the image disagree. */
  async #variant(key: LayerKey, blob: BoundBlob, source: LayerSource): Promise<LayerImage | null> {
    const { rows, host } = this.#parts;
    const known = rows.find(key);
    if (known !== null && known.state.t !== "opening") {
      this.#hold(known.id);
      let shared = false;
      try {
        const layer = await this.#parts.open(known.id);
        shared = await this.#bind(layer, blob);
        if (shared) return layer;
        return null;
      } catch (error) {
        // one that cannot be used any more has given its key free
        if (rows.find(key) !== null) throw error;
      } finally {
        if (!shared) this.#release(known.id);
      }
    }
    const row = rows.find(key) ?? rows.insert(key, source, host.clock.now());
    this.#hold(row.id);
    try {
      const request = { directory: this.#parts.directory(row.id), table: blob.table, bound: blob.bound };
      const prepared = await this.#parts.workers.run({ t: "make-data", request });
      rows.setFacts(row.id, { imageSize: prepared.size, inodeCount: 0, streamLength: 0 });
      const layer = this.#assemble(row, prepared, this.#fillOf(row, prepared, null, null), null);
      try {
        layer.become({ t: "lazy" });
      } catch (error) {
        await layer.close();
        throw error;
      }
      this.#parts.keep(layer);
      return layer;
    } catch (error) {
      this.#release(row.id);
      rows.delete(row.id);
      await rm(this.#parts.directory(row.id), { recursive: true, force: true });
      throw error;
    }
  }

  /** Adds what the image knows. False when it knows otherwise. */
  async #bind(layer: LayerImage, blob: BoundBlob): Promise<boolean> {
    const { rows, workers, directory, options } = this.#parts;
    const { bound } = blob;
    const { pieceCount } = blob.table.units;
    const path = join(directory(layer.id), "digests");
    const fill = layer.dataFill;
    if (fill !== null) {
      if (!agrees(fill.digests, bound)) return false;
      if (unknownOf(fill.digests, bound).length === 0) return true;
      await writeKnownDigests(path, withDigests(fill.digests, bound));
      // it may have been sealed meanwhile
      if (layer.dataFill === fill) {
        fill.bind(bound);
        return true;
      }
    }
    await layer.whenIdle();
    const known = await readKnownDigests(path, pieceCount);
    if (!agrees(known, bound)) return false;
    if (fill === null && layer.isComplete && unknownOf(known, bound).length === 0) return true;
    // (lazy already, and without a filler: the last attempt to add something failed half-way)
    if (layer.isComplete) {
      await UnitLog.renew(this.#logPath(layer.id), pieceCount, options.bootId);
      layer.become({ t: "lazy" });
    }
    await rows.sync();
    failpoint("layer:data-extend");
    await writeKnownDigests(path, withDigests(known, bound));
    const row = rows.get(layer.id)!;
    const request = { directory: directory(layer.id), indexDigest: row.indexDigest!, rebuild: false };
    const prepared = await workers.run({ t: "open-data", request });
    const { log, filled } = UnitLog.open(this.#logPath(layer.id), pieceCount, options.bootId)!;
    const state = this.#fillOf(row, prepared, filled, layer.fillMap);
    layer.extend(this.#lazyContent(row, prepared, { state, fd: layer.fd, log }));
    return true;
  }

  /** Throws HS_LAYER_BROKEN, and marks the row, when the files cannot be used. */
  async #reopenData(row: LayerRow): Promise<LayerImage> {
    const { rows, workers, options, directory } = this.#parts;
    const what = `blob ${row.identity.digest}`;
    if (row.state.t === "broken") throw new HeadstartError("HS_LAYER_BROKEN", { what: `${what}: ${row.state.reason}` });
    if (row.state.t === "opening")
      throw new HeadstartError("HS_LAYER_STATE", { what: `${what} has no file: it is ${row.state.t}` });
    const isSealed = row.state.t === "sealed";
    const isBelieved = isSealed || row.bootId === options.bootId;
    try {
      if (!isBelieved) publish("layer:boot-changed", { layer: row.id });
      const request = { directory: directory(row.id), indexDigest: row.indexDigest!, rebuild: !isBelieved };
      const prepared = await workers.run({ t: "open-data", request });
      const { pieceCount } = prepared.table.units;
      const opened = isBelieved
        ? UnitLog.open(this.#logPath(row.id), pieceCount, isSealed ? null : options.bootId)
        : null;
      const state = this.#fillOf(row, prepared, opened?.filled ?? null, null);
      if (isSealed && state.whole) {
        opened?.log.close();
        return this.#data(row, { fd: this.#open(row), size: prepared.size, fillMap: state.fillMap, lazy: null });
      }
      if (!isSealed) {
        const layer = this.#assemble(row, prepared, state, opened?.log ?? null);
        // from now on the files are of this boot
        rows.setState(row.id, row.state, options.bootId);
        return layer;
      }
      // more was bound than is there: cut off between the two
      opened?.log.close();
      await UnitLog.renew(this.#logPath(row.id), pieceCount, options.bootId);
      rows.setState(row.id, { t: "lazy" }, options.bootId);
      await rows.sync();
      const renewed = UnitLog.open(this.#logPath(row.id), pieceCount, options.bootId);
      return this.#assemble({ ...row, state: { t: "lazy" } }, prepared, state, renewed?.log ?? null);
    } catch (error) {
      if (kindOf(error) === "exhausted" || kindOf(error) === "canceled") throw error;
      const reason = `its files cannot be used: ${describeError(error)}`;
      rows.setState(row.id, { t: "broken", code: "HS_LAYER_BROKEN", reason }, options.bootId);
      throw new HeadstartError("HS_LAYER_BROKEN", { what: `${what}: ${reason}`, cause: error });
    }
  }

  /** With holes. `log` null: a new one, of nothing. */
  #assemble(row: LayerRow, prepared: PreparedData, state: DataFill, log: UnitLog | null): LayerImage {
    const fd = this.#open(row);
    const lazy = this.#lazyContent(row, prepared, { state, fd, log: log ?? this.#newLog(row, prepared) });
    return this.#data(row, { fd, size: prepared.size, fillMap: state.fillMap, lazy });
  }

  #data(row: LayerRow, content: LayerContent): LayerImage {
    const { id, identity, role, format, state } = row;
    return new LayerImage({
      id,
      kind: "data",
      path: this.#path(id),
      identity,
      role,
      format,
      state,
      content,
      host: this.#parts.host,
    });
  }

  #path(id: number): string {
    return join(this.#parts.directory(id), "image");
  }

  #logPath(id: number): string {
    return join(this.#parts.directory(id), "units");
  }

  /** For writing too: an image may want more of a file that is sealed. */
  #open(row: LayerRow): number {
    return openSync(this.#path(row.id), constants.O_RDWR);
  }

  #newLog(row: LayerRow, { table }: PreparedData): UnitLog {
    return UnitLog.create(this.#logPath(row.id), table.units.pieceCount, this.#parts.options.bootId);
  }

  #fillOf(row: LayerRow, prepared: PreparedData, filled: Uint8Array | null, fillMap: Bitmap | null): DataFill {
    const { table, pieces, size } = prepared;
    const known = knownOf(prepared);
    return new DataFill({
      what: `blob ${row.identity.digest}`,
      table: table.units,
      pieces,
      digests: known,
      size,
      filled,
      fillMap,
      onFilled: (piece) => {
        const digest = known.digests.subarray(piece * 32, piece * 32 + 32);
        const offset = table.units.pieceAddress[piece]!;
        this.#index.add(digest, table.units.pieceLength[piece]!, { file: row.id, offset });
      },
    });
  }

  #lazyContent(
    row: LayerRow,
    prepared: PreparedData,
    file: { state: DataFill; fd: number; log: UnitLog },
  ): LazyContent {
    const { decoders, options, host, opened } = this.#parts;
    const { pieces, placement } = prepared;
    const { units, decode } = prepared.table;
    const { state, fd, log } = file;
    const what = `blob ${row.identity.digest}`;
    decoders.open({ layer: row.id, what, imageFd: fd, restFd: fd, units, pieces, placement, rest: null, decode });
    const filler = new Filler({
      layer: row.id,
      what,
      table: units,
      state,
      log,
      fetcher: options.fetcher,
      decoders,
      deadlineMs: options.deadlineMs,
      onIndexFailure: (error) => {
        const layer = opened(row.id);
        if (layer !== undefined) host.onIndexFailure(layer, error);
      },
      copy: (unit, wanted, priority) => this.#copy(row.id, prepared, { unit, wanted, priority }),
    });
    return { filler, prefetchUnits: [], stream: null };
  }

  /** From data files that are open, this one included. False where not all of it is there, or other bytes than their digests say. */
  async #copy(
    id: number,
    prepared: PreparedData,
    asked: { unit: number; wanted: Uint32Array; priority: Priority },
  ): Promise<boolean> {
    const { decoders, opened } = this.#parts;
    const { units } = prepared.table;
    const { unit, wanted: pieces, priority } = asked;
    const fds = new Int32Array(pieces.length);
    const offsets = new Float64Array(pieces.length);
    const sources = new Set<LayerImage>();
    for (const [index, piece] of pieces.entries()) {
      const digest = units.pieceDigest!.subarray(piece * 32, piece * 32 + 32);
      const isOpen = (file: number) => opened(file)?.closing.aborted === false;
      const place = this.#index.find(digest, units.pieceLength[piece]!, isOpen);
      if (place === null) return false;
      const source = opened(place.file)!;
      fds[index] = source.fd;
      offsets[index] = place.offset;
      sources.add(source);
    }
    const work = decoders.copy({ layer: id, unit, copy: { pieces, fds, offsets }, priority });
    // their descriptors stay open meanwhile
    const ended = work.then(
      () => undefined,
      () => undefined,
    );
    for (const source of sources) if (source.id !== id) source.hold(ended);
    try {
      return (await work).bad === null;
    } catch (error) {
      if (kindOf(error) === "canceled" || kindOf(error) === "exhausted") throw error;
      return false;
    }
  }

  #hold(id: number): void {
    this.#held.set(id, (this.#held.get(id) ?? 0) + 1);
  }

  #release(id: number): void {
    const count = (this.#held.get(id) ?? 1) - 1;
    if (count === 0) this.#held.delete(id);
    else this.#held.set(id, count);
  }
}

/** Throws HS_LIMIT. What a table claims costs memory as soon as its file is open. */
function checkSize(blobs: readonly BoundBlob[]): void {
  const total = blobs.reduce((sum, { table: { units } }) => {
    const last = units.pieceCount - 1;
    return sum + (last < 0 ? 0 : units.pieceAddress[last]! + units.pieceLength[last]!);
  }, 0);
  if (!(total <= LIMITS.imageDataBytes))
    throw new HeadstartError("HS_LIMIT", {
      what: `the image's blobs have ${total} bytes, at most ${LIMITS.imageDataBytes}`,
    });
}

function dataKey(blob: BoundBlob, indexDigest: Digest, variant: number): LayerKey {
  const { digest, size } = blob.blob;
  const identity = { digest, size, mediaType: "application/octet-stream", diffID: digest };
  return { kind: "data", identity, role: "lowest", format: DATA_FORMAT, indexDigest, variant };
}
