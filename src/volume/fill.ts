/**
 * Contents on their way into a disk image: a layer's tar or a blob is read once, in its own order, and each stretch of it is written where the layout has put it.
 * And the digests of what then lies there, block by block of a snapshot.
 *
 * Synchronous, for a thread of its own (volume.worker.ts). Holds one buffer, whatever the size of the source.
 */

import { createHash } from "node:crypto";
import { closeSync, constants, openSync } from "node:fs";
import { HeadstartError } from "../base/errors.ts";
import { readFully, writeFully } from "../base/files.ts";
import { MiB } from "../base/limits.ts";
import { alignUp } from "../base/ranges.ts";
import { LayerDecoder } from "../formats/tar/decompress.ts";
import { BLOCK } from "./ext4/ondisk.ts";

/** Stretches of a source and their places, ascending by `address`; they do not overlap. Bytes all. */
export interface FillRows {
  readonly address: Float64Array;
  readonly length: Float64Array;
  /** From the start of the image file. */
  readonly offset: Float64Array;
}

export interface FillRequest {
  /** The image file, of its final size. */
  readonly image: string;
  /** The blob, whole and verified. */
  readonly blob: string;
  /** Names the blob in errors. */
  readonly digest: string;
  /** True: addresses are those of the decoded layer; false: of the blob itself. */
  readonly decode: boolean;
  readonly rows: FillRows;
}

/** What one push may hold: a thousandfold expansion of it must fit into memory. */
const READ_BYTES = 64 * 1024;

/** The image must be zeros where the rows lead. Throws HS_TRUNCATED when the source ends before its last row, HS_LAYER_REFUSED, HS_DISK_FULL. */
export function fillImage(request: FillRequest): void {
  using target = new PlacedWriter(request.image, request.rows);
  const source = openSync(request.blob, constants.O_RDONLY);
  try {
    if (request.decode) decodeInto(source, request.digest, target);
    else eachPiece(source, MiB, (bytes) => target.take(bytes));
  } finally {
    closeSync(source);
  }
  target.flush();
  if (!target.complete) {
    throw new HeadstartError("HS_TRUNCATED", { what: `${request.digest} is shorter than when it was read first` });
  }
}

function decodeInto(source: number, digest: string, target: PlacedWriter): void {
  using decoder = new LayerDecoder({ layer: digest, data: (bytes) => target.take(bytes) });
  eachPiece(source, READ_BYTES, (bytes) => decoder.push(bytes));
  decoder.finish();
}

function eachPiece(fd: number, size: number, use: (bytes: Uint8Array) => void): void {
  const buffer = READ_BUFFER.subarray(0, size);
  for (let position = 0; ; ) {
    const count = readFully(fd, buffer, position);
    if (count === 0) return;
    use(buffer.subarray(0, count));
    position += count;
  }
}

const BUFFER_BYTES = MiB;
/** One a thread, which does one job at a time: made anew for each job they would lie about by the dozen until the next garbage collection. */
const BUFFER = Buffer.alloc(BUFFER_BYTES);
const ZEROS = Buffer.alloc(BUFFER_BYTES);
const READ_BUFFER = new Uint8Array(MiB);

/** Takes a stream from its start and puts what the rows want into the image. Rows that follow each other in the image become one write. */
class PlacedWriter implements Disposable {
  readonly #rows: FillRows;
  readonly #fd: number;
  readonly #buffer = BUFFER;
  /** Offset in the image of #buffer[0]. */
  #base = 0;
  #fill = 0;
  #position = 0;
  #row = 0;

  constructor(image: string, rows: FillRows) {
    this.#rows = rows;
    this.#fd = openSync(image, constants.O_WRONLY);
  }

  get complete(): boolean {
    return this.#row === this.#rows.length.length;
  }

  take(bytes: Uint8Array): void {
    const { address, length, offset } = this.#rows;
    const end = this.#position + bytes.byteLength;
    while (this.#row < address.length) {
      const start = address[this.#row]!;
      if (start >= end) break;
      const from = Math.max(start, this.#position);
      const to = Math.min(start + length[this.#row]!, end);
      this.#put(offset[this.#row]! + (from - start), bytes.subarray(from - this.#position, to - this.#position));
      if (to < start + length[this.#row]!) break;
      this.#row++;
    }
    this.#position = end;
  }

  flush(): void {
    const bytes = this.#buffer.subarray(0, this.#fill);
    // the image is all zeros where nothing was written, and such places cost nothing
    if (this.#fill > 0 && !ZEROS.subarray(0, this.#fill).equals(bytes)) writeFully(this.#fd, bytes, this.#base);
    this.#fill = 0;
  }

  [Symbol.dispose](): void {
    closeSync(this.#fd);
  }

  #put(offset: number, bytes: Uint8Array): void {
    const next = this.#base + this.#fill;
    // what lies between is the rest of a block whose beginning is ours: zeros
    const follows = this.#fill > 0 && offset >= next && offset <= alignUp(next, BLOCK);
    if (!follows || offset - this.#base >= BUFFER_BYTES) {
      this.flush();
      this.#base = offset;
    } else {
      this.#buffer.fill(0, this.#fill, offset - this.#base);
      this.#fill = offset - this.#base;
    }
    for (let done = 0; done < bytes.byteLength; ) {
      const count = Math.min(BUFFER_BYTES - this.#fill, bytes.byteLength - done);
      this.#buffer.set(bytes.subarray(done, done + count), this.#fill);
      this.#fill += count;
      done += count;
      if (this.#fill < BUFFER_BYTES) continue;
      this.flush();
      this.#base += BUFFER_BYTES;
    }
  }
}

/** What a snapshot of EBS stores, and hashes, in one piece. */
export const SNAPSHOT_BLOCK = 512 * 1024;

export interface HashRequest {
  readonly image: string;
  /** Half-open, in blocks of SNAPSHOT_BLOCK. */
  readonly ranges: readonly { readonly start: number; readonly end: number }[];
}

export interface BlockDigests {
  /** Ascending within a range; blocks of nothing but zeros are left out. */
  readonly indices: readonly number[];
  /** SHA-256, hexadecimal. */
  readonly digests: readonly string[];
}

/** The image must reach to the end of the last range. Throws HS_TRUNCATED when it does not. */
export function hashBlocks({ image, ranges }: HashRequest): BlockDigests {
  const indices: number[] = [];
  const digests: string[] = [];
  const zeros = ZEROS.subarray(0, SNAPSHOT_BLOCK);
  const buffer = BUFFER.subarray(0, SNAPSHOT_BLOCK);
  const fd = openSync(image, constants.O_RDONLY);
  try {
    for (const { start, end } of ranges) {
      for (let index = start; index < end; index++) {
        if (readFully(fd, buffer, index * SNAPSHOT_BLOCK) < SNAPSHOT_BLOCK) {
          throw new HeadstartError("HS_TRUNCATED", { what: `${image}: no block ${index} of ${SNAPSHOT_BLOCK} bytes` });
        }
        if (buffer.equals(zeros)) continue;
        indices.push(index);
        digests.push(createHash("sha256").update(buffer).digest("hex"));
      }
    }
  } finally {
    closeSync(fd);
  }
  return { indices, digests };
}
