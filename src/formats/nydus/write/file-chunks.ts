/**
 * Cuts the data of files into chunks as they come from the tar, holes of sparse files filled with zeros, and remembers where each file's chunks are, and which bytes of which
 * chunks stood in the tar.
 */

import { HeadstartError } from "../../../base/errors.ts";
import type { TarEntry } from "../../tar/records.ts";
import type { SparsePiece } from "../../tar/sparse.ts";
import { NYDUS_LIMITS } from "../ondisk.ts";

/** Bytes of a chunk that stand in the tar. */
export interface ChunkPart {
  /** As in BuiltLayer.tree. */
  readonly address: number;
  /** Bytes of the whole chunk. */
  readonly size: number;
  readonly offset: number;
  readonly length: number;
}

export interface FileChunkSink {
  /** The chunk's address; `alone`: it is all of its file. The bytes are valid until the call returns. */
  add(bytes: Uint8Array, alone: boolean): number;
}

export class FileCutter {
  readonly #chunkSize: number;
  readonly #layer: string;
  readonly #sink: FileChunkSink;
  /** By file, in the order of the tar: addresses of its chunks. Files follow each other. */
  readonly #addresses: number[] = [];
  readonly #files = new Map<number, number>();
  #zeroAddress: number | null = null;

  #size = 0;
  #position = 0;
  /** The chunk that is being filled; every byte is written before it is used. */
  readonly #chunk: Uint8Array;
  #pieces: readonly SparsePiece[] = [];
  #piece = 0;
  /** Bytes of the piece that have come. */
  #pieceDone = 0;
  #parts: ChunkPart[] = [];
  /** Stored ranges of the chunk that is being filled, as [offset, length]. */
  #ranges: [number, number][] = [];

  /** `layer` names the layer in errors. */
  constructor(chunkSize: number, layer: string, sink: FileChunkSink) {
    this.#chunkSize = chunkSize;
    this.#layer = layer;
    this.#sink = sink;
    this.#chunk = new Uint8Array(new ArrayBuffer(chunkSize));
  }

  get addresses(): readonly number[] {
    return this.#addresses;
  }

  /** Index into `addresses` of the first chunk of the file whose data begin at `dataOffset` of the tar; undefined for none. */
  firstOf(dataOffset: number): number | undefined {
    return this.#files.get(dataOffset);
  }

  /** A regular file whose stored data come next. It has some. Throws HS_NYDUS_LIMIT. */
  begin(entry: TarEntry): void {
    this.#files.set(entry.dataOffset, this.#addresses.length);
    this.#open(entry.size);
    this.#pieces = (entry.sparse ?? [{ offset: 0, length: entry.size }]).filter((piece) => piece.length > 0);
    this.#piece = 0;
    this.#pieceDone = 0;
    this.#parts = [];
  }

  /** Stored data. When the last have come, the parts of chunks that hold them, in order; null before. */
  data(bytes: Uint8Array): readonly ChunkPart[] | null {
    for (let at = 0; at < bytes.byteLength; ) {
      const piece = this.#pieces[this.#piece]!;
      if (this.#pieceDone === 0) this.#zeros(piece.offset - this.#position);
      const take = Math.min(piece.length - this.#pieceDone, bytes.byteLength - at);
      this.#store(bytes.subarray(at, at + take));
      at += take;
      this.#pieceDone += take;
      if (this.#pieceDone < piece.length) continue;
      this.#piece++;
      this.#pieceDone = 0;
    }
    if (this.#piece < this.#pieces.length) return null;
    this.#zeros(this.#size - this.#position);
    return this.#parts;
  }

  /** A file of zeros that the tar stores no byte of; index of its first chunk in `addresses`. */
  zeroFile(size: number): number {
    const first = this.#addresses.length;
    this.#open(size);
    this.#zeros(size);
    return first;
  }

  /** Files of holes claim any size: the count is checked before the first chunk is made. */
  #open(size: number): void {
    if (this.#addresses.length + Math.ceil(size / this.#chunkSize) > PIECES_MAX) {
      throw new HeadstartError("HS_NYDUS_LIMIT", {
        what: `layer ${this.#layer}: its files have more than ${PIECES_MAX} chunks of ${this.#chunkSize} bytes; use larger chunks`,
      });
    }
    this.#size = size;
    this.#position = 0;
  }

  /** Bytes of the chunk that holds `#position`. */
  #chunkLength(): number {
    const start = this.#position - (this.#position % this.#chunkSize);
    return Math.min(this.#chunkSize, this.#size - start);
  }

  #store(bytes: Uint8Array): void {
    for (let at = 0; at < bytes.byteLength; ) {
      const inChunk = this.#position % this.#chunkSize;
      const length = this.#chunkLength();
      const take = Math.min(length - inChunk, bytes.byteLength - at);
      this.#chunk.set(bytes.subarray(at, at + take), inChunk);
      const last = this.#ranges.at(-1);
      if (last !== undefined && last[0] + last[1] === inChunk) last[1] += take;
      else this.#ranges.push([inChunk, take]);
      at += take;
      this.#advance(take, length);
    }
  }

  #zeros(count: number): void {
    for (let left = count; left > 0; ) {
      const inChunk = this.#position % this.#chunkSize;
      const length = this.#chunkLength();
      const take = Math.min(length - inChunk, left);
      left -= take;
      if (take === this.#chunkSize) {
        this.#wholeZeroChunk();
        continue;
      }
      this.#chunk.fill(0, inChunk, inChunk + take);
      this.#advance(take, length);
    }
  }

  /** Holes may be long: their chunks are all the same one. */
  #wholeZeroChunk(): void {
    // too large for a batch: it does not matter whether it is alone
    this.#zeroAddress ??= this.#sink.add(new Uint8Array(new ArrayBuffer(this.#chunkSize)), false);
    this.#addresses.push(this.#zeroAddress);
    this.#position += this.#chunkSize;
  }

  #advance(count: number, chunkLength: number): void {
    this.#position += count;
    if (this.#position % this.#chunkSize !== 0 && this.#position !== this.#size) return;
    const address = this.#sink.add(this.#chunk.subarray(0, chunkLength), this.#size <= this.#chunkSize);
    this.#addresses.push(address);
    for (const [offset, length] of this.#ranges) this.#parts.push({ address, size: chunkLength, offset, length });
    this.#ranges = [];
  }
}

/** As many as a blob may have chunks. */
const PIECES_MAX = NYDUS_LIMITS.chunksPerBlob;
