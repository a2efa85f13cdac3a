/** The golden Nydus images (test/golden/nydus/README.md): bootstraps, blobs, and what the real tool and an independent decoder say of them. */

import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { gunzipSync } from "node:zlib";
import type { TreeLine } from "../../src/erofs/tree-lines.ts";
import type { NydusBlob } from "../../src/formats/nydus/blob-table.ts";
import type { NydusBootstrap } from "../../src/formats/nydus/bootstrap.ts";
import { type ChunkInfo, chunkInfoFromBlob } from "../../src/formats/nydus/chunk-info.ts";
import { CI_HEADER_SIZE } from "../../src/formats/nydus/ondisk.ts";

const GOLDEN = join(import.meta.dirname, "../golden/nydus");

/** An OCI layout; tags are native, native-docker, native-merge, ociref. */
export const nydusLayout = join(GOLDEN, "oci");
export const nydusBlobs = join(GOLDEN, "blobs");

const unzip = (name: string) => gunzipSync(readFileSync(join(GOLDEN, name)));

interface Variant {
  readonly layers: Readonly<Record<string, string>>;
  readonly original: Readonly<Record<string, string>> | null;
}

export const nydusVariants: Readonly<Record<string, Variant>> = JSON.parse(
  readFileSync(join(GOLDEN, "variants.json"), "utf8"),
) as Record<string, Variant>;

/** Those that hold all layers show this tree; a null is not compared. */
export function expectedNydusTree(): TreeLine[] {
  const lines = readFileSync(join(GOLDEN, "expected-tree.jsonl"), "utf8").trim().split("\n");
  return lines.map((line) => JSON.parse(line) as TreeLine);
}

/** A fresh copy: tests change bytes in it. */
export function nydusBootstrap(variant: string): Buffer<ArrayBuffer> {
  return Buffer.from(unzip(`${variant}/merged.boot.gz`));
}

export interface DecodedEntry {
  readonly mode: string;
  readonly size?: number;
  readonly nid?: number;
  readonly sha256?: string;
  /** v6: [device id, chunk index, block address]; v5: records. */
  readonly chunks?: readonly (readonly [number, number, number] | DecodedRecord)[];
}

export interface DecodedRecord {
  readonly digest: string;
  readonly blob: number;
  readonly flags: number;
  readonly c_size: number;
  readonly u_size: number;
  readonly c_off: number;
  readonly u_off: number;
  readonly index: number;
}

export interface DecodedBootstrap {
  readonly blobs: readonly {
    readonly id: string;
    readonly chunk_count: number;
    readonly features_raw: number;
    readonly compressed_size: number;
    readonly uncompressed_size: number;
    readonly ci_offset: number;
    readonly ci_csize: number;
    readonly ci_usize: number;
    readonly compressor: string;
    readonly digester: string;
  }[];
  readonly prefetch: readonly { readonly nid: number; readonly path: string }[];
  readonly tree: Readonly<Record<string, DecodedEntry>>;
}

export function decodedBootstrap(variant: string): DecodedBootstrap {
  return JSON.parse(unzip(`${variant}/merged.decoded.json.gz`).toString()) as DecodedBootstrap;
}

export interface DecodedBlob {
  readonly size: number;
  readonly parts: readonly { readonly name: string; readonly start: number; readonly size: number }[];
  readonly toc_digest?: string;
  readonly toc?: readonly {
    readonly name: string;
    readonly flags: number;
    readonly sha256: string;
    readonly c_off: number;
    readonly c_size: number;
    readonly u_size: number;
  }[];
  readonly ci?:
    | "encrypted"
    | {
        readonly chunks: readonly {
          readonly u_off: number;
          readonly u_size: number;
          readonly c_off: number;
          readonly c_size: number;
          readonly flags: number;
          readonly ctx?: number;
          readonly ctx_off?: number;
        }[];
        readonly contexts: readonly Readonly<Record<string, number>>[];
      };
}

/** By layer: "layer-0". */
export function decodedBlob(variant: string, layer: string): DecodedBlob | null {
  const name = `${variant}/${layer}.blob.json.gz`;
  return existsSync(join(GOLDEN, name)) ? (JSON.parse(unzip(name).toString()) as DecodedBlob) : null;
}

/** The bytes of a stored blob, or null for one that is left out of the repository. */
export function nydusBlob(id: string): Buffer | null {
  const path = join(nydusBlobs, id);
  return existsSync(path) ? readFileSync(path) : null;
}

/** What the blob stores at its chunk array, or null when the blob is left out. */
export function storedChunkInfo(blob: NydusBlob): Buffer | null {
  const place = blob.chunkInfo;
  const stored = nydusBlob(blob.metaBlob?.id ?? blob.id);
  if (place === null || stored === null) return null;
  return stored.subarray(place.offset, place.offset + place.compressedSize + CI_HEADER_SIZE);
}

/** Chunk arrays by blob; null in v5. Throws where a blob is left out. */
export function chunkInfos(bootstrap: NydusBootstrap): (ChunkInfo | null)[] {
  return bootstrap.blobs.map((blob) => {
    if (blob.chunkInfo === null) return null;
    const stored = storedChunkInfo(blob);
    if (stored === null) throw new Error(`blob ${blob.id} is left out`);
    return chunkInfoFromBlob(blob, stored);
  });
}

/** What nydusd keeps beside its cache of blob 0 of `v6-zstd-1m`. */
export function nydusBlobFile(suffix: "blob.meta"): Buffer {
  return readFileSync(join(GOLDEN, "cache", `${nydusVariants["v6-zstd-1m"]!.layers["layer-1"]}.${suffix}`));
}
