/**
 * A Nydus image as it is mounted: one merged tree over data files, each with the whole chunk array of its blob (other images may use other chunks of it) and
 * the digests that this bootstrap binds. `open.ts` makes one table over the used chunks instead, for looking into an image.
 */

import type { Digest } from "../../base/digest.ts";
import { HeadstartError } from "../../base/errors.ts";
import { alignUp, lastAtMost } from "../../base/ranges.ts";
import { ADDRESS_SPACE } from "../../erofs/file-tree.ts";
import { BLOCK_SIZE } from "../../erofs/placement.ts";
import type { BoundBlob, BoundDigests, DataTable, MergedImage } from "../format.ts";
import type { NydusBlob } from "./blob-table.ts";
import type { NydusBootstrap } from "./bootstrap.ts";
import type { ChunkInfo } from "./chunk-info.ts";
import { nydusInvalid } from "./ondisk.ts";
import {
  checkAgainst,
  checkInside,
  chunkUnit,
  contextUnit,
  decodeTable,
  digestAlgorithm,
  f64,
  flatten,
  isInContext,
  prefetchAddresses,
  recordUnit,
  type Unit,
  u32,
} from "./units.ts";

/**
 * `infos` are the chunk arrays by blob (null in v5, which has none; those of blobs that no file uses may be left undefined), `sizes` the lengths of the stored blobs (of a ref: of the original
 * layers). Throws HS_NYDUS_INVALID when an array does not say what the bootstrap says, HS_FORMAT_UNSUPPORTED for chunks without a digest in the bootstrap.
 */
export function mergedNydus(
  given: NydusBootstrap,
  infos: readonly (ChunkInfo | null | undefined)[],
  sizes: readonly number[],
  what: string,
): MergedImage {
  const algorithm = digestAlgorithm(given, what);
  const bootstrap = given.version === 5 ? onBlocks(given) : given;
  const blobs = bootstrap.blobs.map((blob) => {
    const uses = usesOf(bootstrap, blob);
    if (uses.start === uses.end) return null;
    return boundBlob(bootstrap, blob, uses, { info: infos[blob.index], size: sizes[blob.index]!, algorithm, what });
  });
  const prefetch: number[] = [];
  const wanted = blobs.map(() => new Set<number>());
  for (const address of prefetchAddresses(bootstrap)) {
    const space = Math.floor(address / ADDRESS_SPACE);
    const { units } = blobs[space]!.table;
    const piece = lastAtMost(units.pieceAddress, units.pieceCount, address - space * ADDRESS_SPACE);
    const unit = units.pieceUnit[piece]!;
    if (wanted[space]!.has(unit)) continue;
    wanted[space]!.add(unit);
    prefetch.push(space, piece);
  }
  return { tree: bootstrap.tree, blobs, prefetch: u32(prefetch.length, (index) => prefetch[index]!) };
}

/** RAFS v5 packs chunks one behind the other; a data file has each on a block of its own. The chunks that the tree uses, in their order. */
function onBlocks(bootstrap: NydusBootstrap): NydusBootstrap {
  const { uses, tree, blobs } = bootstrap;
  const ends = new Float64Array(blobs.length);
  const address = uses.address.map((before, use) => {
    const space = Math.floor(before / ADDRESS_SPACE);
    const offset = ends[space]!;
    ends[space] = alignUp(offset + uses.length[use]!, BLOCK_SIZE);
    return space * ADDRESS_SPACE + offset;
  });
  const segmentAddress = new Float64Array(new SharedArrayBuffer(tree.segmentAddress.length * 8));
  tree.segmentAddress.forEach((before, segment) => {
    const use = lastAtMost(uses.address, uses.count, before);
    segmentAddress[segment] = address[use]! + (before - uses.address[use]!);
  });
  return { ...bootstrap, tree: { ...tree, segmentAddress }, uses: { ...uses, address } };
}

/** The uses of one blob stand together, since they ascend by address. */
function usesOf(bootstrap: NydusBootstrap, blob: NydusBlob): { start: number; end: number } {
  const { uses } = bootstrap;
  const before = (address: number) => lastAtMost(uses.address, uses.count, address - 0.5) + 1;
  return { start: before(blob.index * ADDRESS_SPACE), end: before((blob.index + 1) * ADDRESS_SPACE) };
}

function boundBlob(
  bootstrap: NydusBootstrap,
  blob: NydusBlob,
  range: { start: number; end: number },
  options: {
    info: ChunkInfo | null | undefined;
    size: number;
    algorithm: BoundDigests["algorithm"];
    what: string;
  },
): BoundBlob {
  const { uses, records } = bootstrap;
  const { info, size, what } = options;
  if (info === undefined || (info === null && blob.chunkInfo !== null))
    throw new HeadstartError("HS_INTERNAL", { what: `${what}: no chunk array of blob ${blob.id}` });
  const count = range.end - range.start;
  const pieces = new Uint32Array(count);
  const digests = new Uint8Array(count * 32);
  for (let index = 0; index < count; index++) {
    const use = range.start + index;
    const record = uses.record[use]!;
    if (record < 0)
      throw new HeadstartError("HS_FORMAT_UNSUPPORTED", {
        what: `${what}: no digest in the bootstrap for chunk ${uses.chunk[use]} of blob ${blob.id}: it cannot be verified`,
      });
    if (info !== null) checkAgainst(bootstrap, info, use, what);
    // without a chunk array the pieces are the uses themselves
    pieces[index] = info === null ? index : uses.chunk[use]!;
    digests.set(records.digest.subarray(record * 32, record * 32 + 32), index * 32);
  }
  const stored = { digest: `sha256:${blob.id}` as Digest, size };
  const table =
    info === null ? recordTable(bootstrap, blob, range, stored, what) : arrayTable(blob, info, stored, what);
  for (let piece = 0; piece < table.units.pieceCount; piece++) {
    if (table.units.pieceAddress[piece]! % BLOCK_SIZE !== 0)
      throw new HeadstartError("HS_FORMAT_UNSUPPORTED", {
        what: `${what}: chunk ${piece} of blob ${blob.id} does not begin on a block of ${BLOCK_SIZE} bytes`,
      });
  }
  return { blob: stored, table, bound: { algorithm: options.algorithm, pieces, digests } };
}

/** Piece = chunk of the array, used or not. */
function arrayTable(blob: NydusBlob, info: ChunkInfo, stored: BoundBlob["blob"], what: string): DataTable {
  const units: Unit[] = [];
  const unitOf = new Uint32Array(info.count);
  const contexts = new Map<number, number>();
  for (let chunk = 0; chunk < info.count; chunk++) {
    if (!isInContext(info, chunk)) {
      unitOf[chunk] = units.push({ ...chunkUnit(blob, info, chunk), blob: 0 }) - 1;
      continue;
    }
    const context = info.context[chunk]!;
    let unit = contexts.get(context);
    if (unit === undefined) {
      unit = units.push({ ...contextUnit(blob, info, chunk, context), blob: 0 }) - 1;
      contexts.set(context, unit);
    }
    unitOf[chunk] = unit;
  }
  for (const unit of units) checkInside(unit, blob, stored.size, what);
  return {
    units: {
      blobs: [stored],
      ...flatten(units),
      ...NO_DIGESTS,
      pieceCount: info.count,
      pieceAddress: f64(info.count, (chunk) => info.offset[chunk]!),
      pieceLength: f64(info.count, (chunk) => info.size[chunk]!),
      pieceUnit: u32(info.count, (chunk) => unitOf[chunk]!),
      pieceOffset: f64(info.count, (chunk) => (isInContext(info, chunk) ? info.contextOffset[chunk]! : 0)),
    },
    decode: decodeTable([blob], units, [info]),
  };
}

/** RAFS v5: piece = chunk that the tree uses. */
function recordTable(
  bootstrap: NydusBootstrap,
  blob: NydusBlob,
  range: { start: number; end: number },
  stored: BoundBlob["blob"],
  what: string,
): DataTable {
  const { uses, records } = bootstrap;
  const count = range.end - range.start;
  const units: Unit[] = [];
  for (let use = range.start; use < range.end; use++) {
    const record = uses.record[use]!;
    const unit = { ...recordUnit(bootstrap, blob, record, what), blob: 0 };
    if (records.size[record] !== uses.length[use])
      throw nydusInvalid(what, `chunk ${uses.chunk[use]} of blob ${blob.id}: its record has another length`);
    checkInside(unit, blob, stored.size, what);
    units.push(unit);
  }
  return {
    units: {
      blobs: [stored],
      ...flatten(units),
      ...NO_DIGESTS,
      pieceCount: count,
      pieceAddress: f64(count, (index) => uses.address[range.start + index]! - blob.index * ADDRESS_SPACE),
      pieceLength: f64(count, (index) => uses.length[range.start + index]!),
      pieceUnit: u32(count, (index) => index),
      pieceOffset: f64(count, () => 0),
    },
    decode: decodeTable([blob], units, [null]),
  };
}

const NO_DIGESTS = { unitDigest: null, pieceDigest: null, pieceDigestAlgorithm: null } as const;
