/**
 * Chunks of a layer in the order of its tar: digest, the same chunk written before or known to the dictionary, else a place in the blob; then compression on other
 * threads, and the stored bytes in order (specs/nydus.md 3.4, 3.5).
 *
 *   add() -> batch being filled -> queue of units, compressing -> drain(): to the container, in order
 *
 * Everything is decided when a chunk is added, so the same chunks give the same blob however fast the threads are. In memory are the batch and the queue, which the caller keeps
 * short with `drain`.
 */

import type { PieceHash } from "../../piece-hash.ts";
import type { BatchContexts } from "../chunk-info.ts";
import { ChunkFlag } from "../ondisk.ts";
import type { ChunkArrayBuilder } from "./chunk-array.ts";
import type { ChunkCompressor } from "./compress.ts";
import type { BlobContainer } from "./container.ts";
import { type ChunkCrc, crcOf } from "./crc.ts";
import type { KnownChunks } from "./known-chunks.ts";

/** What is compressed at once: one chunk, or a batch. */
interface Unit {
  readonly plain: Uint8Array;
  readonly stored: Promise<Uint8Array>;
  /** Of one chunk its index; of a batch the first of its chunks, and their number in `count`. */
  readonly first: number;
  readonly count: number;
  readonly isBatch: boolean;
}

export interface ChunkWriterParts {
  readonly array: ChunkArrayBuilder;
  readonly known: KnownChunks;
  readonly compressor: ChunkCompressor;
  readonly batchCompressor: ChunkCompressor;
  readonly container: BlobContainer;
  readonly digest: PieceHash;
  readonly crc: ChunkCrc;
  readonly chunkSize: number;
  readonly batchSize: number;
}

export class ChunkWriter {
  readonly #parts: ChunkWriterParts;
  readonly #queue: Unit[] = [];
  #queued = 0;
  #batch: Uint8Array | null = null;
  #batchLength = 0;
  #batchFirst = 0;
  /** Of each chunk of the batch, where in it. */
  #batchOffsets: number[] = [];
  readonly #batchSizes: number[] = [];
  readonly #batchStoredSizes: number[] = [];

  readonly #copies: BufferPool;
  readonly #batches: BufferPool;

  constructor(parts: ChunkWriterParts) {
    this.#parts = parts;
    this.#copies = new BufferPool(parts.chunkSize);
    this.#batches = new BufferPool(parts.batchSize);
  }

  /**
   * Copies the bytes where they are new. `alone`: the chunk is all of its file, and may be batched. Returns its address as in BuiltLayer.tree. Throws HS_NYDUS_LIMIT.
   */
  add(bytes: Uint8Array, alone: boolean): number {
    const { array, known, digest, crc, batchSize } = this.#parts;
    const id = digest(bytes);
    const there = known.find(id, bytes.byteLength);
    if (there !== undefined) return there;
    const batched = alone && bytes.byteLength < batchSize / 2;
    // its neighbours in the blob are its neighbours in the array: a batch is a run of chunks
    if (!batched || this.#batchLength + bytes.byteLength >= batchSize) this.#endBatch();
    const index = array.add(bytes.byteLength, id, crcOf(crc, bytes));
    const address = array.offsetOf(index);
    known.add(id, bytes.byteLength, address);
    if (batched) this.#toBatch(bytes, index);
    else this.#enqueue(this.#copies.copy(bytes), index, 1, false);
    return address;
  }

  /** Writes what is compressed, and waits until at most `bytes` are under way. */
  async drain(bytes: number): Promise<void> {
    while (this.#queued > bytes) await this.#writeNext();
  }

  /** All that was added, to the last byte; the batches. */
  async finish(): Promise<BatchContexts | null> {
    this.#endBatch();
    await this.drain(0);
    if (this.#parts.batchSize === 0) return null;
    return {
      count: this.#batchSizes.length,
      storedSize: Uint32Array.from(this.#batchStoredSizes),
      size: Uint32Array.from(this.#batchSizes),
    };
  }

  #toBatch(bytes: Uint8Array, index: number): void {
    this.#batch ??= this.#batches.take();
    if (this.#batchLength === 0) this.#batchFirst = index;
    this.#batch.set(bytes, this.#batchLength);
    this.#batchOffsets.push(this.#batchLength);
    this.#batchLength += bytes.byteLength;
  }

  #endBatch(): void {
    const batch = this.#batch;
    if (batch === null) return;
    const context = this.#batchSizes.push(this.#batchLength) - 1;
    for (const [position, offset] of this.#batchOffsets.entries()) {
      // its place is known when the batch is written
      this.#parts.array.inContext(this.#batchFirst + position, context, offset, BATCHED, 0, 0);
    }
    this.#enqueue(batch.subarray(0, this.#batchLength), this.#batchFirst, this.#batchOffsets.length, true);
    this.#batch = null;
    this.#batchLength = 0;
    this.#batchOffsets = [];
  }

  #enqueue(plain: Uint8Array, first: number, count: number, isBatch: boolean): void {
    const { compressor, batchCompressor } = this.#parts;
    const stored = (isBatch ? batchCompressor : compressor).compress(plain);
    // whoever drains gets the error; until then nobody waits for it
    stored.catch(() => {});
    this.#queue.push({ plain, stored, first, count, isBatch });
    this.#queued += plain.byteLength;
  }

  async #writeNext(): Promise<void> {
    const unit = this.#queue.shift()!;
    const { array, container } = this.#parts;
    const stored = await unit.stored;
    const offset = container.offset;
    if (unit.isBatch) {
      this.#batchStoredSizes.push(stored.byteLength);
      for (let chunk = unit.first; chunk < unit.first + unit.count; chunk++) array.moveContext(chunk, offset);
    } else {
      // decoders tell by the sizes whether it is compressed
      const flags = stored === unit.plain ? 0 : ChunkFlag.compressed;
      array.stored(unit.first, offset, stored.byteLength, flags);
    }
    await container.write(stored);
    this.#queued -= unit.plain.byteLength;
    // stored as it is, the bytes are the sink's now
    if (stored !== unit.plain) (unit.isBatch ? this.#batches : this.#copies).give(unit.plain);
  }
}

const BATCHED = ChunkFlag.compressed | ChunkFlag.batch;

/** Buffers that are used again: without, hundreds of megabytes wait for the garbage collector. */
class BufferPool {
  readonly #size: number;
  readonly #free: ArrayBuffer[] = [];

  constructor(size: number) {
    this.#size = size;
  }

  take(): Uint8Array<ArrayBuffer> {
    return new Uint8Array(this.#free.pop() ?? new ArrayBuffer(this.#size));
  }

  /** Small ones get a buffer of their own size. */
  copy(bytes: Uint8Array): Uint8Array {
    if (bytes.byteLength * 4 < this.#size) return Uint8Array.from(bytes);
    const copy = this.take().subarray(0, bytes.byteLength);
    copy.set(bytes);
    return copy;
  }

  /** A view of a buffer that `take` gave; others are left alone. */
  give(bytes: Uint8Array): void {
    if (bytes.buffer instanceof ArrayBuffer && bytes.buffer.byteLength === this.#size) this.#free.push(bytes.buffer);
  }
}
