/**
 * What is filled of a data file: pieces, not units, since of a batch or a zran context some pieces may be bound by an image and others by none.
 *
 *   piece:  unbound ──> hole ──> filled            unbound: no image binds a digest: neither fetched nor readable, EIO
 *                        └──> refused (memory)     it came wrong every time: readers try again, the background does not
 *
 * Each block belongs to one piece, or to none (zeros, readable from the start): pieces begin on blocks. Pieces are bound while the file is open (`bind`); a unit that was filled
 * has holes again then. Invariants as in fill-state.ts: bits of blocks and pieces are set after the bytes are on disk, and never cleared.
 */

import { Bitmap } from "../base/bitmap.ts";
import { HeadstartError } from "../base/errors.ts";
import { alignDown, alignUp } from "../base/ranges.ts";
import { BLOCK_SIZE } from "../erofs/placement.ts";
import type { BoundDigests, UnitTable } from "../formats/format.ts";
import type { FillStatistics, UnitFill } from "./fill-state.ts";
import { addDigests, type KnownDigests, unknownOf } from "./known-digests.ts";
import type { PieceSet } from "./piece-set.ts";
import { type UnitPieces, visitPieces } from "./unit-index.ts";
import type { UnitLog } from "./unit-log.ts";

export class DataFill implements UnitFill {
  readonly fillMap: Bitmap;
  readonly digests: KnownDigests;
  /** One bit a piece. */
  readonly pieces: Bitmap;
  readonly #what: string;
  readonly #table: UnitTable;
  readonly #grouped: UnitPieces;
  /** Bound pieces of each unit that are not filled. */
  readonly #open: Uint32Array;
  readonly #onFilled: (piece: number) => void;
  readonly #refused = new Set<number>();
  readonly #sets = new Set<PieceSet>();
  #openPieces = 0;
  #filledPieces = 0;
  #filledBytes = 0;
  #boundBytes = 0;

  /** `fillMap`: of the same file when it was open before. `filled`: bytes of the bitmap of pieces. */
  constructor(options: {
    what: string;
    table: UnitTable;
    pieces: UnitPieces;
    digests: KnownDigests;
    size: number;
    filled: Uint8Array | null;
    fillMap: Bitmap | null;
    /** Told of every piece that is there. */
    onFilled?: (piece: number) => void;
  }) {
    const { table, digests } = options;
    this.#what = options.what;
    this.#table = table;
    this.#grouped = options.pieces;
    this.digests = digests;
    this.#onFilled = options.onFilled ?? (() => {});
    this.pieces = new Bitmap(table.pieceCount);
    this.#open = new Uint32Array(table.unitCount);
    this.fillMap = options.fillMap ?? emptyFillMap(table, options.size);
    const filled = new Bitmap(table.pieceCount);
    if (options.filled !== null) filled.bytes.set(options.filled);
    const { known } = digests;
    for (
      let piece = known.nextSet(0, known.length);
      piece < known.length;
      piece = known.nextSet(piece + 1, known.length)
    ) {
      this.#noteBound(piece);
      if (filled.has(piece)) this.#noteFilled(piece);
    }
  }

  get progress(): number {
    return this.#filledPieces;
  }

  get complete(): boolean {
    return this.#openPieces === this.#refused.size;
  }

  /** Every bound piece is there. */
  get whole(): boolean {
    return this.#openPieces === 0;
  }

  get refusedPieces(): number {
    return this.#refused.size;
  }

  /** In pieces. */
  get statistics(): FillStatistics {
    return {
      unitsFilled: this.#filledPieces,
      unitsTotal: this.#filledPieces + this.#openPieces,
      bytesFilled: this.#filledBytes,
      bytesTotal: this.#boundBytes,
    };
  }

  isFilled(unit: number): boolean {
    return this.#open[unit] === 0;
  }

  isSettled(unit: number): boolean {
    return (
      this.#open[unit] === 0 || (this.#refused.size > 0 && this.wanted(unit).every((piece) => this.#refused.has(piece)))
    );
  }

  /** Throws HS_CHUNK_UNBOUND where the range has a piece that no image binds. */
  unitsFor(start: number, end: number): number[] {
    const wanted = new Set<number>();
    visitPieces(this.#table, alignDown(start, BLOCK_SIZE), alignUp(end, BLOCK_SIZE), (piece) => {
      if (this.pieces.has(piece)) return;
      if (!this.digests.known.has(piece))
        throw new HeadstartError("HS_CHUNK_UNBOUND", {
          what: `${this.#what}: the chunk at byte ${this.#table.pieceAddress[piece]}`,
        });
      wanted.add(this.#table.pieceUnit[piece]!);
    });
    return [...wanted];
  }

  wanted(unit: number): Uint32Array {
    const { start, pieces } = this.#grouped;
    return pieces
      .subarray(start[unit]!, start[unit + 1]!)
      .filter((piece) => this.digests.known.has(piece) && !this.pieces.has(piece));
  }

  isFilledWithin(unit: number, start: number, end: number): boolean {
    let filled = true;
    visitPieces(this.#table, start, end, (piece) => {
      if (this.#table.pieceUnit[piece] === unit && !this.pieces.has(piece)) filled = false;
    });
    return filled;
  }

  markUnit(_unit: number, pieces: Uint32Array | null): void {
    for (const piece of pieces ?? []) this.#noteFilled(piece);
  }

  refuse(pieces: Uint32Array): void {
    for (const piece of pieces) if (!this.pieces.has(piece)) this.#refused.add(piece);
  }

  /** Another attempt in the background for what came wrong every time. */
  forgetRefused(): void {
    this.#refused.clear();
  }

  persist(log: UnitLog, _unit: number, pieces: Uint32Array | null): void {
    // pieces of a unit are neighbours, nearly always
    if (pieces !== null && pieces.length > 0) log.persist(this.pieces, pieces[0]!, pieces.at(-1)! + 1);
  }

  /** The caller has made them durable, and knows that they agree with what is known. */
  bind(bound: BoundDigests): void {
    const indexes = unknownOf(this.digests, bound);
    addDigests(this.digests, bound, indexes);
    for (const index of indexes) this.#noteBound(bound.pieces[index]!);
  }

  /** Tells `set` of its pieces, now and as they come. */
  watch(set: PieceSet): void {
    set.start(
      (piece) => this.pieces.has(piece),
      (piece) => this.#table.pieceLength[piece]!,
    );
    if (set.left > 0) this.#sets.add(set);
  }

  /** Nobody will tell the sets any more. */
  unwatch(set: PieceSet): void {
    this.#sets.delete(set);
  }

  #noteBound(piece: number): void {
    this.#open[this.#table.pieceUnit[piece]!]!++;
    this.#openPieces++;
    this.#boundBytes += this.#table.pieceLength[piece]!;
  }

  #noteFilled(piece: number): void {
    const address = this.#table.pieceAddress[piece]!;
    const length = this.#table.pieceLength[piece]!;
    this.fillMap.setRange(address / BLOCK_SIZE, Math.ceil((address + length) / BLOCK_SIZE));
    if (!this.pieces.set(piece)) return;
    this.#refused.delete(piece);
    this.#open[this.#table.pieceUnit[piece]!]!--;
    this.#openPieces--;
    this.#filledPieces++;
    this.#filledBytes += length;
    this.#onFilled(piece);
    for (const set of this.#sets) {
      set.arrived(piece, length);
      if (set.left === 0) this.#sets.delete(set);
    }
  }
}

/** Blocks that no piece covers. */
function emptyFillMap(table: UnitTable, size: number): Bitmap {
  const fillMap = new Bitmap(size / BLOCK_SIZE);
  let next = 0;
  for (let piece = 0; piece < table.pieceCount; piece++) {
    const address = table.pieceAddress[piece]!;
    fillMap.setRange(next, address / BLOCK_SIZE);
    next = Math.ceil((address + table.pieceLength[piece]!) / BLOCK_SIZE);
  }
  fillMap.setRange(next, fillMap.length);
  return fillMap;
}
