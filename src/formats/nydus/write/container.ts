/**
 * The container of a blob (specs/nydus.md 2.1), written from front to end: each part is followed by a tar header of 512 bytes, the table of contents comes last.
 *
 *   [image.blob][hdr] [blob.meta][hdr] [blob.digest][hdr] [tar.split][hdr] [image.boot][hdr] [rafs.blob.toc][hdr]
 */

import { createHash } from "node:crypto";
import { Writer } from "../../../base/bytes.ts";
import { type Digest, sha256 } from "../../../base/digest.ts";
import { TAR_BLOCK } from "../../tar/header.ts";
import { TOC_NAME, toc_entry } from "../ondisk.ts";

/** Takes bytes of the blob in order; they are not touched again. */
export type BlobSink = (bytes: Uint8Array) => void | Promise<void>;

/** Flags of an entry of the table of contents. */
const TOC_FLAGS = { none: 1, zstd: 2, lz4_block: 4 } as const;

export interface TocPart {
  readonly name: string;
  readonly compression: keyof typeof TOC_FLAGS;
  /** Over the uncompressed bytes. */
  readonly digest: Uint8Array;
  readonly offset: number;
  readonly storedSize: number;
  readonly size: number;
}

export interface FinishedBlob {
  readonly digest: Digest;
  readonly size: number;
  /** Bytes of the table of contents and its header, and their sha256 (hex): what a blob table may bind. */
  readonly tocSize: number;
  readonly tocDigest: string;
}

export class BlobContainer {
  readonly #sink: BlobSink;
  readonly #hash = createHash("sha256");
  readonly #toc: TocPart[] = [];
  #offset = 0;

  constructor(sink: BlobSink) {
    this.#sink = sink;
  }

  /** Bytes so far. */
  get offset(): number {
    return this.#offset;
  }

  async write(bytes: Uint8Array): Promise<void> {
    if (bytes.byteLength === 0) return;
    this.#hash.update(bytes);
    this.#offset += bytes.byteLength;
    await this.#sink(bytes);
  }

  async header(name: string, size: number): Promise<void> {
    await this.write(partHeader(name, size));
  }

  /** sha256 of all that was written so far. */
  digestSoFar(): Uint8Array {
    return this.#hash.copy().digest();
  }

  /** Entries stand in the table in the order of these calls. */
  list(part: TocPart): void {
    this.#toc.push(part);
  }

  /** A whole part: its stored bytes, header and entry. `plain` are the bytes before compression. */
  async part(name: string, stored: Uint8Array, plain: Uint8Array, compression: TocPart["compression"]): Promise<void> {
    const digest = createHash("sha256").update(plain).digest();
    const offset = this.#offset;
    this.list({ name, compression, digest, offset, storedSize: stored.byteLength, size: plain.byteLength });
    await this.write(stored);
    await this.header(name, stored.byteLength);
  }

  /** Writes the table of contents. Nothing may follow. */
  async finish(): Promise<FinishedBlob> {
    const table = encodeToc(this.#toc);
    const whole = Buffer.concat([table, partHeader(TOC_NAME, table.byteLength)]);
    await this.write(whole);
    return {
      digest: `sha256:${this.#hash.digest("hex")}` as Digest,
      size: this.#offset,
      tocSize: whole.byteLength,
      tocDigest: sha256(whole).slice("sha256:".length),
    };
  }
}

function encodeToc(parts: readonly TocPart[]): Uint8Array {
  const writer = new Writer(parts.length * toc_entry.size);
  for (const part of parts) {
    const start = writer.length;
    const name = Buffer.alloc(16);
    name.write(part.name, "latin1");
    writer.u32(TOC_FLAGS[part.compression]).u32(0).put(name).put(part.digest);
    writer.u64(part.offset).u64(part.storedSize).u64(part.size);
    writer.zeros(start + toc_entry.size - writer.length);
  }
  return writer.finish();
}

/** Fields of a GNU header; those left out are zeros. */
const SIZE_AT = 124;
const MTIME_AT = 136;
const CHECKSUM_AT = 148;
const TYPE_AT = 156;
const MAGIC_AT = 257;
/** 11 octal digits. */
const OCTAL_SIZE_MAX = 0o77777777777;

function partHeader(name: string, size: number): Uint8Array {
  const block = Buffer.alloc(TAR_BLOCK);
  block.write(name, "latin1");
  if (size <= OCTAL_SIZE_MAX) {
    block.write(size.toString(8).padStart(11, "0"), SIZE_AT, "latin1");
  } else {
    // base 256, marked by the top bit
    block[SIZE_AT] = 0x80;
    block.writeBigUInt64BE(BigInt(size), SIZE_AT + 4);
  }
  block.write("00000000000", MTIME_AT, "latin1");
  block.write("0", TYPE_AT, "latin1");
  block.write("ustar  \0", MAGIC_AT, "latin1");
  // the checksum counts itself as blanks
  block.fill(0x20, CHECKSUM_AT, CHECKSUM_AT + 8);
  const sum = block.reduce((total, byte) => total + byte, 0);
  block.write(`${sum.toString(8).padStart(7, "0")}\0`, CHECKSUM_AT, "latin1");
  return block;
}
