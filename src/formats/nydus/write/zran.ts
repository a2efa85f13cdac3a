/**
 * Where a decoder can begin in a gzip layer that stays as it is: zran contexts, chosen by the peer's rules (specs/nydus.md 2.3, 3.3), each from a deflate block's start to the end of its last
 * chunk.
 *
 *   layer    ...|block      |block   |block        |...            boundary(): what the decoder passed
 *   chunks          [chunk 0] [chunk 1]    [chunk 2]                begin(), end()
 *   context      [---------------------------------]
 *
 * Invariants: every context holds a chunk that no other has, so there are not more contexts than chunks; none ends at the end of a deflate stream, which nydusd cannot decode: where a chunk
 * does, the context goes on into the next member that has data; none decodes to more than nydusd's 16 MiB; each ends where the one before does, or behind.
 */

import { HeadstartError } from "../../../base/errors.ts";
import { MiB } from "../../../base/limits.ts";
import { WINDOW } from "../../gzip/inflate.ts";
import { NYDUS_LIMITS } from "../ondisk.ts";
import type { WrittenRestartPoints } from "./chunk-array.ts";

/** A context that has so many stored bytes takes no more chunks, nor one that would come to so many plain ones. */
const STORED_ENOUGH = 512 * 1024;
const PLAIN_ENOUGH = 2 * MiB;
/** Stored bytes of the next member that a context gets which would end with a member: its first block begins in them. */
const INTO_NEXT_MEMBER = 64;

/** A place in the layer: stored bytes that the decoder has taken, bytes that it gave. */
export interface Place {
  readonly stored: number;
  readonly plain: number;
}

interface Boundary extends Place {
  /** Of the last stored byte before, the bits that are still to be decoded; and that byte. */
  readonly bits: number;
  readonly byte: number;
  /** Where the member's first byte stands: a window does not reach further back. */
  readonly memberStart: number;
}

interface Context extends Boundary {
  readonly window: Uint8Array;
  storedSize: number;
  size: number;
}

export interface ChunkContext {
  readonly context: number;
  readonly offset: number;
}

export class ZranContexts {
  readonly #layer: string;
  readonly #chunkSize: number;
  readonly #storedEnd: number;
  readonly #contexts: Context[] = [];
  #boundary: Boundary | null = null;
  #window: Uint8Array = new Uint8Array(0);
  #windowIsOld = false;
  /** The context that chunks go to; not in `#contexts` before it has a chunk of its own. */
  #current: Context | null = null;
  #previous: Context | null = null;
  #chunkStart = 0;
  #chunkEnd: Place = { stored: 0, plain: 0 };
  /** A context that ends where a member does, until another one has data. */
  #open: Context | null = null;
  /** Where the data of the member begin that is being decoded. */
  #headerEnd = 0;

  /** `layer` and `storedEnd`: its name in errors, and its bytes. */
  constructor(layer: string, chunkSize: number, storedEnd: number) {
    this.#layer = layer;
    this.#chunkSize = chunkSize;
    this.#storedEnd = storedEnd;
  }

  /** The decoder stands behind a member's header (`bits` 0, and `isHeader`) or a block. */
  boundary(place: Place, bits: number, byte: number, isHeader: boolean): void {
    if (isHeader) this.#headerEnd = place.stored;
    const memberStart = isHeader || this.#boundary === null ? place.plain : this.#boundary.memberStart;
    this.#boundary = { ...place, bits, byte, memberStart };
    this.#windowIsOld = true;
  }

  /** A chunk begins here. */
  begin(place: Place): void {
    const { stored, plain } = place;
    const boundary = this.#boundary!;
    const current = this.#current;
    this.#previous = current;
    this.#chunkStart = plain;
    if (current !== null) {
      const storedSize = stored - current.stored;
      const isFirstBlock = boundary.stored === current.stored;
      const enough = storedSize >= STORED_ENOUGH || plain - current.plain + this.#chunkSize >= PLAIN_ENOUGH;
      const isFar = storedSize > 2 * current.storedSize && current.storedSize > STORED_ENOUGH;
      if (isFirstBlock || !(enough || isFar)) return;
    }
    this.#current = { ...boundary, window: this.#window, storedSize: 0, size: 0 };
  }

  /** It ends here; `isNew`: the same chunk was not there before. Its context, or null if it is not new. Throws HS_NYDUS_LIMIT. */
  end(place: Place, isNew: boolean): ChunkContext | null {
    const current = this.#current!;
    const isFirst = current !== this.#previous;
    if (isFirst && !isNew) {
      // nothing would be in it
      this.#current = this.#previous;
      return null;
    }
    const size = place.plain - current.plain;
    if (size > NYDUS_LIMITS.contextBytes) {
      // not for a chunk that is elsewhere
      if (!isNew) return null;
      throw new HeadstartError("HS_NYDUS_LIMIT", {
        what: `layer ${this.#layer}: a deflate block or chunk so long that a restart point decodes to ${size} bytes, at most ${NYDUS_LIMITS.contextBytes} can be; use --to nydus`,
      });
    }
    if (isFirst) this.#contexts.push(current);
    this.#chunkEnd = place;
    current.storedSize = place.stored - current.stored;
    current.size = size;
    return isNew ? { context: this.#contexts.length - 1, offset: this.#chunkStart - current.plain } : null;
  }

  /** The member that gave the bytes up to `plain` is over. */
  memberEnd(plain: number): void {
    if (this.#contexts.length > 0 && this.#chunkEnd.plain === plain) this.#open = this.#contexts.at(-1)!;
  }

  /** The decoder gave bytes; the last header that it passed is that of their member. `windowAt` gives the window before a place in them. Call it before their chunks. */
  handed(windowAt: (plain: number) => Uint8Array): void {
    this.#keepWindow(windowAt);
    if (this.#open === null) return;
    // a later chunk may have moved the end already
    const end = Math.min(this.#headerEnd + INTO_NEXT_MEMBER, this.#storedEnd);
    this.#open.storedSize = Math.max(this.#open.storedSize, end - this.#open.stored);
    this.#open = null;
  }

  /** Blocks are many, and windows large: only that of the last one before something is looked at is kept. */
  #keepWindow(windowAt: (plain: number) => Uint8Array): void {
    const boundary = this.#boundary;
    if (boundary === null || !this.#windowIsOld) return;
    const size = Math.min(WINDOW, boundary.plain - boundary.memberStart);
    this.#window = windowAt(boundary.plain).slice(WINDOW - size);
    this.#windowIsOld = false;
  }

  /** Throws HS_NYDUS_LIMIT when the layer ends with a file. */
  finish(): WrittenRestartPoints {
    if (this.#open !== null) {
      throw new HeadstartError("HS_NYDUS_LIMIT", {
        what: `layer ${this.#layer}: its last bytes are a file's, without an end of the archive behind, which nydusd cannot decode; use --to nydus`,
      });
    }
    const contexts = this.#contexts;
    let end = 0;
    for (const context of contexts) {
      // nydusd reads neighbours at once, up to where the last of them ends
      context.storedSize = Math.max(context.storedSize, end - context.stored);
      end = context.stored + context.storedSize;
    }
    const starts = new Float64Array(contexts.length);
    let total = 0;
    for (const [index, { window }] of contexts.entries()) {
      starts[index] = total;
      total += window.byteLength;
    }
    return {
      count: contexts.length,
      storedOffset: Float64Array.from(contexts, ({ stored }) => stored),
      storedSize: Uint32Array.from(contexts, ({ storedSize }) => storedSize),
      size: Uint32Array.from(contexts, ({ size }) => size),
      bits: Uint8Array.from(contexts, ({ bits }) => bits),
      byte: Uint8Array.from(contexts, ({ byte }) => byte),
      outOffset: Float64Array.from(contexts, ({ plain }) => plain),
      dictionaryStart: starts,
      dictionarySize: Uint32Array.from(contexts, ({ window }) => window.byteLength),
      dictionaries: Buffer.concat(contexts.map(({ window }) => window)),
    };
  }
}
