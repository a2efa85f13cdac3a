/**
 * The file `digests` beside a data file: which of its pieces some image on this node binds, and by which digest. Only these are ever fetched, and each is verified by what is here.
 *
 * Sections: one byte (0 sha256, 1 blake3), one bit a piece (known), 32 bytes a piece (zeros where it is not known).
 *
 * Invariant: a digest that is known never changes. An image that says otherwise of one piece gets a data file of its own, so that none can make another's bytes unreadable.
 * Synced before an image that needs them has a row.
 */

import { Bitmap } from "../base/bitmap.ts";
import { HeadstartError } from "../base/errors.ts";
import type { BoundDigests } from "../formats/format.ts";
import { readSections, type SectionFormat, writeSections } from "./section-file.ts";

const FORMAT: SectionFormat = { magic: "HSDIGEST", version: 1, sectionCount: 3 };
const ALGORITHMS = ["sha256", "blake3"] as const;
const DIGEST_SIZE = 32;

export interface KnownDigests {
  readonly algorithm: BoundDigests["algorithm"];
  /** One bit a piece. */
  readonly known: Bitmap;
  /** 32 bytes a piece, over a SharedArrayBuffer. */
  readonly digests: Uint8Array;
}

export function noDigests(pieceCount: number, algorithm: BoundDigests["algorithm"]): KnownDigests {
  const digests = new Uint8Array(new SharedArrayBuffer(pieceCount * DIGEST_SIZE));
  return { algorithm, known: new Bitmap(pieceCount), digests };
}

/** True when `bound` says of no known piece anything else. */
export function agrees(known: KnownDigests, bound: BoundDigests): boolean {
  if (known.algorithm !== bound.algorithm) return false;
  return bound.pieces.every((piece, index) => {
    if (!known.known.has(piece)) return true;
    const at = piece * DIGEST_SIZE;
    for (let byte = 0; byte < DIGEST_SIZE; byte++)
      if (known.digests[at + byte] !== bound.digests[index * DIGEST_SIZE + byte]) return false;
    return true;
  });
}

/** Indexes into `bound` of the pieces that are not known yet. */
export function unknownOf(known: KnownDigests, bound: BoundDigests): number[] {
  const found: number[] = [];
  bound.pieces.forEach((piece, index) => {
    if (!known.known.has(piece)) found.push(index);
  });
  return found;
}

/** What is known once `bound` is added; a copy. */
export function withDigests(known: KnownDigests, bound: BoundDigests): KnownDigests {
  const copy = noDigests(known.known.length, known.algorithm);
  copy.known.bytes.set(known.known.bytes);
  copy.digests.set(known.digests);
  addDigests(copy, bound, unknownOf(known, bound));
  return copy;
}

/** Digests first, then the bits that say so. */
export function addDigests(known: KnownDigests, bound: BoundDigests, indexes: readonly number[]): void {
  for (const index of indexes) {
    const digest = bound.digests.subarray(index * DIGEST_SIZE, (index + 1) * DIGEST_SIZE);
    known.digests.set(digest, bound.pieces[index]! * DIGEST_SIZE);
  }
  for (const index of indexes) known.known.set(bound.pieces[index]!);
}

/** Durably. */
export async function writeKnownDigests(path: string, known: KnownDigests): Promise<void> {
  const sections = [Uint8Array.of(ALGORITHMS.indexOf(known.algorithm)), known.known.bytes, known.digests];
  await writeSections(path, FORMAT, sections, { durable: true });
}

/** Throws as readSections, and HS_MALFORMED when it is of another number of pieces. */
export async function readKnownDigests(path: string, pieceCount: number): Promise<KnownDigests> {
  const [algorithm, bits, digests] = (await readSections(path, FORMAT)) as [Uint8Array, Uint8Array, Uint8Array];
  const known = new Bitmap(pieceCount);
  const name = ALGORITHMS[algorithm[0] ?? -1];
  if (
    name === undefined ||
    bits.byteLength !== known.bytes.byteLength ||
    digests.byteLength !== pieceCount * DIGEST_SIZE
  )
    throw new HeadstartError("HS_MALFORMED", { what: `${path}: not of ${pieceCount} pieces` });
  known.bytes.set(bits);
  return { algorithm: name, known, digests };
}
