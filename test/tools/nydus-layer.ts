/** Layers converted for tests, and read back by the strict reader: trees, contents, tars. */

import { createHash } from "node:crypto";

import { sha256 } from "../../src/base/digest.ts";
import { type FileTree, FileType } from "../../src/erofs/file-tree.ts";
import { bytesSource } from "../../src/erofs/source.ts";
import { decoderFor } from "../../src/formats/all.ts";
import type { LayerRole } from "../../src/formats/format.ts";
import { type BlobTail, readBlobTail } from "../../src/formats/nydus/blob-tail.ts";
import { readBootstrap } from "../../src/formats/nydus/bootstrap.ts";
import { type ChunkInfo, chunkInfoFromBlob } from "../../src/formats/nydus/chunk-info.ts";
import { CI_HEADER_SIZE } from "../../src/formats/nydus/ondisk.ts";
import { openNydus } from "../../src/formats/nydus/open.ts";
import { TAR_SPLIT_NAME } from "../../src/formats/nydus/tar-split.ts";
import { writeBootstrap } from "../../src/formats/nydus/write/bootstrap.ts";
import type { ChunkDictionary } from "../../src/formats/nydus/write/dictionary.ts";
import { mergeLayers } from "../../src/formats/nydus/write/merge.ts";
import type { BuiltLayer } from "../../src/formats/nydus/write/model.ts";
import { buildNativeLayer, type NydusLayer } from "../../src/formats/nydus/write/native.ts";
import { NYDUS_DEFAULTS, type NydusOptions } from "../../src/formats/nydus/write/options.ts";
import { buildRefLayer } from "../../src/formats/nydus/write/ref.ts";
import { unpackTar } from "../../src/formats/nydus/write/reverse.ts";
import { StoredChunks } from "../../src/formats/nydus/write/stored-chunks.ts";
import { pieceHash, verifyPiece } from "../../src/formats/piece-hash.ts";
import { readLayerTree } from "../../src/formats/tar/read-layer.ts";

export const LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar+gzip";

export interface Converted extends NydusLayer {
  /** The stored blob. */
  readonly bytes: Buffer;
  readonly tail: BlobTail;
}

export async function* inPieces(bytes: Uint8Array, size = 100_000): AsyncGenerator<Uint8Array> {
  for (let at = 0; at < bytes.byteLength; at += size) yield bytes.subarray(at, at + size);
}

/** `stored`: the blob of the source layer. */
export async function convertNative(
  stored: Uint8Array,
  options: Partial<NydusOptions> = {},
  more: { role?: LayerRole; dictionary?: ChunkDictionary | null; pieces?: number } = {},
): Promise<Converted> {
  const parts: Uint8Array[] = [];
  const built = await buildNativeLayer({
    bytes: inPieces(stored, more.pieces),
    layer: { digest: sha256(stored), size: stored.byteLength, mediaType: LAYER_TYPE },
    role: more.role ?? "lowest",
    options: { ...NYDUS_DEFAULTS, ...options },
    dictionary: more.dictionary ?? null,
    sink: (bytes) => void parts.push(Uint8Array.from(bytes)),
  });
  const bytes = Buffer.concat(parts);
  return { ...built, bytes, tail: readBlobTail(bytesSource(bytes)) };
}

/** The chunk array that a blob stores, as the strict reader has it. */
export function storedArray(layer: BuiltLayer, meta: Uint8Array): ChunkInfo | null {
  if (layer.blob === null) return null;
  const { facts } = layer.blob;
  const [blob] = readBootstrap(writeBootstrap(mergeLayers([layer]))).blobs.filter(({ id }) => id === facts.id);
  if (blob === undefined) return null;
  const { offset, compressedSize } = facts.chunkInfo;
  return chunkInfoFromBlob(blob, meta.subarray(offset, offset + compressedSize + CI_HEADER_SIZE));
}

/** sha256 of every file's content by inode, through the strict reader and the decoders, each chunk verified. `data`: the stored bytes that hold the chunks, by blob id. */
export async function contentsOf(
  layer: BuiltLayer,
  stored: ReadonlyMap<string, { readonly data: Uint8Array; readonly meta: Uint8Array }>,
): Promise<{ readonly tree: FileTree; readonly sha256: ReadonlyMap<number, string> }> {
  const bootstrap = readBootstrap(writeBootstrap(mergeLayers([{ ...layer, role: "lowest" }])));
  const blobs = bootstrap.blobs.map(({ id }) => stored.get(id)!);
  const infos = bootstrap.blobs.map((blob, index) => {
    const { offset, compressedSize } = blob.chunkInfo!;
    return chunkInfoFromBlob(blob, blobs[index]!.meta.subarray(offset, offset + compressedSize + CI_HEADER_SIZE));
  });
  const sizes = blobs.map(({ data }) => data.byteLength);
  const { tree, units, decode } = openNydus(bootstrap, infos, sizes, "test");
  const decoder = decoderFor(decode, units);
  const digest = await pieceHash(units.pieceDigestAlgorithm!);
  const decoded = new Map<number, Uint8Array>();
  const pieces = new Map<number, Uint8Array>();
  for (let piece = 0; piece < units.pieceCount; piece++) {
    const unit = units.pieceUnit[piece]!;
    if (!decoded.has(unit)) {
      const { data } = blobs[units.unitBlob[unit]!]!;
      const range = data.subarray(units.unitStart[unit]!, units.unitEnd[unit]!);
      decoded.set(unit, Uint8Array.from(decoder.decode(unit, range)));
    }
    const start = units.pieceOffset[piece]!;
    const bytes = decoded.get(unit)!.subarray(start, start + units.pieceLength[piece]!);
    verifyPiece(units, piece, bytes, digest, "test");
    pieces.set(units.pieceAddress[piece]!, bytes);
  }
  const found = new Map<number, string>();
  for (let inode = 0; inode < tree.inodeCount; inode++) {
    if (tree.type[inode] !== FileType.regular) continue;
    const hash = createHash("sha256");
    for (let segment = tree.segmentStart[inode]!; segment < tree.segmentStart[inode + 1]!; segment++)
      hash.update(pieces.get(tree.segmentAddress[segment]!)!);
    found.set(inode, hash.digest("hex"));
  }
  return { tree, sha256: found };
}

/** sha256 of every file's content of a source layer, sorted: inodes of a layer's tree and of the image that is made of it stand in different order. */
export async function sourceContents(stored: Uint8Array): Promise<string[]> {
  const source = await readLayerTree(inPieces(stored), { mediaType: LAYER_TYPE, role: "lowest", hashContents: true });
  const found: string[] = [];
  for (let inode = 0; inode < source.tree.inodeCount; inode++)
    if (source.tree.type[inode] === FileType.regular) found.push(source.contentSha256(inode));
  return found.sort();
}

/** The tar that the blob gives back. `others`: converted layers that its chunks may lie in. */
export async function tarOf(converted: Converted, others: readonly Converted[] = []): Promise<Buffer> {
  const part = converted.tail.toc!.find(({ name }) => name === TAR_SPLIT_NAME)!;
  const sources = new Map<string | null, StoredChunks>();
  for (const one of [converted, ...others]) {
    const { blob } = one.layer;
    if (blob === null) continue;
    const chunks = new StoredChunks({
      blob: { ...blob.facts, dataSize: one.tail.parts.find(({ name }) => name === "image.blob")!.size },
      info: blob.chunks,
      digests: blob.chunks.digest,
      digest: await pieceHash(blob.facts.digester),
      read: (start, end) => Promise.resolve(one.bytes.subarray(start, end)),
    });
    sources.set(one === converted ? null : blob.facts.id, chunks);
  }
  const pieces: Uint8Array[] = [];
  const stored = converted.bytes.subarray(part.storedOffset, part.storedOffset + part.storedSize);
  const tar = unpackTar(inPieces(stored, 5000), { read: (blob, chunk) => sources.get(blob)!.read(chunk) }, "test");
  for await (const bytes of tar) pieces.push(Uint8Array.from(bytes));
  return Buffer.concat(pieces);
}

/** `stored`: the blob of the source layer, which the ref is to. */
export async function convertRef(
  stored: Uint8Array,
  options: { readonly chunkSize?: number; readonly role?: LayerRole; readonly pieces?: number } = {},
): Promise<Converted> {
  const parts: Uint8Array[] = [];
  const built = await buildRefLayer({
    bytes: inPieces(stored, options.pieces),
    layer: { digest: sha256(stored), size: stored.byteLength, mediaType: LAYER_TYPE },
    role: options.role ?? "lowest",
    options: { chunkSize: options.chunkSize ?? NYDUS_DEFAULTS.chunkSize },
    sink: (bytes) => void parts.push(Uint8Array.from(bytes)),
  });
  const bytes = Buffer.concat(parts);
  return { ...built, bytes, tail: readBlobTail(bytesSource(bytes)) };
}
