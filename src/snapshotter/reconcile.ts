/**
 * At start: rows, directories and layers are compared, and what a crash left between them is repaired (style: never refuse to start because of one broken snapshot).
 *
 *   row   directory  layer     what happened                              what is done
 *   yes   missing    -         somebody deleted it; a disk was restored   marked broken: no mounts from it, nor from what is above it; Remove works
 *   yes   -          unknown   the layer store was lost                   the same; a new pull of the layer gets a new snapshot
 *   no    exists     -         crash before the row, or after Remove      deleted by the first pass of gc.ts
 *   yes   back again -         the disk is there again                    no longer broken
 *
 * An active snapshot without its directory does not get an empty one: a container, or a Commit, would take the emptiness for its data.
 * Owners of mounts: after a restart within one boot the mounts are still there and containers run on them, so the provider is told of every owner again. After a reboot
 * there are none; `lowers` is called when containerd asks for mounts.
 */

import { bootId } from "../base/boot.ts";
import { describeError, kindOf } from "../base/errors.ts";
import { publish } from "../base/events.ts";
import type { SnapshotDirectories } from "./directories.ts";
import type { LayerId, LayerProvider } from "./provider.ts";
import { REF_LABEL, type SnapshotRow, type SnapshotStore } from "./store.ts";

const PAGE_ROWS = 500;
const BOOT_FACT = "boot_id";

/** Directories against rows; quick, before the first call is served. Returns how many rows changed. */
export function reconcileDirectories(store: SnapshotStore, directories: SnapshotDirectories): number {
  let changed = 0;
  for (const row of allRows(store)) {
    if (row.layer !== null) continue;
    const missing = !directories.exists(row.id);
    if (missing === (row.broken !== null)) continue;
    mark(store, row, missing ? `its directory ${directories.upper(row.id)} is missing` : null);
    changed++;
  }
  return changed;
}

/** Layers against rows; asks the provider about each layer once, beside the serving. */
export async function reconcileLayers(
  store: SnapshotStore,
  provider: LayerProvider,
  signal: AbortSignal,
): Promise<void> {
  const known = new Map<LayerId, string | null>();
  for (const row of allRows(store)) {
    if (signal.aborted) return;
    if (row.layer === null) continue;
    if (!known.has(row.layer)) known.set(row.layer, await layerProblem(provider, row.layer));
    const problem = known.get(row.layer) ?? null;
    // the row may have gone while the provider was thinking
    if (!signal.aborted && problem !== row.broken && store.byId(row.id) !== null) mark(store, row, problem);
  }
}

/** True when this process runs in the boot that the last one ran in; remembers the present one. */
export function isSameBoot(store: SnapshotStore, now: string = bootId()): boolean {
  if (store.fact(BOOT_FACT) === now) return true;
  store.setFact(BOOT_FACT, now);
  return false;
}

/** Active snapshots and views, whose mounts somebody may be using. */
export function mountedRows(store: SnapshotStore): SnapshotRow[] {
  return [...allRows(store)].filter((row) => row.kind !== "committed");
}

function* allRows(store: SnapshotStore): Generator<SnapshotRow> {
  for (let page = store.page(0, PAGE_ROWS); page.length > 0; page = store.page(page.at(-1)!.id, PAGE_ROWS)) yield* page;
}

/** Only "there is no such layer" is a verdict; anything else may pass. */
async function layerProblem(provider: LayerProvider, layer: LayerId): Promise<string | null> {
  try {
    await provider.usage(layer);
    return null;
  } catch (error) {
    return kindOf(error) === "not-found" ? `its layer ${layer} is gone: ${describeError(error)}` : null;
  }
}

function mark(store: SnapshotStore, row: SnapshotRow, broken: string | null): void {
  store.setBroken(row.id, broken);
  publish("snapshotter:reconcile", { id: row.id, name: row.name, kind: row.kind, ref: row.labels[REF_LABEL], broken });
}
