/**
 * Which units are filled, and what follows for the blocks. The unit bitmap is the truth (it is what is persisted, unit-log.ts); the fill map, one bit per
 * 4 KiB block of the layer file, is derived from it and is what FUSE readers test.
 *
 * A block may be read when
 *   - every unit that holds bytes of it is filled (a block at a unit's border needs both), and
 *   - for a tar, the unit that holds the last header byte before the data is filled too: only then has the header been compared with the index, and a table of contents that lies
 *     about a file is found before one byte of the file is shown.
 * Blocks that no row of the placement covers are metadata or zeros and may be read from the start.
 *
 * Invariants: `markUnit` is called after the pwrite of all bytes of the unit returned; bits are never cleared. Called on one thread; any thread may read.
 */

import { Bitmap } from "../base/bitmap.ts";
import { alignDown, alignUp } from "../base/ranges.ts";
import { BLOCK_SIZE, type Placement } from "../erofs/placement.ts";
import type { UnitTable } from "../formats/format.ts";
import { type UnitPieces, unitAt, visitPieces } from "./unit-index.ts";

export class FillState {
  readonly units: Bitmap;
  /** One bit per block of the layer file. */
  readonly fillMap: Bitmap;
  readonly #table: UnitTable;
  readonly #pieces: UnitPieces;
  readonly #placement: Placement;
  /** Unit whose header check a row waits for, or -1. */
  readonly #headerUnit: Int32Array;
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
    this.#headerUnit = new Int32Array(placement.rowCount).fill(-1);
    if (options.headers) {
      for (let row = 0; row < placement.rowCount; row++) {
        if (placement.address[row]! > 0) this.#headerUnit[row] = unitAt(table, placement.address[row]! - 1);
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

  get filledUnits(): number {
    return this.#filledUnits;
  }

  /** Decoded bytes of the filled units. */
  get filledBytes(): number {
    return this.#filledBytes;
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

  /** Units that must be filled before all blocks of the file range [start, end) may be read, in order of first need. */
  unitsFor(start: number, end: number): number[] {
    const wanted = new Set<number>();
    const placement = this.#placement;
    for (let low = firstByFile(placement, alignDown(start, BLOCK_SIZE)); low < placement.rowCount; low++) {
      const row = placement.byFile[low]!;
      const offset = placement.fileOffset[row]!;
      if (offset >= alignUp(end, BLOCK_SIZE)) break;
      const from = Math.max(alignDown(start, BLOCK_SIZE), offset);
      const to = Math.min(alignUp(end, BLOCK_SIZE), offset + placement.length[row]!);
      const header = this.#headerUnit[row]!;
      if (header >= 0 && !this.units.has(header)) wanted.add(header);
      const address = placement.address[row]! + (from - offset);
      visitPieces(this.#table, address, address + (to - from), (piece) => {
        const unit = this.#table.pieceUnit[piece]!;
        if (!this.units.has(unit)) wanted.add(unit);
      });
    }
    return [...wanted];
  }

  /** Sets what bits can be set in the rows that overlap, or begin right behind, addresses [start, end). */
  #settle(start: number, end: number): void {
    const placement = this.#placement;
    let row = firstBeyond(placement.addressEnd, placement.rowCount, start);
    // `<= end`: the header of a row that begins exactly at `end` was in this piece
    for (; row < placement.rowCount && placement.address[row]! <= end; row++) {
      const rowStart = placement.address[row]!;
      const rowEnd = rowStart + placement.length[row]!;
      const header = this.#headerUnit[row]!;
      if (header >= 0 && !this.units.has(header)) continue;
      // if the header came just now, parts of the row may have been waiting in other units
      const headerCame = header >= 0 && rowStart > start;
      const from = headerCame ? rowStart : Math.max(start, rowStart);
      const to = headerCame ? rowEnd : Math.min(end, rowEnd);
      visitPieces(this.#table, from, to, (piece, pieceFrom, pieceTo) => {
        if (!this.units.has(this.#table.pieceUnit[piece]!)) return;
        const offset = placement.fileOffset[row]! + (pieceFrom - rowStart);
        this.#settleBlocks(offset, offset + (pieceTo - pieceFrom));
      });
    }
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
