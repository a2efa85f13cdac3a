/**
 * The tar of a layer out of the blob that headstart made of it, to the bit (write/tar-split.ts draws the part; specs/nydus.md 3.7). Streaming: in memory are a frame of the part
 * and one chunk.
 */

import { createHash } from "node:crypto";
import { HeadstartError } from "../../../base/errors.ts";
import { LIMITS, MiB } from "../../../base/limits.ts";
import { ZstdStream } from "../../zstd/stream.ts";
import { nydusInvalid } from "../ondisk.ts";
import { TAR_SPLIT_MAGIC, TarSplitRecord } from "../tar-split.ts";

export interface ChunkSource {
  /** The plain bytes of chunk number `chunk`, verified by their digest. `blob`: hex digest; null: the blob that holds the part. Throws HS_NYDUS_INVALID where there is no such chunk. */
  read(blob: string | null, chunk: number): Promise<Uint8Array>;
}

export interface UnpackedTar {
  /** Bytes of the tar. */
  readonly size: number;
  /** sha256 of it, hex: the layer's diffID. */
  readonly sha256: string;
}

/** Decoded bytes of the part that wait to be read: one push of 16 KiB may decode to a thousand times that. */
const PUSH_BYTES = 16 * 1024;
/** A literal is handed out in pieces, so its claimed length allocates nothing. */
const LITERAL_BYTES = MiB;
const ID_BYTES = 32;
/** Blobs of one image. */
const BLOBS_MAX = 254;

/**
 * Yields the tar; returns its size and digest, which were found to be those that the part names. `part` are its stored bytes. Throws HS_NYDUS_INVALID for a part that is not sound or does not
 * give the tar that it names, and what `chunks` throws.
 */
export async function* unpackTar(
  part: AsyncIterable<Uint8Array>,
  chunks: ChunkSource,
  what: string,
): AsyncGenerator<Uint8Array, UnpackedTar, undefined> {
  await using records = new RecordReader(part, what);
  const hash = createHash("sha256");
  const blobs: string[] = [];
  let size = 0;
  let next = 0;
  const out = (bytes: Uint8Array) => {
    size += bytes.byteLength;
    if (size > LIMITS.layerBytes) throw nydusInvalid(what, `a tar of more than ${LIMITS.layerBytes} bytes`);
    hash.update(bytes);
    return bytes;
  };
  const magic = await records.take(TAR_SPLIT_MAGIC.byteLength);
  if (Buffer.compare(magic, TAR_SPLIT_MAGIC) !== 0) throw nydusInvalid(what, "no tar-split of a version that is known");
  for (;;) {
    const kind = await records.byte();
    switch (kind) {
      case TarSplitRecord.literal:
        for (let left = await records.number(); left > 0; ) {
          const bytes = await records.some(Math.min(left, LITERAL_BYTES));
          left -= bytes.byteLength;
          yield out(bytes);
        }
        break;
      case TarSplitRecord.run:
        for (let left = await records.number(); left > 0; left--) yield out(await chunks.read(null, next++));
        break;
      case TarSplitRecord.slice: {
        const blob = await records.number();
        const chunk = await records.number();
        const offset = await records.number();
        const length = await records.number();
        if (blob > blobs.length) throw nydusInvalid(what, `blob ${blob} of ${blobs.length}`);
        const bytes = await chunks.read(blob === 0 ? null : blobs[blob - 1]!, chunk);
        if (offset + length > bytes.byteLength)
          throw nydusInvalid(what, `bytes ${offset} + ${length} of a chunk of ${bytes.byteLength}`);
        if (blob === 0) next = Math.max(next, chunk + 1);
        yield out(bytes.subarray(offset, offset + length));
        break;
      }
      case TarSplitRecord.blob:
        if (blobs.length === BLOBS_MAX) throw nydusInvalid(what, `more than ${BLOBS_MAX} blobs`);
        blobs.push(Buffer.from(await records.take(ID_BYTES)).toString("hex"));
        break;
      case TarSplitRecord.end: {
        const wantedSize = await records.number();
        const wanted = Buffer.from(await records.take(32)).toString("hex");
        await records.end();
        const sha256 = hash.digest("hex");
        if (size !== wantedSize || sha256 !== wanted)
          throw nydusInvalid(
            what,
            `it gives a tar of ${size} bytes with sha256 ${sha256}, not ${wantedSize} with ${wanted}`,
          );
        return { size, sha256 };
      }
      default:
        throw nydusInvalid(what, `a record of kind ${kind}`);
    }
  }
}

/** A cursor over the decoded part. Everything it gives out is a copy of its own, or a view of one. */
class RecordReader implements AsyncDisposable {
  readonly #what: string;
  readonly #source: AsyncIterator<Uint8Array>;
  readonly #stream: ZstdStream;
  /** Stored bytes that came but were not decoded, and decoded ones that were not read. */
  #stored: Uint8Array = EMPTY;
  #decoded: Uint8Array[] = [];
  #at = 0;
  #ended = false;

  constructor(part: AsyncIterable<Uint8Array>, what: string) {
    this.#what = what;
    this.#source = part[Symbol.asyncIterator]();
    this.#stream = new ZstdStream({ data: (bytes) => this.#decoded.push(Uint8Array.from(bytes)) });
  }

  async byte(): Promise<number> {
    return (await this.some(1))[0]!;
  }

  /** LEB128, below 2^53. */
  async number(): Promise<number> {
    let value = 0;
    for (let scale = 1; ; scale *= 0x80) {
      const byte = await this.byte();
      value += (byte & 0x7f) * scale;
      if (!Number.isSafeInteger(value)) throw nydusInvalid(this.#what, "a number beyond 2^53");
      if (byte < 0x80) return value;
      if (scale > Number.MAX_SAFE_INTEGER / 0x80) throw nydusInvalid(this.#what, "a number beyond 2^53");
    }
  }

  /** 1 to `most` bytes. */
  async some(most: number): Promise<Uint8Array> {
    if (!(await this.#fill())) throw nydusInvalid(this.#what, "it is cut off");
    const first = this.#decoded[0]!;
    const bytes = first.subarray(this.#at, this.#at + most);
    this.#at += bytes.byteLength;
    if (this.#at === first.byteLength) {
      this.#decoded.shift();
      this.#at = 0;
    }
    return bytes;
  }

  /** `count` is small and constant. */
  async take(count: number): Promise<Uint8Array> {
    const bytes = new Uint8Array(count);
    for (let have = 0; have < count; ) {
      const piece = await this.some(count - have);
      bytes.set(piece, have);
      have += piece.byteLength;
    }
    return bytes;
  }

  /** Nothing may follow. */
  async end(): Promise<void> {
    if (await this.#fill()) throw nydusInvalid(this.#what, "more bytes behind its end");
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stream[Symbol.dispose]();
    if (!this.#ended) await this.#source.return?.();
  }

  /** False at the end of the part. */
  async #fill(): Promise<boolean> {
    while (this.#decoded.length === 0) {
      if (this.#stored.byteLength === 0) {
        if (this.#ended) return false;
        const { done, value } = await this.#source.next();
        if (done) {
          this.#ended = true;
          this.#decode(() => this.#stream.finish());
          continue;
        }
        this.#stored = value;
      }
      const piece = this.#stored.subarray(0, PUSH_BYTES);
      this.#stored = this.#stored.subarray(PUSH_BYTES);
      this.#decode(() => this.#stream.push(piece));
    }
    return true;
  }

  #decode(work: () => void): void {
    try {
      work();
    } catch (cause) {
      if (!(cause instanceof HeadstartError)) throw cause;
      throw nydusInvalid(this.#what, "no zstd data", cause);
    }
  }
}

const EMPTY = new Uint8Array(0);
