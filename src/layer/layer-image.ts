/**
 * One layer on disk: a sparse EROFS file, and how to fill its holes. What the FUSE server reads from (it satisfies the server's `HoleFile`), what mounts are made of.
 * Life: state.ts; filling: filler.ts; files and rows: store.ts, which makes these objects.
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
import { fillAll } from "./background.ts";
import type { ByteBudget } from "./byte-budget.ts";
import type { Filler } from "./filler.ts";
import type { Priority } from "./interfaces.ts";
import type { RestMap } from "./rest.ts";
import type { SealRequest } from "./seal.ts";
import { type LayerState, transition } from "./state.ts";

/** What is behind a file that has holes. Null parts of it are gone once the layer is sealed. */
export interface LazyContent {
  readonly filler: Filler;
  readonly restFd: number;
  readonly placement: Placement;
  readonly rest: RestMap;
  readonly streamLength: number;
  readonly prefetchUnits: readonly number[];
}

export interface LayerContent {
  readonly fd: number;
  readonly size: number;
  readonly fillMap: Bitmap;
  readonly lazy: LazyContent | null;
}

export interface LayerStatistics {
  readonly unitsFilled: number;
  readonly unitsTotal: number;
  /** Decoded bytes of filled units, of all units. For a layer without units: those of the file. */
  readonly bytesFilled: number;
  readonly bytesTotal: number;
}

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
  readonly name: string;
  /** The layer file. */
  readonly path: string;
  readonly identity: LayerIdentity;
  readonly role: LayerRole;
  readonly format: string;
  readonly #host: LayerHost;
  #state: LayerState;
  #content: LayerContent | null;
  #background: Promise<void> | null = null;
  #trouble: string | null = null;
  readonly #closing = new AbortController();
  readonly #held = new Set<Promise<void>>();
  #settled = Promise.withResolvers<void>();

  constructor(options: {
    id: number;
    path: string;
    identity: LayerIdentity;
    role: LayerRole;
    format: string;
    state: LayerState;
    content: LayerContent | null;
    host: LayerHost;
  }) {
    this.id = options.id;
    this.name = String(options.id);
    this.path = options.path;
    this.identity = options.identity;
    this.role = options.role;
    this.format = options.format;
    this.#state = options.state;
    this.#content = options.content;
    this.#host = options.host;
    this.#settled.promise.catch(() => {});
    this.#settle();
  }

  get nodeid(): number {
    return this.id;
  }

  get state(): LayerState {
    return this.#state;
  }

  /** "layer sha256:…", for messages. */
  get what(): string {
    return `layer ${this.identity.digest}`;
  }

  /** All bytes are there and were verified as a whole: the file may be mounted as it is, without us. */
  get isComplete(): boolean {
    return this.#state.t === "syncing" || this.#state.t === "sealed";
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

  /** Fills the whole layer at background priority, then seals it. Goes on until that is done, the layer is closed, or it turns out broken. Idempotent. */
  startBackground(): void {
    if (this.#background !== null || this.#state.t !== "lazy") return;
    this.#background = this.#complete().finally(() => {
      this.#background = null;
    });
  }

  /**
   * Resolves when the layer is complete (`isComplete`). Throws HS_LAYER_BROKEN when it never will be, HS_CANCELED when it is closed first, and what made an eager pull fail. Starts
   * nothing.
   */
  async whenComplete(signal?: AbortSignal): Promise<void> {
    signal?.throwIfAborted();
    if (signal === undefined) return await this.#settled.promise;
    let onAbort: (() => void) | undefined;
    try {
      await Promise.race([
        this.#settled.promise,
        new Promise<never>((_, reject) => {
          onAbort = () => reject(signal.reason);
          signal.addEventListener("abort", onAbort, { once: true });
        }),
      ]);
    } finally {
      if (onAbort !== undefined) signal.removeEventListener("abort", onAbort);
    }
  }

  tree(): Promise<FileTree> {
    return this.#host.readTree(this);
  }

  statistics(): LayerStatistics {
    const content = this.#content;
    if (content?.lazy) {
      const { state, table } = content.lazy.filler;
      return {
        unitsFilled: state.filledUnits,
        unitsTotal: table.unitCount,
        bytesFilled: state.filledBytes,
        bytesTotal: table.unitDecodedLength.reduce((sum, length) => sum + length, 0),
      };
    }
    const bytes = content?.size ?? 0;
    return { unitsFilled: 0, unitsTotal: 0, bytesFilled: bytes, bytesTotal: bytes };
  }

  /** The only writer of the state. */
  become(next: LayerState): void {
    const from = this.#state;
    this.#state = transition(from, next);
    this.#host.save(this, next);
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

  /** An eager pull has failed. What may pass leaves the layer "opening": the next pull begins anew under the same id. */
  fail(error: unknown): void {
    if (this.#state.t === "pulling") {
      const reason = describeError(error);
      if (isHeadstartError(error, ...NEVER_RIGHT)) this.become({ t: "broken", code: error.code, reason });
      else this.become({ t: "opening", reason });
    }
    this.#settled.reject(error);
  }

  /** Why the background fill waits or stopped; null when all is well. */
  get trouble(): string | null {
    return this.#trouble;
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
    await this.#background;
    await Promise.all(this.#held);
    const content = this.#content;
    this.#content = null;
    if (content !== null) {
      await content.lazy?.filler.close();
      if (content.lazy !== null) closeSync(content.lazy.restFd);
      closeSync(content.fd);
    }
    this.#settled.reject(reason);
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
    if (this.isComplete) this.#settled.resolve();
    if (this.#state.t === "broken")
      this.#settled.reject(new HeadstartError("HS_LAYER_BROKEN", { what: `${this.what}: ${this.#state.reason}` }));
  }

  /** Never throws: what happens is the state. */
  async #complete(): Promise<void> {
    const lazy = this.#content?.lazy;
    if (!lazy) return;
    const signal = this.#closing.signal;
    this.become({ t: "filling" });
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
      await this.#host.makeDurable(this);
      signal.throwIfAborted();
      this.become({ t: "sealed" });
      await this.#release(lazy);
      await this.#host.dropHelpers(this);
    } catch (error) {
      // a wrong index has made it broken already
      if (this.#state.t === "broken" || this.#state.t === "sealed") {
        publish("layer:background-error", { layer: this.id, error });
      } else if (isHeadstartError(error) && error.kind === "corrupt") {
        this.become({ t: "broken", code: error.code, reason: describeError(error) });
      } else {
        if (kindOf(error) !== "canceled") {
          this.#trouble = describeError(error);
          publish("layer:background-error", { layer: this.id, error });
        }
        this.become({ t: "lazy" });
      }
    }
  }

  /** Nothing has to be filled any more: tables, descriptors and threads need not keep it. */
  async #release(lazy: LazyContent): Promise<void> {
    if (this.#content === null) return;
    this.#content = { ...this.#content, lazy: null };
    await lazy.filler.close();
    closeSync(lazy.restFd);
  }

  async #checkWhole(lazy: LazyContent, signal: AbortSignal): Promise<void> {
    const { restFd, placement, rest, streamLength } = lazy;
    const { identity, role } = this;
    const treePath = this.#host.treePath(this);
    await this.#host.checkWhole(
      { imageFd: this.fd, restFd, placement, rest, streamLength, identity, role, treePath },
      signal,
    );
  }
}
