/** A disk in the blocks that a snapshot is made of, one after the other in one buffer. */

import { createHash } from "node:crypto";
import { fstatSync } from "node:fs";
import { setImmediate } from "node:timers/promises";
import { readFully } from "../../base/files.ts";
import { dataExtents } from "../../linux/extents.ts";
import { BLOCK_BYTES } from "../ebs/blocks.ts";
import type { OpenDisk } from "./open-volume.ts";

const ZEROS = Buffer.alloc(BLOCK_BYTES);
/** After so many blocks the event loop turns: for interrupts and progress. */
const TURN_BLOCKS = 32;

export interface DiskBlock {
  readonly index: number;
  /** SHA-256; null: all zeros. The last block of a disk is filled up with zeros. */
  readonly digest: Buffer | null;
}

/** Holes of a file are zeros without being read. */
export async function* diskBlocks(
  disk: OpenDisk,
  options: { readonly signal: AbortSignal; readonly onBytes: (count: number) => void },
): AsyncGenerator<DiskBlock, void, undefined> {
  const buffer = Buffer.alloc(BLOCK_BYTES);
  const count = Math.ceil(disk.disk.size / BLOCK_BYTES);
  let index = 0;
  for (const { start, end } of dataOf(disk)) {
    for (const first = Math.floor(start / BLOCK_BYTES); index < first; index++) yield { index, digest: null };
    for (; index * BLOCK_BYTES < end; index++) {
      if (index % TURN_BLOCKS === TURN_BLOCKS - 1) {
        await setImmediate();
        options.signal.throwIfAborted();
      }
      buffer.fill(0, readFully(disk.fd, buffer, index * BLOCK_BYTES));
      options.onBytes(BLOCK_BYTES);
      yield { index, digest: buffer.equals(ZEROS) ? null : createHash("sha256").update(buffer).digest() };
    }
  }
  for (; index < count; index++) yield { index, digest: null };
}

function dataOf({ fd, disk }: OpenDisk): Iterable<{ readonly start: number; readonly end: number }> {
  // a block device tells no holes
  return fstatSync(fd).isFile() ? dataExtents(fd, disk.size) : [{ start: 0, end: disk.size }];
}
