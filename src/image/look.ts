/**
 * Looking into an image without pulling it: the trees of its layers, and the bytes of one file. Where a layer has an index its table of contents is enough for the tree, and one file costs only the
 * units that hold it; otherwise the layer is read as a stream, through memory that does not grow with it.
 */

import { HeadstartError, isHeadstartError } from "../base/errors.ts";
import { Limit } from "../base/limit.ts";
import { type FileTree, FileType, findChild, symlinkTarget } from "../erofs/file-tree.ts";
import { layersToRebuild, resolveChain } from "../erofs/implied.ts";
import { type MergedTree, mergeTrees } from "../erofs/overlay.ts";
import { textToBytes } from "../erofs/tree-lines.ts";
import type { LayerRole } from "../formats/format.ts";
import { isNydusManifest } from "../formats/nydus/manifest.ts";
import { readLayerTree } from "../formats/tar/read-layer.ts";
import { type LoadedImage, loadImage } from "../oci/manifest.ts";
import type { Platform } from "../oci/platform.ts";
import type { ImageReader } from "../oci/store.ts";
import { chooseIndex } from "./choose.ts";
import { type ReadContent, streamContent, UnitContent } from "./content.ts";
import { lookIntoNydus } from "./look-nydus.ts";
import { openImage } from "./open.ts";

export interface LookOptions {
  readonly platform?: Platform;
  readonly signal?: AbortSignal | undefined;
  /** Content digests are wanted: every layer is read whole, whatever index it has. */
  readonly hashContents?: boolean;
  /** Told before each layer: position, count, and whether its index is enough. */
  readonly onLayer?: (position: number, count: number, how: "index" | "stream") => void;
}

export interface LookedLayer {
  readonly tree: FileTree;
  /** Sha256 in hex of an inode's content; only with `hashContents`. */
  readonly contentSha256: ((inode: number) => string) | null;
  /** Where it can be read, only what holds the file is fetched. */
  readonly content: ReadContent;
}

export interface LookedImage {
  /** A Nydus image is one tree over blobs: it has no layers that could be shown alone. */
  readonly kind: "layers" | "nydus";
  /** Lowest first; one for a Nydus image. */
  readonly layers: readonly LookedLayer[];
  readonly merged: MergedTree;
  /** What a user is told of where an inode of the merged tree comes from. */
  origin(inode: number): Readonly<Record<string, unknown>>;
  /** Why layers were streamed although an index might have spared it; null when nothing is to be said. */
  readonly reason: string | null;
}

/** Layers that are read at once. */
const PARALLEL = 3;

/** Throws HS_LAYER_REFUSED where containerd refuses a layer, HS_PLATFORM, HS_REGISTRY_* and the like. */
export async function lookInto(reader: ImageReader, options: LookOptions = {}): Promise<LookedImage> {
  return await lookIntoImage(reader, await loadImage(reader, options.platform, options.signal), options);
}

/** The same for an image that was chosen already. */
export async function lookIntoImage(
  reader: ImageReader,
  loaded: LoadedImage,
  options: LookOptions = {},
): Promise<LookedImage> {
  if (isNydusManifest(loaded.manifest)) return await lookIntoNydus(reader, loaded, options);
  const image = await openImage(reader, loaded.manifestDescriptor, options.signal);
  // looking decides nothing: an index that somebody attached is good enough, and every unit is verified against it
  const choice = options.hashContents
    ? null
    : await chooseIndex(image, reader, { policy: "referrers", signal: options.signal });
  const limit = new Limit(PARALLEL);
  const streamed = async (position: number, lowers?: readonly FileTree[]): Promise<LookedLayer> => {
    const identity = image.layers[position]!;
    const role: LayerRole = position === 0 ? "lowest" : "upper";
    const blob = reader.openBlob(image.loaded.layers[position]!);
    const read = await readLayerTree(blob.stream(0, { signal: options.signal, callerVerifies: true }), {
      mediaType: identity.mediaType,
      role,
      digest: identity.digest,
      size: identity.size,
      diffID: identity.diffID,
      hashContents: options.hashContents,
      lowers,
    });
    return {
      tree: read.tree,
      contentSha256: options.hashContents ? (inode) => read.contentSha256(inode) : null,
      content: streamContent(read.tree, identity, role, blob),
    };
  };
  const layers = await Promise.all(
    image.layers.map((identity, position) =>
      limit.run(async (): Promise<LookedLayer> => {
        const role: LayerRole = position === 0 ? "lowest" : "upper";
        const blob = reader.openBlob(image.loaded.layers[position]!);
        const tables = choice?.index?.tables.get(identity.digest);
        if (choice?.index && tables) {
          try {
            const table = await reader
              .openBlob(tables.table)
              .readAll({ limit: choice.index.format.tableBytesMax, ...(options.signal && { signal: options.signal }) });
            options.onLayer?.(position, image.layers.length, "index");
            const lazy = choice.index.format.openLayer({ identity, role, table, extras: [] });
            const units = new UnitContent(lazy, [blob]);
            return {
              tree: lazy.tree,
              contentSha256: null,
              content: (inode, signal) => units.read(inode, signal),
            };
          } catch (error) {
            if (!isHeadstartError(error)) throw error;
            // a bad index: the layer itself is what counts
          }
        }
        options.onLayer?.(position, image.layers.length, "stream");
        return await streamed(position);
      }),
    ),
  );
  const trees = layers.map((layer) => layer.tree);
  // a default ACL that a layer's implied directory takes from below reaches what the layer put there: its tree depends on the chain
  for (const position of layersToRebuild(resolveChain(trees))) {
    layers[position] = await streamed(position, trees.slice(0, position));
    trees[position] = layers[position].tree;
  }
  const merged = mergeTrees(trees);
  return {
    kind: "layers",
    layers,
    merged,
    origin: (inode) => ({ layer: merged.layer[inode]!, layer_digest: image.layers[merged.layer[inode]!]?.digest }),
    reason: choice?.reason ?? null,
  };
}

/** The content of a regular file of the merged tree, in order. Throws HS_USAGE for what is no regular file. */
export function readContent(looked: LookedImage, inode: number, signal?: AbortSignal): AsyncGenerator<Uint8Array> {
  const layer = looked.layers[looked.merged.layer[inode]!]!;
  return layer.content(looked.merged.inode[inode]!, signal);
}

const LINKS_MAX = 40;

/**
 * The inode at `path` in the merged tree: symlinks followed inside the root, the last one too if `follow`. Throws HS_NOT_FOUND.
 */
export function findPath(tree: FileTree, path: string, follow: boolean): number {
  const missing = (why: string) => new HeadstartError("HS_NOT_FOUND", { what: `${path}: ${why}` });
  const rest = components(Buffer.from(textToBytes(path)));
  const stack = [0];
  let links = 0;
  while (rest.length > 0) {
    const name = rest.shift()!;
    const text = name.toString("latin1");
    if (text === "..") {
      if (stack.length > 1) stack.pop();
      continue;
    }
    const directory = stack.at(-1)!;
    if (tree.type[directory] !== FileType.directory) throw missing("is below something that is no directory");
    const child = findChild(tree, directory, name);
    if (child < 0) throw missing("no such file in the image");
    const inode = tree.childInode[child]!;
    if (tree.type[inode] === FileType.symlink && (follow || rest.length > 0)) {
      if (++links > LINKS_MAX) throw missing("too many symlinks");
      const target = Buffer.from(symlinkTarget(tree, inode));
      if (target[0] === 0x2f) stack.length = 1;
      rest.unshift(...components(target));
      continue;
    }
    stack.push(inode);
  }
  return stack.at(-1)!;
}

function components(path: Buffer): Buffer[] {
  return path
    .toString("latin1")
    .split("/")
    .filter((part) => part !== "" && part !== ".")
    .map((part) => Buffer.from(part, "latin1"));
}
