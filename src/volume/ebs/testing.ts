/** For tests of this folder: small disk images with known blocks. */

import { closeSync, ftruncateSync, mkdtempSync, openSync, rmSync, writeSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { BLOCK_BYTES } from "./blocks.ts";

export class Scratch implements Disposable {
  readonly directory = mkdtempSync(join(tmpdir(), "headstart-ebs-"));

  path(name: string): string {
    return join(this.directory, name);
  }

  [Symbol.dispose](): void {
    rmSync(this.directory, { recursive: true, force: true });
  }
}

/** A block that no other seed gives, not zero. */
export function blockOf(seed: number): Uint8Array {
  const bytes = Buffer.alloc(BLOCK_BYTES);
  for (let at = 0; at < BLOCK_BYTES; at += 4096) bytes.writeUInt32LE((seed * 2654435761 + at) >>> 0 || 1, at);
  return bytes;
}

/** A sparse file of `blockCount` blocks with those of `blocks` (index -> seed; 0 writes zeros). Overwrites what an existing file has there. */
export function writeDisk(path: string, blockCount: number, blocks: Readonly<Record<number, number>>): void {
  const fd = openSync(path, "a+");
  closeSync(fd);
  const file = openSync(path, "r+");
  try {
    ftruncateSync(file, blockCount * BLOCK_BYTES);
    for (const [index, seed] of Object.entries(blocks)) {
      const bytes = seed === 0 ? Buffer.alloc(BLOCK_BYTES) : blockOf(seed);
      writeSync(file, bytes, 0, BLOCK_BYTES, Number(index) * BLOCK_BYTES);
    }
  } finally {
    closeSync(file);
  }
}

/** `count` blocks from `first` on, with seeds of their own. */
export function run(first: number, count: number, salt = 1): Record<number, number> {
  return Object.fromEntries(Array.from({ length: count }, (_, at) => [first + at, (first + at) * 7 + salt]));
}
