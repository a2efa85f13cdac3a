/**
 * The disk image that is pushed: which of its blocks may hold data (holes are never read), and their bytes and SHA-256. The last block is padded with
 * zeros.
 *
 * Hashing is done on the calling thread: 0.3 ms a block. `crypto.subtle` would use other threads, but it copies what it hashes, and took 1.35 times the CPU and so much garbage that a push was slower.
 */

import { createHash } from "node:crypto";
import { type FileHandle, open } from "node:fs/promises";
import { HeadstartError } from "../../base/errors.ts";
import { GiB } from "../../base/limits.ts";
import { dataExtents } from "../../linux/extents.ts";
import { BLOCK_BYTES, VOLUME_GIB_MAX, ZERO_BLOCK } from "./blocks.ts";

export interface ReadBlock {
  /** BLOCK_BYTES, of the buffer that was given. */
  readonly bytes: Uint8Array;
  /** Hex; ZERO_BLOCK for zeros. */
  readonly sha256: string;
}

const ZEROS = Buffer.alloc(BLOCK_BYTES);

export class DiskImage implements AsyncDisposable {
  readonly path: string;
  readonly sizeBytes: number;
  readonly #file: FileHandle;

  private constructor(path: string, file: FileHandle, sizeBytes: number) {
    this.path = path;
    this.#file = file;
    this.sizeBytes = sizeBytes;
  }

  /** Throws HS_NOT_FOUND, HS_USAGE. */
  static async open(path: string): Promise<DiskImage> {
    const file = await open(path, "r").catch((cause: unknown) => {
      throw new HeadstartError("HS_NOT_FOUND", { what: path, cause });
    });
    try {
      const stat = await file.stat();
      if (!stat.isFile()) throw new HeadstartError("HS_USAGE", { what: `${path} is not a raw disk image (a file)` });
      if (stat.size === 0 || stat.size > VOLUME_GIB_MAX * GiB) {
        throw new HeadstartError("HS_USAGE", {
          what: `${path}: ${stat.size} bytes; EBS takes up to ${VOLUME_GIB_MAX} GiB`,
        });
      }
      const head = Buffer.alloc(4);
      await file.read(head, 0, 4, 0);
      if (head.equals(Buffer.from("QFI\xfb", "latin1"))) {
        throw new HeadstartError("HS_USAGE", { what: `${path} is a qcow2 image; EBS wants a raw one` });
      }
      return new DiskImage(path, file, stat.size);
    } catch (error) {
      await file.close();
      throw error;
    }
  }

  /** GiB, as EBS counts. */
  get volumeSizeGiB(): number {
    return Math.ceil(this.sizeBytes / GiB);
  }

  /** Indexes of blocks that may hold anything but zeros, ascending. */
  *dataBlocks(): Generator<number> {
    let next = 0;
    for (const { start, end } of dataExtents(this.#file.fd, this.sizeBytes)) {
      const last = Math.ceil(end / BLOCK_BYTES);
      for (let index = Math.max(next, Math.floor(start / BLOCK_BYTES)); index < last; index++) yield index;
      next = Math.max(next, last);
    }
  }

  /** Reads a block into `buffer`. Throws HS_VOLUME_CHANGED when the file ends too early. */
  async read(index: number, buffer: Uint8Array): Promise<ReadBlock> {
    const start = index * BLOCK_BYTES;
    const length = Math.max(0, Math.min(BLOCK_BYTES, this.sizeBytes - start));
    if (length < BLOCK_BYTES) buffer.fill(0, length);
    for (let done = 0; done < length; ) {
      const { bytesRead } = await this.#file.read(buffer, done, length - done, start + done);
      if (bytesRead === 0)
        throw new HeadstartError("HS_VOLUME_CHANGED", { what: `${this.path} ends at byte ${start + done}` });
      done += bytesRead;
    }
    if (buffer[0] === 0 && ZEROS.equals(buffer)) return { bytes: buffer, sha256: ZERO_BLOCK };
    return { bytes: buffer, sha256: createHash("sha256").update(buffer).digest("hex") };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#file.close();
  }
}

/** Buffers of one block, used again. */
export class BlockBuffers {
  readonly #free: Uint8Array[] = [];

  async using<T>(work: (buffer: Uint8Array) => Promise<T>): Promise<T> {
    const buffer = this.#free.pop() ?? new Uint8Array(BLOCK_BYTES);
    try {
      return await work(buffer);
    } finally {
      this.#free.push(buffer);
    }
  }
}
