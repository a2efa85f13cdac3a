/**
 * Where images come from and go to, whatever the place: a registry, a layout directory, an archive, containerd's content directory.
 * Promises of every implementation:
 * - `readManifest` and `readAll` return only bytes whose digest (and size, where known) was checked;
 * - `stream(0)` that runs to its end has been checked too, unless the caller says that he does it himself; the error comes before the end is
 *   reported, so a consumer that commits at the end never commits wrong bytes;
 * - `readRange` returns exactly `end - start` bytes or throws; it cannot check a digest: its caller verifies by unit;
 * - every wait ends when the signal aborts, and by itself at a deadline.
 */

import type { Digest } from "../base/digest.ts";
import type { Descriptor } from "./descriptor.ts";

export interface ReadOptions {
  readonly signal?: AbortSignal | undefined;
}

export interface RangeOptions extends ReadOptions {
  /** Where the bytes are put (may be shared memory): at least `end - start` long. The result is a view of it. */
  readonly into?: Uint8Array | undefined;
  /** Called when the first `count` bytes of the range are in `into`, so that they can be used before the rest has come. */
  readonly onProgress?: ((count: number) => void) | undefined;
  /** Asked between pieces of the body: while its promise is pending nothing more is read, so that the connection fills up and the sender waits. */
  readonly hold?: (() => Promise<void> | null) | undefined;
  /** How often this range came back with wrong bytes: attempt n begins with the nth source (mirror), modulo `sourceCount`. */
  readonly attempt?: number | undefined;
}

export interface StreamOptions extends ReadOptions {
  /** The caller hashes the bytes himself (in a worker, say), and reports a mismatch himself. */
  readonly callerVerifies?: boolean | undefined;
  /** The caller is done with a chunk when he asks for the next one, and keeps none: its memory may then be used again. */
  readonly passing?: boolean | undefined;
  readonly attempt?: number | undefined;
}

/** One blob of one place. Holds no resource; may be used by many readers at once. */
export interface BlobHandle {
  readonly descriptor: Descriptor;
  /** Names the place, for messages. */
  readonly what: string;
  /** How many places may serve it (a registry and its mirrors). */
  readonly sourceCount: number;
  /** True once a range was answered with the whole blob everywhere: lazy reading costs more than it saves then. */
  readonly ignoresRanges?: boolean;
  /** The bytes from `offset` to the end. Leaving the loop early releases the connection. */
  stream(offset: number, options?: StreamOptions): AsyncIterable<Uint8Array>;
  /** Bytes [start, end). Throws HS_REGISTRY_*, HS_SIZE_MISMATCH, HS_BLOB_NOT_FOUND. */
  readRange(start: number, end: number, options?: RangeOptions): Promise<Uint8Array>;
  /** The whole blob, verified. For small ones: throws HS_LIMIT above `limit` bytes (default 512 MiB). */
  readAll(options?: ReadOptions & { readonly limit?: number }): Promise<Uint8Array>;
}

export interface ReferrersOptions extends ReadOptions {
  readonly artifactType?: string;
}

export interface ImageReader {
  /** The source as a user writes it, without credentials. */
  readonly what: string;
  /** The descriptor that the source names: a manifest or an index. Throws HS_NOT_FOUND. */
  resolve(signal?: AbortSignal): Promise<Descriptor>;
  /** The verified bytes of a manifest or index. Throws HS_NOT_FOUND, HS_DIGEST_MISMATCH. */
  readManifest(manifest: Descriptor | Digest, signal?: AbortSignal): Promise<Uint8Array>;
  openBlob(descriptor: Descriptor): BlobHandle;
  /** Manifests whose `subject` is the given one (distribution-spec 1.1, referrers). Unverified hints: see architecture, Trust. */
  referrers(subject: Digest, options?: ReferrersOptions): Promise<Descriptor[]>;
}

/** For a blob that something names by its digest alone. */
export interface BlobSizes {
  /** Bytes of the stored blob; undefined where there is none. */
  blobSize(digest: Digest, signal?: AbortSignal): Promise<number | undefined>;
}

/** What is pushed: bytes, or a stream, or (better: a broken upload can begin anew) a function that opens one. */
export type BlobSource = Uint8Array | AsyncIterable<Uint8Array> | (() => AsyncIterable<Uint8Array>);

export interface WriteOptions {
  readonly signal?: AbortSignal | undefined;
}

export interface StoredBlob {
  readonly digest: Digest;
  readonly size: number;
}

export interface ImageWriter {
  readonly what: string;
  /** A push waits until the one before has ended: then one must not need another to go on. */
  readonly oneAtATime?: boolean;
  hasBlob(descriptor: Descriptor, options?: WriteOptions): Promise<boolean>;
  /** Stores the blob unless it is there. The bytes are checked against the descriptor; wrong ones leave nothing behind. */
  pushBlob(descriptor: Descriptor, source: BlobSource, options?: WriteOptions): Promise<void>;
  /**
   * Stores a blob that is made while it is pushed: how long it is and which digest it has is known at its end. What is there already is not stored again where that can be known in time. A stream that fails
   * leaves nothing behind; it cannot begin anew.
   */
  pushStream(chunks: AsyncIterable<Uint8Array>, options?: WriteOptions): Promise<StoredBlob>;
  /**
   * Stores a manifest or index under its digest, and under `tag` if given. With a `subject` in it, it also becomes a referrer of that. Returns its
   * descriptor.
   */
  pushManifest(bytes: Uint8Array, mediaType: string, tag?: string, options?: WriteOptions): Promise<Descriptor>;
  /** Makes everything pushed so far durable; an archive is not readable before. */
  finish(options?: WriteOptions): Promise<void>;
}

export function openBlobSource(source: BlobSource): AsyncIterable<Uint8Array> {
  if (source instanceof Uint8Array) return oneChunk(source);
  return typeof source === "function" ? source() : source;
}

async function* oneChunk(bytes: Uint8Array): AsyncGenerator<Uint8Array> {
  if (bytes.byteLength > 0) yield bytes;
}
