/**
 * Sha256 of file contents as their data pass by. A file's content is known by the address of its first stored byte, since inode numbers exist only when the
 * tree is finished; what has no stored bytes is zeros and is hashed when asked for.
 */

import { createHash, type Hash } from "node:crypto";
import type { FileTree } from "../../erofs/file-tree.ts";
import type { TarEntry } from "./records.ts";
import type { SparsePiece } from "./sparse.ts";

const ZEROS = new Uint8Array(256 * 1024);

export class ContentHasher {
  readonly #digests = new Map<number, string>();
  #hash: Hash | null = null;
  #address = 0;
  #size = 0;
  /** Bytes of the file that were hashed. */
  #done = 0;
  #pieces: readonly SparsePiece[] = [];
  #piece = 0;

  begin(entry: TarEntry): void {
    this.#hash = createHash("sha256");
    this.#address = entry.dataOffset;
    this.#size = entry.size;
    this.#done = 0;
    this.#pieces = entry.sparse ?? [{ offset: 0, length: entry.size }];
    this.#piece = 0;
  }

  data(chunk: Uint8Array, _offset: number): void {
    if (this.#hash === null) return;
    let position = 0;
    while (position < chunk.byteLength && this.#piece < this.#pieces.length) {
      const { offset, length } = this.#pieces[this.#piece]!;
      if (this.#done < offset) this.#zerosTo(offset);
      const count = Math.min(chunk.byteLength - position, offset + length - this.#done);
      this.#hash.update(chunk.subarray(position, position + count));
      this.#done += count;
      position += count;
      if (this.#done === offset + length) this.#piece++;
    }
  }

  /** The entry's data are over. */
  end(): void {
    if (this.#hash === null) return;
    this.#zerosTo(this.#size);
    this.#digests.set(this.#address, this.#hash.digest("hex"));
    this.#hash = null;
  }

  /** For a regular file of the tree that was built from the same entries. */
  sha256(tree: FileTree, inode: number): string {
    const first = tree.segmentStart[inode]!;
    if (first < tree.segmentStart[inode + 1]!) {
      const known = this.#digests.get(tree.segmentAddress[first]!);
      if (known !== undefined) return known;
    }
    return sha256OfZeros(tree.size[inode]!);
  }

  #zerosTo(end: number): void {
    updateZeros(this.#hash!, end - this.#done);
    this.#done = end;
  }
}

export function sha256OfZeros(size: number): string {
  const hash = createHash("sha256");
  updateZeros(hash, size);
  return hash.digest("hex");
}

function updateZeros(hash: Hash, count: number): void {
  for (let rest = count; rest > 0; rest -= ZEROS.byteLength)
    hash.update(ZEROS.subarray(0, Math.min(rest, ZEROS.byteLength)));
}
