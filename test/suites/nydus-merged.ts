/** Golden Nydus images as they are mounted, a fetcher of their blobs, and images with parts of them. */

import { createHash } from "node:crypto";
import { readSync } from "node:fs";
import { type Digest, digestHex, sha256 } from "../../src/base/digest.ts";
import { ADDRESS_SPACE, childName, type FileTree, FileTreeBuilder, FileType } from "../../src/erofs/file-tree.ts";
import type { BoundBlob, DataTable, MergedImage } from "../../src/formats/format.ts";
import { readBootstrap } from "../../src/formats/nydus/bootstrap.ts";
import { mergedNydus } from "../../src/formats/nydus/merged.ts";
import type { StoredRange, UnitFetcher } from "../../src/layer/interfaces.ts";
import type { LayerImage } from "../../src/layer/layer-image.ts";
import type { LayerKey } from "../../src/layer/rows.ts";
import { chunkInfos, nydusBlob, nydusBootstrap } from "./golden-nydus.ts";

export function mergedGolden(variant: string): MergedImage {
  const bootstrap = readBootstrap(nydusBootstrap(variant));
  const sizes = bootstrap.blobs.map((blob) => nydusBlob(blob.id)!.byteLength);
  return mergedNydus(bootstrap, chunkInfos(bootstrap), sizes, variant);
}

/** Each name is another image. */
export function imageKey(name: string): LayerKey {
  const digest = sha256(Buffer.from(name));
  const identity = { digest, size: 1, mediaType: "application/vnd.oci.image.layer.v1.tar+gzip", diffID: digest };
  return { kind: "image", identity, role: "lowest", format: "nydus", indexDigest: digest };
}

export class GoldenFetcher implements UnitFetcher {
  readonly calls: (StoredRange & { readonly attempt: number })[] = [];
  readonly #blobs = new Map<Digest, Buffer>();
  /** What to do with a call; the bytes are a copy that may be changed. */
  onFetch: (call: StoredRange, bytes: Uint8Array) => void | Promise<void> = () => {};

  async fetch(
    range: StoredRange,
    options: { attempt?: number; signal?: AbortSignal },
  ): Promise<Uint8Array<ArrayBuffer>> {
    this.calls.push({ ...range, attempt: options.attempt ?? 0 });
    const blob = this.#blobs.get(range.blob) ?? nydusBlob(digestHex(range.blob)) ?? MANY_CONTENT;
    this.#blobs.set(range.blob, blob);
    const bytes = new Uint8Array(blob.subarray(range.start, range.end));
    await this.onFetch(range, bytes);
    options.signal?.throwIfAborted();
    return bytes;
  }

  promote(): void {}
}

/** Paths (latin1) and inodes of all regular files with data. */
export function filesOf(tree: FileTree): { path: string; inode: number }[] {
  const found: { path: string; inode: number }[] = [];
  const stack = [{ path: "", inode: 0 }];
  for (let top = stack.pop(); top !== undefined; top = stack.pop()) {
    for (let child = tree.childStart[top.inode]!; child < tree.childStart[top.inode + 1]!; child++) {
      const inode = tree.childInode[child]!;
      const path = `${top.path}/${Buffer.from(childName(tree, child)).toString("latin1")}`;
      if (tree.type[inode] === FileType.directory) stack.push({ path, inode });
      else if (tree.type[inode] === FileType.regular && tree.size[inode]! > 0) found.push({ path, inode });
    }
  }
  return found.sort((a, b) => (a.path < b.path ? -1 : 1));
}

/** Another image over the same blobs with these files alone, named f0, f1 ... */
export function partOf(merged: MergedImage, inodes: readonly number[]): MergedImage {
  const { tree } = merged;
  const root = { mode: 0o755, uid: 0, gid: 0, mtimeSeconds: 0, mtimeNanoseconds: 0 };
  const builder = new FileTreeBuilder(root);
  const used = merged.blobs.map(() => new Set<number>());
  inodes.forEach((inode, index) => {
    const segments: { fileOffset: number; length: number; address: number }[] = [];
    for (let segment = tree.segmentStart[inode]!; segment < tree.segmentStart[inode + 1]!; segment++) {
      const address = tree.segmentAddress[segment]!;
      const length = tree.segmentLength[segment]!;
      segments.push({ fileOffset: tree.segmentFileOffset[segment]!, length, address });
      const space = Math.floor(address / ADDRESS_SPACE);
      used[space]!.add(merged.blobs[space]!.table.units.pieceAddress.indexOf(address - space * ADDRESS_SPACE));
    }
    const fields = { ...root, mode: 0o644, type: FileType.regular, size: tree.size[inode]!, segments };
    builder.addName(0, Buffer.from(`f${index}`), builder.addInode(fields));
  });
  const blobs = merged.blobs.map((blob, space) => (blob === null ? null : withPieces(blob, used[space]!)));
  return { tree: builder.finish(), blobs, prefetch: new Uint32Array(0) };
}

function withPieces(blob: BoundBlob, pieces: ReadonlySet<number>): BoundBlob | null {
  const { bound } = blob;
  const kept = [...bound.pieces.keys()].filter((index) => pieces.has(bound.pieces[index]!));
  if (kept.length === 0) return null;
  const digests = Buffer.concat(kept.map((index) => bound.digests.subarray(index * 32, index * 32 + 32)));
  return {
    ...blob,
    bound: {
      ...bound,
      pieces: Uint32Array.from(kept, (index) => bound.pieces[index]!),
      digests: new Uint8Array(digests),
    },
  };
}

/** The same with another digest for one piece of one blob. */
export function lyingAbout(merged: MergedImage, space: number, piece: number): MergedImage {
  const blobs = merged.blobs.map((blob, index) => {
    if (blob === null || index !== space) return blob;
    const digests = blob.bound.digests.slice();
    digests[blob.bound.pieces.indexOf(piece) * 32]! ^= 1;
    return { ...blob, bound: { ...blob.bound, digests } };
  });
  return { ...merged, blobs };
}

/** What a mount would show of a file: its segments from the data files, filled. */
export async function contentOf(image: LayerImage, merged: MergedImage, inode: number): Promise<Buffer> {
  const { tree } = merged;
  const content = Buffer.alloc(tree.size[inode]!);
  const devices = image.devices.map(({ layer }) => layer);
  const deviceOf = merged.blobs.map((blob) => (blob === null ? null : devices.shift()!));
  for (let segment = tree.segmentStart[inode]!; segment < tree.segmentStart[inode + 1]!; segment++) {
    const address = tree.segmentAddress[segment]!;
    const space = Math.floor(address / ADDRESS_SPACE);
    const start = address - space * ADDRESS_SPACE;
    const length = tree.segmentLength[segment]!;
    const device = deviceOf[space]!;
    await device.ensure({ start, end: start + length });
    readSync(device.fd, content, tree.segmentFileOffset[segment]!, length, start);
  }
  return content;
}

export function hexOf(content: Uint8Array): string {
  return createHash("sha256").update(content).digest("hex");
}

/** Blobs of one chunk each, stored as they are, and a file over each; what their fetcher gives is `MANY_CONTENT`. */
export const MANY_CONTENT = Buffer.from("the same in every blob\n");

export function manyBlobs(count: number): MergedImage {
  const root = { mode: 0o755, uid: 0, gid: 0, mtimeSeconds: 0, mtimeNanoseconds: 0 };
  const builder = new FileTreeBuilder(root);
  const f64 = (value: number) => new Float64Array(new SharedArrayBuffer(8)).fill(value);
  const u32 = (value: number) => new Uint32Array(new SharedArrayBuffer(4)).fill(value);
  const u8 = () => new Uint8Array(new SharedArrayBuffer(1));
  const length = MANY_CONTENT.byteLength;
  const blobs = Array.from({ length: count }, (_, space): BoundBlob => {
    const segments = [{ fileOffset: 0, length, address: space * ADDRESS_SPACE }];
    const file = builder.addInode({ ...root, mode: 0o644, type: FileType.regular, size: length, segments });
    builder.addName(0, Buffer.from(`f${space}`), file);
    const blob = { digest: sha256(Buffer.from(`blob ${space}`)), size: length };
    const units: DataTable["units"] = {
      blobs: [blob],
      unitCount: 1,
      unitBlob: new Uint16Array(new SharedArrayBuffer(2)),
      unitStart: f64(0),
      unitEnd: f64(length),
      unitDecodedLength: f64(length),
      unitDigest: null,
      pieceCount: 1,
      pieceAddress: f64(0),
      pieceLength: f64(length),
      pieceUnit: u32(0),
      pieceOffset: f64(0),
      pieceDigest: null,
      pieceDigestAlgorithm: null,
    };
    const decode = {
      codec: "nydus-chunks",
      unitCodec: u8(),
      unitBits: u8(),
      dictionaryStart: f64(0),
      dictionarySize: u32(0),
      dictionaries: new Uint8Array(new SharedArrayBuffer(0)),
      ciphers: [null],
    };
    const digests = createHash("sha256").update(MANY_CONTENT).digest();
    const bound = { algorithm: "sha256", pieces: Uint32Array.of(0), digests: new Uint8Array(digests) } as const;
    return { blob, table: { units, decode }, bound };
  });
  return { tree: builder.finish(), blobs, prefetch: new Uint32Array(0) };
}
