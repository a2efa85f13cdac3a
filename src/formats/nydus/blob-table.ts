/** The blobs of an image as its bootstrap describes them: the v6 blob table with its device slots (specs/nydus.md 2.5), and what both versions share. */

import { Reader } from "../../base/bytes.ts";
import { HeadstartError } from "../../base/errors.ts";
import type { ContainingBlob } from "./layer-bootstrap.ts";
import {
  BLOB_FEATURES_UNKNOWN,
  BlobFeature,
  CI_CONTEXT_SIZE,
  CI_ENTRY_SIZE,
  CI_ENTRY_SIZE_V2,
  type Compressor,
  compressorOf,
  type DigestAlgorithm,
  digesterOf,
  NYDUS_LIMITS,
  nydusInvalid,
  rafs_v6_blob,
  rafs_v6_device,
} from "./ondisk.ts";

export interface NydusBlob {
  readonly index: number;
  /** 64 hex digits: of the stored blob (native), or of the original layer (ref). */
  readonly id: string;
  readonly chunkCount: number;
  readonly compressor: Compressor;
  readonly digester: DigestAlgorithm;
  readonly features: number;
  /** As the table has it; what it counts depends on the features. For a ref: bytes of the original layer. */
  readonly compressedSize: number;
  /** Bytes of the address space. */
  readonly uncompressedSize: number;
  /** Chunks are stored in the blob's first `dataSize` bytes (specs/nydus.md 2.4). */
  readonly dataSize: number;
  /** True when the data are those of an unmodified OCI layer (zran). */
  readonly isRef: boolean;
  /** Where the chunk array is; null in v5, which has none. */
  readonly chunkInfo: ChunkInfoPlace | null;
  /** Hex of the digest of the metadata blob of a ref, and its size; null for native blobs. */
  readonly metaBlob: { readonly id: string; readonly size: number } | null;
  /** Of an encrypted blob. */
  readonly cipher: { readonly key: Uint8Array; readonly iv: Uint8Array } | null;
  readonly tocSize: number;
  readonly tocDigest: string;
}

/** In the blob itself, or in the metadata blob of a ref; the header of 4096 bytes follows. */
export interface ChunkInfoPlace {
  readonly compressor: Compressor;
  readonly offset: number;
  readonly compressedSize: number;
  readonly size: number;
}

/** The id that the bootstrap of one layer gives its blob, whose digest covers it: whoever merges it takes the id from the file's name (specs/nydus.md 2.1). */
export const UNKNOWN_BLOB_ID = "x".repeat(64);

const ID = /^[0-9a-f]{64}$/;
const NO_DIGEST = "0".repeat(64);

/** A blob id becomes a path and a URL: 64 hex digits and nothing else. The 64 x of an unmerged bootstrap are refused with a reason of their own. */
export function checkBlobId(id: string, what: string): string {
  if (id === UNKNOWN_BLOB_ID) {
    throw new HeadstartError("HS_FORMAT_UNSUPPORTED", {
      what: `${what}: a bootstrap of one layer that does not know its blob; merge it first`,
    });
  }
  if (!ID.test(id)) throw nydusInvalid(what, `the blob id is ${JSON.stringify(id.slice(0, 80))}`);
  return id;
}

export function checkFeatures(features: number, what: string): void {
  const has = (feature: number) => (features & feature) !== 0;
  if (has(BLOB_FEATURES_UNKNOWN) || has(BlobFeature.v5NoExtBlobTable)) {
    throw nydusInvalid(what, `unknown features 0x${features.toString(16)}`);
  }
  if (has(BlobFeature.tarfs) || has(BlobFeature.external)) {
    throw new HeadstartError("HS_FORMAT_UNSUPPORTED", {
      what: `${what}: ${has(BlobFeature.tarfs) ? "a tarfs" : "an external"} blob`,
    });
  }
}

/** Bytes of chunk data at the start of the stored blob. */
export function dataSizeOf(features: number, compressedSize: number, chunkInfoOffset: number | null): number {
  const header = (features & BlobFeature.hasTarHeader) !== 0 ? 512 : 0;
  if ((features & BlobFeature.separate) !== 0 || (features & BlobFeature.capTarToc) === 0) return compressedSize;
  return (chunkInfoOffset ?? compressedSize) - header;
}

/**
 * `bytes` are the whole table; its length is a multiple of the entry's. `container`: the blob that the bootstrap of one layer was found in, which it does not know
 * itself.
 */
export function readBlobTable(
  bytes: Uint8Array,
  image: { readonly chunkSize: number; readonly container: ContainingBlob | null },
  what: string,
): NydusBlob[] {
  const count = bytes.byteLength / rafs_v6_blob.size;
  if (count > NYDUS_LIMITS.blobs) throw nydusInvalid(what, `${count} blobs, at most ${NYDUS_LIMITS.blobs}`);
  const blobs: NydusBlob[] = [];
  const seen = new Set<string>();
  for (let index = 0; index < count; index++) {
    const entry = `${what}: blob ${index}`;
    const blob = readBlob(
      new Reader(bytes.subarray(index * rafs_v6_blob.size, (index + 1) * rafs_v6_blob.size), { what: entry }),
      index,
      image,
      entry,
    );
    if (seen.has(blob.id)) throw nydusInvalid(entry, `the id ${blob.id} stands twice`);
    seen.add(blob.id);
    blobs.push(blob);
  }
  return blobs;
}

function readBlob(
  reader: Reader,
  index: number,
  { chunkSize, container }: { readonly chunkSize: number; readonly container: ContainingBlob | null },
  what: string,
): NydusBlob {
  const written = reader.ascii(64);
  const id = checkBlobId(container !== null && written === UNKNOWN_BLOB_ID ? container.id : written, what);
  const bad = (message: string) => nydusInvalid(what, message);
  const blobIndex = reader.u32();
  if (blobIndex !== index) throw bad(`its index is ${blobIndex}`);
  const ownChunkSize = reader.u32();
  if (ownChunkSize !== chunkSize) throw bad(`chunks of ${ownChunkSize} bytes in an image of ${chunkSize}`);
  const chunkCount = reader.u32();
  if (chunkCount > NYDUS_LIMITS.chunksPerBlob) throw bad(`${chunkCount} chunks`);
  const compressor = compressorOf(reader.u32(), what);
  const digester = digesterOf(reader.u32(), what);
  // in the bootstrap of one layer it says that the bootstrap is in the blob; a merge clears it
  const features = (reader.u32() & ~(container === null ? 0 : BlobFeature.inlinedFsMeta)) >>> 0;
  checkFeatures(features, what);
  const has = (feature: number) => (features & feature) !== 0;
  if (!has(BlobFeature.aligned)) throw bad("ALIGNED is missing");
  if ((has(BlobFeature.zran) || has(BlobFeature.batch) || has(BlobFeature.encrypted)) && !has(BlobFeature.chunkInfoV2))
    throw bad("zran, batch or encryption without CHUNK_INFO_V2");
  if (has(BlobFeature.zran) && (has(BlobFeature.batch) || has(BlobFeature.encrypted)))
    throw bad("zran together with batch or encryption");
  if (has(BlobFeature.zran) && !has(BlobFeature.separate)) throw bad("zran without SEPARATE");
  if (has(BlobFeature.separate) && !has(BlobFeature.chunkInfoV2)) throw bad("a ref without CHUNK_INFO_V2");
  const compressedSize = reader.u64("compressed_size");
  const uncompressedSize = reader.u64("uncompressed_size");
  if (compressedSize > NYDUS_LIMITS.blobCompressedBytes) throw bad(`${compressedSize} stored bytes`);
  if (!(uncompressedSize > 0 && uncompressedSize <= NYDUS_LIMITS.blobUncompressedBytes))
    throw bad(`an address space of ${uncompressedSize} bytes`);
  const tocSize = reader.u32();
  const chunkInfo: ChunkInfoPlace = {
    compressor: compressorOf(reader.u32(), what),
    offset: reader.u64("ci_offset"),
    compressedSize: reader.u64("ci_compressed_size"),
    size: reader.u64("ci_uncompressed_size"),
  };
  checkChunkInfoPlace(chunkInfo, chunkCount, features, what);
  const tocDigest = hex(reader.take(32));
  const metaDigest = reader.take(32);
  const metaSize = reader.take(8);
  const iv = reader.take(8);
  const cipher = reader.u32();
  const encrypted = has(BlobFeature.encrypted);
  if (cipher > 1) throw new HeadstartError("HS_FORMAT_UNSUPPORTED", { what: `${what}: cipher ${cipher}` });
  if (encrypted !== (cipher === 1)) throw bad(`cipher ${cipher} with features 0x${features.toString(16)}`);
  // OpenSSL refuses an XTS key whose halves are equal, and no honest builder makes one
  if (encrypted && Buffer.compare(metaDigest.subarray(0, 16), metaDigest.subarray(16)) === 0)
    throw bad("both halves of the key are equal");
  const dataSize = dataSizeOf(features, compressedSize, chunkInfo.offset);
  if (dataSize < 0) throw bad("its chunk array lies where its data are");
  const isRef = has(BlobFeature.separate);
  let metaBlob = isRef ? { id: hex(metaDigest), size: new Reader(metaSize, { what }).u64("blob_meta_size") } : null;
  if (metaBlob?.id === NO_DIGEST && container !== null) metaBlob = { id: container.id, size: container.size };
  if (metaBlob !== null && metaBlob.id === NO_DIGEST) throw bad("a ref that does not name its metadata blob");
  return {
    index,
    id,
    chunkCount,
    compressor,
    digester,
    features,
    compressedSize,
    uncompressedSize,
    dataSize,
    isRef,
    chunkInfo,
    metaBlob,
    cipher: encrypted ? { key: metaDigest.slice(), iv: Buffer.concat([metaSize, iv]) } : null,
    tocSize,
    tocDigest,
  };
}

function checkChunkInfoPlace(place: ChunkInfoPlace, chunkCount: number, features: number, what: string): void {
  const has = (feature: number) => (features & feature) !== 0;
  const { offset, compressedSize, size } = place;
  const bad = (message: string) => nydusInvalid(what, `chunk array: ${message}`);
  if (size > NYDUS_LIMITS.chunkInfoBytes) throw bad(`${size} bytes`);
  if (compressedSize > size) throw bad(`${compressedSize} stored bytes for ${size}`);
  if (offset > NYDUS_LIMITS.blobCompressedBytes) throw bad(`at byte ${offset}`);
  const entries = chunkCount * (has(BlobFeature.chunkInfoV2) ? CI_ENTRY_SIZE_V2 : CI_ENTRY_SIZE);
  const contexts = has(BlobFeature.zran) || has(BlobFeature.batch);
  if (contexts ? size < entries : size !== entries) throw bad(`${size} bytes for ${chunkCount} chunks`);
  // a context and a window for each chunk are the most that there can be
  if (size > entries + chunkCount * (CI_CONTEXT_SIZE + NYDUS_LIMITS.dictionaryBytes))
    throw bad(`${size} bytes for ${chunkCount} chunks`);
  if (place.compressor === 2) throw bad("compressed with gzip");
}

/** Device slots say again which blobs there are; the kernel reads these. A slot without blocks is refused by nydusd. */
export function checkDevices(
  bytes: Uint8Array,
  blobs: readonly NydusBlob[],
  container: ContainingBlob | null,
  what: string,
): void {
  for (const blob of blobs) {
    const slot = `${what}: device slot ${blob.index}`;
    const start = blob.index * rafs_v6_device.size;
    const reader = new Reader(bytes.subarray(start, start + rafs_v6_device.size), { what: slot });
    const id = reader.ascii(64);
    if (id !== blob.id && !(id === UNKNOWN_BLOB_ID && blob.id === container?.id))
      throw nydusInvalid(slot, `it names ${JSON.stringify(id)}, the blob table ${blob.id}`);
    if (reader.u32() === 0) throw nydusInvalid(slot, "it has no blocks");
  }
}

function hex(bytes: Uint8Array): string {
  return Buffer.from(bytes).toString("hex");
}
