/**
 * A chunk dictionary: the chunks of another image, as its bootstrap's chunk table has them, which files of a new image may refer to instead of storing them again
 * (`--chunk-dict`; specs/nydus.md 1.2, 3.6). The blobs that are referred to become layers of the new image too.
 */

import { HeadstartError } from "../../../base/errors.ts";
import type { NydusBlob } from "../blob-table.ts";
import { type NydusBootstrap, readBootstrap } from "../bootstrap.ts";
import {
  BlobFeature,
  ChunkFlag,
  type DigestAlgorithm,
  nydusInvalid,
  RECORD_COMPRESSED,
  RECORD_CRC32,
} from "../ondisk.ts";
import type { BlobFacts, ChunkList, ImageBlob } from "./model.ts";

/** A chunk of the dictionary: its blob, and its element in the blob's list. */
export interface DictionaryChunk {
  readonly blob: ImageBlob;
  readonly element: number;
}

export class ChunkDictionary {
  readonly blobs: readonly ImageBlob[];
  readonly #chunks = new Map<string, DictionaryChunk>();

  constructor(blobs: readonly ImageBlob[]) {
    this.blobs = blobs;
    for (const blob of blobs) {
      for (let element = 0; element < blob.chunks.count; element++) {
        const key = keyOf(blob.chunks.digest.subarray(element * 32, element * 32 + 32));
        // the first blob that has a chunk: so few blobs are referred to
        if (!this.#chunks.has(key)) this.#chunks.set(key, { blob, element });
      }
    }
  }

  get chunkCount(): number {
    return this.#chunks.size;
  }

  /** The chunk with this digest (32 bytes) and plain size, or null. */
  find(digest: Uint8Array, size: number): DictionaryChunk | null {
    const found = this.#chunks.get(keyOf(digest));
    return found !== undefined && found.blob.chunks.size[found.element] === size ? found : null;
  }
}

/**
 * Throws what `readBootstrap` throws; HS_NYDUS_LIMIT when the image has chunks of another size or digests of another kind than the conversion: one image has one of
 * each. Blobs of refs and encrypted blobs are left out: their chunks cannot be read by what reads native ones.
 */
export function openDictionary(
  bytes: Uint8Array,
  conversion: { readonly chunkSize: number; readonly digester: DigestAlgorithm },
  what = "chunk dictionary",
): ChunkDictionary {
  const bootstrap = readBootstrap(bytes, what);
  const blobs = imageBlobs(bootstrap).filter(({ facts }) => !isForeign(facts));
  if (blobs.length > 0 && bootstrap.chunkSize !== conversion.chunkSize)
    throw new HeadstartError("HS_NYDUS_LIMIT", {
      what: `${what}: chunks of ${bootstrap.chunkSize} bytes; convert with --chunk-size ${bootstrap.chunkSize}, or without the dictionary`,
    });
  for (const { facts } of blobs) {
    if (facts.digester !== conversion.digester)
      throw new HeadstartError("HS_NYDUS_LIMIT", {
        what: `${what}: ${facts.digester} digests; convert with --digester ${facts.digester}, or without the dictionary`,
      });
  }
  return new ChunkDictionary(blobs);
}

/**
 * Blobs of a bootstrap in the order of its table, each with the chunks that have a record: those that its tree uses. Blobs of RAFS v5 are left out: they have no
 * chunk array. Throws HS_NYDUS_INVALID for records that no chunk array can have.
 */
export function imageBlobs(bootstrap: NydusBootstrap): ImageBlob[] {
  const { records } = bootstrap;
  const elements = bootstrap.blobs.map((): number[] => []);
  for (let record = 0; record < records.count; record++) elements[records.blob[record]!]!.push(record);
  const found: ImageBlob[] = [];
  for (const blob of bootstrap.blobs) {
    const { chunkInfo } = blob;
    if (chunkInfo === null) continue;
    const own = elements[blob.index]!.sort((a, b) => records.index[a]! - records.index[b]!);
    checkOrder(bootstrap, blob, own);
    found.push({ facts: { ...blob, chunkInfo }, chunks: chunkList(bootstrap, own) });
  }
  return found;
}

/** Chunks lie in the address space in the order of the chunk array (specs/nydus.md N11): lookups by address rely on it. */
function checkOrder({ records }: NydusBootstrap, blob: NydusBlob, own: readonly number[]): void {
  let end = 0;
  for (const record of own) {
    const offset = records.offset[record]!;
    if (offset < end)
      throw nydusInvalid(
        `blob ${blob.id}`,
        `the record of chunk ${records.index[record]} has it at ${offset}, after ${end}`,
      );
    end = offset + records.size[record]!;
  }
  if (end > blob.uncompressedSize)
    throw nydusInvalid(`blob ${blob.id}`, `records of chunks end at ${end} of ${blob.uncompressedSize} bytes`);
}

function chunkList({ records }: NydusBootstrap, own: readonly number[]): ChunkList {
  const count = own.length;
  const chunks = {
    count,
    index: new Uint32Array(count),
    offset: new Float64Array(count),
    size: new Uint32Array(count),
    storedOffset: new Float64Array(count),
    storedSize: new Uint32Array(count),
    flags: new Uint8Array(count),
    digest: new Uint8Array(count * 32),
    crc32: new Uint32Array(count),
  };
  own.forEach((record, element) => {
    const flags = records.flags[record]!;
    chunks.index[element] = records.index[record]!;
    chunks.offset[element] = records.offset[record]!;
    chunks.size[element] = records.size[record]!;
    chunks.storedOffset[element] = records.compressedOffset[record]!;
    chunks.storedSize[element] = records.compressedSize[record]!;
    chunks.flags[element] = (flags & RECORD_COMPRESSED) === 0 ? 0 : ChunkFlag.compressed;
    chunks.digest.set(records.digest.subarray(record * 32, record * 32 + 32), element * 32);
    chunks.crc32[element] = (flags & RECORD_CRC32) === 0 ? 0 : records.crc32[record]!;
  });
  return chunks;
}

function isForeign(facts: BlobFacts): boolean {
  return (facts.features & (BlobFeature.separate | BlobFeature.encrypted)) !== 0;
}

function keyOf(digest: Uint8Array): string {
  return Buffer.from(digest.buffer, digest.byteOffset, 32).toString("latin1");
}
