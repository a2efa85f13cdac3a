/**
 * Inflates from the middle of a gzip stream: from any bit, with the window that was there (SOCI checkpoints, Nydus zran contexts; specs/soci.md 3.2).
 * Crosses member boundaries. Reads nothing outside of the bytes it is given and writes nothing beyond the output's length, so a deflate bomb
 * behind a small claimed length costs nothing.
 */

import { HeadstartError } from "../../base/errors.ts";
import { RawInflate, Z_BUF_ERROR, Z_OK, Z_STREAM_END, Z_SYNC_FLUSH } from "../../linux/zlib.ts";
import { GZIP_TRAILER_SIZE, gzipHeaderLength } from "./member.ts";

export interface ResumePoint {
  /** Top bits of `stored[0]` that belong to the data; 0: the data begin with `stored[0]` itself. */
  readonly bits: number;
  /** Up to 32 KiB of output before this point; null at the start of a stream. */
  readonly window: Uint8Array | null;
  /** The output must end where the stored bytes do: bytes that decode to more are as wrong as those that decode to less. Default: what follows is not looked at. */
  readonly exact?: boolean;
}

export class ResumeInflate implements Disposable {
  readonly #inflate = new RawInflate();

  /**
   * Fills `output` exactly with what `stored` decodes to. Throws HS_UNIT_DECODE when the bytes decode to less (or, where that is asked for, to more), or do not decode.
   */
  decode(stored: Uint8Array, point: ResumePoint, output: Uint8Array, what: string): void {
    const inflate = this.#inflate;
    inflate.reset();
    let position = 0;
    if (point.bits > 0) {
      if (stored.byteLength === 0) throw failed(what, "no bytes");
      inflate.prime(point.bits, stored[0]! >> (8 - point.bits));
      position = 1;
    }
    if (point.window !== null) inflate.setDictionary(point.window);
    let produced = 0;
    while (produced < output.byteLength) {
      inflate.setInput(stored.subarray(position));
      inflate.setOutput(output.subarray(produced));
      const result = inflate.run(Z_SYNC_FLUSH);
      const progress = inflate.consumed + inflate.produced;
      position += inflate.consumed;
      produced += inflate.produced;
      if (produced === output.byteLength) break;
      if (result === Z_STREAM_END) {
        position = nextMember(stored, position, what, produced, output.byteLength);
        inflate.reset();
      } else if (result !== Z_OK && result !== Z_BUF_ERROR) {
        throw failed(what, `not deflate data at stored byte ${position}`);
      } else if (progress === 0 || position >= stored.byteLength) {
        throw failed(what, `${produced} bytes instead of ${output.byteLength}`);
      }
    }
    if (point.exact) {
      const more = new Uint8Array(1);
      inflate.setInput(stored.subarray(position));
      inflate.setOutput(more);
      // only output counts: some bits of the last byte are the next block's, and say nothing alone
      inflate.run(Z_SYNC_FLUSH);
      if (inflate.produced > 0) throw failed(what, `more than ${output.byteLength} bytes`);
    }
    // hold on to nothing of the caller's
    inflate.setInput(EMPTY);
    inflate.setOutput(EMPTY);
  }

  [Symbol.dispose](): void {
    this.#inflate[Symbol.dispose]();
  }
}

/** Where the data of the next member begin, `end` being the end of one member's deflate stream. */
function nextMember(stored: Uint8Array, end: number, what: string, produced: number, wanted: number): number {
  const header = end + GZIP_TRAILER_SIZE;
  if (header >= stored.byteLength) throw failed(what, `${produced} bytes instead of ${wanted}`);
  let length: number;
  try {
    length = gzipHeaderLength(stored, header);
  } catch (cause) {
    throw failed(what, `no gzip member at stored byte ${header}`, cause);
  }
  if (length < 0) throw failed(what, `a gzip header is cut off at stored byte ${header}`);
  return header + length;
}

const EMPTY = new Uint8Array(0);

function failed(what: string, message: string, cause?: unknown): HeadstartError {
  return new HeadstartError("HS_UNIT_DECODE", {
    what: `${what}: ${message}`,
    ...(cause === undefined ? {} : { cause }),
  });
}
