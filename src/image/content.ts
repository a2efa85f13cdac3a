/**
 * The bytes of one file of an image that is being looked into: by the units that hold them, each verified, where a layer has an index; otherwise out of the layer as it
 * passes by.
 */

import { createHash, timingSafeEqual } from "node:crypto";
import { HeadstartError } from "../base/errors.ts";
import { MiB } from "../base/limits.ts";
import { lastAtMost } from "../base/ranges.ts";
import { type FileTree, FileType } from "../erofs/file-tree.ts";
import { decoderFor } from "../formats/all.ts";
import type { LayerIdentity, LayerRole, LazyLayer, UnitDecoder } from "../formats/format.ts";
import { type PieceHash, pieceHash, verifyPiece } from "../formats/piece-hash.ts";
import { readLayerTree } from "../formats/tar/read-layer.ts";
import type { BlobHandle } from "../oci/store.ts";

/** Bytes of the file from `fileOffset` on. What lies between two parts is zeros. */
interface Part {
  readonly fileOffset: number;
  readonly bytes: Uint8Array;
}

interface Segment {
  readonly fileOffset: number;
  readonly length: number;
  readonly address: number;
}

/** Gives the content of regular files of one tree, in order. Throws HS_USAGE for what is no regular file. */
export type ReadContent = (inode: number, signal?: AbortSignal) => AsyncGenerator<Uint8Array>;

/** Stored bytes that one request asks for when everything is read in order. */
const READ_AHEAD_BYTES = 4 * MiB;
/** Decoded units that are kept: files that lie behind each other share them. */
const CACHE_BYTES = 64 * MiB;

/** Reads by units. `blobs` are the stored blobs, as `lazy.units.blobs`. */
export class UnitContent {
  readonly #lazy: Pick<LazyLayer, "tree" | "units" | "decode">;
  readonly #blobs: readonly BlobHandle[];
  readonly #cache = new Map<number, Uint8Array>();
  #cached = 0;
  /** Ends of the last units of each blob while everything is read, else null. */
  #readAhead: Float64Array | null = null;
  #window: { readonly blob: number; readonly start: number; readonly bytes: Uint8Array } | null = null;
  #decoder: UnitDecoder | null = null;
  #hash: PieceHash | null = null;

  constructor(lazy: Pick<LazyLayer, "tree" | "units" | "decode">, blobs: readonly BlobHandle[]) {
    this.#lazy = lazy;
    this.#blobs = blobs;
  }

  read(inode: number, signal?: AbortSignal): AsyncGenerator<Uint8Array> {
    return withHoles(this.#lazy.tree, inode, this.#parts(inode, signal));
  }

  /** Sha256 in hex of every regular file, read in the order in which they lie in their blobs. */
  async hashAll(signal?: AbortSignal): Promise<Map<number, string>> {
    const { tree } = this.#lazy;
    const files: number[] = [];
    for (let inode = 0; inode < tree.inodeCount; inode++) if (tree.type[inode] === FileType.regular) files.push(inode);
    const first = (inode: number) =>
      tree.segmentStart[inode]! < tree.segmentStart[inode + 1]! ? tree.segmentAddress[tree.segmentStart[inode]!]! : -1;
    files.sort((a, b) => first(a) - first(b));
    using _ahead = this.readAhead();
    const found = new Map<number, string>();
    for (const inode of files) {
      const hash = createHash("sha256");
      for await (const bytes of this.read(inode, signal)) hash.update(bytes);
      found.set(inode, hash.digest("hex"));
    }
    return found;
  }

  /** Until it is disposed, requests go for more than the unit that is wanted: for whoever reads files in the order in which they lie. */
  readAhead(): Disposable {
    this.#readAhead = this.#dataEnds();
    return {
      [Symbol.dispose]: () => {
        this.#readAhead = null;
        this.#window = null;
      },
    };
  }

  /** Where the last unit of each blob ends. */
  #dataEnds(): Float64Array {
    const { units } = this.#lazy;
    const ends = new Float64Array(units.blobs.length);
    for (let unit = 0; unit < units.unitCount; unit++) {
      const blob = units.unitBlob[unit]!;
      ends[blob] = Math.max(ends[blob]!, units.unitEnd[unit]!);
    }
    return ends;
  }

  async *#parts(inode: number, signal: AbortSignal | undefined): AsyncGenerator<Part> {
    const { tree, units } = this.#lazy;
    for (const segment of segmentsOf(tree, inode)) {
      let address = segment.address;
      const end = segment.address + segment.length;
      while (address < end) {
        const piece = lastAtMost(units.pieceAddress, units.pieceCount, address);
        const pieceEnd = piece < 0 ? -1 : units.pieceAddress[piece]! + units.pieceLength[piece]!;
        if (pieceEnd <= address)
          throw new HeadstartError("HS_INDEX_INVALID", { what: `the index has no unit for address ${address}` });
        const bytes = await this.#piece(piece, signal);
        const from = address - units.pieceAddress[piece]!;
        const length = Math.min(end, pieceEnd) - address;
        yield {
          fileOffset: segment.fileOffset + (address - segment.address),
          bytes: bytes.subarray(from, from + length),
        };
        address += length;
      }
    }
  }

  /** The verified bytes of a piece, which stay valid. */
  async #piece(piece: number, signal: AbortSignal | undefined): Promise<Uint8Array> {
    const { units } = this.#lazy;
    const unit = units.pieceUnit[piece]!;
    const decoded = this.#cache.get(unit) ?? (await this.#decode(unit, signal));
    const bytes = decoded.subarray(units.pieceOffset[piece]!, units.pieceOffset[piece]! + units.pieceLength[piece]!);
    if (units.pieceDigest !== null) {
      this.#hash ??= await pieceHash(units.pieceDigestAlgorithm ?? "sha256");
      verifyPiece(units, piece, bytes, this.#hash, this.#blobs[units.unitBlob[unit]!]!.what);
    }
    return bytes;
  }

  async #decode(unit: number, signal: AbortSignal | undefined): Promise<Uint8Array> {
    const { units, decode } = this.#lazy;
    const blob = this.#blobs[units.unitBlob[unit]!]!;
    const stored = await this.#stored(unit, signal);
    if (units.unitDigest !== null) {
      const want = units.unitDigest.subarray(unit * 32, unit * 32 + 32);
      if (!timingSafeEqual(createHash("sha256").update(stored).digest(), Buffer.from(want)))
        throw new HeadstartError("HS_UNIT_DIGEST", { what: `unit ${unit} of ${blob.what}` });
    }
    this.#decoder ??= decoderFor(decode, units);
    const view = this.#decoder.decode(unit, stored);
    this.#decoder.check(unit, view);
    const decoded = Uint8Array.from(view);
    for (const [oldest, bytes] of this.#cache) {
      if (this.#cached + decoded.byteLength <= CACHE_BYTES) break;
      this.#cache.delete(oldest);
      this.#cached -= bytes.byteLength;
    }
    this.#cache.set(unit, decoded);
    this.#cached += decoded.byteLength;
    return decoded;
  }

  async #stored(unit: number, signal: AbortSignal | undefined): Promise<Uint8Array> {
    const { units } = this.#lazy;
    const blob = units.unitBlob[unit]!;
    const start = units.unitStart[unit]!;
    const end = units.unitEnd[unit]!;
    const handle = this.#blobs[blob]!;
    if (this.#readAhead === null) return await handle.readRange(start, end, { signal });
    let window = this.#window;
    if (window?.blob !== blob || start < window.start || end > window.start + window.bytes.byteLength) {
      const to = Math.max(end, Math.min(start + READ_AHEAD_BYTES, this.#readAhead[blob]!));
      window = { blob, start, bytes: await handle.readRange(start, to, { signal }) };
      this.#window = window;
    }
    return window.bytes.subarray(start - window.start, end - window.start);
  }
}

/** Reads out of a layer that has no index: all of it passes by. */
export function streamContent(tree: FileTree, identity: LayerIdentity, role: LayerRole, blob: BlobHandle): ReadContent {
  return (inode, signal) => withHoles(tree, inode, streamParts(identity, role, blob, segmentsOf(tree, inode), signal));
}

async function* withHoles(tree: FileTree, inode: number, parts: AsyncGenerator<Part>): AsyncGenerator<Uint8Array> {
  if (tree.type[inode] !== FileType.regular) throw new HeadstartError("HS_USAGE", { what: "not a regular file" });
  let written = 0;
  for await (const { fileOffset, bytes } of parts) {
    yield* zeros(fileOffset - written);
    yield bytes;
    written = fileOffset + bytes.byteLength;
  }
  yield* zeros(tree.size[inode]! - written);
}

function segmentsOf(tree: FileTree, inode: number): Segment[] {
  const segments: Segment[] = [];
  for (let index = tree.segmentStart[inode]!; index < tree.segmentStart[inode + 1]!; index++) {
    segments.push({
      fileOffset: tree.segmentFileOffset[index]!,
      length: tree.segmentLength[index]!,
      address: tree.segmentAddress[index]!,
    });
  }
  return segments;
}

/** The whole layer passes by and is verified at its end; what was given out before stands under that reserve, so an error at the end is an error of the whole. */
async function* streamParts(
  identity: LayerIdentity,
  role: LayerRole,
  blob: BlobHandle,
  segments: readonly Segment[],
  signal: AbortSignal | undefined,
): AsyncGenerator<Part> {
  const queue: Part[] = [];
  let wake = Promise.withResolvers<void>();
  const last = segments.at(-1);
  let error: unknown;
  let done = last === undefined;
  const reading = readLayerTree(
    throttled(blob.stream(0, { signal, callerVerifies: true }), () => queue.length < 64),
    {
      mediaType: identity.mediaType,
      role,
      digest: identity.digest,
      size: identity.size,
      diffID: identity.diffID,
      onData(_entry, chunk, offset) {
        for (const segment of segments) {
          const from = Math.max(offset, segment.address);
          const to = Math.min(offset + chunk.byteLength, segment.address + segment.length);
          if (from < to)
            queue.push({
              fileOffset: segment.fileOffset + (from - segment.address),
              bytes: Buffer.from(chunk.subarray(from - offset, to - offset)),
            });
        }
        wake.resolve();
      },
    },
  ).then(
    () => {
      done = true;
      wake.resolve();
    },
    (cause: unknown) => {
      error = cause;
      done = true;
      wake.resolve();
    },
  );
  while (true) {
    const part = queue.shift();
    if (part !== undefined) yield part;
    else if (done) break;
    else {
      await wake.promise;
      wake = Promise.withResolvers<void>();
    }
  }
  await reading;
  if (error !== undefined) throw error;
}

/** Waits while the consumer is behind. */
async function* throttled(source: AsyncIterable<Uint8Array>, mayGoOn: () => boolean): AsyncGenerator<Uint8Array> {
  for await (const chunk of source) {
    while (!mayGoOn()) await new Promise((resolve) => setTimeout(resolve, 1));
    yield chunk;
  }
}

const ZERO_BLOCK = new Uint8Array(1024 * 1024);

function* zeros(length: number): Generator<Uint8Array> {
  for (let left = length; left > 0; left -= ZERO_BLOCK.byteLength)
    yield ZERO_BLOCK.subarray(0, Math.min(left, ZERO_BLOCK.byteLength));
}
