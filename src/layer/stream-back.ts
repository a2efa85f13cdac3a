/**
 * The decoded stream of a filled layer, read back in address order from where its bytes were put: file data from the layer file, all else from the rest
 * file. For a seal, and for whoever wants the tar again. Blocking reads: for worker threads.
 */

import { HeadstartError } from "../base/errors.ts";
import { readFully } from "../base/files.ts";
import { MiB } from "../base/limits.ts";
import type { Placement } from "../erofs/placement.ts";
import { type RestMap, visitRest } from "./rest.ts";

const WINDOW_BYTES = 4 * MiB;

/** Calls `chunk` with the stream's bytes in order; a chunk is valid until the next call. Throws HS_TRUNCATED when a file is too short. */
export function streamBack(
  source: { imageFd: number; restFd: number; placement: Placement; rest: RestMap; streamLength: number },
  chunk: (bytes: Uint8Array) => void,
): void {
  const { placement, rest, streamLength } = source;
  const image = new ReadWindow(source.imageFd, "layer file");
  const restFile = new ReadWindow(source.restFd, "rest file");
  let next = 0;
  let row = 0;
  while (next < streamLength) {
    // a row that ends before `next` shares its addresses with one that was read
    while (row < placement.rowCount && placement.address[row]! + placement.length[row]! <= next) row++;
    const rowStart = row < placement.rowCount ? placement.address[row]! : streamLength;
    if (rowStart <= next) {
      const end = Math.min(streamLength, rowStart + placement.length[row]!);
      image.read(placement.fileOffset[row]! + (next - rowStart), end - next, chunk);
      next = end;
      continue;
    }
    const end = Math.min(streamLength, rowStart);
    visitRest(rest, next, end, (address, restOffset, length) => {
      if (address !== next) throw new HeadstartError("HS_INTERNAL", { what: `no place is known for address ${next}` });
      restFile.read(restOffset, length, chunk);
      next = address + length;
    });
    if (next !== end) throw new HeadstartError("HS_INTERNAL", { what: `no place is known for address ${next}` });
  }
}

/** Neighbouring small reads out of one large one: files lie in the order of their addresses. */
class ReadWindow {
  readonly #fd: number;
  readonly #what: string;
  readonly #bytes = new Uint8Array(WINDOW_BYTES);
  #start = 0;
  #length = 0;

  constructor(fd: number, what: string) {
    this.#fd = fd;
    this.#what = what;
  }

  read(offset: number, length: number, chunk: (bytes: Uint8Array) => void): void {
    let done = 0;
    while (done < length) {
      let inside = offset + done - this.#start;
      if (inside < 0 || inside >= this.#length) {
        this.#start = offset + done;
        this.#length = readFully(this.#fd, this.#bytes, this.#start);
        inside = 0;
        if (this.#length === 0)
          throw new HeadstartError("HS_TRUNCATED", { what: `${this.#what}: nothing at byte ${this.#start}` });
      }
      const count = Math.min(length - done, this.#length - inside);
      chunk(this.#bytes.subarray(inside, inside + count));
      done += count;
    }
  }
}
