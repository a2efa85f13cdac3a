/**
 * The one `UnitFetcher`: which waiting unit goes to the network next, and together with which others.
 *
 *   fetch(unit) ──> waiting, by blob ──> request (coalesce.ts) ──> source.readRange ──> split to its units as bytes arrive
 *
 * - Demand goes before pack, pack before background; within a priority first come, first served.
 * - At most `parallel` requests run. One slot is kept free for demand, and while demand waits or runs at most one other request does; those that are under way are held: their
 *   bodies are not read on, so the link is demand's alone.
 * - A request is bounded (`demandBytes`, `backgroundBytes`), and so are the bytes that background has under way (window.ts): it fills the link only when nobody has waited
 *   for a while, since what is under way cannot be taken back and shares the link with the next demand.
 * - Who gives up leaves; a request that nobody waits for any more is aborted.
 *
 * Knows ranges of blobs. Must not know formats, nor who asks. It joins nothing: asking twice for one unit is its caller's business (layer-image.ts).
 */

import { type Clock, systemClock } from "../base/clock.ts";
import type { Digest } from "../base/digest.ts";
import { HeadstartError } from "../base/errors.ts";
import { publish } from "../base/events.ts";
import { freeBuffer } from "../base/heap.ts";
import { MiB } from "../base/limits.ts";
import { isMoreUrgent, type Priority, type StoredRange, type UnitFetcher } from "../layer/interfaces.ts";
import { Bandwidth } from "./bandwidth.ts";
import { coalesce } from "./coalesce.ts";
import { BackgroundWindow } from "./window.ts";

/** A stored blob that can be read in ranges: every BlobHandle of oci/store.ts is one. */
export interface BlobSource {
  /**
   * Reads stored bytes [start, end) into `into` (exactly as long). May call `onProgress(count)` when the first `count` bytes are there; units are then handed out before the
   * rest has come. Asks `hold()` between pieces and waits for what it returns. `attempt` > 0 asks for another mirror than before, where there is one. Throws HS_REGISTRY_*, HS_CANCELED.
   */
  readRange(
    start: number,
    end: number,
    options: {
      into: Uint8Array;
      signal: AbortSignal;
      attempt: number;
      onProgress: (count: number) => void;
      hold: () => Promise<void> | null;
    },
  ): Promise<unknown>;
}

export interface SchedulerOptions {
  /** Requests at once. */
  readonly parallel?: number;
  /** Bytes of one request that a process waits for. */
  readonly demandBytes?: number;
  readonly backgroundBytes?: number;
  /** Bytes that are fetched for nothing rather than making a second request. */
  readonly gapBytes?: number;
  /** Limit for background requests; demand is never held back. */
  readonly backgroundBytesPerSecond?: number;
  readonly clock?: Clock;
}

export interface SchedulerStatistics {
  readonly requests: Readonly<Record<Priority, number>>;
  /** Bytes asked for, by the priority of the request's leader. */
  readonly bytes: Readonly<Record<Priority, number>>;
  readonly failed: number;
  readonly running: number;
  readonly waiting: number;
}

/** A start that keeps faulting must not keep finished layers from being sealed for ever. */
const QUIET_WAIT_MS_MAX = 30_000;

interface Wanted {
  readonly blob: Digest;
  readonly start: number;
  readonly end: number;
  readonly attempt: number;
  priority: Priority;
  request: Request | null;
  settled: boolean;
  readonly resolve: (bytes: Uint8Array<ArrayBuffer>) => void;
  readonly reject: (error: unknown) => void;
}

interface Request {
  priority: Priority;
  readonly length: number;
  readonly members: readonly Wanted[];
  readonly abort: AbortController;
  /** Members that still wait. */
  waiting: number;
}

interface Blob {
  readonly source: BlobSource;
  users: number;
}

const DEFAULTS = {
  parallel: 8,
  demandBytes: 2 * MiB,
  backgroundBytes: 8 * MiB,
  gapBytes: 16 * 1024,
};

export class FetchScheduler implements UnitFetcher {
  readonly #options: Required<Omit<SchedulerOptions, "backgroundBytesPerSecond" | "clock">>;
  readonly #bandwidth: Bandwidth;
  readonly #window: BackgroundWindow;
  readonly #clock: Clock;
  readonly #blobs = new Map<Digest, Blob>();
  /** In order of arrival. */
  #waiting: Wanted[] = [];
  readonly #running = new Set<Request>();
  /** Requests that are held wait for this. */
  #released = Promise.withResolvers<void>();
  #timerSet = false;
  #dispatchQueued = false;
  readonly #requests = { demand: 0, pack: 0, background: 0 };
  readonly #bytes = { demand: 0, pack: 0, background: 0 };
  #failed = 0;

  constructor(options: SchedulerOptions = {}) {
    this.#options = { ...DEFAULTS, ...options };
    this.#clock = options.clock ?? systemClock;
    this.#window = new BackgroundWindow(this.#options.parallel * this.#options.backgroundBytes, this.#clock);
    this.#bandwidth = new Bandwidth(options.backgroundBytesPerSecond ?? Number.POSITIVE_INFINITY, this.#clock);
  }

  /**
   * Says where a blob can be read. Several layers or images may register one blob: the newest source is used (its credentials are the freshest). Returns the
   * function that ends the use.
   */
  registerBlob(digest: Digest, source: BlobSource): () => void {
    const users = (this.#blobs.get(digest)?.users ?? 0) + 1;
    this.#blobs.set(digest, { source, users });
    let ended = false;
    return () => {
      const blob = this.#blobs.get(digest);
      if (ended || blob === undefined) return;
      ended = true;
      blob.users--;
      if (blob.users === 0) this.#blobs.delete(digest);
    };
  }

  statistics(): SchedulerStatistics {
    return {
      requests: { ...this.#requests },
      bytes: { ...this.#bytes },
      failed: this.#failed,
      running: this.#running.size,
      waiting: this.#waiting.length,
    };
  }

  fetch(
    range: StoredRange,
    options: { priority: Priority; attempt?: number; signal?: AbortSignal },
  ): Promise<Uint8Array<ArrayBuffer>> {
    const { signal } = options;
    if (signal?.aborted) return Promise.reject(signal.reason);
    if (!this.#blobs.has(range.blob))
      return Promise.reject(new HeadstartError("HS_NOT_FOUND", { what: `no source is known for blob ${range.blob}` }));
    if (!(range.start >= 0 && range.start < range.end && range.end <= range.blobSize))
      return Promise.reject(
        new HeadstartError("HS_INTERNAL", { what: `bytes ${range.start}-${range.end} of ${range.blob}` }),
      );
    return new Promise((resolve, reject) => {
      const settle = () => {
        wanted.settled = true;
        signal?.removeEventListener("abort", onAbort);
      };
      const wanted: Wanted = {
        blob: range.blob,
        start: range.start,
        end: range.end,
        attempt: options.attempt ?? 0,
        priority: options.priority,
        request: null,
        settled: false,
        resolve: (bytes) => {
          settle();
          resolve(bytes);
        },
        reject: (error) => {
          settle();
          reject(error);
        },
      };
      const onAbort = () => this.#leave(wanted, signal!.reason);
      signal?.addEventListener("abort", onAbort, { once: true });
      this.#waiting.push(wanted);
      if (options.priority === "demand") this.#window.demand();
      this.#dispatchSoon();
    });
  }

  /** A container is about to read: whatever the background does now must leave it the link. */
  expectDemand(): void {
    this.#window.demand();
  }

  async whenQuiet(signal: AbortSignal): Promise<void> {
    const deadline = this.#clock.monotonic() + QUIET_WAIT_MS_MAX;
    while (this.#window.quietInMs > 0 && this.#clock.monotonic() < deadline)
      await this.#clock.sleep(this.#window.quietInMs, signal);
  }

  promote(range: StoredRange, priority: Priority): void {
    if (priority === "demand") this.#window.demand();
    const isIt = (wanted: Wanted) =>
      wanted.blob === range.blob && wanted.start === range.start && wanted.end === range.end && !wanted.settled;
    for (const wanted of this.#waiting) {
      if (isIt(wanted) && isMoreUrgent(priority, wanted.priority)) wanted.priority = priority;
    }
    // a running request cannot be hurried, but nothing new shall compete with it
    for (const request of this.#running) {
      if (isMoreUrgent(priority, request.priority) && request.members.some(isIt)) request.priority = priority;
    }
    this.#release();
    this.#dispatchSoon();
  }

  /** Whoever is held looks again whether he must wait. */
  #release(): void {
    this.#released.resolve();
    this.#released = Promise.withResolvers();
  }

  #hold(request: Request): Promise<void> | null {
    if (!this.#mustWait(request)) return null;
    return (async () => {
      while (this.#mustWait(request)) await this.#released.promise;
    })();
  }

  #mustWait(request: Request): boolean {
    if (request.priority === "demand" || request.abort.signal.aborted) return false;
    for (const other of this.#running) if (other.priority === "demand") return true;
    return false;
  }

  /** After the current turn: units that are asked for together shall go together. */
  #dispatchSoon(): void {
    if (this.#dispatchQueued) return;
    this.#dispatchQueued = true;
    queueMicrotask(() => {
      this.#dispatchQueued = false;
      this.#dispatch();
    });
  }

  #dispatch(): void {
    while (this.#waiting.length > 0) {
      const leader = this.#mostUrgent();
      if (!this.#mayStart(leader.priority)) return;
      this.#start(leader);
    }
  }

  #mostUrgent(): Wanted {
    let best = this.#waiting[0]!;
    for (const wanted of this.#waiting) if (isMoreUrgent(wanted.priority, best.priority)) best = wanted;
    return best;
  }

  #mayStart(priority: Priority): boolean {
    const { parallel } = this.#options;
    let others = 0;
    let demand = 0;
    for (const request of this.#running) {
      if (request.priority === "demand") demand++;
      else others++;
    }
    // the others are held then
    if (priority === "demand") return demand < parallel;
    // `leader` is the most urgent of all that wait, so no demand waits here
    if (demand > 0 ? others > 0 : others >= Math.max(1, parallel - 1)) return false;
    if (this.#running.size >= parallel) return false;
    if (priority !== "background") return true;
    if (this.#backgroundUnderWay() >= this.#window.bytes) return false;
    const waitMs = this.#bandwidth.waitMs();
    if (waitMs > 0) this.#wakeIn(waitMs);
    return waitMs === 0;
  }

  #backgroundUnderWay(): number {
    let bytes = 0;
    for (const request of this.#running) if (request.priority === "background") bytes += request.length;
    return bytes;
  }

  #wakeIn(ms: number): void {
    if (this.#timerSet) return;
    this.#timerSet = true;
    void this.#clock.sleep(ms).then(() => {
      this.#timerSet = false;
      this.#dispatch();
    });
  }

  #start(leader: Wanted): void {
    const { demandBytes, backgroundBytes, gapBytes } = this.#options;
    const background = leader.priority === "background";
    // only units that want the same source go together; what nobody waits for must not come before what somebody does
    const near = this.#waiting.filter(
      (wanted) =>
        wanted.blob === leader.blob &&
        wanted.attempt === leader.attempt &&
        (background || wanted.priority !== "background" || wanted.start >= leader.start),
    );
    const room = Math.min(backgroundBytes, this.#window.bytes - this.#backgroundUnderWay());
    const joined = coalesce(leader, near, {
      bytes: background ? room : demandBytes,
      gap: gapBytes,
    });
    const members = new Set(joined.members);
    this.#waiting = this.#waiting.filter((wanted) => !members.has(wanted));
    const source = this.#blobs.get(leader.blob)?.source;
    if (source === undefined) {
      const error = new HeadstartError("HS_CANCELED", { what: `blob ${leader.blob} is not in use any more` });
      for (const member of members) member.reject(error);
      return;
    }
    const length = joined.end - joined.start;
    const request: Request = {
      priority: leader.priority,
      length,
      members: joined.members,
      abort: new AbortController(),
      waiting: members.size,
    };
    for (const member of members) member.request = request;
    this.#running.add(request);
    this.#requests[leader.priority]++;
    this.#bytes[leader.priority] += length;
    if (leader.priority === "background") this.#bandwidth.spend(length);
    void this.#run(request, source, leader, joined.start, length);
  }

  async #run(request: Request, source: BlobSource, leader: Wanted, start: number, length: number): Promise<void> {
    const { members } = request;
    const startedMs = this.#clock.monotonic();
    const fact = { blob: leader.blob, start, length, priority: leader.priority, units: members.length };
    let firstByteMs: number | null = null;
    // ascending by end: what is whole is handed out at once
    const byEnd = [...members].sort((a, b) => a.end - b.end);
    let handedOut = 0;
    let into: Uint8Array<ArrayBuffer> | null = null;
    // a unit that waits to be decoded shall not keep the whole request's bytes in memory
    const alone = members.length === 1 && leader.end - leader.start === length;
    try {
      const target = new Uint8Array(length);
      into = target;
      const onProgress = (count: number) => {
        firstByteMs ??= this.#clock.monotonic() - startedMs;
        for (; handedOut < byEnd.length && byEnd[handedOut]!.end <= start + count; handedOut++) {
          const member = byEnd[handedOut]!;
          if (member.settled) continue;
          request.waiting--;
          member.resolve(alone ? target : target.slice(member.start - start, member.end - start));
        }
      };
      await source.readRange(start, start + length, {
        into: target,
        signal: request.abort.signal,
        attempt: leader.attempt,
        onProgress,
        hold: () => this.#hold(request),
      });
      onProgress(length);
      if (request.priority === "background") this.#window.completed();
      publish("fetch:request", { ...fact, firstByteMs, totalMs: this.#clock.monotonic() - startedMs });
    } catch (error) {
      if (!request.abort.signal.aborted) {
        this.#failed++;
        publish("fetch:request-failed", { ...fact, error });
      }
      for (const member of byEnd) if (!member.settled) member.reject(error);
    } finally {
      if (!alone && into !== null) freeBuffer(into);
      this.#running.delete(request);
      this.#dispatch();
      if (request.priority === "demand") this.#release();
    }
  }

  #leave(wanted: Wanted, reason: unknown): void {
    if (wanted.settled) return;
    wanted.reject(reason);
    const { request } = wanted;
    if (request === null) {
      this.#waiting = this.#waiting.filter((other) => other !== wanted);
      return;
    }
    request.waiting--;
    if (request.waiting > 0) return;
    request.abort.abort(reason);
    this.#release();
  }
}
