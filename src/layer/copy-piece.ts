/** Copies one piece of a data file from another one, in whole blocks, so that a file system that can shares them. For a decoder thread. */

import { HeadstartError } from "../base/errors.ts";
import { readFully, writeFully } from "../base/files.ts";
import { alignUp } from "../base/ranges.ts";
import { BLOCK_SIZE } from "../erofs/placement.ts";
import { copyRange } from "../linux/copy-range.ts";

/**
 * Returns the piece as it now stands in the target, for its digest to be checked: until then nothing says that these are the right bytes. Both offsets are on blocks; behind
 * the piece the target has zeros up to the next one. Throws HS_UNIT_DIGEST when the source is too short.
 */
export function copyPiece(piece: {
  from: number;
  fromOffset: number;
  to: number;
  toOffset: number;
  length: number;
}): Uint8Array {
  const { from, fromOffset, to, toOffset, length } = piece;
  const whole = alignUp(length, BLOCK_SIZE);
  const bytes = new Uint8Array(whole);
  const read = (fd: number, offset: number) => {
    if (readFully(fd, bytes, offset) < whole)
      throw new HeadstartError("HS_UNIT_DIGEST", { what: `${length} bytes at byte ${offset} are not all there` });
  };
  if (copyRange(from, fromOffset, to, toOffset, whole)) read(to, toOffset);
  else {
    read(from, fromOffset);
    writeFully(to, bytes, toOffset);
  }
  // what stands behind the piece is bound by nothing
  if (bytes.subarray(length).some((byte) => byte !== 0))
    writeFully(to, new Uint8Array(whole - length), toOffset + length);
  return bytes.subarray(0, length);
}
