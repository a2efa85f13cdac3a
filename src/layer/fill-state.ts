/**
 * Which units are filled, and what follows for the blocks. The unit bitmap is the truth (it is what is persisted, unit-log.ts); the fill map, one bit per
 * 4 KiB block of the layer file, is derived from it and is what FUSE readers test.
 *
 * A block may be read when
 *   - every unit that holds bytes of it is filled (a block at a unit's border needs both), and
 *  *   - for a tar, the units that hold the header before the data are filled too: only then has the header been compared with the index, and a table of contents that
 *     lies about a file is found before one byte of the file is shown.
 * Blocks that no row of the placement covers are metadata or zeros and may be read from the start.
 *
 * Invariants: `markUnit` is called after the pwrite of all bytes of the unit returned; bits are never cleared. Called on one thread; any thread may read.
 */

import { Bitmap } from "../base/bitmap.ts";
import { alignDown, alignUp } from "../base/ranges.ts";
import { BLOCK_SIZE, type Placement } from "../erofs/placement.ts";
import type { UnitTable } from "../formats/format.ts";
import { type UnitPieces, visitPieces } from "./unit-index.ts";
import type { UnitLog } from "./unit-log.ts";

/** Headers of one file, at most: a PAX header with a long name and some xattrs, and the file's own. Longer ones are checked in part before the data, in whole at the seal. */
const HEADER_BYTES_MAX = 4096;

/** What is filled of one file with holes, and what a range still needs. A layer's file: `FillState`; a data file: `DataFill`, where a unit may be wanted in part. */
export interface UnitFill {
  /** One bit per block of the file. */
  readonly fillMap: Bitmap;
  /** Grows with whatever is filled. */
  readonly progress: number;
  /** Nothing is left to be filled in the background. */
  readonly complete: boolean;
  readonly statistics: FillStatistics;
  /** Nothing of it is left to be filled. */
  isFilled(unit: number): boolean;
  /** Nothing of it is left for the background: it is filled, or what is missing came wrong every time. */
  isSettled(unit: number): boolean;
  /** Units that must be filled before all blocks of the file range [start, end) may be read, in order of first need. */
  unitsFor(start: number, end: number): number[];
  /** Pieces of the unit to be filled now; null: all of it, or nothing. */
  wanted(unit: number): Uint32Array | null;
  /** The bytes of these pieces (null: of the whole unit) are on disk and verified. */
  markUnit(unit: number, pieces: Uint32Array | null): void;
  /** These pieces came wrong every time. */
  refuse(pieces: Uint32Array): void;
  /** True where all that the unit holds of the file range may be read, though it was not filled as a whole. */
  isFilledWithin(unit: number, start: number, end: number): boolean;
  /** Notes on disk what `markUnit` was told. */
  persist(log: UnitLog, unit: number, pieces: Uint32Array | null): void;
}

export interface FillStatistics {
  readonly unitsFilled: number;
  readonly unitsTotal: number;
  /** Decoded bytes of what is filled, and of all. */
  readonly bytesFilled: number;
  readonly bytesTotal: number;
}

export class FillState implements UnitFill {
  readonly units: Bitmap;
  /** One bit per block of the layer file. */
  readonly fillMap: Bitmap;
  readonly #table: UnitTable;
  readonly #pieces: UnitPieces;
  readonly #placement: Placement;
  /** Where the headers begin that a row waits for; the row's own address where there are none. */
  readonly #headerStart: Float64Array;
  #filledUnits = 0;
  #filledBytes = 0;

  /** `headers`: the data of each row come right behind a header that the format's decoder checks (a tar). */
  constructor(options: {
    table: UnitTable;
    pieces: UnitPieces;
    placement: Placement;
    imageSize: number;
    headers: boolean;
  }) {
    const { table, placement } = options;
    this.#table = table;
    this.#pieces = options.pieces;
    this.#placement = placement;
    this.units = new Bitmap(table.unitCount);
    const blockCount = Math.ceil(options.imageSize / BLOCK_SIZE);
    this.fillMap = new Bitmap(blockCount);
    this.#headerStart = Float64Array.from(placement.address);
    if (options.headers) {
      let end = 0;
      for (let row = 0; row < placement.rowCount; row++) {
        const address = placement.address[row]!;
        this.#headerStart[row] = Math.max(Math.min(end, address), address - HEADER_BYTES_MAX);
        end = placement.addressEnd[row]!;
      }
    }
    let next = 0;
    for (let index = 0; index < placement.rowCount; index++) {
      const row = placement.byFile[index]!;
      const first = Math.floor(placement.fileOffset[row]! / BLOCK_SIZE);
      this.fillMap.setRange(next, first);
      next = Math.max(next, Math.ceil((placement.fileOffset[row]! + placement.length[row]!) / BLOCK_SIZE));
    }
    this.fillMap.setRange(next, blockCount);
  }

  get progress(): number {
    return this.#filledUnits;
  }

  get statistics(): FillStatistics {
    return {
      unitsFilled: this.#filledUnits,
      unitsTotal: this.#table.unitCount,
      bytesFilled: this.#filledBytes,
      bytesTotal: this.#table.unitDecodedLength.reduce((sum, length) => sum + length, 0),
    };
  }

  isFilled(unit: number): boolean {
    return this.units.has(unit);
  }

  isSettled(unit: number): boolean {
    return this.units.has(unit);
  }

  wanted(): null {
    return null;
  }

  refuse(): void {}

  isFilledWithin(): boolean {
    return false;
  }

  persist(log: UnitLog, unit: number): void {
    log.persist(this.units, unit, unit + 1);
  }

  get complete(): boolean {
    return this.#filledUnits === this.#table.unitCount;
  }

  /** The bytes of `unit` are on disk and verified. Idempotent. */
  markUnit(unit: number): void {
    // the own bit first, then the tests that look at neighbours: of two that finish together the later one sees both
    if (!this.units.set(unit)) return;
    this.#filledUnits++;
    this.#filledBytes += this.#table.unitDecodedLength[unit]!;
    const { start, pieces } = this.#pieces;
    for (let index = start[unit]!; index < start[unit + 1]!; index++) {
      const piece = pieces[index]!;
      const from = this.#table.pieceAddress[piece]!;
      this.#settle(from, from + this.#table.pieceLength[piece]!);
    }
  }

  unitsFor(start: number, end: number): number[] {
    const wanted = new Set<number>();
    const placement = this.#placement;
    for (let low = firstByFile(placement, alignDown(start, BLOCK_SIZE)); low < placement.rowCount; low++) {
      const row = placement.byFile[low]!;
      const offset = placement.fileOffset[row]!;
      if (offset >= alignUp(end, BLOCK_SIZE)) break;
      const from = Math.max(alignDown(start, BLOCK_SIZE), offset);
      const to = Math.min(alignUp(end, BLOCK_SIZE), offset + placement.length[row]!);
      const want = (piece: number) => {
        const unit = this.#table.pieceUnit[piece]!;
        if (!this.units.has(unit)) wanted.add(unit);
      };
      visitPieces(this.#table, this.#headerStart[row]!, placement.address[row]!, want);
      const address = placement.address[row]! + (from - offset);
      visitPieces(this.#table, address, address + (to - from), want);
    }
    return [...wanted];
  }

  /** Sets what bits can be set in the rows that overlap addresses [start, end), or whose headers do. */
  #settle(start: number, end: number): void {
    const placement = this.#placement;
    let row = firstBeyond(placement.addressEnd, placement.rowCount, start);
    for (; row < placement.rowCount && placement.address[row]! < end + HEADER_BYTES_MAX; row++) {
      const rowStart = placement.address[row]!;
      const rowEnd = rowStart + placement.length[row]!;
      const headerStart = this.#headerStart[row]!;
      if (headerStart >= end || !this.#isFilled(headerStart, rowStart)) continue;
      // if a header came just now, parts of the row may have been waiting in other units
      const headerCame = headerStart < rowStart && rowStart > start;
      const from = headerCame ? rowStart : Math.max(start, rowStart);
      const to = headerCame ? rowEnd : Math.min(end, rowEnd);
      visitPieces(this.#table, from, to, (piece, pieceFrom, pieceTo) => {
        if (!this.units.has(this.#table.pieceUnit[piece]!)) return;
        const offset = placement.fileOffset[row]! + (pieceFrom - rowStart);
        this.#settleBlocks(offset, offset + (pieceTo - pieceFrom));
      });
    }
  }

  #isFilled(start: number, end: number): boolean {
    let filled = true;
    visitPieces(this.#table, start, end, (piece) => {
      if (!this.units.has(this.#table.pieceUnit[piece]!)) filled = false;
    });
    return filled;
  }

  /** [start, end) of the file is filled and checked: sets the blocks inside it, and those at its ends if their other bytes are too. */
  #settleBlocks(start: number, end: number): void {
    let first = Math.floor(start / BLOCK_SIZE);
    let last = Math.ceil(end / BLOCK_SIZE);
    if (start % BLOCK_SIZE !== 0) {
      this.#testBlock(first);
      first++;
    }
    if (end % BLOCK_SIZE !== 0 && last > first) {
      last--;
      this.#testBlock(last);
    }
    if (last > first) this.fillMap.setRange(first, last);
  }

  #testBlock(block: number): void {
    if (this.fillMap.has(block)) return;
    if (this.unitsFor(block * BLOCK_SIZE, (block + 1) * BLOCK_SIZE).length === 0) this.fillMap.set(block);
  }
}

function firstByFile(placement: Placement, offset: number): number {
  let low = 0;
  let high = placement.rowCount;
  while (low < high) {
    const middle = (low + high) >>> 1;
    const row = placement.byFile[middle]!;
    if (placement.fileOffset[row]! + placement.length[row]! <= offset) low = middle + 1;
    else high = middle;
  }
  return low;
}

function firstBeyond(ascending: Float64Array, count: number, wanted: number): number {
  let low = 0;
  let high = count;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (ascending[middle]! <= wanted) low = middle + 1;
    else high = middle;
  }
  return low;
}
