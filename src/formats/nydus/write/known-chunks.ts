/** Chunks that need not be stored: those of this layer that already are, and those of a chunk dictionary's blobs (specs/nydus.md 3.9). */

import { lastAtMost } from "../../../base/ranges.ts";
import { ADDRESS_SPACE } from "../../../erofs/file-tree.ts";
import type { ChunkDictionary } from "./dictionary.ts";
import type { ImageBlob } from "./model.ts";

export class KnownChunks {
  readonly #own = new Map<string, number>();
  readonly #dictionary: ChunkDictionary | null;
  readonly #spaces = new Map<ImageBlob, number>();

  constructor(dictionary: ChunkDictionary | null) {
    this.#dictionary = dictionary;
  }

  /** Blobs of the dictionary that were referred to: address space 1 + i. */
  get used(): readonly ImageBlob[] {
    return [...this.#spaces.keys()];
  }

  /** A chunk of a dictionary's blob that `find` gave the address of. */
  chunkOf(space: number, offset: number): { readonly id: string; readonly chunk: number } {
    const { facts, chunks } = this.used[space - 1]!;
    const position = lastAtMost(chunks.offset, chunks.count, offset);
    return { id: facts.id, chunk: chunks.index?.[position] ?? position };
  }

  /** The address, or undefined. The dictionary goes first, so that a layer that was converted with it is the same wherever its own chunks lie. */
  find(digest: Uint8Array, size: number): number | undefined {
    const there = this.#dictionary?.find(digest, size);
    if (!there) return this.#own.get(key(digest, size));
    let space = this.#spaces.get(there.blob);
    if (space === undefined) {
      space = this.#spaces.size + 1;
      this.#spaces.set(there.blob, space);
    }
    return space * ADDRESS_SPACE + there.blob.chunks.offset[there.element]!;
  }

  add(digest: Uint8Array, size: number, address: number): void {
    this.#own.set(key(digest, size), address);
  }
}

function key(digest: Uint8Array, size: number): string {
  return `${Buffer.from(digest.buffer, digest.byteOffset, digest.byteLength).toString("latin1")}${size}`;
}
