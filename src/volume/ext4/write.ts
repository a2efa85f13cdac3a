/**
 * Writes a laid-out ext4 file system (layout.ts): the second of two passes. Goes once over the image in ascending order and asks for contents in that order; what it
 * does not write is zeros. The same layout and contents give the same bytes.
 *
 * Holds no contents but two buffers of 1 MiB. A region's files are asked for in the order of the request, so that a source that is itself a stream (a layer's tar) can be read along.
 */

import type { FileHandle } from "node:fs/promises";
import { HeadstartError } from "../../base/errors.ts";
import { FileType, symlinkTarget } from "../../erofs/file-tree.ts";
import { fileSystemSeed, inodeSeed } from "./checksum.ts";
import { encodeDirectory } from "./directory.ts";
import { type Extent, encodeExtents } from "./extents.ts";
import { countGroups, type GroupCounts } from "./groups.ts";
import { encodeSpecialInode, encodeTreeInode } from "./inode.ts";
import type { Ext4Layout, Region } from "./layout.ts";
import {
  BLOCK,
  INODE_SIZE,
  INODES_PER_BLOCK,
  JOURNAL_INODE,
  LOST_FOUND_INODE,
  ROOT_INODE,
  SUPER_OFFSET,
} from "./ondisk.ts";
import {
  encodeDescriptors,
  encodeJournalSuperblock,
  encodeReservedDescBlock,
  encodeResizeBlock,
  encodeSuperblock,
} from "./superblock.ts";
import { treePath } from "./tree-path.ts";
import { sealXattrBlock, xattrBlock, xattrEntries } from "./xattr.ts";

export interface BlockSink {
  /**
   * Offsets ascend, in whole blocks of 4096; what is never written is zeros. No call crosses a multiple of 1 MiB. `bytes` may be used until the returned
   * promise resolves; at most one call is under way.
   */
  write(offset: number, bytes: Uint8Array): void | Promise<void>;
}

export interface ContentSegment {
  /** Tree inode. */
  readonly inode: number;
  readonly fileOffset: number;
  readonly length: number;
  /** As the tree says. */
  readonly address: number;
}

type Pieces = Uint8Array | Iterable<Uint8Array> | AsyncIterable<Uint8Array>;
/** Exactly `length` bytes, in pieces of any size; null: somebody else puts these bytes into their blocks (`extentsOf`). */
export type ContentSource = (segment: ContentSegment) => Pieces | null | Promise<Pieces | null>;

export interface WriteOptions {
  readonly signal?: AbortSignal | undefined;
}

/**
 * No write is under way when this returns or throws. Throws HS_SIZE_MISMATCH when a source gives more or fewer bytes than its segment has, the signal's reason
 * when aborted, and whatever source and sink throw.
 */
export async function writeExt4(
  layout: Ext4Layout,
  content: ContentSource,
  sink: BlockSink,
  options: WriteOptions = {},
): Promise<void> {
  const stream = new BlockStream(sink);
  const counts = countGroups(layout);
  try {
    await new Emitter(layout, counts, stream, content, options.signal).run();
    await stream.end();
  } finally {
    // whatever went wrong: the sink may be closed once this function is done
    await stream.settled();
  }
}

/** A sink into an open file, `base` bytes from its start. The caller truncates the file to the image's size. */
export function fileSink(file: FileHandle, base = 0): BlockSink {
  return {
    async write(offset, bytes) {
      let done = 0;
      while (done < bytes.byteLength) {
        const { bytesWritten } = await file.write(bytes, done, bytes.byteLength - done, base + offset + done);
        done += bytesWritten;
      }
    },
  };
}

const BUFFER_SIZE = 1024 * 1024;

/** Bytes at ascending offsets become writes of whole blocks. One buffer is filled while the other is written. */
class BlockStream {
  readonly #sink: BlockSink;
  #buffer = new Uint8Array(BUFFER_SIZE);
  #other = new Uint8Array(BUFFER_SIZE);
  /** Offset in the image of #buffer[0], a multiple of BLOCK. */
  #base = 0;
  #fill = 0;
  #pending: Promise<void> | undefined;

  constructor(sink: BlockSink) {
    this.#sink = sink;
  }

  get position(): number {
    return this.#base + this.#fill;
  }

  /** What lies between is zeros within the current block and is not written beyond it. */
  async seek(offset: number): Promise<void> {
    if (offset < this.position) {
      throw new HeadstartError("HS_INTERNAL", { what: `ext4: byte ${offset} is emitted after byte ${this.position}` });
    }
    const blockEnd = Math.ceil(this.position / BLOCK) * BLOCK;
    if (offset <= blockEnd) return this.#zeros(offset - this.position);
    await this.#zeros(blockEnd - this.position);
    await this.#flush();
    this.#base = Math.floor(offset / BLOCK) * BLOCK;
    await this.#zeros(offset - this.#base);
  }

  async write(bytes: Uint8Array): Promise<void> {
    let done = 0;
    while (done < bytes.byteLength) {
      const count = Math.min(this.#room(), bytes.byteLength - done);
      this.#buffer.set(bytes.subarray(done, done + count), this.#fill);
      this.#fill += count;
      done += count;
      if (this.#room() === 0) await this.#flush();
    }
  }

  async end(): Promise<void> {
    await this.#zeros((BLOCK - (this.position % BLOCK)) % BLOCK);
    await this.#flush();
    await this.#pending;
  }

  /** When no write is under way any more, however it ended. */
  async settled(): Promise<void> {
    await this.#pending?.catch(() => undefined);
  }

  /** Up to the next multiple of the buffer's size in the image. */
  #room(): number {
    return BUFFER_SIZE - (this.#base % BUFFER_SIZE) - this.#fill;
  }

  /** Fewer than BLOCK: they never cross a flush. */
  async #zeros(count: number): Promise<void> {
    if (count === 0) return;
    this.#buffer.fill(0, this.#fill, this.#fill + count);
    this.#fill += count;
    if (this.#room() === 0) await this.#flush();
  }

  async #flush(): Promise<void> {
    if (this.#fill === 0) return;
    await this.#pending;
    const full = this.#buffer;
    const written = this.#sink.write(this.#base, full.subarray(0, this.#fill));
    this.#base += this.#fill;
    this.#fill = 0;
    this.#buffer = this.#other;
    this.#other = full;
    this.#pending = written === undefined ? undefined : written;
    // an error is met at the next flush; until then nobody may call it unhandled
    this.#pending?.catch(() => undefined);
  }
}

class Emitter {
  readonly #layout: Ext4Layout;
  readonly #counts: GroupCounts;
  readonly #stream: BlockStream;
  readonly #content: ContentSource;
  readonly #signal: AbortSignal | undefined;
  readonly #seed: number;
  readonly #descriptors: Uint8Array;
  readonly #journalInode: Uint8Array | null;
  #backup = 0;

  constructor(
    layout: Ext4Layout,
    counts: GroupCounts,
    stream: BlockStream,
    content: ContentSource,
    signal: AbortSignal | undefined,
  ) {
    this.#layout = layout;
    this.#counts = counts;
    this.#stream = stream;
    this.#content = content;
    this.#signal = signal;
    this.#seed = fileSystemSeed(layout.options.uuid);
    this.#descriptors = encodeDescriptors(layout, counts);
    this.#journalInode = encodeSpecialInode(layout, JOURNAL_INODE);
  }

  async run(): Promise<void> {
    const { geometry, options, regions } = this.#layout;
    const { descBlocks, reservedDescBlocks } = geometry;
    await this.#stream.seek(SUPER_OFFSET);
    await this.#stream.write(encodeSuperblock(this.#layout, this.#counts, 0, this.#journalInode));
    await this.#put(1, this.#descriptors);
    // without a backup group these blocks name nothing
    for (let index = 0; geometry.backups.length > 0 && index < reservedDescBlocks; index++) {
      await this.#put(1 + descBlocks + index, encodeReservedDescBlock(geometry, index));
    }
    const { groups } = this.#counts;
    for (let group = 0; group < groups.length; group++) {
      const bitmap = groups[group]!.blockBitmap;
      if (bitmap !== null) await this.#put(geometry.blockBitmaps[group]!, bitmap);
    }
    for (let group = 0; group < groups.length; group++) {
      const bitmap = groups[group]!.inodeBitmap;
      if (bitmap !== null) await this.#put(geometry.inodeBitmaps[group]!, bitmap);
    }
    for (let group = 0; group < groups.length; group++) await this.#inodeTable(group);
    if (geometry.resizeBlock > 0) await this.#put(geometry.resizeBlock, encodeResizeBlock(geometry));
    const { journal } = geometry;
    if (this.#journalInode !== null) {
      await this.#put(journal.start, encodeJournalSuperblock(journal.end - journal.start, options.uuid));
    }
    for (const region of regions.toSorted((a, b) => a.place.startBlock - b.place.startBlock)) {
      await this.#region(region);
    }
    await this.#backupsBefore(geometry.blocks);
  }

  /** Whole blocks at `block`. */
  async #put(block: number, bytes: Uint8Array): Promise<void> {
    await this.#backupsBefore(block);
    await this.#stream.seek(block * BLOCK);
    await this.#stream.write(bytes);
  }

  async #backupsBefore(block: number): Promise<void> {
    const { backups } = this.#layout.geometry;
    for (; this.#backup < backups.length && backups[this.#backup]!.start < block; this.#backup++) {
      const { start } = backups[this.#backup]!;
      const group = Math.floor(start / 32_768);
      await this.#stream.seek(start * BLOCK);
      await this.#stream.write(encodeSuperblock(this.#layout, this.#counts, group, this.#journalInode));
      await this.#stream.seek((start + 1) * BLOCK);
      await this.#stream.write(this.#descriptors);
    }
  }

  /** Only blocks with a used inode. */
  async #inodeTable(group: number): Promise<void> {
    const { geometry, treeInodeOf, lostFoundTreeInode } = this.#layout;
    if (this.#counts.groups[group]!.inodeBitmap === null) return;
    const last = Math.min((group + 1) * geometry.inodesPerGroup, Math.max(LOST_FOUND_INODE, treeInodeOf.length - 1));
    for (let first = group * geometry.inodesPerGroup + 1; first <= last; first += INODES_PER_BLOCK) {
      let block: Uint8Array | null = null;
      for (let number = first; number < first + INODES_PER_BLOCK; number++) {
        const treeInode = treeInodeOf[number] ?? -1;
        let bytes: Uint8Array | null = null;
        if (treeInode >= 0) bytes = encodeTreeInode(this.#layout, treeInode);
        else if (number !== LOST_FOUND_INODE || lostFoundTreeInode < 0)
          bytes = encodeSpecialInode(this.#layout, number);
        if (bytes === null) continue;
        block ??= new Uint8Array(BLOCK);
        block.set(bytes, (number - first) * INODE_SIZE);
      }
      const index = (first - 1 - group * geometry.inodesPerGroup) / INODES_PER_BLOCK;
      if (block !== null) await this.#put(geometry.inodeTables[group]! + index, block);
    }
  }

  async #region(region: Region): Promise<void> {
    const { tree } = this.#layout;
    for (const { block, inode, refcount } of region.xattrBlocks) {
      const where = () => JSON.stringify(treePath(tree, inode));
      const bytes = xattrBlock(xattrEntries(tree, inode, where), where);
      sealXattrBlock(bytes, this.#seed, block, refcount);
      await this.#put(block, bytes);
    }
    if (region.lostFound.length > 0) {
      await this.#putExtents(region.lostFound, this.#directory([], LOST_FOUND_INODE, ROOT_INODE));
    }
    for (let at = 0; at < region.inodes.length; at++) {
      const inode = region.inodes[at]!;
      const extents = this.#layout.extentsOf(inode);
      if (extents.length === 0 || tree.type[inode] === FileType.regular) continue;
      if (tree.type[inode] === FileType.directory) await this.#putExtents(extents, this.#treeDirectory(inode));
      else await this.#putExtents(extents, symlinkTarget(tree, inode));
      await this.#nodes(inode, extents);
    }
    for (let at = 0; at < region.inodes.length; at++) {
      const inode = region.inodes[at]!;
      if (tree.type[inode] !== FileType.regular) continue;
      const extents = this.#layout.extentsOf(inode);
      if (extents.length === 0) continue;
      await this.#file(inode, extents);
      await this.#nodes(inode, extents);
    }
  }

  #treeDirectory(inode: number): Uint8Array {
    const { tree, inodeOf, lostFoundTreeInode } = this.#layout;
    const entries: { inode: number; type: number }[] = [];
    if (inode === 0 && lostFoundTreeInode < 0) entries.push({ inode: LOST_FOUND_INODE, type: FileType.directory });
    for (let at = tree.childStart[inode]!; at < tree.childStart[inode + 1]!; at++) {
      const child = tree.childInode[at]!;
      entries.push({ inode: inodeOf[child]!, type: tree.type[child]! });
    }
    const names = this.#layout.namesOf(inode);
    const number = inodeOf[inode]!;
    return encodeDirectory(
      this.#layout.directoryPlan(inode),
      entries.map((entry, index) => ({ ...entry, name: names[index]! })),
      { inode: number, parent: inodeOf[tree.parent[inode]!]!, seed: inodeSeed(this.#seed, number, 0) },
    );
  }

  /** lost+found of our own: empty. */
  #directory(starts: readonly never[], inode: number, parent: number): Uint8Array {
    const blocks = this.#layout.regions[0]!.lostFound.reduce((sum, { length }) => sum + length, 0);
    const plan = { blocks, order: null, hashes: new Uint32Array(0), starts: [0] };
    return encodeDirectory(plan, starts, { inode, parent, seed: inodeSeed(this.#seed, inode, 0) });
  }

  async #putExtents(extents: readonly Extent[], bytes: Uint8Array): Promise<void> {
    for (const { logical, physical, length } of extents) {
      await this.#put(physical, bytes.subarray(logical * BLOCK, (logical + length) * BLOCK));
    }
  }

  async #nodes(inode: number, extents: readonly Extent[]): Promise<void> {
    const nodes = this.#layout.nodesOf(inode);
    if (nodes.length === 0) return;
    const tree = encodeExtents(extents, nodes, inodeSeed(this.#seed, this.#layout.inodeOf[inode]!, 0));
    for (let index = 0; index < nodes.length; index++) await this.#put(nodes[index]!, tree.blocks[index]!);
  }

  async #file(inode: number, extents: readonly Extent[]): Promise<void> {
    this.#signal?.throwIfAborted();
    const { tree } = this.#layout;
    let extentIndex = 0;
    for (let at = tree.segmentStart[inode]!; at < tree.segmentStart[inode + 1]!; at++) {
      const fileOffset = tree.segmentFileOffset[at]!;
      const length = tree.segmentLength[at]!;
      const end = fileOffset + length;
      let position = fileOffset;
      const take = async (piece: Uint8Array) => {
        if (position + piece.byteLength > end)
          throw this.#wrongSize(inode, length, position + piece.byteLength - fileOffset);
        for (let done = 0; done < piece.byteLength; ) {
          while ((extents[extentIndex]!.logical + extents[extentIndex]!.length) * BLOCK <= position) extentIndex++;
          const extent = extents[extentIndex]!;
          const within = position - extent.logical * BLOCK;
          const count = Math.min(piece.byteLength - done, extent.length * BLOCK - within);
          await this.#backupsBefore(extent.physical);
          await this.#stream.seek(extent.physical * BLOCK + within);
          await this.#stream.write(count === piece.byteLength ? piece : piece.subarray(done, done + count));
          done += count;
          position += count;
        }
      };
      const found = this.#content({ inode, fileOffset, length, address: tree.segmentAddress[at]! });
      const pieces = found instanceof Promise ? await found : found;
      if (pieces === null) continue;
      if (pieces instanceof Uint8Array) await take(pieces);
      else {
        for await (const piece of pieces) {
          await take(piece);
          this.#signal?.throwIfAborted();
        }
      }
      if (position !== end) throw this.#wrongSize(inode, length, position - fileOffset);
    }
  }

  #wrongSize(inode: number, want: number, got: number): HeadstartError {
    return new HeadstartError("HS_SIZE_MISMATCH", {
      what: `${JSON.stringify(treePath(this.#layout.tree, inode))}: ${want} bytes of content are expected, ${got} came`,
    });
  }
}
