/**
 * RAFS v6: superblock, tables, and their places in the file (specs/nydus.md 2.5). The tree itself is tree-v6.ts. Every field that nydusd or `nydus-image check`
 * looks at is looked at here: an image that the peer refuses is refused.
 */

import { Reader } from "../../base/bytes.ts";
import { HeadstartError } from "../../base/errors.ts";
import { LIMITS } from "../../base/limits.ts";
import { ADDRESS_SPACE } from "../../erofs/file-tree.ts";
import { EROFS_SUPER_MAGIC, EROFS_SUPER_OFFSET } from "../../erofs/ondisk.ts";
import { checkDevices, readBlobTable } from "./blob-table.ts";
import type { NydusBootstrap } from "./bootstrap.ts";
import { type ChunkRecords, ChunkUseCollector, type ChunkUses, readRecords } from "./chunks.ts";
import type { ContainingBlob } from "./layer-bootstrap.ts";
import {
  alignBlock,
  BlobFeature,
  Compressor,
  type DigestAlgorithm,
  NYDUS_LIMITS,
  nydusInvalid,
  RAFS_BLOCK_SIZE,
  RAFS_COMPRESSOR_FLAGS,
  RAFS_DIGESTER_FLAGS,
  RAFS_V6_COMPAT,
  RAFS_V6_DEVICES_OFFSET,
  RAFS_V6_DEVT_SLOTOFF,
  RAFS_V6_EXT_OFFSET,
  RAFS_V6_FLAG,
  RAFS_V6_INCOMPAT,
  rafs_chunk,
  rafs_v6_blob,
  rafs_v6_device,
} from "./ondisk.ts";
import { readTreeV6 } from "./tree-v6.ts";

interface Superblock {
  readonly rootNid: number;
  readonly buildTime: number;
  readonly metaAt: number;
  readonly deviceCount: number;
}

interface ExtendedSuperblock {
  readonly flags: number;
  readonly chunkSize: number;
  readonly blobTable: Area;
  readonly chunkTable: Area;
  readonly prefetchTable: Area;
}

/** Bytes of the file. */
interface Area {
  readonly name: string;
  readonly start: number;
  readonly size: number;
}

export function readV6(bytes: Uint8Array, what: string, container: ContainingBlob | null = null): NydusBootstrap {
  if (bytes.byteLength < RAFS_BLOCK_SIZE || bytes.byteLength % RAFS_BLOCK_SIZE !== 0)
    throw nydusInvalid(what, `${bytes.byteLength} bytes are no whole number of blocks`);
  const superblock = readSuperblock(bytes, what);
  const extended = readExtended(bytes, superblock, what);
  const cut = (area: Area) => bytes.subarray(area.start, area.start + area.size);
  const blobs = readBlobTable(cut(extended.blobTable), { ...extended, container }, what);
  if (blobs.length !== superblock.deviceCount)
    throw nydusInvalid(what, `${superblock.deviceCount} devices and ${blobs.length} blobs`);
  const devicesEnd = RAFS_V6_DEVICES_OFFSET + blobs.length * rafs_v6_device.size;
  checkDevices(bytes.subarray(RAFS_V6_DEVICES_OFFSET, devicesEnd), blobs, container, what);
  const records = readRecords(cut(extended.chunkTable), blobs.length, what);
  const recordOf = new Map<number, number>();
  for (let record = 0; record < records.count; record++) {
    const blob = blobs[records.blob[record]!]!;
    const index = records.index[record]!;
    if (index >= blob.chunkCount)
      throw nydusInvalid(what, `chunk record ${record}: index ${index} of ${blob.chunkCount}`);
    if (alignBlock(records.offset[record]!) !== records.offset[record])
      throw nydusInvalid(what, `chunk record ${record}: address ${records.offset[record]} is not aligned`);
    const key = blob.index * NYDUS_LIMITS.chunksPerBlob + index;
    if (recordOf.has(key)) throw nydusInvalid(what, `chunk ${index} of blob ${blob.index} has two records`);
    recordOf.set(key, record);
  }
  const collector = new ChunkUseCollector();
  const { tree, inodeOfNid } = readTreeV6(bytes, {
    what,
    metaAt: superblock.metaAt,
    rootNid: superblock.rootNid,
    buildTime: superblock.buildTime,
    chunkSize: extended.chunkSize,
    blobs,
    uses: collector,
  });
  const uses = collector.finish((blob, chunk) => recordOf.get(blob * NYDUS_LIMITS.chunksPerBlob + chunk) ?? -1, what);
  checkRecords(uses, records, what);
  return {
    version: 6,
    chunkSize: extended.chunkSize,
    ...algorithmsOf(extended.flags, what),
    blobs,
    tree,
    uses,
    records,
    prefetch: readPrefetch(cut(extended.prefetchTable), inodeOfNid),
  };
}

/** The peer finds a chunk's record by its blob, index and address (specs/nydus.md N18): it must say what the tree says. */
function checkRecords(uses: ChunkUses, records: ChunkRecords, what: string): void {
  for (let use = 0; use < uses.count; use++) {
    const record = uses.record[use]!;
    if (record < 0) continue;
    const address = records.blob[record]! * ADDRESS_SPACE + records.offset[record]!;
    if (address !== uses.address[use] || records.size[record] !== uses.length[use])
      throw nydusInvalid(what, `chunk record ${record}: files have the chunk elsewhere, or of another length`);
  }
}

function readSuperblock(bytes: Uint8Array, what: string): Superblock {
  const reader = new Reader(bytes, { what: `${what}: superblock` }).at(EROFS_SUPER_OFFSET);
  const expect = (field: string, value: number, wanted: readonly number[]) => {
    if (!wanted.includes(value)) throw nydusInvalid(what, `superblock: ${field} is 0x${value.toString(16)}`);
  };
  expect("the magic", reader.u32(), [EROFS_SUPER_MAGIC]);
  expect("the checksum", reader.u32(), [0]);
  const compat = reader.u32();
  if ((compat & RAFS_V6_COMPAT) === 0) throw nydusInvalid(what, `superblock: compat is 0x${compat.toString(16)}`);
  const blockBits = reader.u8();
  if (blockBits === 9) throw unsupported(what, "tarfs (blocks of 512 bytes)");
  expect("blkszbits", blockBits, [12]);
  expect("extslots", reader.u8(), [0]);
  const rootNid = reader.u16();
  const inos = reader.u64("inos");
  if (!(inos > 0 && inos <= LIMITS.layerEntries)) throw nydusInvalid(what, `superblock: ${inos} inodes`);
  const buildTime = reader.u64("build_time");
  reader.skip(4);
  // blocks: informative, builders have put different things there
  reader.skip(4);
  const metaBlock = reader.u32();
  expect("xattr_blkaddr", reader.u32(), [0]);
  reader.skip(32);
  expect("incompat", reader.u32(), [RAFS_V6_INCOMPAT]);
  expect("the field at 84", reader.u16(), [0]);
  const deviceCount = reader.u16();
  if (deviceCount > NYDUS_LIMITS.blobs) throw nydusInvalid(what, `superblock: ${deviceCount} devices`);
  if (RAFS_V6_DEVICES_OFFSET + deviceCount * rafs_v6_device.size > bytes.byteLength)
    throw nydusInvalid(what, `superblock: ${deviceCount} devices lie outside of the file`);
  const slotOffset = reader.u16();
  if (deviceCount > 0 || slotOffset !== 0) expect("devt_slotoff", slotOffset, [RAFS_V6_DEVT_SLOTOFF]);
  const metaAt = metaBlock * RAFS_BLOCK_SIZE;
  if (metaAt >= bytes.byteLength) throw nydusInvalid(what, `superblock: the metadata begin at block ${metaBlock}`);
  return { rootNid, buildTime, metaAt, deviceCount };
}

function readExtended(bytes: Uint8Array, superblock: Superblock, what: string): ExtendedSuperblock {
  const reader = new Reader(bytes, { what: `${what}: extended superblock` }).at(RAFS_V6_EXT_OFFSET);
  const flags = reader.u64("flags");
  if ((flags & RAFS_V6_FLAG.tarfs) !== 0) throw unsupported(what, "tarfs");
  const blobTableAt = reader.u64("blob_table_offset");
  const blobTableSize = reader.u32();
  const chunkSize = reader.u32();
  if (!isChunkSize(chunkSize)) throw nydusInvalid(what, `chunks of ${chunkSize} bytes`);
  const chunkTableAt = reader.u64("chunk_table_offset");
  const chunkTableSize = reader.u64("chunk_table_size");
  const prefetchAt = reader.u64("prefetch_offset");
  const prefetchSize = reader.u32();
  const area = (name: string, start: number, size: number, unit: number, aligned: boolean): Area => {
    if (size === 0) return { name, start: 0, size: 0 };
    const bad = (message: string) => nydusInvalid(what, `the ${name} table ${message}`);
    if (size % unit !== 0) throw bad(`has ${size} bytes`);
    if (aligned && start % RAFS_BLOCK_SIZE !== 0) throw bad(`begins at byte ${start}`);
    const devicesEnd = RAFS_V6_DEVICES_OFFSET + superblock.deviceCount * rafs_v6_device.size;
    if (!(start >= devicesEnd && start + size <= bytes.byteLength)) throw bad(`lies at ${start}, ${size} bytes`);
    return { name, start, size };
  };
  const blobTable = area("blob", blobTableAt, blobTableSize, rafs_v6_blob.size, true);
  const chunkTable = area("chunk", chunkTableAt, chunkTableSize, rafs_chunk.size, true);
  if (overlap(blobTable, chunkTable)) throw nydusInvalid(what, "the blob table and the chunk table overlap");
  let prefetchTable: Area = { name: "prefetch", start: 0, size: 0 };
  try {
    const found = area("prefetch", prefetchAt, prefetchSize, 4, false);
    if (!overlap(found, blobTable) && !overlap(found, chunkTable)) prefetchTable = found;
  } catch (error) {
    // a hint: without it the image is the same
    if (!(error instanceof HeadstartError)) throw error;
  }
  return { flags, chunkSize, blobTable, chunkTable, prefetchTable };
}

export function isChunkSize(size: number): boolean {
  const { chunkSizeMin, chunkSizeMax } = NYDUS_LIMITS;
  return size >= chunkSizeMin && size <= chunkSizeMax && (size & (size - 1)) === 0;
}

function overlap(a: Area, b: Area): boolean {
  return a.size > 0 && b.size > 0 && a.start < b.start + b.size && b.start < a.start + a.size;
}

/** Compressor and digester by the flags of either version's superblock. Throws for two of a kind. */
export function algorithmsOf(
  flags: number,
  what: string,
): { compressor: Compressor | null; digester: DigestAlgorithm | null } {
  const one = <T>(kind: string, known: readonly (readonly [flag: number, value: T])[]): T | null => {
    const found = known.filter(([flag]) => (flags & flag) !== 0);
    if (found.length > 1) throw nydusInvalid(what, `superblock: two ${kind}s in flags 0x${flags.toString(16)}`);
    return found[0]?.[1] ?? null;
  };
  return {
    compressor: one<Compressor>("compressor", [
      [RAFS_COMPRESSOR_FLAGS[Compressor.none], Compressor.none],
      [RAFS_COMPRESSOR_FLAGS[Compressor.lz4], Compressor.lz4],
      [RAFS_COMPRESSOR_FLAGS[Compressor.gzip], Compressor.gzip],
      [RAFS_COMPRESSOR_FLAGS[Compressor.zstd], Compressor.zstd],
    ]),
    digester: one<DigestAlgorithm>("digester", [
      [RAFS_DIGESTER_FLAGS.blake3, "blake3"],
      [RAFS_DIGESTER_FLAGS.sha256, "sha256"],
    ]),
  };
}

/** Patterns that matched nothing left zeros; unknown nids are skipped; the root alone means everything, so no order at all. */
function readPrefetch(table: Uint8Array, inodeOfNid: ReadonlyMap<number, number>): number[] {
  const view = new DataView(table.buffer, table.byteOffset, table.byteLength);
  const inodes = new Set<number>();
  for (let at = 0; at < table.byteLength; at += 4) {
    const inode = inodeOfNid.get(view.getUint32(at, true));
    if (inode !== undefined && inode !== 0) inodes.add(inode);
  }
  return [...inodes];
}

function unsupported(what: string, message: string): HeadstartError {
  return new HeadstartError("HS_FORMAT_UNSUPPORTED", { what: `${what}: ${message}` });
}

export function isZran(features: number): boolean {
  return (features & BlobFeature.zran) !== 0;
}
