/**
 * RAFS v5, the older format, for reading alone (specs/nydus.md 2.6):
 *
 *   superblock 8192 | inode table: u32 (offset >> 3) by number | prefetch table | blob table | extended blob table | inodes
 *
 * A directory's children are a run of the inode table. Every name has an inode record of its own; those of hard links share `ino`.
 */

import { Reader } from "../../base/bytes.ts";
import { HeadstartError } from "../../base/errors.ts";
import { LIMITS } from "../../base/limits.ts";
import { ADDRESS_SPACE, type FileTree, FileTreeBuilder, FileType, type InodeFields } from "../../erofs/file-tree.ts";
import { deviceMajor, deviceMinor, typeOfMode } from "../../erofs/ondisk.ts";
import { printable } from "../../erofs/read.ts";
import { checkBlobId, checkFeatures, dataSizeOf, type NydusBlob } from "./blob-table.ts";
import type { NydusBootstrap } from "./bootstrap.ts";
import { algorithmsOf, isChunkSize } from "./bootstrap-v6.ts";
import { ChunkUseCollector, readRecords } from "./chunks.ts";
import {
  BlobFeature,
  type Compressor,
  type DigestAlgorithm,
  NYDUS_LIMITS,
  nydusInvalid,
  RAFS_V5_EXTENDED_BLOB_SIZE,
  RAFS_V5_INODE_SYMLINK,
  RAFS_V5_INODE_XATTR,
  RAFS_V5_MAGIC,
  RAFS_V5_SUPER_SIZE,
  RAFS_V5_VERSION,
  RECORD_HOLE,
  rafs_chunk,
  rafs_v5_inode,
} from "./ondisk.ts";

export function readV5(bytes: Uint8Array, what: string): NydusBootstrap {
  const reader = new Reader(bytes, { what: `${what}: superblock` });
  const bad = (message: string) => nydusInvalid(what, `superblock: ${message}`);
  if (reader.u32() !== RAFS_V5_MAGIC) throw bad("the magic is wrong");
  const version = reader.u32();
  if (version !== RAFS_V5_VERSION) throw bad(`version 0x${version.toString(16)}`);
  const superSize = reader.u32();
  if (superSize !== RAFS_V5_SUPER_SIZE) throw bad(`${superSize} bytes`);
  const chunkSize = reader.u32();
  if (!isChunkSize(chunkSize)) throw bad(`chunks of ${chunkSize} bytes`);
  const { compressor, digester } = algorithmsOf(reader.u64("flags"), what);
  if (compressor === null || digester === null) throw bad("no compressor or no digester");
  reader.skip(8);
  const inodeTableAt = reader.u64("inode_table_offset");
  const prefetchAt = reader.u64("prefetch_table_offset");
  const blobTableAt = reader.u64("blob_table_offset");
  const inodeCount = reader.u32();
  const prefetchCount = reader.u32();
  const blobTableSize = reader.u32();
  const extendedCount = reader.u32();
  const extendedAt = reader.u64("extended_blob_table_offset");
  if (inodeCount === 0 || inodeCount > LIMITS.layerEntries) throw bad(`${inodeCount} inodes`);
  const table = new Reader(bytes, { what: `${what}: inode table` }).at(inodeTableAt).sub(inodeCount * 4, "entries");
  const blobs = readBlobs(
    new Reader(bytes, { what: `${what}: blob table` }).at(blobTableAt).sub(blobTableSize, "blobs"),
    new Reader(bytes, { what: `${what}: extended blob table` })
      .at(extendedCount === 0 ? 0 : extendedAt)
      .sub(extendedCount * RAFS_V5_EXTENDED_BLOB_SIZE, "entries"),
    { compressor, digester },
    what,
  );
  const walk = new TreeReaderV5(bytes, { what, table: table.bytes, inodeCount, chunkSize, blobs });
  const { tree, inodeOfNumber } = walk.read();
  const records = readRecords(Buffer.concat(walk.records), blobs.length, what);
  const collector = new ChunkUseCollector();
  const recordOf = new Map<number, number>();
  for (let record = 0; record < records.count; record++) {
    const blob = blobs[records.blob[record]!]!;
    recordOf.set(blob.index * NYDUS_LIMITS.chunksPerBlob + records.index[record]!, record);
    collector.add(blob.index, records.offset[record]!, records.size[record]!, records.index[record]!);
  }
  const prefetch = new Set<number>();
  for (let entry = 0; entry < prefetchCount && prefetchAt + entry * 4 + 4 <= bytes.byteLength; entry++) {
    const number = new DataView(bytes.buffer, bytes.byteOffset).getUint32(prefetchAt + entry * 4, true);
    const inode = inodeOfNumber.get(number);
    if (inode !== undefined && inode !== 0) prefetch.add(inode);
  }
  return {
    version: 5,
    chunkSize,
    compressor,
    digester,
    blobs,
    tree,
    uses: collector.finish((blob, chunk) => recordOf.get(blob * NYDUS_LIMITS.chunksPerBlob + chunk) ?? -1, what),
    records,
    prefetch: [...prefetch],
  };
}

function readBlobs(
  table: Reader,
  extended: Reader,
  algorithms: { readonly compressor: Compressor; readonly digester: DigestAlgorithm },
  what: string,
): NydusBlob[] {
  const blobs: NydusBlob[] = [];
  const seen = new Set<string>();
  // two numbers and an id; a NUL between two blobs; zeros up to a multiple of 8
  while (table.remaining >= 8 + 64) {
    const index = blobs.length;
    const entry = `${what}: blob ${index}`;
    if (index >= NYDUS_LIMITS.blobs) throw nydusInvalid(entry, `more than ${NYDUS_LIMITS.blobs} blobs`);
    table.skip(8);
    const id = checkBlobId(table.ascii(64), entry);
    if (table.remaining > 0 && table.u8() !== 0) throw nydusInvalid(entry, "no separator behind its id");
    if (seen.has(id)) throw nydusInvalid(entry, `the id ${id} stands twice`);
    seen.add(id);
    if (extended.remaining === 0) throw nydusInvalid(entry, "no extended entry");
    const own = extended.sub(RAFS_V5_EXTENDED_BLOB_SIZE, "entry");
    const chunkCount = own.u32();
    const features = own.u32();
    checkFeatures(features, entry);
    const uncompressedSize = own.u64();
    const compressedSize = own.u64();
    if (chunkCount > NYDUS_LIMITS.chunksPerBlob) throw nydusInvalid(entry, `${chunkCount} chunks`);
    if (compressedSize > NYDUS_LIMITS.blobCompressedBytes || uncompressedSize > NYDUS_LIMITS.blobUncompressedBytes)
      throw nydusInvalid(entry, `${compressedSize} stored bytes, ${uncompressedSize} in all`);
    if ((features & (BlobFeature.separate | BlobFeature.zran | BlobFeature.batch | BlobFeature.encrypted)) !== 0)
      throw nydusInvalid(entry, `features 0x${features.toString(16)} in RAFS v5`);
    const dataSize = dataSizeOf(features, compressedSize, null);
    if (dataSize < 0) throw nydusInvalid(entry, `${compressedSize} stored bytes`);
    blobs.push({
      index,
      id,
      chunkCount,
      ...algorithms,
      features,
      compressedSize,
      uncompressedSize,
      dataSize,
      isRef: false,
      chunkInfo: null,
      metaBlob: null,
      cipher: null,
      tocSize: 0,
      tocDigest: "0".repeat(64),
    });
  }
  if (table.bytes.subarray(table.position).some((byte) => byte !== 0))
    throw nydusInvalid(what, "the blob table ends in the middle of a blob");
  if (extended.remaining > 0) throw nydusInvalid(what, "more extended entries than blobs");
  return blobs;
}

interface InodeV5 {
  readonly ino: number;
  readonly name: Uint8Array;
  readonly fields: InodeFields;
  readonly childIndex: number;
  readonly childCount: number;
}

class TreeReaderV5 {
  /** The 80 bytes of each chunk that files use, each chunk once. */
  readonly records: Uint8Array[] = [];
  readonly #bytes: Uint8Array;
  readonly #what: string;
  readonly #table: DataView;
  readonly #inodeCount: number;
  readonly #chunkSize: number;
  readonly #blobs: readonly NydusBlob[];
  readonly #recordOf = new Map<number, Uint8Array>();
  #budget: number;

  constructor(
    bytes: Uint8Array,
    input: { what: string; table: Uint8Array; inodeCount: number; chunkSize: number; blobs: readonly NydusBlob[] },
  ) {
    this.#bytes = bytes;
    this.#what = input.what;
    this.#table = new DataView(input.table.buffer, input.table.byteOffset, input.table.byteLength);
    this.#inodeCount = input.inodeCount;
    this.#chunkSize = input.chunkSize;
    this.#blobs = input.blobs;
    this.#budget = bytes.byteLength;
  }

  read(): { tree: FileTree; inodeOfNumber: ReadonlyMap<number, number> } {
    const root = this.#inode(1);
    if (root.fields.type !== FileType.directory) throw nydusInvalid(this.#what, "the root is no directory");
    const builder = new FileTreeBuilder(root.fields);
    const inodeOfNumber = new Map<number, number>([[root.ino, 0]]);
    const taken = new Uint8Array(this.#inodeCount + 1);
    taken[1] = 1;
    const stack = [{ directory: root, inode: 0, depth: 0 }];
    for (let top = stack.pop(); top !== undefined; top = stack.pop()) {
      const { childIndex, childCount } = top.directory;
      const bad = (message: string) => nydusInvalid(this.#what, `directory ${top.directory.ino}: ${message}`);
      if (childCount > 0 && !(childIndex > 0 && childIndex + childCount - 1 <= this.#inodeCount))
        throw bad(`children ${childIndex} to ${childIndex + childCount - 1} of ${this.#inodeCount}`);
      if (childCount > 0 && top.depth >= NYDUS_LIMITS.directoryDepth) throw bad("too deep");
      const names = new Set<string>();
      for (let number = childIndex; number < childIndex + childCount; number++) {
        // each entry of the table belongs to one directory: no cycles, no shared runs
        if (taken[number] === 1) throw bad(`inode ${number} is in two directories`);
        taken[number] = 1;
        const child = this.#inode(number);
        const key = Buffer.from(child.name).toString("latin1");
        if (names.has(key) || key === "." || key === ".." || key.includes("/") || key.includes("\0"))
          throw bad(`a child is named ${printable(child.name)}`);
        names.add(key);
        const isDirectory = child.fields.type === FileType.directory;
        let inode = inodeOfNumber.get(child.ino);
        if (inode === undefined) {
          inode = builder.addInode(child.fields);
          inodeOfNumber.set(child.ino, inode);
          if (isDirectory) stack.push({ directory: child, inode, depth: top.depth + 1 });
          else this.#linked.set(child.ino, child);
        } else {
          const first = this.#linked.get(child.ino);
          if (first === undefined || isDirectory || first.fields.type !== child.fields.type)
            throw bad(`${printable(child.name)} is a link to directory ${child.ino}`);
          if (first.fields.size !== child.fields.size)
            throw bad(`${printable(child.name)} differs from the file that it is a link to`);
        }
        builder.addName(top.inode, child.name, inode);
      }
    }
    return { tree: builder.finish(), inodeOfNumber };
  }

  readonly #linked = new Map<number, InodeV5>();

  /** Numbers count from 1. */
  #inode(number: number): InodeV5 {
    const at = this.#table.getUint32((number - 1) * 4, true) * 8;
    const what = `${this.#what}: inode ${number}`;
    const reader = new Reader(this.#bytes, { what }).at(at);
    const bad = (message: string) => nydusInvalid(what, message);
    reader.skip(40);
    const ino = reader.u64("ino");
    if (ino === 0) throw bad("ino 0");
    const uid = reader.u32();
    const gid = reader.u32();
    reader.skip(4);
    const mode = reader.u32();
    const size = reader.u64("size");
    reader.skip(8);
    const flags = reader.u64("flags");
    reader.skip(4);
    const childIndex = reader.u32();
    const childCount = reader.u32();
    const nameSize = reader.u16();
    const targetSize = reader.u16();
    const device = reader.u32();
    const mtimeNanoseconds = reader.u32();
    const mtimeSeconds = reader.i64("mtime");
    reader.at(at + rafs_v5_inode.size);
    const type = mode > 0xffff ? 0 : typeOfMode(mode);
    if (type === 0) throw bad(`mode 0${mode.toString(8)}`);
    if (mtimeNanoseconds >= 1e9) throw bad("the time is out of range");
    if (!(nameSize > 0 && nameSize <= LIMITS.nameBytes)) throw bad(`a name of ${nameSize} bytes`);
    const padded = (length: number, field: string) => {
      const taken = reader.take(length, field);
      reader.skip(Math.min((8 - (length % 8)) % 8, reader.remaining));
      return taken;
    };
    const name = padded(nameSize, "name");
    if (((flags & RAFS_V5_INODE_SYMLINK) !== 0) !== (type === FileType.symlink))
      throw bad(`flags 0x${flags.toString(16)} with mode 0${mode.toString(8)}`);
    let target: Uint8Array | undefined;
    if (type === FileType.symlink) {
      if (!(targetSize > 0 && targetSize <= LIMITS.symlinkBytes)) throw bad(`a target of ${targetSize} bytes`);
      target = padded(targetSize, "target");
      if (target.includes(0)) throw bad("a NUL in the link target");
    }
    const xattrs = (flags & RAFS_V5_INODE_XATTR) === 0 ? [] : readXattrs(reader, what);
    const segments = type === FileType.regular ? this.#segments(reader, size, childCount, what) : undefined;
    this.#budget -= reader.position - at;
    if (this.#budget < 0) throw bad("inodes claim the same bytes over and over");
    const isDevice = type === FileType.char || type === FileType.block;
    return {
      ino,
      name,
      childIndex,
      childCount: type === FileType.directory ? childCount : 0,
      fields: {
        type,
        mode: mode & 0o7777,
        uid,
        gid,
        mtimeSeconds,
        mtimeNanoseconds,
        size: type === FileType.regular ? size : 0,
        rdevMajor: isDevice ? deviceMajor(device) : 0,
        rdevMinor: isDevice ? deviceMinor(device) : 0,
        ...(target === undefined ? {} : { target }),
        xattrs,
        ...(segments === undefined ? {} : { segments }),
      },
    };
  }

  #segments(reader: Reader, size: number, count: number, what: string): NonNullable<InodeFields["segments"]> {
    const wanted = Math.ceil(size / this.#chunkSize);
    if (count !== wanted) throw nydusInvalid(what, `${count} chunks for ${size} bytes`);
    const segments: { fileOffset: number; length: number; address: number }[] = [];
    for (let piece = 0; piece < count; piece++) {
      const bytes = reader.take(rafs_chunk.size, "chunk");
      const record = new Reader(bytes, { what: `${what}: chunk ${piece}` });
      const bad = (message: string) => nydusInvalid(record.what, message);
      record.skip(32);
      const blob = this.#blobs[record.u32()];
      const flags = record.u32();
      record.skip(4);
      const length = record.u32();
      record.skip(8);
      const offset = record.u64("uncompressed_offset");
      const fileOffset = record.u64("file_offset");
      const index = record.u32();
      if (fileOffset !== piece * this.#chunkSize) throw bad(`its place in the file is ${fileOffset}`);
      if (length !== Math.min(this.#chunkSize, size - fileOffset)) throw bad(`${length} bytes`);
      if ((flags & RECORD_HOLE) !== 0) continue;
      if (blob === undefined) throw bad("in a blob that there is not");
      if (index >= NYDUS_LIMITS.chunksPerBlob) throw bad(`index ${index}`);
      if (offset + length > NYDUS_LIMITS.blobUncompressedBytes) throw bad(`address ${offset}`);
      segments.push({ fileOffset, length, address: blob.index * ADDRESS_SPACE + offset });
      // a chunk that several files use has the same record but for the place in the file
      const key = blob.index * NYDUS_LIMITS.chunksPerBlob + index;
      const known = this.#recordOf.get(key);
      if (known === undefined) {
        this.#recordOf.set(key, bytes);
        this.records.push(bytes);
      } else if (!sameChunk(known, bytes)) {
        throw bad(`files disagree about chunk ${index} of blob ${blob.index}`);
      }
    }
    return segments;
  }
}

function sameChunk(a: Uint8Array, b: Uint8Array): boolean {
  const { file_offset, index } = rafs_chunk.offsets;
  return (
    Buffer.compare(a.subarray(0, file_offset), b.subarray(0, file_offset)) === 0 &&
    Buffer.compare(a.subarray(index), b.subarray(index)) === 0
  );
}

function readXattrs(reader: Reader, what: string): { name: Uint8Array; value: Uint8Array }[] {
  const total = reader.u64("xattrs");
  const area = reader.sub(total, "xattrs");
  reader.skip(Math.min((8 - (total % 8)) % 8, reader.remaining));
  const found: { name: Uint8Array; value: Uint8Array }[] = [];
  const names = new Set<string>();
  while (area.remaining > 0) {
    const pair = area.take(area.u32("xattr"), "xattr");
    const end = pair.indexOf(0);
    const name = pair.subarray(0, Math.max(end, 0));
    const key = Buffer.from(name).toString("latin1");
    if (!/^(?:user|security|trusted)\.|^system\.posix_acl_(?:access|default)$/.test(key) || names.has(key))
      throw nydusInvalid(what, `an xattr named ${JSON.stringify(key)}`);
    names.add(key);
    const value = pair.subarray(end + 1);
    if (name.byteLength > LIMITS.nameBytes || value.byteLength > LIMITS.xattrValueBytes)
      throw new HeadstartError("HS_LIMIT", { what: `${what}: the xattr ${key}` });
    found.push({ name, value });
  }
  return found;
}
