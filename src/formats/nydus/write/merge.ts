/**
 * Layers into one image (specs/nydus.md 3.6): whiteouts, opaque marks and replaced files as overlayfs has them (specs/layer.md 8), one table of the blobs that files
 * still refer to, in the order in which the peer's walk of the tree meets them.
 */

import { HeadstartError } from "../../../base/errors.ts";
import { ADDRESS_SPACE, type FileTree, FileType } from "../../../erofs/file-tree.ts";
import { mergeTrees } from "../../../erofs/overlay.ts";
import { inodeOrder } from "../../../erofs/write.ts";
import { Compressor, NYDUS_LIMITS } from "../ondisk.ts";
import type { BootstrapInput } from "./bootstrap.ts";
import type { BuiltLayer, ImageBlob } from "./model.ts";
import { prefetchInodes } from "./prefetch.ts";

export interface MergeOptions {
  /** Paths in the merged tree, one char a byte, in the order in which they shall be fetched. */
  readonly prefetch?: readonly string[];
}

/** Addresses are exact up to 2^53. */
const SPACES_MAX = 2 ** 53 / ADDRESS_SPACE;

/**
 * `layers` are lowest first: the first one in the role "lowest", all others "upper". The result goes to `writeBootstrap`. Throws HS_NYDUS_LIMIT for more blobs than an
 * image can refer to, HS_INTERNAL for layers that do not belong together.
 */
export function mergeLayers(layers: readonly BuiltLayer[], options: MergeOptions = {}): BootstrapInput {
  const first = layers[0];
  if (first === undefined) throw new HeadstartError("HS_INTERNAL", { what: "an image without layers" });
  layers.forEach(({ role, chunkSize, digester }, index) => {
    const fits = role === (index === 0 ? "lowest" : "upper");
    if (!fits || chunkSize !== first.chunkSize || digester !== first.digester)
      throw new HeadstartError("HS_INTERNAL", { what: `layer ${index} was built for another image` });
  });
  const all = collectBlobs(layers);
  const trees = layers.map((layer) => {
    const spaces = blobsOf(layer).map((blob) => (blob === null ? -1 : all.spaceOf.get(blob.facts.id)!));
    return movedTo(layer.tree, (space) => spaces[space]!);
  });
  const merged = countSubdirectories(mergeTrees(trees).tree);
  const order = firstUses(merged);
  if (order.length > NYDUS_LIMITS.blobs)
    throw new HeadstartError("HS_NYDUS_LIMIT", {
      what: `files of ${order.length} blobs are left, a Nydus image refers to ${NYDUS_LIMITS.blobs} at most: squash layers, or leave the chunk dictionary out`,
    });
  const place = new Map(order.map((space, index) => [space, index]));
  const tree = movedTo(merged, (space) => place.get(space)!);
  const blobs = order.map((space) => all.blobs[space]!);
  return {
    tree,
    chunkSize: first.chunkSize,
    compressor: blobs[0]?.facts.compressor ?? Compressor.zstd,
    digester: first.digester,
    blobs,
    prefetch: prefetchInodes(tree, options.prefetch ?? []),
  };
}

/** By address space of the layer's tree. */
function blobsOf(layer: BuiltLayer): (ImageBlob | null)[] {
  return [layer.blob, ...layer.dictionary];
}

/** Every blob once. Layers of equal bytes share one; of a blob that is a layer's own and a dictionary's, the layer knows all chunks. */
function collectBlobs(layers: readonly BuiltLayer[]): {
  readonly blobs: readonly ImageBlob[];
  readonly spaceOf: ReadonlyMap<string, number>;
} {
  const blobs: ImageBlob[] = [];
  const spaceOf = new Map<string, number>();
  const add = (blob: ImageBlob | null) => {
    if (blob === null || spaceOf.has(blob.facts.id)) return;
    spaceOf.set(blob.facts.id, blobs.push(blob) - 1);
  };
  for (const layer of layers) add(layer.blob);
  for (const layer of layers) layer.dictionary.forEach(add);
  if (blobs.length > SPACES_MAX)
    throw new HeadstartError("HS_NYDUS_LIMIT", {
      what: `${blobs.length} blobs, a Nydus image refers to ${NYDUS_LIMITS.blobs} at most: squash layers, or leave the chunk dictionary out`,
    });
  return { blobs, spaceOf };
}

/** The same tree with its data in other address spaces. */
function movedTo(tree: FileTree, spaceOf: (space: number) => number): FileTree {
  const segmentAddress = tree.segmentAddress.map((address) => {
    const space = Math.floor(address / ADDRESS_SPACE);
    return spaceOf(space) * ADDRESS_SPACE + (address - space * ADDRESS_SPACE);
  });
  return { ...tree, segmentAddress };
}

/**
 * overlayfs gives a merged directory one link, since it does not count; here the whole directory is known. Files keep the count of their layer, as overlayfs shows
 * it.
 */
function countSubdirectories(tree: FileTree): FileTree {
  const nlink = tree.nlink.slice();
  for (let inode = 0; inode < tree.inodeCount; inode++) if (tree.type[inode] === FileType.directory) nlink[inode] = 2;
  for (let inode = 1; inode < tree.inodeCount; inode++) {
    if (tree.type[inode] === FileType.directory) nlink[tree.parent[inode]!]!++;
  }
  return { ...tree, nlink };
}

/** Address spaces in the order in which the peer's walk meets them: all that is in a directory, then the directories in it one by one, each whole. */
function firstUses(tree: FileTree): number[] {
  const found = new Set<number>();
  for (const inode of inodeOrder(tree)) {
    for (let segment = tree.segmentStart[inode]!; segment < tree.segmentStart[inode + 1]!; segment++)
      found.add(Math.floor(tree.segmentAddress[segment]! / ADDRESS_SPACE));
  }
  return [...found];
}
