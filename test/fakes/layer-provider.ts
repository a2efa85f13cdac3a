/** A `LayerProvider` whose layers are plain directories: what the snapshotter's tests need of images. Counts owners as the real one does. */

import { mkdirSync, rmSync, statSync } from "node:fs";
import { join } from "node:path";
import { HeadstartError } from "../../src/base/errors.ts";
import type { ChainElement, LayerId, LayerProvider, Offer, OfferRequest } from "../../src/snapshotter/provider.ts";

export class FakeLayerProvider implements LayerProvider {
  readonly #root: string;
  #nextLayer = 1;
  readonly layers = new Map<LayerId, string>();
  readonly offers: OfferRequest[] = [];
  /** Layers that an offer named: only these can be garbage, those that a test has just added cannot. */
  readonly #offered = new Set<LayerId>();
  /** Which chain each owner uses now. */
  readonly owners = new Map<string, readonly ChainElement[]>();
  readonly released: string[] = [];
  readonly collections: ReadonlySet<LayerId>[] = [];
  /** What `offer` answers; by default no. May wait or throw. */
  decide: (request: OfferRequest, signal?: AbortSignal) => Offer | Promise<Offer> = () => ({
    kind: "no",
    reason: "the fake provider has no layers",
  });
  /** Runs before `lowers` answers. */
  beforeLowers: (owner: string, signal?: AbortSignal) => Promise<void> = async () => undefined;
  /** Runs before `release` does anything. */
  beforeRelease: (owner: string) => void = () => undefined;

  /** `root` is a directory of the provider's own. */
  constructor(root: string) {
    this.#root = root;
  }

  /** A new layer; `fill` writes its content. */
  addLayer(fill: (directory: string) => void = () => undefined): LayerId {
    const layer = this.#nextLayer++;
    const directory = join(this.#root, String(layer));
    mkdirSync(directory, { recursive: true });
    fill(directory);
    this.layers.set(layer, directory);
    return layer;
  }

  async offer(request: OfferRequest, options: { signal?: AbortSignal }): Promise<Offer> {
    this.offers.push(request);
    const offer = await this.decide(request, options.signal);
    if (offer.kind === "lazy" || offer.kind === "eager") this.#offered.add(offer.layer);
    return offer;
  }

  async lowers(
    owner: string,
    chain: readonly ChainElement[],
    options: { signal?: AbortSignal; isExtraction?: boolean },
  ): Promise<readonly string[]> {
    await this.beforeLowers(owner, options.signal);
    options.signal?.throwIfAborted();
    const paths = chain.map((element) => (element.kind === "directory" ? element.path : this.#path(element.layer)));
    this.owners.set(owner, chain);
    return paths;
  }

  async release(owner: string): Promise<void> {
    this.beforeRelease(owner);
    this.owners.delete(owner);
    this.released.push(owner);
  }

  async usage(layer: LayerId): Promise<{ bytes: number; inodes: number }> {
    return { bytes: statSync(this.#path(layer)).blocks * 512, inodes: 1 };
  }

  async collect(inUse: ReadonlySet<LayerId>): Promise<void> {
    this.collections.push(inUse);
    for (const [layer, path] of this.layers) {
      if (inUse.has(layer) || !this.#offered.has(layer)) continue;
      rmSync(path, { recursive: true });
      this.layers.delete(layer);
    }
  }

  #path(layer: LayerId): string {
    const path = this.layers.get(layer);
    if (path === undefined) throw new HeadstartError("HS_NOT_FOUND", { what: `layer ${layer}` });
    return path;
  }
}
