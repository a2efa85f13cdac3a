/** A bootstrap for people: what it says of itself, its blobs and its chunks. */

import { FileType } from "../../erofs/file-tree.ts";
import { type NydusBootstrap, readBootstrap } from "./bootstrap.ts";
import { BlobFeature, COMPRESSOR_NAMES } from "./ondisk.ts";

export interface BootstrapFacts {
  readonly version: 5 | 6;
  readonly chunkSize: number;
  readonly compressor: string | null;
  readonly digester: string | null;
  readonly inodes: number;
  readonly files: number;
  /** Bytes of all regular files, each once. */
  readonly fileBytes: number;
  readonly chunks: number;
  /** Chunks that have a digest in the bootstrap: all, or the image cannot be read. */
  readonly chunksWithDigest: number;
  readonly prefetch: number;
  readonly blobs: readonly {
    readonly id: string;
    readonly mode: "native" | "ref";
    readonly features: readonly string[];
    readonly chunks: number;
    readonly compressor: string;
    readonly digester: string;
    readonly dataSize: number;
    readonly uncompressedSize: number;
    readonly chunkInfo: Readonly<Record<string, unknown>> | null;
    readonly metaBlob: string | null;
  }[];
}

/** Throws what `readBootstrap` throws. */
export function inspectBootstrap(bytes: Uint8Array, what: string): BootstrapFacts {
  return bootstrapFacts(readBootstrap(bytes, what));
}

export function bootstrapFacts(bootstrap: NydusBootstrap): BootstrapFacts {
  const { tree, uses } = bootstrap;
  let files = 0;
  let fileBytes = 0;
  for (let inode = 0; inode < tree.inodeCount; inode++) {
    if (tree.type[inode] !== FileType.regular) continue;
    files++;
    fileBytes += tree.size[inode]!;
  }
  return {
    version: bootstrap.version,
    chunkSize: bootstrap.chunkSize,
    compressor: bootstrap.compressor === null ? null : COMPRESSOR_NAMES[bootstrap.compressor],
    digester: bootstrap.digester,
    inodes: tree.inodeCount,
    files,
    fileBytes,
    chunks: uses.count,
    chunksWithDigest: uses.record.reduce((count, record) => count + (record < 0 ? 0 : 1), 0),
    prefetch: bootstrap.prefetch.length,
    blobs: bootstrap.blobs.map((blob) => ({
      id: blob.id,
      mode: blob.isRef ? ("ref" as const) : ("native" as const),
      features: featureNames(blob.features),
      chunks: blob.chunkCount,
      compressor: COMPRESSOR_NAMES[blob.compressor],
      digester: blob.digester,
      dataSize: blob.dataSize,
      uncompressedSize: blob.uncompressedSize,
      chunkInfo:
        blob.chunkInfo === null ? null : { ...blob.chunkInfo, compressor: COMPRESSOR_NAMES[blob.chunkInfo.compressor] },
      metaBlob: blob.metaBlob?.id ?? null,
    })),
  };
}

function featureNames(features: number): string[] {
  return Object.entries(BlobFeature)
    .filter(([, bit]) => (features & bit) !== 0)
    .map(([name]) => name);
}
