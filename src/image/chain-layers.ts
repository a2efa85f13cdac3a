/**
 * What a container upon a chain of snapshots is given: mostly the chain's own layers; for Nydus images and images in both forms what their rows say (substitutes.ts), as long as it is sound and the chain is
 * theirs alone (private-chains.ts). Decided once for each container: its owner keeps the answer.
 */

import type { ChainID, Digest } from "../base/digest.ts";
import { describeError, HeadstartError } from "../base/errors.ts";
import { publish } from "../base/events.ts";
import type { LayerRow } from "../layer/rows.ts";
import type { LayerStore } from "../layer/store.ts";
import type { LayerMaker } from "./layer-maker.ts";
import type { Plan } from "./plan.ts";
import type { PrivateChains } from "./private-chains.ts";
import { EMPTY_LAYER, type Substitute, type Substitutes } from "./substitutes.ts";

export interface ChainLayersParts {
  readonly store: LayerStore;
  readonly maker: LayerMaker;
  readonly substitutes: Substitutes;
  readonly privateChains: PrivateChains;
  /** The plan of an image that containerd has, or why there is none. */
  readonly open: (
    image: { readonly name: string; readonly manifest: Digest },
    options: ChainOptions,
  ) => Promise<{ readonly plan: Plan | null; readonly refusal: { readonly reason: string } | null }>;
  /** Of the OCI form of a Nydus image. */
  readonly planInstead: (nydus: LayerRow, why: string, namespace: string | null) => Promise<Plan>;
}

export interface ChainOptions {
  readonly namespace: string | null;
  readonly signal?: AbortSignal | undefined;
}

export interface LayersOptions extends ChainOptions {
  /** The chainID of the topmost snapshot, where it is known. */
  readonly target?: ChainID | null | undefined;
  /** The container began under a process of before: is this layer mounted? */
  readonly adopted?: ((layer: number) => boolean) | undefined;
  /** No container: containerd unpacks a layer upon the chain, which images share that know nothing of what one of them may have instead. */
  readonly isExtraction?: boolean | undefined;
}

export class ChainLayers {
  readonly #parts: ChainLayersParts;
  /** Plans of the OCI forms of Nydus images that turned out not to be sound. */
  readonly #instead = new Map<number, Promise<Plan>>();
  /** Why containers upon a chain were not given its alternative the last time. */
  readonly #withheld = new Map<ChainID, string>();

  constructor(parts: ChainLayersParts) {
    this.#parts = parts;
  }

  /** In words, for the status; null when nothing is. */
  withheld(chain: ChainID): string | null {
    return this.#withheld.get(chain) ?? null;
  }

  /** A layer is being removed. */
  forget(layer: number): void {
    this.#instead.delete(layer);
  }

  /**
   * Rows of the layer store, lowest first; null is a snapshot that containerd unpacked, also in `chain`. Throws HS_NYDUS_UNUSABLE and, where the chain is not what it says, what asking
   * containerd throws.
   */
  async layersFor(chain: readonly (number | null)[], options: LayersOptions): Promise<readonly (number | null)[]> {
    if (this.#isMisled(chain)) return await this.#layersOfImage(options.target ?? null, options);
    const claimed = chain.filter((id) => id !== null);
    const isExtraction = options.isExtraction === true;
    if (claimed.length === chain.length && !isExtraction) {
      const whole = await this.#alternativeFor(claimed, options);
      if (whole !== null) return [whole];
    }
    const parts: (number | null)[] = [];
    for (const [position, id] of chain.entries()) {
      const isTop = position === chain.length - 1;
      const substitute = id === null ? null : this.#parts.substitutes.substitute(id);
      if (id === null) parts.push(null);
      else if (options.adopted !== undefined) parts.push(...this.#parts.substitutes.parts(id));
      else if (substitute !== null) parts.push(...(await this.#layersInstead(substitute, isTop, options)));
      else
        parts.push(
          ...((isTop && !isExtraction ? await this.#insteadOfUnsound(id, options) : null) ??
            this.#parts.substitutes.parts(id)),
        );
    }
    return parts;
  }

  /** The layer that takes the place of a whole chain, made; null when there is none, it cannot be had, or the chain is not that of one trusted image alone. */
  async #alternativeFor(layers: readonly number[], options: LayersOptions): Promise<number | null> {
    const chain = layers.includes(EMPTY_LAYER) ? null : this.#parts.substitutes.chainOf(layers);
    const alternative = chain === null ? null : this.#parts.substitutes.alternative(chain);
    if (chain === null || alternative === null) return null;
    const layer = alternative.layers[0]!;
    if (options.adopted !== undefined) return options.adopted(layer) ? layer : null;
    try {
      const other = await this.#parts.privateChains.otherImage(chain, alternative.owner, options);
      const { unsound } = other === null ? await this.#parts.maker.ready(layer, options.signal) : { unsound: null };
      if (other === null && unsound === null) {
        this.#withheld.delete(chain);
        return layer;
      }
      const what =
        unsound ?? `the image ${other?.name} has the same layers, and nothing says that they hold the same there`;
      this.#withheld.set(chain, `its Nydus form is not used: ${what}`);
    } catch (error) {
      options.signal?.throwIfAborted();
      this.#withheld.set(chain, `its Nydus form cannot be used: ${describeError(error)}`);
    }
    publish("image:alternative-withheld", { chain, layer, reason: this.#withheld.get(chain) });
    return null;
  }

  /** The OCI form of a Nydus image that could not be had. Another image with the same bootstrap may be sound, or have another OCI form: then its bootstrap, which the chain names by digest, is right for both. */
  async #layersInstead(substitute: Substitute, isTop: boolean, options: ChainOptions): Promise<readonly number[]> {
    const unusable = (what: string) => new HeadstartError("HS_NYDUS_UNUSABLE", { what });
    if (!isTop) throw unusable("layers above the bootstrap of a Nydus image that cannot be had");
    const other = await this.#parts.privateChains.otherImage(substitute.chain, substitute.owner, options);
    if (other === null) return substitute.layers;
    const { plan, refusal } = await this.#parts.open(other, options);
    const top = plan?.layers.at(-1)?.layer;
    if (top === undefined || this.#parts.substitutes.substitute(top) !== null)
      throw unusable(
        `images of one Nydus bootstrap have different OCI forms: ${other.name}: ${refusal?.reason ?? plan?.reason}`,
      );
    return this.#parts.substitutes.parts(top);
  }

  /** True when snapshots that were claimed for Nydus blobs, so that they hold nothing, are not below the bootstrap that they belong to. */
  #isMisled(chain: readonly (number | null)[]): boolean {
    const { store, substitutes } = this.#parts;
    return chain.some((id, position) => {
      if (id !== EMPTY_LAYER) return false;
      const above = chain.slice(position).find((other) => other !== EMPTY_LAYER) ?? null;
      return above === null || (store.row(above)?.kind !== "image" && substitutes.substitute(above) === null);
    });
  }

  /**
   * For a chain that is misled, since an image can name another's plain tar as a blob of its own: the image of the chain says what its layers are.
   */
  async #layersOfImage(target: ChainID | null, options: ChainOptions): Promise<readonly number[]> {
    const unusable = (why: string) =>
      new HeadstartError("HS_NYDUS_UNUSABLE", { what: `a layer below was claimed as a blob of a Nydus image: ${why}` });
    const image = target === null ? null : await this.#parts.privateChains.otherImage(target, null, options);
    if (image === null) throw unusable("containerd has no image of this chain");
    const { plan, refusal } = await this.#parts.open(image, options);
    const layers = plan?.layers.map((planned) => planned.layer) ?? [];
    if (plan === null || layers.includes(EMPTY_LAYER))
      throw unusable(`${image.name}: ${refusal?.reason ?? "it is no OCI image"}`);
    return layers;
  }

  /** A Nydus image of which bytes came wrong from everywhere: its OCI form, for containers from now on. Null where all is well, or there is nothing better. */
  async #insteadOfUnsound(id: number, options: ChainOptions): Promise<readonly number[] | null> {
    const { store } = this.#parts;
    const row = store.row(id);
    const why = row?.kind === "image" ? (store.opened(id)?.unsound ?? null) : null;
    if (row === null || why === null) return null;
    try {
      const planned = this.#instead.get(id) ?? this.#parts.planInstead(row, why, options.namespace);
      this.#instead.set(id, planned);
      const substitute = this.#parts.substitutes.substitute((await planned).layers.at(-1)!.layer);
      if (
        substitute === null ||
        (await this.#parts.privateChains.otherImage(substitute.chain, substitute.owner, options)) !== null
      )
        return null;
      return substitute.layers;
    } catch (error) {
      this.#instead.delete(id);
      options.signal?.throwIfAborted();
      publish("image:nydus-refused", { layer: id, reason: `${why}; ${describeError(error)}` });
      return null;
    }
  }
}
