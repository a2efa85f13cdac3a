/** The snapshotter's `LayerProvider`: images (what a layer is) and mounts (where it is) put together. Wiring; the decisions are theirs. */

import type { ImageProvider } from "../image/provider.ts";
import type { LayerStore } from "../layer/store.ts";
import type { Chains, LowerElement } from "../mount/chain.ts";
import type { Ladder } from "../mount/ladder.ts";
import type { LayerMounts } from "../mount/layers.ts";
import type { ChainElement, LayerId, LayerProvider, Offer, OfferRequest } from "../snapshotter/provider.ts";

export interface LayerProviderParts {
  readonly images: ImageProvider;
  readonly store: LayerStore;
  readonly mounts: LayerMounts;
  readonly chains: Chains;
  readonly ladder: Ladder;
}

export function layerProvider({ images, store, mounts, chains, ladder }: LayerProviderParts): LayerProvider {
  const element = async (part: ChainElement, signal: AbortSignal | undefined): Promise<LowerElement> => {
    if (part.kind === "directory") return part;
    const layer = await images.ready(part.layer, signal);
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
    async lowers(owner: string, chain: readonly ChainElement[], { signal }: { signal?: AbortSignal }) {
      const elements = await Promise.all(chain.map((part) => element(part, signal)));
      const lowers = await chains.lowersFor(owner, elements, { signal });
      images.maker.mounted(elements.flatMap((each) => (each.kind === "layer" ? [each.layer.id] : [])));
      return lowers;
    },
    release: (owner) => mounts.release(owner),
    async usage(layer: LayerId) {
      const standIn = images.maker.standIn(layer);
      const bytes = store.diskBytes(layer) + (standIn === null ? 0 : store.diskBytes(standIn));
      return { bytes, inodes: store.row(standIn ?? layer)?.inodeCount ?? 0 };
    },
    async collect(inUse: ReadonlySet<LayerId>) {
      await images.collect(inUse, async (layer) => {
        chains.forget(new Set([layer]));
        await mounts.forget(layer);
      });
    },
  };
}
