/**
 * Looking into an image without pulling it: the trees of its layers, and the bytes of one file. Where a layer has an index its table of contents is enough for the tree, and one file costs only the
 * units that hold it; otherwise the layer is read as a stream, through memory that does not grow with it.
 */

import { createHash, timingSafeEqual } from "node:crypto";
import { HeadstartError, isHeadstartError } from "../base/errors.ts";
import { Limit } from "../base/limit.ts";
import { lastAtMost } from "../base/ranges.ts";
import { type FileTree, FileType, findChild, symlinkTarget } from "../erofs/file-tree.ts";
import { type MergedTree, mergeTrees } from "../erofs/overlay.ts";
import { textToBytes } from "../erofs/tree-lines.ts";
import { decoderFor } from "../formats/all.ts";
import type { LayerRole, LazyLayer } from "../formats/format.ts";
import { readLayerTree } from "../formats/tar/read-layer.ts";
import { loadImage } from "../oci/manifest.ts";
import type { Platform } from "../oci/platform.ts";
import type { ImageReader } from "../oci/store.ts";
import { chooseIndex } from "./choose.ts";
import { type OpenedImage, openImage } from "./open.ts";

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
  readonly lazy: LazyLayer | null;
  /** Sha256 in hex of an inode's content; only with `hashContents`. */
  readonly contentSha256: ((inode: number) => string) | null;
}

export interface LookedImage {
  readonly image: OpenedImage;
  /** Lowest first. */
  readonly layers: readonly LookedLayer[];
  readonly merged: MergedTree;
  /** Why layers were streamed although an index might have spared it; null when nothing is to be said. */
  readonly reason: string | null;
}

/** Layers that are read at once. */
const PARALLEL = 3;

/** Throws HS_LAYER_REFUSED where containerd refuses a layer, HS_PLATFORM, HS_REGISTRY_* and the like. */
export async function lookInto(reader: ImageReader, options: LookOptions = {}): Promise<LookedImage> {
  const loaded = await loadImage(reader, options.platform, options.signal);
  const image = await openImage(reader, loaded.manifestDescriptor, options.signal);
  // looking decides nothing: an index that somebody attached is good enough, and every unit is verified against it
  const choice = options.hashContents
    ? null
    : await chooseIndex(image, reader, { policy: "referrers", signal: options.signal });
  const limit = new Limit(PARALLEL);
  const trees: FileTree[] = [];
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
            return { tree: lazy.tree, lazy, contentSha256: null };
          } catch (error) {
            if (!isHeadstartError(error)) throw error;
            // a bad index: the layer itself is what counts
          }
        }
        options.onLayer?.(position, image.layers.length, "stream");
        const read = await readLayerTree(blob.stream(0, { signal: options.signal, callerVerifies: true }), {
          mediaType: identity.mediaType,
          role,
          digest: identity.digest,
          size: identity.size,
          diffID: identity.diffID,
          hashContents: options.hashContents,
        });
        return {
          tree: read.tree,
          lazy: null,
          contentSha256: options.hashContents ? (inode) => read.contentSha256(inode) : null,
        };
      }),
    ),
  );
  for (const layer of layers) trees.push(layer.tree);
  return { image, layers, merged: mergeTrees(trees), reason: choice?.reason ?? null };
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

/** The content of a regular file of the merged tree, in order. Throws HS_USAGE for what is no regular file. */
export async function* readContent(
  reader: ImageReader,
  looked: LookedImage,
  inode: number,
  signal?: AbortSignal,
): AsyncGenerator<Uint8Array> {
  const { tree } = looked.merged;
  if (tree.type[inode] !== FileType.regular) throw new HeadstartError("HS_USAGE", { what: "not a regular file" });
  const position = looked.merged.layer[inode]!;
  const own = looked.merged.inode[inode]!;
  const layer = looked.layers[position]!;
  const segments = segmentsOf(layer.tree, own);
  const size = layer.tree.size[own]!;
  const parts =
    layer.lazy !== null
      ? unitParts(reader, looked, position, layer.lazy, segments, signal)
      : streamParts(reader, looked, position, segments, signal);
  let written = 0;
  for await (const { fileOffset, bytes } of parts) {
    yield* zeros(fileOffset - written);
    yield bytes;
    written = fileOffset + bytes.byteLength;
  }
  yield* zeros(size - written);
}

interface Segment {
  readonly fileOffset: number;
  readonly length: number;
  readonly address: number;
}

interface Part {
  readonly fileOffset: number;
  readonly bytes: Uint8Array;
}

function segmentsOf(tree: FileTree, inode: number): Segment[] {
  const segments: Segment[] = [];
  for (let index = tree.segmentStart[inode]!; index < tree.segmentStart[inode + 1]!; index++) {
    segments.push({
      fileOffset: tree.segmentFileOffset[index]!,
      length: tree.segmentLength[index]!,
      address: tree.segmentAddress[index]!,
    });
  }
  return segments;
}

async function* unitParts(
  reader: ImageReader,
  looked: LookedImage,
  position: number,
  lazy: LazyLayer,
  segments: readonly Segment[],
  signal: AbortSignal | undefined,
): AsyncGenerator<Part> {
  const { units } = lazy;
  const blob = reader.openBlob(looked.image.loaded.layers[position]!);
  const decoder = decoderFor(lazy.decode, units);
  for (const segment of segments) {
    let address = segment.address;
    const end = segment.address + segment.length;
    while (address < end) {
      const piece = lastAtMost(units.pieceAddress, units.pieceCount, address);
      const unit = units.pieceUnit[piece];
      if (unit === undefined)
        throw new HeadstartError("HS_INDEX_INVALID", { what: `the index has no unit for address ${address}` });
      const stored = await blob.readRange(units.unitStart[unit]!, units.unitEnd[unit]!, { signal });
      if (units.unitDigest !== null) {
        const want = units.unitDigest.subarray(unit * 32, unit * 32 + 32);
        if (!timingSafeEqual(createHash("sha256").update(stored).digest(), Buffer.from(want))) {
          throw new HeadstartError("HS_UNIT_DIGEST", {
            what: `unit ${unit} of layer ${looked.image.layers[position]!.digest}`,
          });
        }
      }
      const decoded = decoder.decode(unit, stored);
      decoder.check(unit, decoded);
      const from = units.pieceOffset[piece]! + (address - units.pieceAddress[piece]!);
      const length = Math.min(end - address, units.pieceAddress[piece]! + units.pieceLength[piece]! - address);
      yield {
        fileOffset: segment.fileOffset + (address - segment.address),
        bytes: Buffer.from(decoded.subarray(from, from + length)),
      };
      address += length;
    }
  }
}

/** The whole layer passes by and is verified at its end; what was given out before stands under that reserve, so an error at the end is an error of the whole. */
async function* streamParts(
  reader: ImageReader,
  looked: LookedImage,
  position: number,
  segments: readonly Segment[],
  signal: AbortSignal | undefined,
): AsyncGenerator<Part> {
  const identity = looked.image.layers[position]!;
  const blob = reader.openBlob(looked.image.loaded.layers[position]!);
  const queue: Part[] = [];
  let wake = Promise.withResolvers<void>();
  const last = segments.at(-1);
  let error: unknown;
  let done = last === undefined;
  const reading = readLayerTree(
    throttled(blob.stream(0, { signal, callerVerifies: true }), () => queue.length < 64),
    {
      mediaType: identity.mediaType,
      role: position === 0 ? "lowest" : "upper",
      digest: identity.digest,
      size: identity.size,
      diffID: identity.diffID,
      onData(_entry, chunk, offset) {
        for (const segment of segments) {
          const from = Math.max(offset, segment.address);
          const to = Math.min(offset + chunk.byteLength, segment.address + segment.length);
          if (from < to)
            queue.push({
              fileOffset: segment.fileOffset + (from - segment.address),
              bytes: Buffer.from(chunk.subarray(from - offset, to - offset)),
            });
        }
        wake.resolve();
      },
    },
  ).then(
    () => {
      done = true;
      wake.resolve();
    },
    (cause: unknown) => {
      error = cause;
      done = true;
      wake.resolve();
    },
  );
  while (true) {
    const part = queue.shift();
    if (part !== undefined) yield part;
    else if (done) break;
    else {
      await wake.promise;
      wake = Promise.withResolvers<void>();
    }
  }
  await reading;
  if (error !== undefined) throw error;
}

/** Waits while the consumer is behind. */
async function* throttled(source: AsyncIterable<Uint8Array>, mayGoOn: () => boolean): AsyncGenerator<Uint8Array> {
  for await (const chunk of source) {
    while (!mayGoOn()) await new Promise((resolve) => setTimeout(resolve, 1));
    yield chunk;
  }
}

const ZERO_BLOCK = new Uint8Array(1024 * 1024);

function* zeros(length: number): Generator<Uint8Array> {
  for (let left = length; left > 0; left -= ZERO_BLOCK.byteLength)
    yield ZERO_BLOCK.subarray(0, Math.min(left, ZERO_BLOCK.byteLength));
}
