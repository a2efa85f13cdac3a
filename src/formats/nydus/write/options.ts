/** How a layer becomes a Nydus blob: the options of `headstart convert --to nydus`, checked. */

import { HeadstartError } from "../../../base/errors.ts";
import { MiB } from "../../../base/limits.ts";
import { Compressor, type DigestAlgorithm, NYDUS_LIMITS } from "../ondisk.ts";

/** Of zstd. */
const LEVEL_MAX = 22;

export interface NydusOptions {
  readonly compressor: "zstd" | "lz4_block" | "none";
  /** Of zstd, 1 to 22; batches get three more. */
  readonly compressionLevel: number;
  /** Bytes; a power of two from 4096 to 16 MiB. */
  readonly chunkSize: number;
  /** Small chunks are compressed together, up to so many bytes; 0: each alone. A power of two from 4096, at most the chunk size (specs/nydus.md 1.2, 3.4). */
  readonly batchSize: number;
  readonly digester: DigestAlgorithm;
}

/**
 * What the peer has, but for the digester, which Node computes three times as fast as blake3, and the batches: compressed one by one, the small files of an image take more room
 * than in its gzip layers (docs/internals/nydus-write.md has figures).
 */
export const NYDUS_DEFAULTS: NydusOptions = {
  compressor: "zstd",
  compressionLevel: 3,
  chunkSize: MiB,
  batchSize: 512 * 1024,
  digester: "sha256",
};

/** Batches are where gzip, whose window spans files, is ahead of small chunks: some levels more cost little, since most bytes of an image are in large files. */
export function batchOptions(options: NydusOptions): NydusOptions {
  return { ...options, compressionLevel: Math.min(LEVEL_MAX, options.compressionLevel + 3) };
}

/** Where none is asked for: a batch is no larger than a chunk, of chunks of 16 MiB there are none, and without compression they save nothing. */
export function defaultBatchSize({ compressor, chunkSize }: Pick<NydusOptions, "compressor" | "chunkSize">): number {
  if (compressor === "none" || chunkSize === NYDUS_LIMITS.chunkSizeMax) return 0;
  return Math.min(NYDUS_DEFAULTS.batchSize, chunkSize);
}

/** Throws HS_USAGE. */
export function checkNydusOptions(options: NydusOptions): void {
  const { chunkSize, batchSize, compressionLevel } = options;
  const bad = (what: string) => new HeadstartError("HS_USAGE", { what });
  if (!isPowerOfTwo(chunkSize) || chunkSize < NYDUS_LIMITS.chunkSizeMin || chunkSize > NYDUS_LIMITS.chunkSizeMax)
    throw bad(`a chunk size of ${chunkSize}: a power of two from 4096 to 16777216 bytes is wanted`);
  if (batchSize !== 0 && (!isPowerOfTwo(batchSize) || batchSize < NYDUS_LIMITS.chunkSizeMin || batchSize > chunkSize))
    throw bad(`a batch size of ${batchSize}: 0 or a power of two from 4096 to the chunk size is wanted`);
  if (batchSize !== 0 && chunkSize === NYDUS_LIMITS.chunkSizeMax)
    throw bad(
      "chunks of 16 MiB together with batches: their chunk array has no room for the size of a chunk stored raw",
    );
  if (!Number.isInteger(compressionLevel) || compressionLevel < 1 || compressionLevel > LEVEL_MAX)
    throw bad(`a compression level of ${compressionLevel}: 1 to ${LEVEL_MAX} are there`);
}

export function compressorId(name: NydusOptions["compressor"]): Compressor {
  return name === "zstd" ? Compressor.zstd : name === "lz4_block" ? Compressor.lz4 : Compressor.none;
}

function isPowerOfTwo(value: number): boolean {
  return Number.isSafeInteger(value) && value > 0 && Number.isInteger(Math.log2(value));
}
