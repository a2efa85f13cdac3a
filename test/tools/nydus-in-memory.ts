/**
 * Layers as the Nydus builders return them, made in memory of any tree: chunks are stored as they are, a blob is nothing but its data. For tests of bootstraps, merges
 * and dictionaries; builders of real blobs have tests of their own.
 */

import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { gunzipSync } from "node:zlib";
import { crc32c } from "../../src/base/crc32c.ts";
import { ADDRESS_SPACE, type FileTree, FileTreeBuilder, FileType, inodeFieldsOf } from "../../src/erofs/file-tree.ts";
import { type TreeLine, treeLines } from "../../src/erofs/tree-lines.ts";
import type { LayerRole } from "../../src/formats/format.ts";
import { alignBlock, BlobFeature, CI_ENTRY_SIZE, Compressor } from "../../src/formats/nydus/ondisk.ts";
import type { ChunkDictionary } from "../../src/formats/nydus/write/dictionary.ts";
import type { BuiltLayer, ImageBlob, WrittenChunks } from "../../src/formats/nydus/write/model.ts";
import { readLayerTree } from "../../src/formats/tar/read-layer.ts";
import { fixtureDirectory, fixtureLayers } from "../suites/golden-soci.ts";
import { fillFromAddress } from "./random-tree.ts";

export interface LayerOptions {
  readonly chunkSize: number;
  readonly role?: LayerRole;
  /** Bytes of a regular file; left out: made from the addresses of its segments, zeros between them. */
  readonly content?: (inode: number) => Uint8Array;
  readonly dictionary?: ChunkDictionary;
}

export interface LayerInMemory {
  readonly layer: BuiltLayer;
  /** The blob's address space, a whole number of blocks. */
  readonly data: Buffer;
}

export function layerInMemory(tree: FileTree, options: LayerOptions): LayerInMemory {
  const chunker = new Chunker(options);
  const content = options.content ?? ((inode: number) => contentFromAddresses(tree, inode));
  const cut = rebuilt(tree, (inode) => chunker.add(content(inode)));
  const data = Buffer.concat(chunker.parts);
  const chunks = chunker.chunks();
  const id = createHash("sha256").update(data).digest("hex");
  const facts = {
    id,
    chunkCount: chunks.count,
    compressor: Compressor.none,
    digester: "sha256" as const,
    features: BlobFeature.aligned,
    compressedSize: data.byteLength,
    uncompressedSize: data.byteLength,
    tocSize: 0,
    tocDigest: "0".repeat(64),
    metaBlob: null,
    chunkInfo: {
      compressor: Compressor.none,
      offset: data.byteLength,
      compressedSize: chunks.count * CI_ENTRY_SIZE,
      size: chunks.count * CI_ENTRY_SIZE,
    },
  };
  const layer: BuiltLayer = {
    tree: cut,
    role: options.role ?? "lowest",
    chunkSize: options.chunkSize,
    digester: "sha256",
    blob: chunks.count === 0 ? null : { facts, chunks },
    dictionary: chunker.dictionaryBlobs,
  };
  return { layer, data };
}

type Segments = NonNullable<Parameters<FileTreeBuilder["addInode"]>[0]["segments"]>;

class Chunker {
  readonly parts: Uint8Array[] = [];
  readonly dictionaryBlobs: ImageBlob[] = [];
  readonly #options: LayerOptions;
  readonly #known = new Map<string, number>();
  readonly #digests: Uint8Array[] = [];
  readonly #sizes: number[] = [];
  readonly #offsets: number[] = [];
  readonly #crcs: number[] = [];
  #end = 0;

  constructor(options: LayerOptions) {
    this.#options = options;
  }

  add(bytes: Uint8Array): Segments {
    const segments: { fileOffset: number; length: number; address: number }[] = [];
    for (let at = 0; at < bytes.byteLength; at += this.#options.chunkSize) {
      const piece = bytes.subarray(at, at + this.#options.chunkSize);
      segments.push({ fileOffset: at, length: piece.byteLength, address: this.#place(piece) });
    }
    return segments;
  }

  #place(piece: Uint8Array): number {
    const digest = createHash("sha256").update(piece).digest();
    const found = this.#options.dictionary?.find(digest, piece.byteLength);
    if (found) {
      let index = this.dictionaryBlobs.indexOf(found.blob);
      if (index < 0) index = this.dictionaryBlobs.push(found.blob) - 1;
      return (index + 1) * ADDRESS_SPACE + found.blob.chunks.offset[found.element]!;
    }
    const key = digest.toString("hex");
    const known = this.#known.get(key);
    if (known !== undefined) return known;
    const offset = this.#end;
    this.#known.set(key, offset);
    this.#digests.push(digest);
    this.#sizes.push(piece.byteLength);
    this.#offsets.push(offset);
    this.#crcs.push(crc32c(piece));
    this.#end = alignBlock(offset + piece.byteLength);
    this.parts.push(piece, new Uint8Array(this.#end - offset - piece.byteLength));
    return offset;
  }

  chunks(): WrittenChunks {
    const count = this.#sizes.length;
    return {
      count,
      index: null,
      offset: Float64Array.from(this.#offsets),
      size: Uint32Array.from(this.#sizes),
      storedOffset: Float64Array.from(this.#offsets),
      storedSize: Uint32Array.from(this.#sizes),
      flags: new Uint8Array(count),
      context: new Uint32Array(count),
      contextOffset: new Uint32Array(count),
      batches: null,
      restarts: null,
      digest: Buffer.concat(this.#digests),
      crc32: Uint32Array.from(this.#crcs),
    };
  }
}

function rebuilt(tree: FileTree, segmentsOf: (inode: number) => Segments): FileTree {
  const builder = new FileTreeBuilder(inodeFieldsOf(tree, 0));
  const fields = (inode: number) => {
    const own = inodeFieldsOf(tree, inode);
    const flags = { implied: (tree.flags[inode]! & 1) !== 0, impliedFirst: (tree.flags[inode]! & 2) !== 0 };
    return { ...own, ...flags, ...(own.type === FileType.regular ? { segments: segmentsOf(inode) } : {}) };
  };
  // the same numbers
  for (let inode = 1; inode < tree.inodeCount; inode++) builder.addInode(fields(inode));
  for (let directory = 0; directory < tree.inodeCount; directory++) {
    for (let dirent = tree.childStart[directory]!; dirent < tree.childStart[directory + 1]!; dirent++) {
      const at = tree.childNameOffset[dirent]!;
      const name = tree.bytes.slice(at, at + tree.childNameLength[dirent]!);
      builder.addName(directory, name, tree.childInode[dirent]!);
    }
  }
  return builder.finish();
}

export function contentFromAddresses(tree: FileTree, inode: number): Uint8Array {
  const bytes = new Uint8Array(tree.size[inode]!);
  for (let segment = tree.segmentStart[inode]!; segment < tree.segmentStart[inode + 1]!; segment++) {
    const start = tree.segmentFileOffset[segment]!;
    const part = bytes.subarray(start, start + tree.segmentLength[segment]!);
    fillFromAddress(part, tree.segmentAddress[segment]!);
  }
  return bytes;
}

/** The listing of a tree whose data lie in these address spaces. */
export async function linesOf(tree: FileTree, spaces: readonly Uint8Array[]): Promise<TreeLine[]> {
  const sha256 = (inode: number) => {
    const hash = createHash("sha256");
    for (let segment = tree.segmentStart[inode]!; segment < tree.segmentStart[inode + 1]!; segment++) {
      const address = tree.segmentAddress[segment]!;
      const space = Math.floor(address / ADDRESS_SPACE);
      const offset = address - space * ADDRESS_SPACE;
      hash.update(spaces[space]!.subarray(offset, offset + tree.segmentLength[segment]!));
    }
    return hash.digest("hex");
  };
  const lines: TreeLine[] = [];
  for await (const line of treeLines(tree, { sha256 })) lines.push(line);
  return lines;
}

/** The listing of a tree whose data are made from addresses. */
export async function linesFromAddresses(tree: FileTree): Promise<TreeLine[]> {
  const sha256 = (inode: number) => createHash("sha256").update(contentFromAddresses(tree, inode)).digest("hex");
  const lines: TreeLine[] = [];
  for await (const line of treeLines(tree, { sha256 })) lines.push(line);
  return lines;
}

/** The fixture's layers, lowest first, in chunks of 64 KiB. */
export async function fixtureInMemory(): Promise<LayerInMemory[]> {
  const found: LayerInMemory[] = [];
  for (const [index, { bytes, digest, mediaType }] of fixtureLayers("gogz").entries()) {
    const role = index === 0 ? "lowest" : "upper";
    const { tree } = await readLayerTree(
      (async function* () {
        yield bytes;
      })(),
      { digest, mediaType, role },
    );
    const tar = gunzipSync(bytes);
    const content = (inode: number) => {
      const whole = Buffer.alloc(tree.size[inode]!);
      for (let segment = tree.segmentStart[inode]!; segment < tree.segmentStart[inode + 1]!; segment++) {
        const at = tree.segmentAddress[segment]!;
        tar.copy(whole, tree.segmentFileOffset[segment]!, at, at + tree.segmentLength[segment]!);
      }
      return whole;
    };
    found.push(layerInMemory(tree, { chunkSize: 65_536, role, content }));
  }
  return found;
}

/** What overlayfs showed of the fixture's layers. */
export function fixtureMergedTree(): TreeLine[] {
  const lines = readFileSync(join(fixtureDirectory, "../tree/merged.jsonl"), "utf8").trim().split("\n");
  return lines.map((line) => JSON.parse(line) as TreeLine);
}
