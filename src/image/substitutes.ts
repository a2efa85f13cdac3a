/**
 * Snapshots whose content is not simply one layer file. containerd's chain has a snapshot for each layer of the manifest that it resolved; what we mount may be cut otherwise:
 *
 *   a blob of a Nydus image       nothing: `EMPTY_LAYER`, an id that no row ever has
 *   the bootstrap's snapshot      the whole tree as one layer file, or, when that cannot be had, the layers of the OCI form: a row of format `substitute` lists them
 *   all layers of an OCI image    its Nydus form as one layer file, for containers upon exactly this chain: a row of format `alternative`, found by the chainID
 *
 * These rows have no file and no state; they live while a snapshot names them (an alternative: as long as the layers that it stands for), and keep alive what they list. An alternative is
 * not bound by the manifest, so it never takes the place of a layer in its own snapshot: whoever builds upon a part of the chain gets the layers themselves (specs/nydus.md 1.1, `--merge-platform`).
 */

import { type ChainID, chainIDs, type DiffID, sha256 } from "../base/digest.ts";
import type { LayerKey, LayerRow } from "../layer/rows.ts";
import type { LayerStore } from "../layer/store.ts";
import { type ImageLayerSource, type Owner, packSource, unpackSource } from "./source.ts";

/** The layer of a snapshot that holds nothing. Ids of rows begin at 1. */
export const EMPTY_LAYER = 0;

const SUBSTITUTE = "substitute";
const ALTERNATIVE = "alternative";

/** True for rows that list others and have no file. */
export function isListing(row: Pick<LayerRow, "format">): boolean {
  return row.format === SUBSTITUTE || row.format === ALTERNATIVE;
}

/** What stands in for something, and for whose images alone. */
export interface Substitute {
  readonly chain: ChainID;
  /** Lowest first. */
  readonly layers: readonly number[];
  readonly owner: Owner;
}

type Store = Pick<LayerStore, "declare" | "find" | "list" | "row" | "remove">;

export class Substitutes {
  readonly #store: Store;

  constructor(store: Store) {
    this.#store = store;
  }

  /** A row that stands for the bootstrap layer at the top of `chain`; `layers` are those of the image's other form, `covers` the rows without which it is of no use. */
  declare(
    chain: ChainID,
    source: { layers: readonly number[]; covers: readonly number[]; owner: Owner; reference: string; reason: string },
  ): number {
    const packed = packSource(source);
    // a snapshot may name it as long as it lives: another meaning is another row
    const indexDigest = sha256(Buffer.from(meaning(unpackSource(packed))));
    return this.#store.declare({ ...rowKey(chain, SUBSTITUTE), indexDigest }, packed).id;
  }

  /** Notes that containers upon `chain` may have `layer` alone. Another alternative of the same chain is forgotten. */
  async declareAlternative(
    chain: ChainID,
    options: { layer: number; owner: Owner; reference: string; covers: readonly number[] },
  ): Promise<number> {
    const { layer, ...rest } = options;
    const packed = packSource({ ...rest, layers: [layer] });
    const key = rowKey(chain, ALTERNATIVE);
    const known = this.#store.find(key);
    if (known !== null && meaning(unpackSource(known.source)) !== meaning(unpackSource(packed)))
      await this.#store.remove(known.id);
    return this.#store.declare(key, packed).id;
  }

  /** Null also when a layer that it lists is gone. */
  alternative(chain: ChainID): Substitute | null {
    return this.#read(this.#store.find(rowKey(chain, ALTERNATIVE)));
  }

  /** The row that stands in for a bootstrap; null for any other. */
  substitute(id: number): Substitute | null {
    const row = this.#store.row(id);
    return row?.format === SUBSTITUTE ? this.#read(row) : null;
  }

  /** The layers that a snapshot over `id` shows, lowest first. */
  parts(id: number): readonly number[] {
    if (id === EMPTY_LAYER) return [];
    const row = this.#store.row(id);
    return row !== null && isListing(row) ? unpackSource(row.source).layers : [id];
  }

  /** The chainID of layers that were claimed one by one; null when something else is among them. */
  chainOf(layers: readonly number[]): ChainID | null {
    const rows = layers.map((id) => this.#store.row(id));
    if (rows.some((row) => row === null || isListing(row))) return null;
    return chainIDs(rows.map((row) => row!.identity.diffID as DiffID)).at(-1) ?? null;
  }

  /** Layers whose place alternatives take. */
  covered(): Set<number> {
    const rows = this.#store.list().filter((row) => row.format === ALTERNATIVE);
    return new Set(rows.flatMap((row) => unpackSource(row.source).covers));
  }

  /** `inUse` and what lives with it. */
  kept(inUse: ReadonlySet<number>): Set<number> {
    const kept = new Set(inUse);
    for (const row of this.#store.list()) {
      if (!isListing(row)) continue;
      const { layers, covers } = unpackSource(row.source);
      const alive = inUse.has(row.id) || (covers.length > 0 && covers.every((id) => inUse.has(id)));
      if (alive) for (const id of [row.id, ...layers]) kept.add(id);
    }
    return kept;
  }

  #read(row: LayerRow | null): Substitute | null {
    if (row === null) return null;
    const { layers, owner } = unpackSource(row.source);
    if (owner === null || layers.length === 0 || layers.some((id) => this.#store.row(id) === null)) return null;
    return { chain: row.identity.diffID as ChainID, layers, owner };
  }
}

function meaning({ layers, covers, owner }: ImageLayerSource): string {
  return JSON.stringify([layers, covers, owner]);
}

function rowKey(chain: ChainID, format: string): LayerKey {
  const identity = { digest: chain, size: 0, mediaType: "", diffID: chain };
  return { identity, role: "upper", format, indexDigest: null };
}
