/**
 * The lowers of a chain: one mount for each layer, and where directories that a layer only implies would show other attributes than an unpack gives them, one small EROFS
 * lower above the layers that holds just those directories: overlayfs takes a merged directory's attributes from the topmost one (specs/layer.md 5).
 *
 *   <directory>/<12 hex>         the small image of a chain, named by the hash of its layer ids
 *   <directory>/<12 hex>.json    which layers it is for, and whether there is an image at all: also "none is needed" is remembered
 *
 * Layers and their ids never change, so neither does what was computed for a chain of them. All of it may be deleted while nobody uses it: it is computed again.
 */

import { createHash } from "node:crypto";
import { existsSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import { makePrivateDirectory, writeFileDurably } from "../base/files.ts";
import { Flights } from "../base/limit.ts";
import type { FileTree } from "../erofs/file-tree.ts";
import { layoutLazy } from "../erofs/write.ts";
import type { LayerMounts, MountableLayer } from "./layers.ts";

export type LowerElement =
  | { readonly kind: "layer"; readonly layer: MountableLayer }
  /** A snapshot that containerd unpacked: a lower as it is. */
  | { readonly kind: "directory"; readonly path: string };

/** The directories to lay above layers (lowest first) so that a merged view shows what unpacking shows; null when nothing differs. */
export type ImpliedLower = (trees: readonly FileTree[]) => FileTree | null;

/** Part of what is remembered: raise it when the rules of implied directories change (erofs/implied.ts, erofs/overlay.ts). */
const RULES_VERSION = 1;

export class Chains {
  readonly #directory: string;
  readonly #mounts: LayerMounts;
  readonly #impliedLower: ImpliedLower;
  readonly #flights = new Flights<string, string | null>();

  constructor(options: { directory: string; mounts: LayerMounts; impliedLower: ImpliedLower }) {
    this.#directory = makePrivateDirectory(options.directory);
    this.#mounts = options.mounts;
    this.#impliedLower = options.impliedLower;
  }

  /**
   * Directories for overlayfs, lowest first, all mounted and used by `owner` until the mounts release it. Idempotent. When it throws, what it mounted already stays
   * the owner's: call it again, or release.
   */
  async lowersFor(
    owner: string,
    elements: readonly LowerElement[],
    options: { signal?: AbortSignal | undefined } = {},
  ): Promise<string[]> {
    // what containerd unpacked upon our layers saw their merged view: its directories need nothing, and must stay above
    const firstPlain = elements.findIndex((element) => element.kind === "directory");
    const below = firstPlain < 0 ? elements : elements.slice(0, firstPlain);
    const layers = below.flatMap((element) => (element.kind === "layer" ? [element.layer] : []));
    const works = [
      this.#lowerFor(owner, layers, options.signal),
      ...elements.map(async (element) =>
        element.kind === "directory" ? element.path : await this.#mounts.mount(owner, element.layer, options),
      ),
    ];
    // all of them end before this does: a mount that came later would outlive the owner's release
    await Promise.allSettled(works);
    const [lower, ...mounted] = (await Promise.all(works)) as [string | null, ...string[]];
    return lower === null ? mounted : [...mounted.slice(0, layers.length), lower, ...mounted.slice(layers.length)];
  }

  /** Forgets chains that these layers are part of: they are being removed. */
  forget(layers: ReadonlySet<number>): void {
    for (const file of readdirSync(this.#directory)) {
      const name = /^([0-9a-f]{12})\.json$/.exec(file)?.[1];
      if (name === undefined || !this.#read(name)?.layers.some((layer) => layers.has(layer))) continue;
      rmSync(join(this.#directory, file), { force: true });
      rmSync(join(this.#directory, name), { force: true });
    }
  }

  async #lowerFor(
    owner: string,
    layers: readonly MountableLayer[],
    signal: AbortSignal | undefined,
  ): Promise<string | null> {
    // in one layer alone an implied directory is what it says
    if (layers.length < 2) return null;
    const ids = layers.map((layer) => layer.id);
    const name = createHash("sha256").update(ids.join(",")).digest("hex").slice(0, 12);
    const image = await this.#flights.join(name, () => this.#make(name, ids, layers));
    signal?.throwIfAborted();
    return image === null ? null : await this.#mounts.mountChain(owner, name, image);
  }

  /** The chain's image, or null when none is needed. */
  async #make(name: string, ids: readonly number[], layers: readonly MountableLayer[]): Promise<string | null> {
    const path = join(this.#directory, name);
    const known = this.#read(name);
    if (known !== null && String(known.layers) === String(ids)) {
      if (!known.image) return null;
      if (existsSync(path)) return path;
    }
    const tree = this.#impliedLower(await Promise.all(layers.map((layer) => layer.tree())));
    if (tree !== null) {
      const layout = layoutLazy(tree, { uuid: createHash("sha256").update(`chain ${ids}`).digest().subarray(0, 16) });
      const bytes = new Uint8Array(layout.size);
      for (const part of layout.parts) bytes.set(part.bytes, part.offset);
      writeFileDurably(path, bytes, 0o400);
    }
    writeFileDurably(`${path}.json`, JSON.stringify({ version: RULES_VERSION, layers: ids, image: tree !== null }));
    return tree === null ? null : path;
  }

  #read(name: string): { layers: number[]; image: boolean } | null {
    try {
      const { version, layers, image } = JSON.parse(readFileSync(join(this.#directory, `${name}.json`), "utf8"));
      const known = version === RULES_VERSION && Array.isArray(layers) && typeof image === "boolean";
      if (known) return { layers: layers.map(Number), image };
    } catch {
      // damaged: as good as missing
    }
    return null;
  }
}
