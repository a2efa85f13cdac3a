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

import { type ChainID, chainIDs, type DiffID, type Digest, isDigest } from "../base/digest.ts";
import type { LayerIdentity } from "../formats/format.ts";
import type { LayerKey, LayerRow } from "../layer/rows.ts";
import type { LayerStore } from "../layer/store.ts";
import { packSource, unpackSource } from "./source.ts";

/** The layer of a snapshot that holds nothing. Ids of rows begin at 1. */
export const EMPTY_LAYER = 0;

const SUBSTITUTE = "substitute";
const ALTERNATIVE = "alternative";

/** True for rows that list others and have no file. */
export function isListing(row: Pick<LayerRow, "format">): boolean {
  return row.format === SUBSTITUTE || row.format === ALTERNATIVE;
}

export interface Alternative {
  readonly id: number;
  readonly layer: number;
  /** The index that names both forms; null: the alternative refers to the manifest. */
  readonly index: Digest | null;
  /** The image whose opening found it. */
  readonly reference: string;
}

type Store = Pick<LayerStore, "declare" | "find" | "list" | "row" | "remove">;

export class Substitutes {
  readonly #store: Store;

  constructor(store: Store) {
    this.#store = store;
  }

  /** A row that stands for `identity`'s layer and lists `layers`, lowest first, of the image `manifest`. */
  async declare(
    identity: LayerIdentity,
    options: { manifest: Digest; layers: readonly number[]; reference: string; reason: string },
  ): Promise<number> {
    const { manifest, layers, reference, reason } = options;
    const key: LayerKey = { identity, role: "upper", format: SUBSTITUTE, indexDigest: manifest };
    const known = this.#store.find(key);
    // what it listed may have been removed and declared anew since
    if (known !== null && String(this.parts(known.id)) !== String(layers)) await this.#store.remove(known.id);
    return this.#store.declare(key, packSource({ reference, reason, layers })).id;
  }

  /** Notes that containers upon `chain` may have `layer` alone. Another alternative of the same chain is forgotten. */
  async declareAlternative(
    chain: ChainID,
    options: { layer: number; index: Digest | null; reference: string; covers: readonly number[] },
  ): Promise<number> {
    const { layer, index, reference, covers } = options;
    const row = this.#store.find(alternativeKey(chain));
    const known = row === null ? null : unpackSource(row.source);
    const isSame = String(known?.layers) === String([layer]) && String(known?.covers) === String(covers);
    if (row !== null && !(isSame && known?.index === index)) await this.#store.remove(row.id);
    return this.#store.declare(alternativeKey(chain), packSource({ reference, layers: [layer], index, covers })).id;
  }

  alternative(chain: ChainID): Alternative | null {
    const row = this.#store.find(alternativeKey(chain));
    if (row === null) return null;
    const { layers, index, reference } = unpackSource(row.source);
    const [layer] = layers;
    if (layer === undefined || this.#store.row(layer) === null) return null;
    return { id: row.id, layer, index: isDigest(index) ? index : null, reference };
  }

  /** The layers that a snapshot over `id` shows, lowest first. */
  parts(id: number): readonly number[] {
    if (id === EMPTY_LAYER) return [];
    const row = this.#store.row(id);
    return row !== null && isListing(row) ? unpackSource(row.source).layers : [id];
  }

  /** The chainID of claimed layers; null when something else is among them. */
  chainOf(layers: readonly number[]): ChainID | null {
    const diffIDs: DiffID[] = [];
    for (const id of layers) {
      const row = this.#store.row(id);
      if (row === null || isListing(row)) return null;
      diffIDs.push(row.identity.diffID as DiffID);
    }
    return chainIDs(diffIDs).at(-1) ?? null;
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
      const alive = row.format === SUBSTITUTE ? inUse.has(row.id) : covers.every((id) => inUse.has(id));
      if (alive) for (const id of [row.id, ...layers]) kept.add(id);
    }
    return kept;
  }
}

function alternativeKey(chain: ChainID): LayerKey {
  const identity = { digest: chain, size: 0, mediaType: "", diffID: chain };
  return { identity, role: "upper", format: ALTERNATIVE, indexDigest: null };
}
