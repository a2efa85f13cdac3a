/**
 * bbolt files on disk (specs/warm-volume.md 6): page headers, meta pages, elements, and what a bucket is in memory. Little endian.
 *
 *   page 0, 1: meta, the valid one with the higher txid counts     page header 16, meta 64
 *   freelist, branch and leaf pages anywhere behind                elements first, then keys and values
 */

import { struct } from "../../base/bytes.ts";

export const PAGE_SIZE = 4096;

export const PageFlag = { branch: 1, leaf: 2, meta: 4, freelist: 0x10 } as const;
/** Of a leaf element: the value is a bucket. */
export const BUCKET_ELEMENT = 1;

export const BOLT_MAGIC = 0xed0c_daed;
export const BOLT_VERSION = 2;
/** In the meta page: the freelist was not written, free is what no page names. */
export const NO_FREELIST = 0xffff_ffff_ffff_ffffn;
/** A freelist's count: the real one is its first u64. */
export const COUNT_OVERFLOW = 0xffff;

export const PAGE_HEADER = struct("page", 16, { id: "u64", flags: "u16", count: "u16", overflow: "u32" });
export const META = struct("meta", 64, {
  magic: "u32",
  version: "u32",
  pageSize: "u32",
  flags: "u32",
  rootPage: "u64",
  rootSequence: "u64",
  freelist: "u64",
  highWater: "u64",
  txid: "u64",
  checksum: "u64",
});
export const LEAF_ELEMENT = struct("leafPageElement", 16, { flags: "u32", pos: "u32", ksize: "u32", vsize: "u32" });
export const BRANCH_ELEMENT = struct("branchPageElement", 16, { pos: "u32", ksize: "u32", pgid: "u64" });
/** A bucket's value: root page (0: inline, a page follows) and sequence. */
export const BUCKET_HEADER = struct("bucket", 16, { root: "u64", sequence: "u64" });

/** bbolt's own limits (MaxKeySize, MaxValueSize). */
export const KEY_BYTES_MAX = 32_768;
export const VALUE_BYTES_MAX = 2 ** 31 - 2;

/** A bucket in memory. Keys are strings of one char a byte. */
export interface Bucket {
  readonly sequence: number;
  readonly entries: ReadonlyMap<string, Uint8Array | Bucket>;
}

export function isBucket(value: Uint8Array | Bucket | undefined): value is Bucket {
  return value !== undefined && !(value instanceof Uint8Array);
}

const FNV_OFFSET = 0xcbf29ce484222325n;
const FNV_PRIME = 0x100000001b3n;

/** FNV-1a, 64 bits: the checksum over a meta page's fields before it. */
export function fnv1a(bytes: Uint8Array): bigint {
  let hash = FNV_OFFSET;
  for (const byte of bytes) hash = BigInt.asUintN(64, (hash ^ BigInt(byte)) * FNV_PRIME);
  return hash;
}
