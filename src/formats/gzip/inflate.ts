/**
 * Inflates a gzip stream of any number of members as it arrives, with every header, CRC-32 and length checked (specs/layer.md 1.2), and reports the
 * block boundaries where a reader could begin later (SOCI checkpoints; specs/soci.md 3.3). One thread, synchronous: pushes in, callbacks out.
 *
 * The output buffer keeps 32 KiB of history in front of what it takes, so the window before any point is a view of it:
 *
 *   |  32 KiB history  |  taken, handed out  |  taken, not yet handed out  |  room  |
 *                      ^ WINDOW              ^ #handed                     ^ #end
 */

import { crc32 } from "node:zlib";
import { HeadstartError } from "../../base/errors.ts";
import { RawInflate, Z_BLOCK, Z_BUF_ERROR, Z_OK, Z_STREAM_END, Z_SYNC_FLUSH } from "../../linux/zlib.ts";
import { GZIP_TRAILER_SIZE, gzipHeaderLength } from "./member.ts";

export const WINDOW = 32_768;
/** Between 256 KiB and 4 MiB there is no measurable difference; less costs calls, more costs cache. */
const BUFFER_SIZE = 1024 * 1024;

export interface GzipInflateOptions {
  /** Decoded bytes in order: a view that is valid until the call returns (or, with `nextBuffer`, for as long as its buffer is not given again). */
  readonly data: (bytes: Uint8Array) => void;
  /**
   * Called behind each member header and at each end of a deflate block but a member's last, with totals over all members: compressed bytes
   * consumed, decoded bytes, unused bits (0..7) of the last consumed byte. `GzipInflate.window` is the window there. Returns how many bytes must have been
   * decoded before another one is of interest: up to there the decoder does not stop at each block, which is 8 % faster.
   */
  readonly boundary?: (consumed: number, produced: number, bits: number) => number;
  /**
   * How many bytes may have been decoded, over all members, before they must have been handed out: who follows what the bytes mean can stop at a place that he knows only then
   * (Nydus zran: `consumed` where a file begins). Asked again after that, and must then be more.
   */
  readonly limit?: () => number;
  /** Where to decode to when a buffer is full: longer than 32 KiB, may be the same one. By default one buffer is used for all. */
  readonly nextBuffer?: () => Uint8Array;
  /** False when the caller computes CRC-32 and length himself, from `memberEnd`. */
  readonly verify?: boolean;
  /** Behind each member: its trailer's CRC-32 and length. */
  readonly memberEnd?: (crc: number, length: number) => void;
}

type Part = "header" | "data" | "trailer" | "zeros";

export class GzipInflate implements Disposable {
  readonly #inflate = new RawInflate();
  readonly #options: GzipInflateOptions;
  readonly #verify: boolean;
  #buffer: Uint8Array;
  #handed = WINDOW;
  #end = WINDOW;
  #part: Part = "header";
  /** Bytes of a header or trailer that a chunk began. */
  #held = new Uint8Array(0);
  #consumed = 0;
  #produced = 0;
  #members = 0;
  #memberCrc = 0;
  #memberLength = 0;
  /** No boundary is of interest before this many bytes were decoded. */
  #quietUntil = 0;

  constructor(options: GzipInflateOptions) {
    this.#options = options;
    this.#verify = options.verify !== false;
    this.#buffer = options.nextBuffer?.() ?? new Uint8Array(new ArrayBuffer(WINDOW + BUFFER_SIZE));
    // a buffer that is used again may hold anything; before the first output the window is zeros
    this.#buffer.fill(0, 0, WINDOW);
  }

  /** Compressed bytes consumed so far. */
  get consumed(): number {
    return this.#consumed;
  }

  get produced(): number {
    return this.#produced;
  }

  /** The last 32 KiB of output, zeros in front where there are fewer: a view, valid until the next push or the end of a callback. */
  get window(): Uint8Array {
    return this.#buffer.subarray(this.#end - WINDOW, this.#end);
  }

  /** The same before a place in the bytes that are being handed out. Only during `data`. */
  windowAt(produced: number): Uint8Array {
    const end = this.#end - (this.#produced - produced);
    return this.#buffer.subarray(end - WINDOW, end);
  }

  /** Decodes one chunk; all its output has been handed out when this returns. Throws HS_LAYER_REFUSED. */
  push(chunk: Uint8Array): void {
    let position = 0;
    while (position < chunk.byteLength) {
      switch (this.#part) {
        case "header":
          position = this.#header(chunk, position);
          break;
        case "data":
          position = this.#data(chunk, position);
          break;
        case "trailer":
          position = this.#trailer(chunk, position);
          break;
        case "zeros":
          position = this.#zeros(chunk, position);
          break;
      }
    }
    this.#hand();
  }

  /** Throws HS_LAYER_REFUSED when the stream is cut inside a member. An empty stream is fine, as it is for containerd. */
  finish(): void {
    if (this.#part === "zeros" || (this.#part === "header" && this.#held.byteLength === 0)) return;
    throw refused(`member ${this.#members} is cut off in its ${this.#part}`);
  }

  [Symbol.dispose](): void {
    this.#inflate[Symbol.dispose]();
  }

  #header(chunk: Uint8Array, position: number): number {
    const rest = chunk.subarray(position);
    if (this.#held.byteLength === 0 && this.#members > 0 && rest[0] === 0) {
      this.#part = "zeros";
      return position;
    }
    const already = this.#held.byteLength;
    const bytes = already === 0 ? rest : Buffer.concat([this.#held, rest]);
    const length = gzipHeaderLength(bytes);
    if (length < 0) {
      this.#held = Uint8Array.from(bytes);
      this.#consumed += rest.byteLength;
      return chunk.byteLength;
    }
    this.#held = EMPTY;
    this.#consumed += length - already;
    this.#members++;
    this.#memberCrc = 0;
    this.#memberLength = 0;
    this.#inflate.reset();
    this.#part = "data";
    this.#quietUntil = this.#options.boundary?.(this.#consumed, this.#produced, 0) ?? Number.POSITIVE_INFINITY;
    return position + length - already;
  }

  #data(chunk: Uint8Array, position: number): number {
    const inflate = this.#inflate;
    const { limit } = this.#options;
    inflate.setInput(position === 0 ? chunk : chunk.subarray(position));
    let consumed = 0;
    for (;;) {
      // quiet: without stops, but no further than to where boundaries begin to count
      const quiet = this.#quietUntil - this.#produced;
      let room = this.#buffer.byteLength - this.#end;
      if (limit !== undefined) {
        if (this.#produced >= limit()) this.#hand();
        room = Math.min(room, limit() - this.#produced);
      }
      inflate.setOutput(this.#buffer.subarray(this.#end, this.#end + (quiet > 0 ? Math.min(room, quiet) : room)));
      const result = inflate.run(quiet > 0 ? Z_SYNC_FLUSH : Z_BLOCK);
      const consumedNow = inflate.consumed;
      const produced = inflate.produced;
      const stuck = consumedNow === consumed && produced === 0;
      this.#consumed += consumedNow - consumed;
      consumed = consumedNow;
      this.#produced += produced;
      this.#end += produced;
      if (result === Z_STREAM_END) {
        this.#hand();
        this.#part = "trailer";
        break;
      }
      if (result !== Z_OK && result !== Z_BUF_ERROR) throw refused(`damaged at byte ${this.#consumed} of the blob`);
      const state = inflate.dataType;
      const atBoundary = quiet <= 0 && (state & 128) !== 0;
      if (atBoundary && (state & 64) === 0) {
        this.#quietUntil = this.#options.boundary!(this.#consumed, this.#produced, state & 7);
      }
      if (this.#end === this.#buffer.byteLength) this.#turn();
      // out of input, and not because a block or the quiet part ended: then one more call may find output in bits that are held
      else if (inflate.availableIn === 0 && (stuck || (inflate.availableOut > 0 && !atBoundary))) break;
    }
    inflate.setInput(EMPTY);
    return position + consumed;
  }

  #trailer(chunk: Uint8Array, position: number): number {
    const take = Math.min(GZIP_TRAILER_SIZE - this.#held.byteLength, chunk.byteLength - position);
    const held = Buffer.concat([this.#held, chunk.subarray(position, position + take)]);
    this.#consumed += take;
    this.#held = held;
    if (held.byteLength < GZIP_TRAILER_SIZE) return position + take;
    this.#held = EMPTY;
    const crc = held.readUInt32LE(0);
    const length = held.readUInt32LE(4);
    if (this.#verify && crc !== this.#memberCrc) throw refused(`the CRC-32 of member ${this.#members} is wrong`);
    if (this.#verify && length !== this.#memberLength % 2 ** 32) {
      throw refused(`the length of member ${this.#members} is wrong`);
    }
    this.#options.memberEnd?.(crc, length);
    this.#part = "header";
    return position + take;
  }

  /** Zeros behind the last member are padding; anything else is refused (specs/layer.md 1.2, C22). */
  #zeros(chunk: Uint8Array, position: number): number {
    for (let index = position; index < chunk.byteLength; index++) {
      if (chunk[index] !== 0) throw refused(`other bytes than zeros stand behind the last member`);
    }
    this.#consumed += chunk.byteLength - position;
    return chunk.byteLength;
  }

  /** Hands out what was decoded since the last time. */
  #hand(): void {
    if (this.#handed === this.#end) return;
    const bytes = this.#buffer.subarray(this.#handed, this.#end);
    if (this.#verify) this.#memberCrc = crc32(bytes, this.#memberCrc);
    this.#memberLength += bytes.byteLength;
    this.#handed = this.#end;
    this.#options.data(bytes);
  }

  /** The buffer is full: goes on in the next one, with the last 32 KiB in front. */
  #turn(): void {
    this.#hand();
    const next = this.#options.nextBuffer?.() ?? this.#buffer;
    next.set(this.#buffer.subarray(this.#end - WINDOW, this.#end), 0);
    this.#buffer = next;
    this.#end = WINDOW;
    this.#handed = WINDOW;
  }
}

const EMPTY = new Uint8Array(0);

function refused(message: string): HeadstartError {
  return new HeadstartError("HS_LAYER_REFUSED", { what: `gzip: ${message}`, refusal: "gzip", reason: message });
}
