/**
 * Everything that Remove leaves for later (specs/containerd.md 7.1): directories without a row, releases that failed, layers that no row names. One pass at a
 * time; containerd's Cleanup joins it, and it also runs by itself a moment after removals. May be cut off anywhere and repeated; what cannot go now (something is mounted in it) stays
 * for the next pass and is no error.
 */

import type { Clock } from "../base/clock.ts";
import { describeError } from "../base/errors.ts";
import { publish } from "../base/events.ts";
import { Flights } from "../base/limit.ts";
import { entryId, type SnapshotDirectories } from "./directories.ts";
import type { LayerProvider } from "./provider.ts";
import type { SnapshotStore } from "./store.ts";

/** A garbage collection removes many snapshots in a row: one pass for all of them. */
const PASS_DELAY_MS = 500;
/** What could not go is tried again this much later. */
const RETRY_MS = 60_000;

export interface GarbageParts {
  readonly store: SnapshotStore;
  readonly directories: SnapshotDirectories;
  readonly provider: LayerProvider;
  readonly clock: Clock;
  /** How long after the last offer layers are left alone: an image's later layers have no rows yet while its first ones are claimed. */
  readonly quietMs: number;
  readonly signal: AbortSignal;
}

export interface PassResult {
  readonly deleted: number;
  /** Entries that are still in use somewhere. */
  readonly parked: number;
  /** Whether the provider was told what is in use. */
  readonly collected: boolean;
}

export class Garbage {
  readonly #parts: GarbageParts;
  readonly #unreleased = new Set<string>();
  readonly #releases = new Flights<string, void>();
  #offers = 0;
  #lastOfferMs = Number.NEGATIVE_INFINITY;
  #timer: { readonly handle: NodeJS.Timeout; readonly dueMs: number } | null = null;
  #pass: Promise<PassResult> | null = null;

  constructor(parts: GarbageParts) {
    this.#parts = parts;
  }

  /** Brackets an offer, so that its image's layers are not collected under it. */
  async duringOffer<T>(work: () => Promise<T>): Promise<T> {
    this.#offers++;
    try {
      return await work();
    } finally {
      this.#offers--;
      this.#lastOfferMs = this.#parts.clock.monotonic();
    }
  }

  /** The owner's mounts may go. Never throws: what fails is tried again with the next pass. */
  release(owner: string): Promise<void> {
    this.#unreleased.add(owner);
    return this.#releases.join(owner, async () => {
      try {
        await this.#parts.provider.release(owner);
        this.#unreleased.delete(owner);
      } catch (error) {
        publish("snapshotter:release-failed", { owner, error: describeError(error) });
        this.schedule(RETRY_MS);
      }
    });
  }

  schedule(delayMs: number = PASS_DELAY_MS): void {
    if (this.#parts.signal.aborted) return;
    const dueMs = this.#parts.clock.monotonic() + delayMs;
    if (this.#timer !== null) {
      if (this.#timer.dueMs <= dueMs) return;
      clearTimeout(this.#timer.handle);
    }
    const handle = setTimeout(() => {
      this.#timer = null;
      this.run().catch((error) => publish("snapshotter:cleanup-failed", { error: describeError(error) }));
    }, delayMs);
    handle.unref();
    this.#timer = { handle, dueMs };
  }

  /** One whole pass, or the one under way. */
  run(): Promise<PassResult> {
    this.#pass ??= this.#run().finally(() => {
      this.#pass = null;
    });
    return this.#pass;
  }

  /** Waits for a pass under way, starts none. */
  async close(): Promise<void> {
    if (this.#timer !== null) clearTimeout(this.#timer.handle);
    await this.#pass?.catch(() => undefined);
  }

  async #run(): Promise<PassResult> {
    const { signal } = this.#parts;
    for (const owner of [...this.#unreleased]) {
      if (!signal.aborted) await this.release(owner);
    }
    const { deleted, parked } = await this.#deleteOrphans();
    const collected = await this.#collect();
    if (parked > 0) this.schedule(RETRY_MS);
    publish("snapshotter:cleanup", { deleted, parked, collected });
    return { deleted, parked, collected };
  }

  async #deleteOrphans(): Promise<{ deleted: number; parked: number }> {
    const { directories, store, signal } = this.#parts;
    let deleted = 0;
    let parked = 0;
    for (const entry of directories.entries()) {
      if (signal.aborted) break;
      const id = entryId(entry);
      // rows and directories appear in one transaction, and ids are never reused: a directory without a row now has none for ever
      if (id !== null && store.byId(id) !== null) continue;
      try {
        await directories.delete(entry);
        deleted++;
      } catch (error) {
        parked++;
        publish("snapshotter:parked", { entry, error: describeError(error) });
      }
    }
    return { deleted, parked };
  }

  async #collect(): Promise<boolean> {
    const { clock, provider, quietMs, signal, store } = this.#parts;
    if (signal.aborted) return false;
    if (this.#offers > 0 || clock.monotonic() - this.#lastOfferMs < quietMs) {
      this.schedule(quietMs);
      return false;
    }
    await provider.collect(store.layersInUse());
    return true;
  }
}
