/** The snapshotter's `LayerProvider`: images (what a layer is) and mounts (where it is) put together. Wiring; the decisions are theirs. */

import type { ImageProvider } from "../image/provider.ts";
import type { Chains, LowerElement } from "../mount/chain.ts";
import type { Ladder } from "../mount/ladder.ts";
import type { LayerMounts } from "../mount/layers.ts";
import type {
  ChainElement,
  LayerId,
  LayerProvider,
  LowersOptions,
  Offer,
  OfferRequest,
} from "../snapshotter/provider.ts";

export interface LayerProviderParts {
  readonly images: ImageProvider;
  readonly mounts: LayerMounts;
  readonly chains: Chains;
  readonly ladder: Ladder;
}

export function layerProvider({ images, mounts, chains, ladder }: LayerProviderParts): LayerProvider {
  /** What each owner was given: the same as long as it lives, whatever is pulled meanwhile. */
  const given = new Map<string, readonly (number | null)[]>();
  const element = async (id: LayerId, signal: AbortSignal | undefined): Promise<LowerElement> => {
    const layer = await images.ready(id, signal);
    // where a file with holes cannot be mounted, lazy means: in the background, but whole before its first use
    if (ladder.overFuse === null) {
      layer.startBackground();
      await layer.whenComplete(signal);
    }
    return { kind: "layer", layer };
  };
  return {
    async offer(request: OfferRequest, options: { signal?: AbortSignal }): Promise<Offer> {
      if (ladder.native === null) return { kind: "no", reason: "this kernel cannot mount EROFS" };
      return await images.offer(request, options);
    },
    async lowers(owner: string, chain: readonly ChainElement[], options: LowersOptions) {
      const { signal, namespace = null, target, isExtraction } = options;
      const adopted = options.isAdopted === true ? (layer: number) => mounts.isMounted(layer) : undefined;
      const claimed = chain.map((part) => (part.kind === "layer" ? part.layer : null));
      const layers =
        given.get(owner) ??
        (await images.chains.layersFor(claimed, { namespace, target, signal, adopted, isExtraction }));
      given.set(owner, layers);
      // directories stay in their order between the layers
      const directories = chain.filter((part) => part.kind === "directory").values();
      const elements = await Promise.all(
        layers.map((id) => (id === null ? directories.next().value! : element(id, signal))),
      );
      const lowers = await chains.lowersFor(owner, elements, { signal });
      images.maker.mounted(elements.flatMap((each) => (each.kind === "layer" ? [each.layer.id] : [])));
      return lowers;
    },
    release: async (owner) => {
      given.delete(owner);
      await mounts.release(owner);
    },
    async usage(layer: LayerId) {
      return images.usage(layer);
    },
    async collect(inUse: ReadonlySet<LayerId>) {
      await images.collect(inUse, async (layer) => {
        chains.forget(new Set([layer]));
        await mounts.forget(layer);
      });
    },
  };
}
