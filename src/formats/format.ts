/**
 * What a lazy format is: bytes in, `FileTree` + `UnitTable` out, and how to decode one unit. Read this second. The one interface that every
 * format implements; formats/all.ts lists them. Formats know bytes: no HTTP, no FUSE, no containerd, no clock, no files.
 */

import type { Digest } from "../base/digest.ts";
import type { FileTree } from "../erofs/file-tree.ts";
import type { Descriptor } from "../oci/descriptor.ts";
import type { Manifest } from "../oci/manifest.ts";

/** A layer with marks means another tree as an image's lowest layer than as an upper one (specs/layer.md 6). */
export type LayerRole = "lowest" | "upper";

/**
 * Units are the smallest things that can be fetched and decoded alone; pieces say which addresses a unit holds.
 *
 *   unit u : stored bytes [unitStart[u], unitEnd[u]) of blob unitBlob[u]; sha256 of them in unitDigest[32 u ..] where known
 *   piece p: addresses [pieceAddress[p], + pieceLength[p]) = decoded bytes of unit pieceUnit[p] from pieceOffset[p] on
 *
 * Invariants: pieces ascend by address and do not overlap (lookup is a binary search); every unit has at least one digest that covers it:
 * over its stored bytes, or over each of its pieces. Units may share stored bytes (SOCI spans share one when a boundary is not on a byte).
 * Arrays are over SharedArrayBuffer, so a table crosses to workers without a copy.
 */
export interface UnitTable {
  readonly blobs: readonly UnitBlob[];
  readonly unitCount: number;
  readonly unitBlob: Uint16Array;
  readonly unitStart: Float64Array;
  readonly unitEnd: Float64Array;
  /** Bytes that the unit decodes to. */
  readonly unitDecodedLength: Float64Array;
  /** 32 bytes a unit (sha256 over the stored bytes), or null when pieces carry the digests. */
  readonly unitDigest: Uint8Array | null;
  readonly pieceCount: number;
  readonly pieceAddress: Float64Array;
  readonly pieceLength: Float64Array;
  readonly pieceUnit: Uint32Array;
  readonly pieceOffset: Float64Array;
  /** 32 bytes a piece over the decoded bytes, or null. */
  readonly pieceDigest: Uint8Array | null;
  readonly pieceDigestAlgorithm: "sha256" | "blake3" | null;
}

export interface UnitBlob {
  readonly digest: Digest;
  /** Bytes of the stored blob. */
  readonly size: number;
}

/**
 * What a decoder needs beside the unit's stored bytes: plain data that structured clone can send, big parts in SharedArrayBuffers. `codec` names
 * the decoder (`formats/all.ts: decoderFor`).
 */
export interface DecodeTable {
  readonly codec: string;
  readonly [field: string]: unknown;
}

/** Decodes units of one layer in a worker thread. Synchronous: a worker does one unit at a time. */
export interface UnitDecoder {
  /**
   * The decoded bytes of `unit`, exactly unitDecodedLength[unit] of them (a view that is valid until a decoder of this thread is called again). `stored` is the verified
   * stored range. Throws HS_UNIT_DECODE when the bytes do not decode to that length, and for other formats' own reasons.
   */
  decode(unit: number, stored: Uint8Array): Uint8Array;
  /**
   * What else must hold of the decoded bytes before one of them is readable: a tar's headers must say what the table of contents said. Throws
   * HS_INDEX_MISMATCH. Called with bytes that already have the right digest.
   */
  check(unit: number, decoded: Uint8Array): void;
}

/** What an adapter makes of a layer's index: all that a mount needs. */
export interface LazyLayer {
  readonly tree: FileTree;
  readonly units: UnitTable;
  readonly decode: DecodeTable;
  /** Length of address space 0 (for a tar: of the uncompressed tar); a seal reads exactly that many bytes again. */
  readonly streamLength: number;
  /** Units that the image's author wants first, in order (SOCI prefetch artifacts). */
  readonly prefetchUnits: readonly number[];
}

/** What describes the layer that an index must belong to. */
export interface LayerIdentity {
  readonly digest: Digest;
  /** Compressed size from the manifest. */
  readonly size: number;
  readonly mediaType: string;
  readonly diffID: Digest;
}

/** What must be fetched to open one layer: its table (a zTOC), then whatever the format keeps beside it (a prefetch artifact). */
export interface LayerTables {
  readonly table: Descriptor;
  readonly extras: readonly Descriptor[];
}

/**
 * One lazy format. `image/` asks each adapter of formats/all.ts in turn where an image's index is, fetches what it names (verified by digest), and gives the
 * bytes back. Pure: adapters fetch nothing.
 */
export interface FormatAdapter {
  readonly name: string;
  /** The index that the manifest itself names by digest, or null. Throws HS_INDEX_INVALID when it names something that is no digest. */
  boundIndex(manifest: Manifest): Digest | null;
  /** artifactType under which an unbound index is found among the manifest's referrers, or null. */
  readonly referrerType: string | null;
  /** Table per layer digest; layers without one are left out, what does not belong to this image is ignored. Throws HS_INDEX_INVALID. */
  readIndex(
    bytes: Uint8Array,
    image: { readonly manifest: Digest; readonly layers: readonly Descriptor[] },
  ): ReadonlyMap<Digest, LayerTables>;
  /** Bytes that a table may have. */
  readonly tableBytesMax: number;
  /** Throws HS_INDEX_INVALID, HS_INDEX_MISMATCH, HS_LAYER_REFUSED. `extras` are null where they could not be had: they are hints. */
  openLayer(input: {
    readonly identity: LayerIdentity;
    readonly role: LayerRole;
    readonly table: Uint8Array;
    readonly extras: readonly (Uint8Array | null)[];
  }): LazyLayer;
}

/**
 * What a blob holds that several images share (Nydus): its address space lies in a data file by identity, address = file offset, every piece on a block of
 * 4 KiB. All pieces of the blob are here, whether an image uses them or not; `units.pieceDigest` is null, since digests come from images (`BoundDigests`).
 */
export interface DataTable {
  /** Of one blob. */
  readonly units: UnitTable;
  readonly decode: DecodeTable;
}

/** Digests over decoded pieces that an image's own metadata binds; other pieces of the blob are neither fetched nor readable for it. */
export interface BoundDigests {
  readonly algorithm: "sha256" | "blake3";
  /** Ascending. */
  readonly pieces: Uint32Array;
  /** 32 bytes for each of `pieces`. */
  readonly digests: Uint8Array;
}

export interface BoundBlob {
  /** The stored blob that units are ranges of. */
  readonly blob: UnitBlob;
  readonly table: DataTable;
  readonly bound: BoundDigests;
}

/** What a format makes of an image that is one merged tree over several blobs. */
export interface MergedImage {
  readonly tree: FileTree;
  /** By address space of the tree; null for a blob of which no file uses anything. */
  readonly blobs: readonly (BoundBlob | null)[];
  /** What the author wants first, in order: pairs of (address space, piece), one for each unit. Often all there is, so it is flat. */
  readonly prefetch: Uint32Array;
}
