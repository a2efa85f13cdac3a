/** The chunks of a stored native blob (not encrypted: headstart writes none such) one after the other, as one who reads all of a blob wants them: neighbours in one read, batches decoded once, every chunk verified. */

import type { PieceHash } from "../../piece-hash.ts";
import type { NydusBlob } from "../blob-table.ts";
import { type ChunkInfo, decompress } from "../chunk-info.ts";
import { ChunkFlag, Compressor, nydusInvalid } from "../ondisk.ts";

/** What of a blob's entry in the table is asked for. */
export type StoredChunksBlob = Pick<NydusBlob, "id" | "compressor" | "dataSize">;

export interface StoredChunksInput {
  readonly blob: StoredChunksBlob;
  readonly info: ChunkInfo;
  /** 32 bytes a chunk, in the order of the array; bound by whoever gives them. */
  readonly digests: Uint8Array;
  readonly digest: PieceHash;
  /** Bytes [start, end) of the stored blob. */
  readonly read: (start: number, end: number) => Promise<Uint8Array>;
}

/** What one read fetches: chunks lie in the order in which a tar wants them. */
const WINDOW_BYTES = 4 * 1024 * 1024;

export class StoredChunks {
  readonly #input: StoredChunksInput;
  #window: Uint8Array = EMPTY;
  #windowStart = 0;
  #batch = -1;
  #batchBytes: Uint8Array = EMPTY;

  constructor(input: StoredChunksInput) {
    this.#input = input;
  }

  /** The plain chunk: a view until the next call. Throws HS_NYDUS_INVALID (no such chunk, a wrong digest), HS_UNIT_DECODE, and what the read throws. */
  async read(chunk: number): Promise<Uint8Array> {
    const { info, digests, digest, blob } = this.#input;
    if (chunk >= info.count) throw nydusInvalid(`blob ${blob.id}`, `chunk ${chunk} of ${info.count}`);
    const bytes = await this.#decode(chunk);
    const want = digests.subarray(chunk * 32, chunk * 32 + 32);
    if (want.byteLength !== 32 || Buffer.compare(digest(bytes), want) !== 0)
      throw nydusInvalid(`blob ${blob.id}`, `chunk ${chunk} has another digest than the blob says`);
    return bytes;
  }

  async #decode(chunk: number): Promise<Uint8Array> {
    const { info } = this.#input;
    const flags = info.flags[chunk]!;
    const size = info.size[chunk]!;
    if ((flags & ChunkFlag.batch) === 0) {
      const compressed = (flags & ChunkFlag.compressed) !== 0;
      return await this.#plain(info.storedOffset[chunk]!, info.storedSize[chunk]!, size, compressed);
    }
    const batch = info.context[chunk]!;
    if (batch !== this.#batch) {
      const storedSize = info.batches!.storedSize[batch]!;
      const batchSize = info.batches!.size[batch]!;
      this.#batch = -1;
      this.#batchBytes = await this.#plain(info.storedOffset[chunk]!, storedSize, batchSize, storedSize !== batchSize);
      this.#batch = batch;
    }
    const start = info.contextOffset[chunk]!;
    return this.#batchBytes.subarray(start, start + size);
  }

  async #plain(offset: number, storedSize: number, size: number, compressed: boolean): Promise<Uint8Array> {
    const { blob } = this.#input;
    const stored = await this.#stored(offset, offset + storedSize);
    return decompress(compressed ? blob.compressor : Compressor.none, stored, size, `blob ${blob.id}`);
  }

  async #stored(start: number, end: number): Promise<Uint8Array> {
    const { blob, read } = this.#input;
    if (start < this.#windowStart || end > this.#windowStart + this.#window.byteLength) {
      this.#window = await read(start, Math.max(end, Math.min(start + WINDOW_BYTES, blob.dataSize)));
      this.#windowStart = start;
    }
    return this.#window.subarray(start - this.#windowStart, end - this.#windowStart);
  }
}

const EMPTY = new Uint8Array(0);
