/** Sparse files in PAX archives, GNU forms 0.0, 0.1 and 1.0 (specs/layer.md 2.6; Go archive/tar, readGNUSparsePAXHeaders). */

import { parseInt64 } from "./numbers.ts";
import { type PaxRecords, paxText } from "./pax.ts";

export interface SparsePiece {
  /** Byte offset in the file. */
  readonly offset: number;
  readonly length: number;
}

export type SparseForm =
  /** No sparse file, or a version that nobody knows: a plain file. */
  | { readonly form: "none" }
  /** The map stands in the records. */
  | { readonly form: "records" }
  /** Version 1.0: the map stands in the first blocks of the data. */
  | { readonly form: "blocks" };

export function sparseForm(pax: PaxRecords): SparseForm {
  const major = text(pax, "GNU.sparse.major");
  const minor = text(pax, "GNU.sparse.minor");
  if (major === "0" && (minor === "0" || minor === "1")) return { form: "records" };
  if (major === "1" && minor === "0") return { form: "blocks" };
  if (major !== "" || minor !== "") return { form: "none" };
  return text(pax, "GNU.sparse.map") === "" ? { form: "none" } : { form: "records" };
}

/** Forms 0.0 and 0.1. Null: the map is malformed. */
export function sparseMapOfRecords(pax: PaxRecords): SparsePiece[] | null {
  const count = parseInt64(text(pax, "GNU.sparse.numblocks"));
  const map = text(pax, "GNU.sparse.map");
  const numbers = map === "" ? [] : map.split(",");
  if (typeof count !== "number" || count < 0 || numbers.length !== 2 * count) return null;
  const pieces: SparsePiece[] = [];
  for (let index = 0; index < numbers.length; index += 2) {
    const piece = makePiece(numbers[index]!, numbers[index + 1]!);
    if (piece === null) return null;
    pieces.push(piece);
  }
  return pieces;
}

/**
 * Form 1.0, fed block by block: a decimal count, then offset and length of each piece, one number a line, padded to a block. `done` as soon as enough
 * lines are there.
 */
export class SparseMapReader {
  #text = "";
  #lines = 0;
  #count: number | null = null;

  /** "more", "bad", or the pieces. */
  push(block: Uint8Array): "more" | "bad" | SparsePiece[] {
    this.#text += paxText(block);
    for (const byte of block) if (byte === 0x0a) this.#lines++;
    if (this.#lines === 0) return "more";
    if (this.#count === null) {
      const count = parseInt64(this.#text.slice(0, this.#text.indexOf("\n")));
      if (typeof count !== "number" || count < 0) return "bad";
      this.#count = count;
    }
    if (this.#lines < 1 + 2 * this.#count) return "more";
    const lines = this.#text.split("\n", 1 + 2 * this.#count);
    const pieces: SparsePiece[] = [];
    for (let index = 1; index < lines.length; index += 2) {
      const piece = makePiece(lines[index]!, lines[index + 1]!);
      if (piece === null) return "bad";
      pieces.push(piece);
    }
    return pieces;
  }
}

/** Pieces ascend, do not overlap and lie inside the size. */
export function soundPieces(pieces: readonly SparsePiece[], size: number): boolean {
  let end = 0;
  for (const piece of pieces) {
    if (piece.offset < end || piece.length < 0 || piece.offset + piece.length > size) return false;
    end = piece.offset + piece.length;
  }
  return true;
}

function makePiece(offset: string, length: string): SparsePiece | null {
  const piece = { offset: parseInt64(offset), length: parseInt64(length) };
  // beyond 2^53 it lies outside of any size that we take
  if (typeof piece.offset !== "number" || typeof piece.length !== "number") return null;
  return { offset: piece.offset, length: piece.length };
}

function text(pax: PaxRecords, key: string): string {
  const value = pax.get(key);
  return value === undefined ? "" : paxText(value);
}
