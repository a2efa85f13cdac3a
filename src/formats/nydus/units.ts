/**
 * Units of a Nydus image: what can be fetched and decoded alone is a chunk, a batch of small chunks, or a zran context; pieces are the chunks that the tree
 * uses, each with the digest that the bootstrap has for it. Address space b is blob b. Chunks that no file uses have no digest and get no piece.
 */

import type { Digest } from "../../base/digest.ts";
import { HeadstartError } from "../../base/errors.ts";
import { lastAtMost } from "../../base/ranges.ts";
import { ADDRESS_SPACE } from "../../erofs/file-tree.ts";
import type { UnitTable } from "../format.ts";
import type { NydusBlob } from "./blob-table.ts";
import type { NydusBootstrap } from "./bootstrap.ts";
import type { ChunkInfo } from "./chunk-info.ts";
import type { NydusDecodeTable } from "./decode.ts";
import { ChunkFlag, Compressor, type DigestAlgorithm, nydusInvalid, RECORD_COMPRESSED } from "./ondisk.ts";

export interface NydusUnits {
  readonly units: UnitTable;
  readonly decode: NydusDecodeTable;
}

/** What one unit is, before the flat arrays. */
export interface Unit {
  readonly blob: number;
  readonly start: number;
  readonly end: number;
  readonly decodedLength: number;
  readonly codec: number;
  /** Of a zran context; -1 otherwise. */
  readonly restart: number;
}

interface Piece {
  /** Index into the bootstrap's uses. */
  readonly use: number;
  readonly unit: number;
  readonly offset: number;
}

/** Codec of a unit: Compressor, but `gzip` means a zran context. */
export const ZRAN_CODEC = Compressor.gzip;

/**
 * `infos` are the chunk arrays by blob: null in v5, undefined for a blob that is not wanted (its chunks get no piece). `sizes` the lengths of the stored blobs (of a ref: of the original layers). Throws HS_NYDUS_INVALID when
 * an array does not say what the bootstrap says, HS_FORMAT_UNSUPPORTED for images without chunk digests.
 */
export function nydusUnits(
  bootstrap: NydusBootstrap,
  infos: readonly (ChunkInfo | null | undefined)[],
  sizes: readonly number[],
  what: string,
): NydusUnits {
  const { uses, records, blobs } = bootstrap;
  const units: Unit[] = [];
  const pieces: Piece[] = [];
  const algorithm = digestAlgorithm(bootstrap, what);
  const batchUnits = blobs.map(() => new Map<number, number>());
  for (let use = 0; use < uses.count; use++) {
    const blob = blobs[Math.floor(uses.address[use]! / ADDRESS_SPACE)]!;
    const info = infos[blob.index];
    if (info === undefined) continue;
    if (info === null && blob.chunkInfo !== null)
      throw new HeadstartError("HS_INTERNAL", { what: `${what}: no chunk array of blob ${blob.id}` });
    const record = uses.record[use]!;
    if (record < 0)
      throw new HeadstartError("HS_FORMAT_UNSUPPORTED", {
        what: `${what}: no digest in the bootstrap for chunk ${uses.chunk[use]} of blob ${blob.id}: it cannot be verified`,
      });
    if (info === null) {
      pieces.push({ use, unit: units.push(recordUnit(bootstrap, blob, record, what)) - 1, offset: 0 });
      continue;
    }
    const chunk = uses.chunk[use]!;
    checkAgainst(bootstrap, info, use, what);
    if (!isInContext(info, chunk)) {
      pieces.push({ use, unit: units.push(chunkUnit(blob, info, chunk)) - 1, offset: 0 });
      continue;
    }
    const context = info.context[chunk]!;
    let unit = batchUnits[blob.index]!.get(context);
    if (unit === undefined) {
      unit = units.push(contextUnit(blob, info, chunk, context)) - 1;
      batchUnits[blob.index]!.set(context, unit);
    }
    pieces.push({ use, unit, offset: info.contextOffset[chunk]! });
  }
  for (const unit of units) checkInside(unit, blobs[unit.blob]!, sizes[unit.blob]!, what);
  return {
    units: {
      blobs: blobs.map((blob, index) => ({ digest: `sha256:${blob.id}` as Digest, size: sizes[index]! })),
      ...flatten(units),
      pieceCount: pieces.length,
      pieceAddress: f64(pieces.length, (piece) => uses.address[pieces[piece]!.use]!),
      pieceLength: f64(pieces.length, (piece) => uses.length[pieces[piece]!.use]!),
      pieceUnit: u32(pieces.length, (piece) => pieces[piece]!.unit),
      pieceOffset: f64(pieces.length, (piece) => pieces[piece]!.offset),
      unitDigest: null,
      pieceDigest: digests(pieces.length, (piece) => {
        const record = uses.record[pieces[piece]!.use]!;
        return records.digest.subarray(record * 32, record * 32 + 32);
      }),
      pieceDigestAlgorithm: algorithm,
    },
    decode: decodeTable(blobs, units, infos),
  };
}

/** Units that hold what the author wants first, in that order. */
export function prefetchUnits(bootstrap: NydusBootstrap, units: UnitTable): number[] {
  const found = new Set<number>();
  for (const address of prefetchAddresses(bootstrap)) {
    const piece = lastAtMost(units.pieceAddress, units.pieceCount, address);
    // none in a blob that is not wanted
    if (piece >= 0 && units.pieceAddress[piece] === address) found.add(units.pieceUnit[piece]!);
  }
  return [...found];
}

/** Where the chunks lie that the author wants first, in that order; a directory means all that is in it. */
export function* prefetchAddresses(bootstrap: NydusBootstrap): Generator<number> {
  const { tree } = bootstrap;
  const seen = new Set<number>();
  for (const wanted of bootstrap.prefetch) {
    const stack = [wanted];
    for (let inode = stack.pop(); inode !== undefined; inode = stack.pop()) {
      if (seen.has(inode)) continue;
      seen.add(inode);
      for (let segment = tree.segmentStart[inode]!; segment < tree.segmentStart[inode + 1]!; segment++)
        yield tree.segmentAddress[segment]!;
      for (let child = tree.childStart[inode + 1]! - 1; child >= tree.childStart[inode]!; child--)
        stack.push(tree.childInode[child]!);
    }
  }
}

export function digestAlgorithm(bootstrap: NydusBootstrap, what: string): DigestAlgorithm {
  const found = new Set(bootstrap.blobs.map((blob) => blob.digester));
  if (found.size > 1)
    throw new HeadstartError("HS_FORMAT_UNSUPPORTED", { what: `${what}: blobs with digests of two kinds` });
  return bootstrap.blobs[0]?.digester ?? "sha256";
}

/** The array must say of a used chunk what the tree and the chunk table say (specs/nydus.md N17, N18). */
export function checkAgainst(bootstrap: NydusBootstrap, info: ChunkInfo, use: number, what: string): void {
  const { uses, records } = bootstrap;
  const chunk = uses.chunk[use]!;
  const record = uses.record[use]!;
  const space = Math.floor(uses.address[use]! / ADDRESS_SPACE);
  const offset = uses.address[use]! - space * ADDRESS_SPACE;
  const bad = (message: string) =>
    nydusInvalid(what, `chunk ${chunk} of blob ${bootstrap.blobs[space]!.id}: ${message}`);
  if (info.offset[chunk] !== offset) throw bad(`the array has it at ${info.offset[chunk]}, the tree at ${offset}`);
  if (info.size[chunk] !== uses.length[use])
    throw bad(`the array gives it ${info.size[chunk]} bytes, the tree ${uses.length[use]}`);
  if (records.offset[record] !== offset || records.size[record] !== uses.length[use])
    throw bad(`the chunk table has ${records.size[record]} bytes at ${records.offset[record]}`);
}

/** Throws HS_NYDUS_INVALID for a unit beyond the `size` bytes of the stored blob. */
export function checkInside(unit: Unit, blob: NydusBlob, size: number, what: string): void {
  if (unit.end > size)
    throw nydusInvalid(what, `bytes ${unit.start} to ${unit.end} of blob ${blob.id}, which has ${size}`);
}

/** True for a chunk that is decoded together with others: in a batch or a zran context. */
export function isInContext(info: ChunkInfo, chunk: number): boolean {
  return (info.flags[chunk]! & (ChunkFlag.zran | ChunkFlag.batch)) !== 0;
}

export function chunkUnit(blob: NydusBlob, info: ChunkInfo, chunk: number): Unit {
  const start = info.storedOffset[chunk]!;
  return {
    blob: blob.index,
    start,
    end: start + info.storedSize[chunk]!,
    decodedLength: info.size[chunk]!,
    codec: (info.flags[chunk]! & ChunkFlag.compressed) === 0 ? Compressor.none : blob.compressor,
    restart: -1,
  };
}

/** v5: the record says everything. */
export function recordUnit(bootstrap: NydusBootstrap, blob: NydusBlob, record: number, what: string): Unit {
  const { records } = bootstrap;
  const start = records.compressedOffset[record]!;
  const storedSize = records.compressedSize[record]!;
  const size = records.size[record]!;
  const compressed = (records.flags[record]! & RECORD_COMPRESSED) !== 0;
  const bad = (message: string) => nydusInvalid(what, `chunk ${records.index[record]} of blob ${blob.id}: ${message}`);
  if (storedSize === 0 || (!compressed && storedSize !== size)) throw bad(`${storedSize} stored bytes for ${size}`);
  if (start + storedSize > blob.dataSize) throw bad(`stored at ${start} in ${blob.dataSize} bytes of data`);
  return {
    blob: blob.index,
    start,
    end: start + storedSize,
    decodedLength: size,
    codec: compressed ? blob.compressor : Compressor.none,
    restart: -1,
  };
}

export function contextUnit(blob: NydusBlob, info: ChunkInfo, chunk: number, context: number): Unit {
  if (info.restarts !== null) {
    const points = info.restarts;
    // the byte whose last bits come first is read from the layer, not taken from the table
    const start = points.storedOffset[context]! - (points.bits[context]! > 0 ? 1 : 0);
    return {
      blob: blob.index,
      start,
      end: points.storedOffset[context]! + points.storedSize[context]!,
      decodedLength: points.size[context]!,
      codec: ZRAN_CODEC,
      restart: context,
    };
  }
  const batches = info.batches!;
  const storedSize = batches.storedSize[context]!;
  const size = batches.size[context]!;
  const start = info.storedOffset[chunk]!;
  return {
    blob: blob.index,
    start,
    end: start + storedSize,
    decodedLength: size,
    codec: storedSize === size ? Compressor.none : blob.compressor,
    restart: -1,
  };
}

export function flatten(units: readonly Unit[]) {
  const count = units.length;
  const unitBlob = new Uint16Array(new SharedArrayBuffer(count * 2));
  for (let unit = 0; unit < count; unit++) unitBlob[unit] = units[unit]!.blob;
  return {
    unitCount: count,
    unitBlob,
    unitStart: f64(count, (unit) => units[unit]!.start),
    unitEnd: f64(count, (unit) => units[unit]!.end),
    unitDecodedLength: f64(count, (unit) => units[unit]!.decodedLength),
  };
}

/** Dictionaries of all blobs behind each other, since a table may cross to workers. */
export function decodeTable(
  blobs: readonly NydusBlob[],
  units: readonly Unit[],
  infos: readonly (ChunkInfo | null | undefined)[],
): NydusDecodeTable {
  const count = units.length;
  const starts: number[] = [];
  let total = 0;
  for (const info of infos) {
    starts.push(total);
    total += info?.restarts?.dictionaries.byteLength ?? 0;
  }
  const dictionaries = new Uint8Array(new SharedArrayBuffer(total));
  infos.forEach((info, blob) => {
    if (info?.restarts) dictionaries.set(info.restarts.dictionaries, starts[blob]);
  });
  const points = (unit: number) => infos[units[unit]!.blob]!.restarts!;
  const ofRestart = (unit: number, value: (restart: number) => number) =>
    units[unit]!.restart < 0 ? 0 : value(units[unit]!.restart);
  const bytes = (value: (unit: number) => number) => {
    const array = new Uint8Array(new SharedArrayBuffer(count));
    for (let unit = 0; unit < count; unit++) array[unit] = value(unit);
    return array;
  };
  return {
    codec: "nydus-chunks",
    unitCodec: bytes((unit) => units[unit]!.codec),
    unitBits: bytes((unit) => ofRestart(unit, (restart) => points(unit).bits[restart]!)),
    dictionaryStart: f64(count, (unit) =>
      ofRestart(unit, (restart) => starts[units[unit]!.blob]! + points(unit).dictionaryStart[restart]!),
    ),
    dictionarySize: u32(count, (unit) => ofRestart(unit, (restart) => points(unit).dictionarySize[restart]!)),
    dictionaries,
    ciphers: blobs.map((blob) => blob.cipher),
  };
}

export function f64(count: number, value: (index: number) => number): Float64Array {
  const array = new Float64Array(new SharedArrayBuffer(count * 8));
  for (let index = 0; index < count; index++) array[index] = value(index);
  return array;
}

export function u32(count: number, value: (index: number) => number): Uint32Array {
  const array = new Uint32Array(new SharedArrayBuffer(count * 4));
  for (let index = 0; index < count; index++) array[index] = value(index);
  return array;
}

function digests(count: number, digest: (index: number) => Uint8Array): Uint8Array {
  const array = new Uint8Array(new SharedArrayBuffer(count * 32));
  for (let index = 0; index < count; index++) array.set(digest(index), index * 32);
  return array;
}
