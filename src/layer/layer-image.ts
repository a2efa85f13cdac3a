/**
 * One layer on disk: a sparse EROFS file, and how to fill its holes. What the FUSE server reads from (it satisfies the server's `HoleFile`), what mounts are made of.
 * Life: state.ts; filling: filler.ts; files and rows: store.ts, which makes these objects.
 *
 * By kind (rows.ts): a "layer" is one file; an "image" is metadata alone, and what it still lacks lies in its `devices`; a "data" file is such a device, which several images share.
 *
 * Invariant: a byte is readable (its block's bit in `fillMap` is set) only after it was verified.
 */

import { closeSync } from "node:fs";
import type { Bitmap } from "../base/bitmap.ts";
import type { Clock } from "../base/clock.ts";
import { describeError, type ErrorCode, HeadstartError, isHeadstartError, kindOf } from "../base/errors.ts";
import { publish } from "../base/events.ts";
import type { Range } from "../base/ranges.ts";
import type { FileTree } from "../erofs/file-tree.ts";
import type { Placement } from "../erofs/placement.ts";
import type { LayerIdentity, LayerRole } from "../formats/format.ts";
import { fillAll, fillFirst } from "./background.ts";
import type { ByteBudget } from "./byte-budget.ts";
import { DataFill } from "./data-fill.ts";
import type { FillStatistics } from "./fill-state.ts";
import type { Filler } from "./filler.ts";
import type { Priority } from "./interfaces.ts";
import type { PieceSet } from "./piece-set.ts";
import type { RestMap } from "./rest.ts";
import type { LayerKind } from "./rows.ts";
import type { SealRequest } from "./seal.ts";
import { type LayerState, transition } from "./state.ts";

/** What is behind a file that has holes. Gone once the layer is sealed. */
export interface LazyContent {
  readonly filler: Filler;
  readonly prefetchUnits: readonly number[];
  /** What the check of the whole needs; null for a data file, whose pieces are checked one by one. */
  readonly stream: {
    readonly restFd: number;
    readonly placement: Placement;
    readonly rest: RestMap;
    readonly streamLength: number;
  } | null;
}

/** One data file of an image, and what the image needs of it. */
export interface DeviceUse {
  readonly layer: LayerImage;
  readonly set: PieceSet;
}

/** What the author of an image wants first, in order: pairs of (address space, piece), and the data file of each address space. */
export interface ImagePrefetch {
  readonly pairs: Uint32Array;
  readonly deviceOf: readonly (LayerImage | undefined)[];
}

export interface LayerContent {
  readonly fd: number;
  readonly size: number;
  readonly fillMap: Bitmap;
  readonly lazy: LazyContent | null;
}

/** Decoded bytes of filled units, of all units. For a layer without units: those of the file. Of data files and images in pieces (chunks). */
export type LayerStatistics = FillStatistics;

/** What a LayerImage needs of its store. */
export interface LayerHost {
  readonly clock: Clock;
  readonly budget: ByteBudget;
  /** Persists the state. */
  save(layer: LayerImage, state: LayerState): void;
  /** The layer file and all that stays with it are on disk when it resolves. */
  makeDurable(layer: LayerImage): Promise<void>;
  /** Makes the row durable, then removes what a sealed layer does not need. */
  dropHelpers(layer: LayerImage): Promise<void>;
  treePath(layer: LayerImage): string;
  /** Waits for a good time for `checkWhole`: it reads and hashes the whole layer. */
  whenQuiet(signal: AbortSignal): Promise<void>;
  checkWhole(request: SealRequest, signal: AbortSignal): Promise<void>;
  readTree(layer: LayerImage): Promise<FileTree>;
  onIndexFailure(layer: LayerImage, error: HeadstartError): void;
  forget(layer: LayerImage): void;
}

/** Errors that the same blob gives every time. */
const NEVER_RIGHT: readonly ErrorCode[] = [
  "HS_DIFFID_MISMATCH",
  "HS_LAYER_REFUSED",
  "HS_EROFS_LIMIT",
  "HS_LIMIT",
  "HS_MALFORMED",
];

export class LayerImage implements AsyncDisposable {
  /** Row in store.ts; also the FUSE node. Never reused. */
  readonly id: number;
  readonly kind: LayerKind;
  readonly name: string;
  /** The layer file. */
  readonly path: string;
  readonly identity: LayerIdentity;
  readonly role: LayerRole;
  readonly format: string;
  readonly #host: LayerHost;
  #state: LayerState;
  #content: LayerContent | null;
  readonly #devices: readonly DeviceUse[];
  readonly #prefetch: ImagePrefetch | null;
  #background: Promise<void> | null = null;
  /** A data file was asked to fill itself while it was about to be sealed. */
  #again = false;
  #trouble: string | null = null;
  readonly #closing = new AbortController();
  readonly #held = new Set<Promise<void>>();
  readonly #settled = Promise.withResolvers<void>();
  /** Rejects when it is broken or closed. */
  readonly #failed = Promise.withResolvers<never>();

  constructor(options: {
    id: number;
    kind: LayerKind;
    path: string;
    identity: LayerIdentity;
    role: LayerRole;
    format: string;
    state: LayerState;
    content: LayerContent | null;
    devices?: readonly DeviceUse[];
    prefetch?: ImagePrefetch;
    host: LayerHost;
  }) {
    this.id = options.id;
    this.kind = options.kind;
    this.#devices = options.devices ?? [];
    this.#prefetch = options.prefetch ?? null;
    this.name = String(options.id);
    this.path = options.path;
    this.identity = options.identity;
    this.role = options.role;
    this.format = options.format;
    this.#state = options.state;
    this.#content = options.content;
    this.#host = options.host;
    this.#settled.promise.catch(() => {});
    this.#failed.promise.catch(() => {});
    this.#settle();
  }

  get nodeid(): number {
    return this.id;
  }

  /** Of an image: also broken when one of its devices is. */
  get state(): LayerState {
    if (this.#state.t === "broken") return this.#state;
    for (const { layer } of this.#devices) {
      const { state } = layer;
      if (state.t === "broken") return { ...state, reason: `${layer.what}: ${state.reason}` };
    }
    return this.#state;
  }

  /** "layer sha256:…", for messages. */
  get what(): string {
    const noun = { layer: "layer", image: "image over", data: "blob" }[this.kind];
    return `${noun} ${this.identity.digest}`;
  }

  /** All bytes are there and were verified as a whole: the file may be mounted as it is, without us. Of an image: all that it needs of its devices. */
  get isComplete(): boolean {
    return this.#isSettled && this.#devices.every(({ set }) => set.left === 0);
  }

  get #isSettled(): boolean {
    return this.#state.t === "syncing" || this.#state.t === "sealed";
  }

  /** An image's data files, in the order of their device numbers; `isComplete` when all is there that this image needs of them. */
  get devices(): readonly { readonly layer: LayerImage; readonly isComplete: boolean }[] {
    return this.#devices.map(({ layer, set }) => ({ layer, isComplete: set.left === 0 }));
  }

  /** Of a data file with holes. */
  get dataFill(): DataFill | null {
    const fill = this.#content?.lazy?.filler.state;
    return fill instanceof DataFill ? fill : null;
  }

  /** Bytes of the layer file. Throws HS_LAYER_STATE before there is one, as `fd` and `fillMap` do. */
  get size(): number {
    return this.#readable().size;
  }

  get fd(): number {
    return this.#readable().fd;
  }

  get fillMap(): Bitmap {
    return this.#readable().fillMap;
  }

  /**
   * Resolves when bytes [start, end) of the layer file can be read. Throws HS_UNIT_DIGEST, HS_UNIT_DECODE, HS_INDEX_MISMATCH, HS_REGISTRY_*, HS_DISK_FULL,
   * HS_FILL_TIMEOUT, HS_CANCELED, HS_LAYER_STATE; the range may be tried again later.
   */
  async ensure(range: Range, options: { priority?: Priority; signal?: AbortSignal | undefined } = {}): Promise<void> {
    const { lazy } = this.#readable();
    if (lazy === null) return;
    await lazy.filler.ensure(range, { priority: options.priority ?? "demand", signal: options.signal });
  }

  /**
   * Fills the whole layer at background priority, then seals it. Goes on until that is done, the layer is closed, or it turns out broken. Idempotent. An image: what its author
   * wants first, then all its devices.
   */
  startBackground(): void {
    if (this.kind === "image") {
      this.#background ??= this.#completeDevices().finally(() => {
        this.#background = null;
      });
      return;
    }
    if (this.#background !== null) this.#again = this.kind === "data";
    if (this.#background !== null || this.#state.t !== "lazy") return;
    this.#again = false;
    this.#background = this.#complete().finally(() => {
      this.#background = null;
      if (this.#again && !this.#closing.signal.aborted) this.startBackground();
    });
  }

  /** Resolves when no background work is under way, of this layer's own. */
  async whenIdle(): Promise<void> {
    while (this.#background !== null) await this.#background;
  }

  /**
   * Resolves when the layer is complete (`isComplete`). Throws HS_LAYER_BROKEN when it never will be, HS_CANCELED when it is closed first, and what made an eager pull fail. Starts
   * nothing.
   */
  async whenComplete(signal?: AbortSignal): Promise<void> {
    signal?.throwIfAborted();
    const settled = Promise.all([this.#settled.promise, ...this.#devices.map((each) => this.#whenThere(each))]);
    settled.catch(() => {});
    let onAbort: (() => void) | undefined;
    try {
      if (signal === undefined) {
        await settled;
        return;
      }
      await Promise.race([
        settled,
        new Promise<never>((_, reject) => {
          onAbort = () => reject(signal.reason);
          signal.addEventListener("abort", onAbort, { once: true });
        }),
      ]);
    } finally {
      if (onAbort !== undefined) signal?.removeEventListener("abort", onAbort);
    }
  }

  /** Throws when the device never will have it, or either is closed first. */
  async #whenThere({ layer, set }: DeviceUse): Promise<void> {
    await Promise.race([set.complete, layer.#failed.promise, this.#failed.promise]);
  }

  tree(): Promise<FileTree> {
    return this.#host.readTree(this);
  }

  statistics(): LayerStatistics {
    const content = this.#content;
    if (content?.lazy) return content.lazy.filler.state.statistics;
    if (this.kind === "image") {
      const sum = (of: (set: PieceSet) => number) => this.#devices.reduce((total, { set }) => total + of(set), 0);
      return {
        unitsFilled: sum((set) => set.count - set.left),
        unitsTotal: sum((set) => set.count),
        bytesFilled: sum((set) => set.bytes - set.bytesLeft),
        bytesTotal: sum((set) => set.bytes),
      };
    }
    const bytes = content?.size ?? 0;
    return { unitsFilled: 0, unitsTotal: 0, bytesFilled: bytes, bytesTotal: bytes };
  }

  /** The only writer of the state. Throws what saving it throws. */
  become(next: LayerState): void {
    const from = this.#state;
    const to = transition(from, next);
    // first, so that what cannot be saved is not so
    this.#host.save(this, to);
    this.#state = to;
    publish("layer:state", {
      layer: this.id,
      digest: this.identity.digest,
      from: from.t,
      to: next.t,
      reason: next.t === "broken" ? next.reason : undefined,
    });
    this.#settle();
  }

  /** An eager pull has made the file and checked it. */
  adopt(content: LayerContent): void {
    if (this.#content !== null) throw new HeadstartError("HS_INTERNAL", { what: `${this.what} has a file already` });
    this.#content = content;
    this.become({ t: "syncing" });
  }

  /** A data file that was complete has holes again: an image wants more of it. The file and its fill map stay what they are. */
  extend(lazy: LazyContent): void {
    const content = this.#readable();
    if (content.lazy !== null || this.#state.t !== "lazy")
      throw new HeadstartError("HS_INTERNAL", { what: `${this.what} is ${this.#state.t} and has holes already` });
    this.#content = { ...content, lazy };
  }

  /** An eager pull has failed. What may pass leaves the layer "opening": the next pull begins anew under the same id. */
  fail(error: unknown): void {
    try {
      if (this.#state.t === "pulling") {
        const reason = describeError(error);
        if (isHeadstartError(error, ...NEVER_RIGHT)) this.become({ t: "broken", code: error.code, reason });
        else this.become({ t: "opening", reason });
      }
    } finally {
      this.#settled.reject(error);
    }
  }

  /** Why the background fill waits or stopped, or what cannot be had; null when all is well. */
  get trouble(): string | null {
    const device = this.#devices.find(({ layer, set }) => set.left > 0 && layer.trouble !== null);
    return this.#trouble ?? this.unsound ?? device?.layer.trouble ?? null;
  }

  /** What is wrong with bytes that no source has right; of an image: with some that it lacks, whatever others lack. Null when nothing is known to be. */
  get unsound(): string | null {
    for (const { layer, set } of this.#devices) {
      const what = layer.#content?.lazy?.filler.troubleWith((piece) => set.has(piece)) ?? null;
      if (what !== null) return what;
    }
    return this.#content?.lazy?.filler.trouble ?? null;
  }

  /** Aborts when the layer is closed. */
  get closing(): AbortSignal {
    return this.#closing.signal;
  }

  /** Work that `close` waits for. Must end when `closing` aborts, and must not reject. */
  hold(work: Promise<void>): void {
    this.#held.add(work);
    void work.finally(() => this.#held.delete(work));
  }

  /** Ends all work and closes the descriptors. What was filled stays. The caller has made sure that nobody mounts it any more. */
  async close(): Promise<void> {
    if (this.#closing.signal.aborted) return;
    const reason = new HeadstartError("HS_CANCELED", { what: `${this.what} was closed` });
    this.#closing.abort(reason);
    for (const { layer, set } of this.#devices) layer.dataFill?.unwatch(set);
    await this.#background;
    await Promise.all(this.#held);
    const content = this.#content;
    this.#content = null;
    if (content !== null) {
      await content.lazy?.filler.close();
      if (content.lazy?.stream) closeSync(content.lazy.stream.restFd);
      closeSync(content.fd);
    }
    this.#settled.reject(reason);
    this.#failed.reject(reason);
    this.#host.forget(this);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  #readable(): LayerContent {
    if (this.#content === null)
      throw new HeadstartError("HS_LAYER_STATE", { what: `${this.what} has no file: it is ${this.#state.t}` });
    return this.#content;
  }

  #settle(): void {
    if (this.#isSettled) this.#settled.resolve();
    if (this.#state.t !== "broken") return;
    const error = new HeadstartError("HS_LAYER_BROKEN", { what: `${this.what}: ${this.#state.reason}` });
    this.#settled.reject(error);
    this.#failed.reject(error);
  }

  /** Never throws: what goes wrong is the trouble of a device, or met again when it fills itself. */
  async #completeDevices(): Promise<void> {
    const { budget } = this.#host;
    const signal = this.#closing.signal;
    await fillFirst({ units: this.#prefetchUnits(), budget, signal });
    if (signal.aborted) return;
    for (const { layer } of this.#devices) layer.startBackground();
  }

  *#prefetchUnits(): Generator<{ filler: Filler; unit: number }> {
    const { pairs, deviceOf } = this.#prefetch ?? { pairs: [], deviceOf: [] };
    for (let index = 0; index < pairs.length; index += 2) {
      const device = deviceOf[pairs[index]!];
      const filler = device === undefined ? undefined : device.#content?.lazy?.filler;
      if (filler !== undefined) yield { filler, unit: filler.table.pieceUnit[pairs[index + 1]!]! };
    }
  }

  /** Never throws: what happens is the state. */
  async #complete(): Promise<void> {
    const lazy = this.#content?.lazy;
    if (!lazy) return;
    const signal = this.#closing.signal;
    this.become({ t: "filling" });
    this.dataFill?.forgetRefused();
    try {
      await fillAll({
        filler: lazy.filler,
        layer: this.id,
        first: lazy.prefetchUnits,
        budget: this.#host.budget,
        clock: this.#host.clock,
        signal,
        onPause: (error) => {
          this.#trouble = describeError(error);
        },
      });
      this.#trouble = null;
      await this.#host.whenQuiet(signal);
      this.become({ t: "verifying" });
      await this.#checkWhole(lazy, signal);
      await this.#makeDurable(lazy);
      signal.throwIfAborted();
      if (this.dataFill?.whole === false) {
        // more of it was bound meanwhile, or some of it came wrong every time
        this.#again = !this.dataFill.complete;
        if (this.dataFill.refusedPieces > 0)
          this.#trouble = `${this.dataFill.refusedPieces} chunks are other bytes than an image says, from every source`;
        this.become({ t: "lazy" });
        return;
      }
      this.become({ t: "sealed" });
      await this.#release(lazy);
      await this.#host.dropHelpers(this);
    } catch (error) {
      this.#stop(error);
    }
  }

  /** It cannot be completed now, or never. */
  #stop(error: unknown): void {
    // a wrong index has made it broken already
    if (this.#state.t === "broken" || this.#state.t === "sealed") {
      publish("layer:background-error", { layer: this.id, error });
      return;
    }
    if (isHeadstartError(error) && error.kind === "corrupt") {
      try {
        this.become({ t: "broken", code: error.code, reason: describeError(error) });
        return;
      } catch {
        // it cannot be noted: found again the next time
      }
    }
    if (kindOf(error) !== "canceled") {
      this.#trouble = describeError(error);
      publish("layer:background-error", { layer: this.id, error });
    }
    this.become({ t: "lazy" });
  }

  /** All that is filled when it resolves is on disk: what an image wants besides, and gets, while files are being synced takes another time. */
  async #makeDurable({ filler }: LazyContent): Promise<void> {
    let synced: number;
    do {
      synced = filler.state.progress;
      await this.#host.makeDurable(this);
    } while (filler.state.progress !== synced);
  }

  /** Nothing has to be filled any more: tables, descriptors and threads need not keep it. */
  async #release(lazy: LazyContent): Promise<void> {
    if (this.#content === null) return;
    this.#content = { ...this.#content, lazy: null };
    await lazy.filler.close();
    if (lazy.stream !== null) closeSync(lazy.stream.restFd);
  }

  async #checkWhole({ stream }: LazyContent, signal: AbortSignal): Promise<void> {
    if (stream === null) return;
    const { restFd, placement, rest, streamLength } = stream;
    const { identity, role } = this;
    const treePath = this.#host.treePath(this);
    await this.#host.checkWhole(
      { imageFd: this.fd, restFd, placement, rest, streamLength, identity, role, treePath },
      signal,
    );
  }
}
