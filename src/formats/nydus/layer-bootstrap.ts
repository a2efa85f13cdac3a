/**
 * The bootstrap that a blob carries of its own layer (the part `image.boot`; specs/nydus.md 2.1). It does not know the blob that it is in: a native blob has 64 x for
 * its id, a ref no digest of its metadata blob. It is the layer alone, with marks as plain files.
 */

import type { LayerRole } from "../format.ts";
import { type NydusBootstrap, readBootstrap } from "./bootstrap.ts";
import { marksOfNames } from "./marks.ts";

/** The stored blob that the bootstrap was found in: hex digest and size. */
export interface ContainingBlob {
  readonly id: string;
  readonly size: number;
}

/** The layer's tree for its role in the chain, its blobs by their real ids. Throws what `readBootstrap` throws. */
export function readLayerBootstrap(
  bytes: Uint8Array,
  blob: ContainingBlob,
  role: LayerRole,
  what = "bootstrap of a layer",
): NydusBootstrap {
  const bootstrap = readBootstrap(bytes, what, blob);
  const { tree, inodeOf } = marksOfNames(bootstrap.tree, role, what);
  return {
    ...bootstrap,
    tree,
    prefetch: bootstrap.prefetch.map((inode) => inodeOf[inode]!).filter((inode) => inode >= 0),
  };
}
