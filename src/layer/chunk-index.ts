/**
 * Where the pieces lie that data files of this node have: digest -> (file, place), so that a chunk that is here already is copied rather than fetched. A hint, never more: what it finds is
 * verified like what comes from a registry, so it keeps but 4 bytes of a digest.
 *
 *   slot s: 4 bytes of the digest | file id | block in the file | length       open addressing; bounded, what comes beyond is not found
 */

import { BLOCK_SIZE } from "../erofs/placement.ts";

/** 2^20 pieces: 32 MiB, and some 100 GB of data in chunks as images have them. */
const SLOTS_MAX = 2 ** 21;
const SLOTS_MIN = 2 ** 12;

export interface ChunkPlace {
  readonly file: number;
  readonly offset: number;
}

export class ChunkIndex {
  readonly #slotsMax: number;
  #tag!: Uint32Array;
  /** 0: free. */
  #file!: Uint32Array;
  #block!: Uint32Array;
  #length!: Uint32Array;
  #count = 0;

  constructor(options: { slotsMax?: number } = {}) {
    this.#slotsMax = options.slotsMax ?? SLOTS_MAX;
    this.#allocate(Math.min(SLOTS_MIN, this.#slotsMax));
  }

  get count(): number {
    return this.#count;
  }

  /** `digest` has 32 bytes. The first place of a piece stays. */
  add(digest: Uint8Array, length: number, place: ChunkPlace): void {
    if (this.#count >= this.#tag.length / 2 && !this.#grow()) return;
    this.#put(tagOf(digest), place.file, place.offset / BLOCK_SIZE, length);
  }

  /** A place where such a piece may be, in a file that `isOpen`. */
  find(digest: Uint8Array, length: number, isOpen: (file: number) => boolean): ChunkPlace | null {
    const tag = tagOf(digest);
    const mask = this.#tag.length - 1;
    for (let slot = tag & mask; this.#file[slot] !== 0; slot = (slot + 1) & mask) {
      const file = this.#file[slot]!;
      if (this.#tag[slot] === tag && this.#length[slot] === length && isOpen(file))
        return { file, offset: this.#block[slot]! * BLOCK_SIZE };
    }
    return null;
  }

  /** Forgets a file's pieces. */
  remove(file: number): void {
    this.#rebuild(this.#tag.length, file);
  }

  #grow(): boolean {
    if (this.#tag.length >= this.#slotsMax) return false;
    this.#rebuild(this.#tag.length * 2, 0);
    return true;
  }

  #rebuild(slots: number, without: number): void {
    const [tags, files, blocks, lengths] = [this.#tag, this.#file, this.#block, this.#length];
    this.#allocate(slots);
    for (let slot = 0; slot < tags.length; slot++) {
      if (files[slot] !== 0 && files[slot] !== without)
        this.#put(tags[slot]!, files[slot]!, blocks[slot]!, lengths[slot]!);
    }
  }

  #allocate(slots: number): void {
    this.#tag = new Uint32Array(slots);
    this.#file = new Uint32Array(slots);
    this.#block = new Uint32Array(slots);
    this.#length = new Uint32Array(slots);
    this.#count = 0;
  }

  #put(tag: number, file: number, block: number, length: number): void {
    const mask = this.#tag.length - 1;
    let slot = tag & mask;
    for (; this.#file[slot] !== 0; slot = (slot + 1) & mask) {
      // two different pieces that look alike are as rare as harmless: the other one is fetched
      if (this.#tag[slot] === tag && this.#length[slot] === length && this.#file[slot] === file) return;
    }
    this.#tag[slot] = tag;
    this.#file[slot] = file;
    this.#block[slot] = block;
    this.#length[slot] = length;
    this.#count++;
  }
}

function tagOf(digest: Uint8Array): number {
  return (digest[0]! | (digest[1]! << 8) | (digest[2]! << 16) | (digest[3]! << 24)) >>> 0;
}
