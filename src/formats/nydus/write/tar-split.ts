/**
 * What a layer's tar has beside the contents of its files, so that the tar can be made again to the bit (specs/nydus.md 3.7): headers, padding and trailing bytes as they
 * are, and which bytes of which chunks stand between them. A part of the blob of its own, which other readers skip; reverse.ts reads it.
 *
 *   part      zstd frames, one behind the other
 *   content   "HSTARSP1" | records          numbers are LEB128
 *
 *   1 length bytes                 these bytes
 *   2 count                        so many whole chunks of this blob, from the one behind the highest that was named so far
 *   3 blob chunk offset length     bytes of one chunk; blob 0 is this one
 *   4 id (32 bytes)                gives the next number to the blob with that digest, 1 first
 *   0 length sha256 (32 bytes)     the end: bytes of the tar, and their digest
 */

import { createHash } from "node:crypto";
import { Writer } from "../../../base/bytes.ts";
import { ADDRESS_SPACE } from "../../../erofs/file-tree.ts";
import { ZstdEncoder, zstdBound } from "../../../linux/zstd-encode.ts";
import { TAR_SPLIT_MAGIC, TarSplitRecord } from "../tar-split.ts";
import type { ChunkPart } from "./file-chunks.ts";

/** Content bytes of a frame, some more: what is in memory at once. */
const FRAME_BYTES = 1024 * 1024;
/** Bytes of a literal record at most. */
const LITERAL_BYTES = 64 * 1024;
/** Headers shrink to a tenth; another level makes no difference that one can see. */
const LEVEL = 6;

export interface TarSplit {
  readonly stored: Uint8Array;
  readonly size: number;
  /** sha256 of the content. */
  readonly digest: Uint8Array;
}

export interface ChunkNames {
  /** Index in this blob of the chunk at an address of space 0. */
  own(address: number): number;
  /** The blob of the dictionary that has address space `space`, and the chunk's index in it. */
  foreign(space: number, offset: number): { readonly id: string; readonly chunk: number };
}

export class TarSplitWriter implements AsyncDisposable {
  readonly #names: ChunkNames;
  #content = new Writer(FRAME_BYTES);
  /** Bytes of the literal record that is being made. How the tar is cut must not show. */
  readonly #literal = new Uint8Array(LITERAL_BYTES);
  #literalLength = 0;
  readonly #hash = createHash("sha256");
  /** Content of whole frames that are not encoded yet. */
  readonly #ended: Uint8Array[] = [];
  readonly #frames: Uint8Array[] = [];
  readonly #encoder = new ZstdEncoder(LEVEL);
  #encoding: Promise<void> = Promise.resolve();
  #size = 0;
  readonly #blobs = new Map<string, number>();
  /** The chunk of this blob that a run would begin with. */
  #next = 0;
  #run = 0;

  constructor(names: ChunkNames) {
    this.#names = names;
    this.#content.put(TAR_SPLIT_MAGIC);
  }

  /** Bytes of the tar that are in no chunk. */
  literal(bytes: Uint8Array): void {
    for (let at = 0; at < bytes.byteLength; ) {
      this.#endRun();
      const take = Math.min(bytes.byteLength - at, LITERAL_BYTES - this.#literalLength);
      this.#literal.set(bytes.subarray(at, at + take), this.#literalLength);
      this.#literalLength += take;
      at += take;
      if (this.#literalLength === LITERAL_BYTES) this.#endLiteral();
    }
  }

  /** Bytes of the tar that are in chunks. */
  parts(parts: readonly ChunkPart[]): void {
    this.#endLiteral();
    for (const part of parts) this.#part(part);
  }

  /** Encodes what has come; call it now and then. */
  async flush(): Promise<void> {
    while (this.#ended.length > 0) await this.#encodeNext();
  }

  /** `tarSize` and `tarDigest` of the whole tar. */
  async finish(tarSize: number, tarDigest: Uint8Array): Promise<TarSplit> {
    this.#endLiteral();
    this.#endRun();
    this.#content.u8(TarSplitRecord.end);
    this.#number(tarSize);
    this.#content.put(tarDigest);
    this.#endFrame();
    await this.flush();
    await this.#encoding;
    return { stored: Buffer.concat(this.#frames), size: this.#size, digest: this.#hash.digest() };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#encoding.catch(() => {});
    this.#encoder[Symbol.dispose]();
  }

  #part({ address, size, offset, length }: ChunkPart): void {
    if (address >= ADDRESS_SPACE) {
      const space = Math.floor(address / ADDRESS_SPACE);
      const { id, chunk } = this.#names.foreign(space, address - space * ADDRESS_SPACE);
      this.#endRun();
      this.#slice(this.#blobNumber(id), chunk, offset, length);
      return;
    }
    const chunk = this.#names.own(address);
    if (length === size && chunk === this.#next + this.#run) {
      this.#run++;
      return;
    }
    this.#endRun();
    this.#slice(0, chunk, offset, length);
    this.#next = Math.max(this.#next, chunk + 1);
  }

  #slice(blob: number, chunk: number, offset: number, length: number): void {
    this.#content.u8(TarSplitRecord.slice);
    for (const value of [blob, chunk, offset, length]) this.#number(value);
  }

  #blobNumber(id: string): number {
    const known = this.#blobs.get(id);
    if (known !== undefined) return known;
    const number = this.#blobs.size + 1;
    this.#blobs.set(id, number);
    this.#content.u8(TarSplitRecord.blob).put(Buffer.from(id, "hex"));
    return number;
  }

  #endRun(): void {
    if (this.#run === 0) return;
    this.#content.u8(TarSplitRecord.run);
    this.#number(this.#run);
    this.#next += this.#run;
    this.#run = 0;
  }

  #number(value: number): void {
    let rest = value;
    while (rest >= 0x80) {
      this.#content.u8((rest % 0x80) | 0x80);
      rest = Math.floor(rest / 0x80);
    }
    this.#content.u8(rest);
  }

  #endLiteral(): void {
    if (this.#literalLength === 0) return;
    this.#content.u8(TarSplitRecord.literal);
    this.#number(this.#literalLength);
    this.#content.put(this.#literal.subarray(0, this.#literalLength));
    this.#literalLength = 0;
    if (this.#content.length >= FRAME_BYTES) this.#endFrame();
  }

  #endFrame(): void {
    this.#ended.push(this.#content.finish());
    this.#content = new Writer(FRAME_BYTES);
  }

  /** One frame is encoded at a time. */
  async #encodeNext(): Promise<void> {
    await this.#encoding;
    const content = this.#ended.shift()!;
    this.#hash.update(content);
    this.#size += content.byteLength;
    const output = new Uint8Array(new ArrayBuffer(zstdBound(content.byteLength)));
    this.#encoding = this.#encoder.encode(content, output).then((length) => {
      this.#frames.push(output.slice(0, length));
    });
    this.#encoding.catch(() => {});
  }
}
