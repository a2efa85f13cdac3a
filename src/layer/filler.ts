/**
 * Filling the holes of one lazy layer: file range -> units -> fetch -> decode -> bits. The heart of `ensure`.
 *
 *   a unit:  hole ──> under way (one flight, whoever waits joins) ──> filled
 *              ^            │ wrong bytes: fetched again, `ATTEMPTS` times in all, each time from another source
 *              └────────────┘ network error, wrong bytes every time, full disk: the waiters get the error, the unit stays a hole, the next access tries again
 *                           └──> refused: the index is wrong about it; every later access fails at once
 *
 * Invariants: a unit is fetched and decoded once however many wait; bytes are on disk before its bit is set; a unit that failed has no bit.
 * A flight that nobody waits for any more is aborted while it is still fetching.
 */

import type { Bitmap } from "../base/bitmap.ts";
import { HeadstartError, isHeadstartError } from "../base/errors.ts";
import { publish } from "../base/events.ts";
import type { Range } from "../base/ranges.ts";
import { BLOCK_SIZE } from "../erofs/placement.ts";
import type { UnitTable } from "../formats/format.ts";
import type { Decoders } from "./decoders.ts";
import type { UnitFill } from "./fill-state.ts";
import { isMoreUrgent, type Priority, type StoredRange, type UnitFetcher } from "./interfaces.ts";
import type { UnitLog } from "./unit-log.ts";

/** How often a unit whose bytes are wrong is fetched before its readers get an error. */
const ATTEMPTS = 3;
/** Flights of one unit that one range may need. */
const ROUNDS_MAX = 4;
/** What a process may wait for one read. Longer than every retry of the transport, shorter than people's patience with a D state. */
const DEADLINE_MS = 120_000;

export interface FillOptions {
  readonly priority: Priority;
  readonly signal?: AbortSignal | undefined;
}

interface Flight {
  readonly unit: number;
  priority: Priority;
  waiters: number;
  /** While it is, it can be aborted; a decode is soon done and is not. */
  fetching: boolean;
  readonly abort: AbortController;
  promise: Promise<void>;
}

export interface FillerParts {
  readonly layer: number;
  readonly what: string;
  readonly table: UnitTable;
  readonly state: UnitFill;
  readonly log: UnitLog;
  readonly fetcher: UnitFetcher;
  readonly decoders: Decoders;
  /** The index does not tell the truth about a unit. Called once. */
  readonly onIndexFailure: (error: HeadstartError) => void;
  readonly deadlineMs?: number | undefined;
  /** Takes these pieces of the unit from elsewhere on this machine, verified. False where that cannot be done: they are fetched. Only where units are wanted in part. */
  readonly copy?: (unit: number, pieces: Uint32Array, priority: Priority) => Promise<boolean>;
}

export class Filler {
  readonly #parts: FillerParts;
  readonly #flights = new Map<number, Flight>();
  /** Units about which the index is wrong. */
  readonly #refused = new Map<number, HeadstartError>();
  /** Units that came with wrong bytes every time, and what was wrong, until they come right. */
  readonly #bad = new Map<number, string>();
  #closed = false;

  constructor(parts: FillerParts) {
    this.#parts = parts;
  }

  get state(): UnitFill {
    return this.#parts.state;
  }

  get table(): UnitTable {
    return this.#parts.table;
  }

  get fillMap(): Bitmap {
    return this.#parts.state.fillMap;
  }

  /** What is wrong with units that cannot be had; null when nothing is. */
  get trouble(): string | null {
    const [first] = this.#bad.values();
    if (first === undefined) return null;
    return this.#bad.size === 1 ? first : `${first}; ${this.#bad.size - 1} more like it`;
  }

  /** What is wrong with the first unit of which `needs` says that one of its missing pieces is needed; null when nothing is. */
  troubleWith(needs: (piece: number) => boolean): string | null {
    for (const [unit, what] of this.#bad) if (this.#parts.state.wanted(unit)?.some(needs) !== false) return what;
    return null;
  }

  get refusedUnits(): number {
    return this.#refused.size;
  }

  /**
   * Resolves when all blocks of the file range can be read. Throws HS_UNIT_DIGEST, HS_UNIT_DECODE, HS_INDEX_MISMATCH, HS_REGISTRY_*, HS_DISK_FULL, HS_FILL_TIMEOUT, or the
   * signal's reason.
   */
  async ensure(range: Range, options: FillOptions): Promise<void> {
    const { state, what } = this.#parts;
    const first = Math.max(0, Math.floor(range.start / BLOCK_SIZE));
    const last = Math.min(state.fillMap.length, Math.ceil(range.end / BLOCK_SIZE));
    if (last <= first || state.fillMap.hasAll(first, last)) return;
    const { signal } = options;
    signal?.throwIfAborted();
    const startedMs = performance.now();
    const giveUp = new AbortController();
    const onAbort = () => giveUp.abort(signal!.reason);
    signal?.addEventListener("abort", onAbort, { once: true });
    const deadlineMs = this.#parts.deadlineMs ?? DEADLINE_MS;
    const timer = setTimeout(() => {
      const message = `bytes ${range.start}-${range.end} of ${what}: nothing came within ${deadlineMs / 1000} s`;
      giveUp.abort(new HeadstartError("HS_FILL_TIMEOUT", { what: message }));
    }, deadlineMs);
    const [start, end] = [first * BLOCK_SIZE, last * BLOCK_SIZE];
    let unitCount = 0;
    try {
      // what an image binds while its unit is under way takes another flight
      for (let round = 0; round < ROUNDS_MAX && !state.fillMap.hasAll(first, last); round++) {
        const units = state.unitsFor(start, end);
        unitCount += units.length;
        await Promise.all(
          units.map((unit) =>
            this.fillUnit(unit, { priority: options.priority, signal: giveUp.signal }).catch((error: unknown) => {
              // somebody else's part of the unit may be what is wrong
              if (!state.isFilledWithin(unit, start, end)) throw error;
            }),
          ),
        );
      }
    } finally {
      clearTimeout(timer);
      signal?.removeEventListener("abort", onAbort);
      // after an error: leave the other units, others may still wait for them
      giveUp.abort(new HeadstartError("HS_CANCELED", { what: `another unit of the range failed` }));
    }
    if (!state.fillMap.hasAll(first, last)) {
      throw new HeadstartError("HS_INTERNAL", {
        what: `${what}: blocks ${first}-${last} stay unfilled with all their units`,
      });
    }
    publish("layer:fault", {
      layer: this.#parts.layer,
      start: range.start,
      end: range.end,
      units: unitCount,
      priority: options.priority,
      waitMs: performance.now() - startedMs,
    });
  }

  /** Resolves when `unit` is filled. Throws as `ensure`. */
  fillUnit(unit: number, options: FillOptions): Promise<void> {
    const { signal, priority } = options;
    if (this.#parts.state.isFilled(unit)) return Promise.resolve();
    const refused = this.#refused.get(unit);
    if (refused !== undefined) return Promise.reject(refused);
    if (this.#closed)
      return Promise.reject(new HeadstartError("HS_CANCELED", { what: `${this.#parts.what} was closed` }));
    if (signal?.aborted) return Promise.reject(signal.reason);
    let flight = this.#flights.get(unit);
    if (flight === undefined) {
      flight = { unit, priority, waiters: 0, fetching: true, abort: new AbortController(), promise: Promise.resolve() };
      this.#flights.set(unit, flight);
      flight.promise = this.#fly(flight);
    } else if (isMoreUrgent(priority, flight.priority)) {
      flight.priority = priority;
      this.#parts.fetcher.promote(this.#storedRange(unit), priority);
      this.#parts.decoders.promote(this.#parts.layer, unit, priority);
    }
    return this.#wait(flight, signal);
  }

  /** Aborts what is under way and waits for what cannot be aborted; then no thread writes to the layer. */
  async close(): Promise<void> {
    this.#closed = true;
    const flights = [...this.#flights.values()];
    for (const flight of flights) {
      flight.abort.abort(new HeadstartError("HS_CANCELED", { what: `${this.#parts.what} was closed` }));
    }
    await this.#parts.decoders.close(this.#parts.layer);
    await Promise.allSettled(flights.map((flight) => flight.promise));
    this.#parts.log.close();
  }

  async #wait(flight: Flight, signal: AbortSignal | undefined): Promise<void> {
    flight.waiters++;
    let onAbort: (() => void) | undefined;
    try {
      if (signal === undefined) return await flight.promise;
      await Promise.race([
        flight.promise,
        new Promise<never>((_, reject) => {
          onAbort = () => reject(signal.reason);
          signal.addEventListener("abort", onAbort, { once: true });
        }),
      ]);
    } finally {
      if (onAbort !== undefined) signal?.removeEventListener("abort", onAbort);
      flight.waiters--;
      // (a flight that has ended is not in the map any more)
      if (flight.waiters === 0 && flight.fetching && this.#flights.get(flight.unit) === flight) {
        // whoever comes now begins anew rather than joining what is being aborted
        this.#flights.delete(flight.unit);
        flight.abort.abort(
          new HeadstartError("HS_CANCELED", { what: `nobody waits for unit ${flight.unit} any more` }),
        );
      }
    }
  }

  async #fly(flight: Flight): Promise<void> {
    const { unit } = flight;
    try {
      await this.#fill(flight);
    } catch (error) {
      if (isHeadstartError(error, "HS_UNIT_DECODE", "HS_INDEX_MISMATCH")) this.#refuse(unit, error);
      throw error;
    } finally {
      if (this.#flights.get(unit) === flight) this.#flights.delete(unit);
    }
  }

  async #fill(flight: Flight): Promise<void> {
    const { layer, state, fetcher, decoders, copy } = this.#parts;
    const { unit } = flight;
    for (let attempt = 0; ; attempt++) {
      const pieces = state.wanted(unit);
      // an image may have bound more of it while the last pieces came
      if (pieces?.length === 0) return;
      if (attempt === 0 && pieces !== null && copy !== undefined) {
        flight.fetching = false;
        if (await copy(unit, pieces, flight.priority)) {
          this.#mark(flight, pieces, true);
          return;
        }
        if (flight.waiters === 0)
          throw new HeadstartError("HS_CANCELED", { what: `nobody waits for unit ${unit} any more` });
      }
      flight.fetching = true;
      flight.abort.signal.throwIfAborted();
      const stored = await fetcher.fetch(this.#storedRange(unit), {
        priority: flight.priority,
        attempt,
        signal: flight.abort.signal,
      });
      flight.fetching = false;
      try {
        const { bad } = await decoders.decode({ layer, unit, stored, pieces, priority: flight.priority });
        const wrong = new Set(bad?.pieces);
        const good = wrong.size === 0 ? pieces : (pieces?.filter((piece) => !wrong.has(piece)) ?? null);
        if (good?.length !== 0) this.#mark(flight, good, false);
        if (bad === null) return;
        if (attempt + 1 >= ATTEMPTS) state.refuse(bad.pieces);
        throw new HeadstartError("HS_UNIT_DIGEST", { what: bad.what });
      } catch (error) {
        if (!isHeadstartError(error, "HS_UNIT_DIGEST")) throw error;
        publish("layer:unit-bad", { layer, unit, attempt, error });
        if (attempt + 1 < ATTEMPTS) continue;
        this.#bad.set(unit, error.message);
        throw error;
      }
    }
  }

  #mark(flight: Flight, pieces: Uint32Array | null, copied: boolean): void {
    const { unit } = flight;
    const { state, log, layer, table } = this.#parts;
    if (this.#closed) throw new HeadstartError("HS_CANCELED", { what: `${this.#parts.what} was closed` });
    state.markUnit(unit, pieces);
    this.#bad.delete(unit);
    try {
      state.persist(log, unit, pieces);
    } catch (error) {
      // the bytes are there and right; only the next start will fetch them again
      publish("layer:unit-log-failed", { layer, unit, error });
    }
    const bytes = pieces?.reduce((sum, piece) => sum + table.pieceLength[piece]!, 0) ?? table.unitDecodedLength[unit];
    const fact = { layer, unit, priority: flight.priority, bytes };
    if (copied) publish("layer:unit-copied", fact);
    else publish("layer:unit", fact);
  }

  #refuse(unit: number, error: HeadstartError): void {
    this.#refused.set(unit, error);
    publish("layer:index-failure", { layer: this.#parts.layer, unit, error });
    if (this.#refused.size === 1) this.#parts.onIndexFailure(error);
  }

  #storedRange(unit: number): StoredRange {
    const { table } = this.#parts;
    const blob = table.blobs[table.unitBlob[unit]!]!;
    return { blob: blob.digest, blobSize: blob.size, start: table.unitStart[unit]!, end: table.unitEnd[unit]! };
  }
}
