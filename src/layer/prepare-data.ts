/**
 * Files of images over several blobs, made and read back in a thread:
 *
 *   data file   image (the decoded address space, sparse)  index (data-table.ts)  digests (known-digests.ts)  units (unit-log.ts, by piece)
 *   image       image (EROFS metadata)  tree (tree-file.ts)  uses (which pieces of each data file it needs, and which it wants first)
 *
 * What an image refers to must outlive a power loss as long as its row does, so all of this is synced when it is made, but for the data themselves.
 */

import { closeSync, constants, fsyncSync, ftruncateSync, openSync } from "node:fs";
import { mkdir, rm } from "node:fs/promises";
import { dirname, join } from "node:path";
import { Bitmap } from "../base/bitmap.ts";
import type { Digest } from "../base/digest.ts";
import { HeadstartError } from "../base/errors.ts";
import { fsyncDirectory, writeFully } from "../base/files.ts";
import { alignUp } from "../base/ranges.ts";
import { checkErofs } from "../erofs/check.ts";
import type { ErofsDevice } from "../erofs/chunks.ts";
import { ADDRESS_SPACE } from "../erofs/file-tree.ts";
import { IMAGE_BYTES_MAX } from "../erofs/place-files.ts";
import { BLOCK_SIZE, makePlacement, type Placement } from "../erofs/placement.ts";
import { openErofs } from "../erofs/read.ts";
import { layoutSource } from "../erofs/source.ts";
import { layoutDevices } from "../erofs/write.ts";
import type { BoundDigests, DataTable, MergedImage } from "../formats/format.ts";
import { dataTableDigest, readDataTable, writeDataTable } from "./data-table.ts";
import { type KnownDigests, noDigests, readKnownDigests, withDigests, writeKnownDigests } from "./known-digests.ts";
import { readSections, type SectionFormat, writeSections } from "./section-file.ts";
import { writeTree } from "./tree-file.ts";
import { checkUnits, groupPieces, type UnitPieces, visitPieces } from "./unit-index.ts";

export interface PreparedData {
  /** With the digests that are known in it. */
  readonly table: DataTable;
  /** Bitmap of the pieces that are known. */
  readonly known: SharedArrayBuffer;
  readonly pieces: UnitPieces;
  readonly placement: Placement;
  /** Bytes of the data file. */
  readonly size: number;
}

export interface MakeDataRequest {
  readonly directory: string;
  readonly table: DataTable;
  readonly bound: BoundDigests;
}

export interface OpenDataRequest {
  readonly directory: string;
  readonly indexDigest: Digest;
  /** A new file of holes; nothing has the old one mounted. */
  readonly rebuild: boolean;
}

export interface MakeImageRequest {
  readonly directory: string;
  readonly merged: MergedImage;
  /** By address space. */
  readonly devices: readonly (ErofsDevice | null)[];
  readonly uuid: Uint8Array;
}

/** What is known of a file that was prepared. */
export function knownOf({ table, known }: PreparedData): KnownDigests {
  const { pieceDigestAlgorithm, pieceDigest, pieceCount } = table.units;
  return { algorithm: pieceDigestAlgorithm!, digests: pieceDigest!, known: new Bitmap(pieceCount, known) };
}

/** Replaces the directory. Throws HS_INDEX_INVALID, HS_LIMIT, HS_EROFS_LIMIT, and what the disk says. */
export async function makeData(request: MakeDataRequest): Promise<PreparedData> {
  const { directory, table, bound } = request;
  const known = withDigests(noDigests(table.units.pieceCount, bound.algorithm), bound);
  const prepared = prepare(table, known);
  await rm(directory, { recursive: true, force: true });
  await mkdir(directory, { mode: 0o700 });
  await writeDataTable(join(directory, "index"), table);
  await writeKnownDigests(join(directory, "digests"), known);
  makeHoles(directory, prepared.size);
  fsyncDirectory(dirname(directory));
  return prepared;
}

/** Throws HS_DIGEST_MISMATCH, HS_MALFORMED, HS_TRUNCATED, HS_INDEX_INVALID, ENOENT. */
export async function openData(request: OpenDataRequest): Promise<PreparedData> {
  const { directory, indexDigest, rebuild } = request;
  const table = await readDataTable(join(directory, "index"), indexDigest);
  const known = await readKnownDigests(join(directory, "digests"), table.units.pieceCount);
  const prepared = prepare(table, known);
  if (rebuild) makeHoles(directory, prepared.size);
  return prepared;
}

export function dataKeys(tables: readonly DataTable[]): Digest[] {
  return tables.map(dataTableDigest);
}

/** Replaces the directory. Throws HS_INDEX_INVALID when the tree has data that no bound piece holds, HS_EROFS_LIMIT. */
export async function makeImage(request: MakeImageRequest): Promise<{ imageSize: number; inodeCount: number }> {
  const { directory, merged, devices, uuid } = request;
  const layout = layoutDevices(merged.tree, devices, { uuid });
  // the kernel checks little: our reader is the only check of our writer
  checkErofs(openErofs(layoutSource(layout)));
  const uses = usesOf(merged);
  checkBound(merged, uses);
  await rm(directory, { recursive: true, force: true });
  await mkdir(directory, { mode: 0o700 });
  await writeUses(join(directory, "uses"), { pieces: uses, prefetch: merged.prefetch });
  await writeTree(join(directory, "tree"), merged.tree);
  const image = openSync(join(directory, "image"), constants.O_RDWR | constants.O_CREAT | constants.O_TRUNC, 0o400);
  const tree = openSync(join(directory, "tree"), constants.O_RDONLY);
  try {
    ftruncateSync(image, layout.size);
    for (const part of layout.parts) writeFully(image, part.bytes, part.offset);
    fsyncSync(image);
    fsyncSync(tree);
  } finally {
    closeSync(tree);
    closeSync(image);
  }
  fsyncDirectory(directory);
  fsyncDirectory(dirname(directory));
  return { imageSize: layout.size, inodeCount: merged.tree.inodeCount };
}

export interface ImageUses {
  /** By address space: one bit for each piece that the image needs; null where it needs none. */
  readonly pieces: readonly (Bitmap | null)[];
  readonly prefetch: MergedImage["prefetch"];
}

const USES: SectionFormat = { magic: "HSUSES\0\0", version: 1, sectionCount: 3 };

/** Sections: u32 pieces by address space (0: none), the bitmaps one behind the other, pairs of u32 (space, piece) of what is wanted first. */
async function writeUses(path: string, uses: ImageUses): Promise<void> {
  const counts = Uint32Array.from(uses.pieces, (each) => each?.length ?? 0);
  const bits = Buffer.concat(uses.pieces.flatMap((each) => (each === null ? [] : [each.bytes])));
  const bytes = (array: Uint32Array) => new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
  await writeSections(path, USES, [bytes(counts), bits, bytes(uses.prefetch)], { durable: true });
}

/** Throws as readSections, and HS_MALFORMED. */
export async function readUses(path: string): Promise<ImageUses> {
  const [counts, bits, first] = (await readSections(path, USES)) as [Uint8Array, Uint8Array, Uint8Array];
  const malformed = () => new HeadstartError("HS_MALFORMED", { what: `${path}: its sections do not fit` });
  const numbers = (bytes: Uint8Array) => {
    if (bytes.byteLength % 4 !== 0) throw malformed();
    return new Uint32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 4);
  };
  let at = 0;
  const pieces = Array.from(numbers(counts), (count) => {
    if (count === 0) return null;
    const size = Math.max(1, Math.ceil(count / 8));
    if (at + size > bits.byteLength) throw malformed();
    const bitmap = new Bitmap(count);
    bitmap.bytes.set(bits.subarray(at, at + size));
    at += size;
    return bitmap;
  });
  const prefetch = numbers(first);
  if (prefetch.length % 2 !== 0) throw malformed();
  for (let index = 0; index < prefetch.length; index += 2)
    if (!(prefetch[index + 1]! < (pieces[prefetch[index]!]?.length ?? 0))) throw malformed();
  return { pieces, prefetch };
}

function prepare(table: DataTable, known: KnownDigests): PreparedData {
  const { units } = table;
  const verified = { ...units, pieceDigest: known.digests, pieceDigestAlgorithm: known.algorithm };
  const placement = makePlacement({
    address: units.pieceAddress,
    length: units.pieceLength,
    fileOffset: units.pieceAddress,
  });
  checkUnits(verified, placement, 0);
  for (let piece = 0; piece < units.pieceCount; piece++) {
    if (!(units.pieceAddress[piece]! % BLOCK_SIZE === 0 && units.pieceLength[piece]! > 0))
      throw new HeadstartError("HS_INDEX_INVALID", { what: `unit table: piece ${piece} does not begin on a block` });
  }
  const last = units.pieceCount - 1;
  const size = last < 0 ? 0 : alignUp(units.pieceAddress[last]! + units.pieceLength[last]!, BLOCK_SIZE);
  if (!(size > 0 && size <= IMAGE_BYTES_MAX))
    throw new HeadstartError("HS_EROFS_LIMIT", { what: `a data file of ${size} bytes` });
  return {
    table: { ...table, units: verified },
    known: known.known.buffer,
    pieces: groupPieces(units),
    placement,
    size,
  };
}

function makeHoles(directory: string, size: number): void {
  const file = openSync(join(directory, "image"), constants.O_RDWR | constants.O_CREAT | constants.O_TRUNC, 0o600);
  try {
    ftruncateSync(file, size);
  } finally {
    closeSync(file);
  }
}

function usesOf(merged: MergedImage): (Bitmap | null)[] {
  return merged.blobs.map((blob) => {
    if (blob === null) return null;
    const bitmap = new Bitmap(blob.table.units.pieceCount);
    for (const piece of blob.bound.pieces) bitmap.set(piece);
    return bitmap;
  });
}

/** Every byte of a file lies in a piece that the image binds: what is mounted can be filled. */
function checkBound(merged: MergedImage, uses: readonly (Bitmap | null)[]): void {
  const { tree } = merged;
  for (let segment = 0; segment < tree.segmentAddress.length; segment++) {
    const space = Math.floor(tree.segmentAddress[segment]! / ADDRESS_SPACE);
    let next = tree.segmentAddress[segment]! - space * ADDRESS_SPACE;
    const end = next + tree.segmentLength[segment]!;
    const units = merged.blobs[space]?.table.units;
    if (units !== undefined) {
      visitPieces(units, next, end, (piece, from, to) => {
        if (from === next && uses[space]!.has(piece)) next = to;
      });
    }
    if (next !== end)
      throw new HeadstartError("HS_INDEX_INVALID", {
        what: `no bound chunk holds byte ${next} of address space ${space}`,
      });
  }
}
