/**
 * The file `placement` beside a lazy layer. The metadata that is mounted fixed it, so a newer program that would place files otherwise must not compute it
 * again while that mount lives.
 */

import { HeadstartError } from "../base/errors.ts";
import { makePlacement, type Placement } from "../erofs/placement.ts";
import { readSections, type SectionFormat, writeSections } from "./section-file.ts";

const FORMAT: SectionFormat = { magic: "HSPLACE\0", version: 1, sectionCount: 4 };

export interface StoredPlacement {
  readonly placement: Placement;
  /** Bytes of the layer file. */
  readonly imageSize: number;
}

const bytesOf = (array: Float64Array) => new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
const numbersOf = (bytes: Uint8Array) => new Float64Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 8);

export async function writePlacement(path: string, stored: StoredPlacement): Promise<void> {
  const { placement, imageSize } = stored;
  await writeSections(path, FORMAT, [
    bytesOf(Float64Array.of(imageSize)),
    bytesOf(placement.address),
    bytesOf(placement.length),
    bytesOf(placement.fileOffset),
  ]);
}

/** Throws as readSections, and HS_MALFORMED when rows lie outside of the image. */
export async function readPlacement(path: string): Promise<StoredPlacement> {
  const [head, address, length, fileOffset] = (await readSections(path, FORMAT)) as [
    Uint8Array,
    Uint8Array,
    Uint8Array,
    Uint8Array,
  ];
  const malformed = (what: string) => new HeadstartError("HS_MALFORMED", { what: `${path}: ${what}` });
  if (head.byteLength !== 8 || address.byteLength !== length.byteLength || address.byteLength !== fileOffset.byteLength)
    throw malformed("its arrays differ in length");
  const imageSize = numbersOf(head)[0]!;
  const placement = makePlacement({
    address: numbersOf(address),
    length: numbersOf(length),
    fileOffset: numbersOf(fileOffset),
  });
  let end = 0;
  for (let index = 0; index < placement.rowCount; index++) {
    const row = placement.byFile[index]!;
    const offset = placement.fileOffset[row]!;
    if (!(offset >= end && placement.length[row]! > 0 && placement.address[row]! >= 0)) throw malformed(`row ${row}`);
    end = offset + placement.length[row]!;
  }
  if (!(end <= imageSize && Number.isSafeInteger(imageSize))) throw malformed("rows lie outside of the layer file");
  return { placement, imageSize };
}
