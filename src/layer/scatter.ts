/**
 * Writing the decoded bytes of one unit to their places: file data into the layer file by the placement, all else into the rest file. Rows that follow each other in
 * the file become one write; the padding between them is written as the zeros that it is, which is far cheaper than one write a file.
 */

import { failpoint } from "../base/failpoint.ts";
import { writeFully } from "../base/files.ts";
import { BLOCK_SIZE, type Placement, visitAddresses, visitFileRange } from "../erofs/placement.ts";
import type { UnitTable } from "../formats/format.ts";
import { type RestMap, visitRest } from "./rest.ts";
import type { UnitPieces } from "./unit-index.ts";

/** Bytes that one write carries at most: larger gains nothing more (page cache). */
const WRITE_BYTES = 1024 * 1024;

export interface ScatterTarget {
  readonly imageFd: number;
  /** Used where `rest` is not null. */
  readonly restFd: number;
  readonly units: UnitTable;
  readonly pieces: UnitPieces;
  readonly placement: Placement;
  readonly rest: RestMap | null;
}

/** One per thread: it owns the buffers in which rows are gathered. */
export class Scatterer {
  readonly #imageBuffer = new Uint8Array(WRITE_BYTES);
  readonly #restBuffer = new Uint8Array(WRITE_BYTES);

  /** Writes the unit, or of it `only` these pieces (ascending). Returns the number of writes. Throws what pwrite(2) says (ENOSPC: part of the unit may be written, which does no harm as no bit is set). */
  scatter(target: ScatterTarget, unit: number, decoded: Uint8Array, only: Uint32Array | null = null): number {
    const { units, pieces, placement } = target;
    const image = new GatheredWriter(target.imageFd, this.#imageBuffer, (start, end) =>
      isPadding(placement, start, end),
    );
    const rest = new GatheredWriter(target.restFd, this.#restBuffer, () => false);
    for (const piece of only ?? pieces.pieces.subarray(pieces.start[unit]!, pieces.start[unit + 1]!)) {
      const start = units.pieceAddress[piece]!;
      const end = start + units.pieceLength[piece]!;
      // position in `decoded` = address + shift
      const shift = units.pieceOffset[piece]! - start;
      visitAddresses(placement, start, end, (address, fileOffset, length) => {
        image.put(fileOffset, decoded.subarray(address + shift, address + shift + length));
      });
      if (target.rest === null) continue;
      visitRest(target.rest, start, end, (address, restOffset, length) => {
        rest.put(restOffset, decoded.subarray(address + shift, address + shift + length));
      });
    }
    image.flush();
    rest.flush();
    return image.writes + rest.writes;
  }
}

/** Less than a block that ends at a block border and that no row covers: the zeros behind a file's end. */
function isPadding(placement: Placement, start: number, end: number): boolean {
  if (end - start >= BLOCK_SIZE || end % BLOCK_SIZE !== 0) return false;
  let covered = false;
  visitFileRange(placement, start, end, () => {
    covered = true;
  });
  return !covered;
}

class GatheredWriter {
  readonly #fd: number;
  readonly #buffer: Uint8Array;
  readonly #isPadding: (start: number, end: number) => boolean;
  #start = 0;
  #length = 0;
  writes = 0;

  constructor(fd: number, buffer: Uint8Array, isPaddingBetween: (start: number, end: number) => boolean) {
    this.#fd = fd;
    this.#buffer = buffer;
    this.#isPadding = isPaddingBetween;
  }

  put(offset: number, bytes: Uint8Array): void {
    const end = this.#start + this.#length;
    if (this.#length > 0 && offset !== end) {
      const gap = offset - end;
      if (gap > 0 && gap < BLOCK_SIZE && this.#length + gap <= WRITE_BYTES && this.#isPadding(end, offset)) {
        this.#buffer.fill(0, this.#length, this.#length + gap);
        this.#length += gap;
      } else {
        this.flush();
      }
    }
    if (this.#length + bytes.byteLength > WRITE_BYTES) this.flush();
    if (bytes.byteLength >= WRITE_BYTES / 2) {
      this.flush();
      this.#write(bytes, offset);
      return;
    }
    if (this.#length === 0) this.#start = offset;
    this.#buffer.set(bytes, this.#length);
    this.#length += bytes.byteLength;
  }

  flush(): void {
    if (this.#length > 0) this.#write(this.#buffer.subarray(0, this.#length), this.#start);
    this.#length = 0;
  }

  #write(bytes: Uint8Array, offset: number): void {
    failpoint("layer:data-write");
    writeFully(this.#fd, bytes, offset);
    this.writes++;
  }
}
