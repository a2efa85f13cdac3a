/**
 * File data of a layer whose tree is not known yet, appended to the layer file: every file from a block on, packed, in large writes. Remembers where each file went by
 * the address of its data, so that the tree's segments find their place at the end.
 *
 *   | block 0 (superblock, later) | file | padding | file | padding | ...      (the eager form of erofs/write.ts)
 */

import { failpoint } from "../base/failpoint.ts";
import { alignUp, lastAtMost } from "../base/ranges.ts";
import { type FileTree, FileType } from "../erofs/file-tree.ts";
import { BLOCK_SIZE } from "../erofs/placement.ts";
import { WriteBehind } from "./write-behind.ts";

const BUFFER_BYTES = 2 * 1024 * 1024;
/** One is filled, the others are being written. */
const BUFFERS = 3;

export interface StoredPiece {
  /** Byte offset in the file. */
  readonly offset: number;
  readonly length: number;
}

export class EagerWriter {
  readonly #writes: WriteBehind;
  #buffer: Uint8Array;
  #bufferStart = BLOCK_SIZE;
  #bufferLength = 0;
  #dataEnd = BLOCK_SIZE;

  /** Ascending addresses of files' first stored bytes, and where those files' data begin in the layer file. */
  readonly #addresses: number[] = [];
  readonly #places: number[] = [];

  #place = 0;
  #pieces: readonly StoredPiece[] | null = null;
  #piece = 0;
  #pieceDone = 0;
  #done = 0;

  constructor(fd: number) {
    this.#writes = new WriteBehind(fd, { bytes: BUFFER_BYTES, count: BUFFERS });
    this.#buffer = this.#writes.first();
  }

  /** First byte behind all data, on a block. */
  get dataEnd(): number {
    return this.#dataEnd;
  }

  /** A file's data follow. `pieces`: which parts of the file the stored bytes are; null: all of it, in order. */
  begin(file: { address: number; size: number; pieces: readonly StoredPiece[] | null }): void {
    this.#place = this.#dataEnd;
    this.#dataEnd += alignUp(file.size, BLOCK_SIZE);
    this.#addresses.push(file.address);
    this.#places.push(this.#place);
    this.#pieces = file.pieces;
    this.#piece = 0;
    this.#pieceDone = 0;
    this.#done = 0;
  }

  /** The next stored bytes of the file. */
  data(bytes: Uint8Array): void {
    if (this.#pieces === null) {
      this.#put(this.#place + this.#done, bytes);
      this.#done += bytes.byteLength;
      return;
    }
    let position = 0;
    while (position < bytes.byteLength) {
      const piece = this.#pieces[this.#piece]!;
      const count = Math.min(piece.length - this.#pieceDone, bytes.byteLength - position);
      this.#put(this.#place + piece.offset + this.#pieceDone, bytes.subarray(position, position + count));
      position += count;
      this.#pieceDone += count;
      if (this.#pieceDone === piece.length) {
        this.#piece++;
        this.#pieceDone = 0;
      }
    }
  }

  /** To be awaited now and then, with no more than some MiB of data between: writing may be slower than what gives the data. Throws what a write said. */
  async ready(): Promise<void> {
    await this.#writes.ready();
  }

  /** Resolves when all data are written. Throws what a write said. */
  async finish(): Promise<void> {
    this.#flush();
    await this.#writes.done();
  }

  /** Resolves when no write is under way any more: the file may be closed. */
  async settled(): Promise<void> {
    await this.#writes.settled();
  }

  /** Where each inode's data lie, -1 for none: `layoutEager` takes it. Files that are all hole get room at the end. */
  placesOf(tree: FileTree): Float64Array {
    const places = new Float64Array(tree.inodeCount).fill(-1);
    for (let inode = 0; inode < tree.inodeCount; inode++) {
      if (tree.type[inode] !== FileType.regular || tree.size[inode] === 0) continue;
      const segment = tree.segmentStart[inode]!;
      if (segment === tree.segmentStart[inode + 1]) {
        places[inode] = this.#dataEnd;
        this.#dataEnd += alignUp(tree.size[inode]!, BLOCK_SIZE);
        continue;
      }
      const index = lastAtMost(this.#addresses, this.#addresses.length, tree.segmentAddress[segment]!);
      places[inode] = this.#places[index]!;
    }
    return places;
  }

  #put(offset: number, bytes: Uint8Array): void {
    const gap = offset - (this.#bufferStart + this.#bufferLength);
    if (gap !== 0) {
      // padding behind a file is written as the zeros that it is; a hole stays one
      if (gap > 0 && gap < BLOCK_SIZE && this.#bufferLength > 0 && this.#bufferLength + gap <= BUFFER_BYTES) {
        this.#buffer.fill(0, this.#bufferLength, this.#bufferLength + gap);
        this.#bufferLength += gap;
      } else {
        this.#flush();
        this.#bufferStart = offset;
      }
    }
    let position = 0;
    while (position < bytes.byteLength) {
      const count = Math.min(BUFFER_BYTES - this.#bufferLength, bytes.byteLength - position);
      this.#buffer.set(bytes.subarray(position, position + count), this.#bufferLength);
      this.#bufferLength += count;
      position += count;
      if (this.#bufferLength === BUFFER_BYTES) this.#flush();
    }
  }

  #flush(): void {
    if (this.#bufferLength === 0) return;
    failpoint("layer:eager-write");
    this.#buffer = this.#writes.write(this.#buffer, this.#bufferLength, this.#bufferStart);
    this.#bufferStart += this.#bufferLength;
    this.#bufferLength = 0;
  }
}
