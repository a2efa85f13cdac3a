/**
 * One header block: its form, checksum and fields (specs/layer.md 2.1, 2.2; Go archive/tar, readHeader and getFormat). Every numeric field must be sound,
 * used or not.
 */

import { type Int64, parseNumeric, parseOctal } from "./numbers.ts";

export const TAR_BLOCK = 512;

/** Offsets and lengths of the fields (POSIX ustar; star.h; GNU tar.h). */
const V7 = { name: [0, 100], mode: [100, 8], uid: [108, 8], gid: [116, 8], size: [124, 12], mtime: [136, 12] } as const;
const CHECKSUM = [148, 8] as const;
const TYPE = 156;
const LINKNAME = [157, 100] as const;
const MAGIC = 257;
const USTAR = {
  uname: [265, 32],
  gname: [297, 32],
  devMajor: [329, 8],
  devMinor: [337, 8],
  prefix: [345, 155],
} as const;
const STAR = { prefix: [345, 131], atime: [476, 12], ctime: [488, 12] } as const;
const STAR_TRAILER = 508;
const GNU = { atime: [345, 12], ctime: [357, 12] } as const;
const GNU_IS_EXTENDED = 482;

/** What a header says; PAX records and long names are put over it. */
export interface TarHeader {
  /** The byte as it is: NUL stays NUL. */
  type: number;
  name: Uint8Array;
  linkname: Uint8Array;
  mode: Int64;
  uid: Int64;
  gid: Int64;
  size: Int64;
  mtimeSeconds: number;
  mtimeNanoseconds: number;
  uname: Uint8Array;
  gname: Uint8Array;
  devMajor: Int64;
  devMinor: Int64;
  /** GNU: more sparse blocks follow this one. */
  extendedSparse: boolean;
}

/** "zero" for a block of zeros, another string for the reason why it is no header. Strings are copies. */
export function readHeader(block: Uint8Array): TarHeader | "zero" | string {
  if (block[0] === 0 && isZero(block)) return "zero";
  if (!checksumHolds(block)) return "a header with a wrong checksum";
  const form = headerForm(block);
  const mode = numeric(block, V7.mode);
  const uid = numeric(block, V7.uid);
  const gid = numeric(block, V7.gid);
  const size = numeric(block, V7.size);
  const mtime = numeric(block, V7.mtime);
  if (mode === null || uid === null || gid === null || size === null || mtime === null) return BAD_NUMBER;
  const header: TarHeader = {
    type: block[TYPE]!,
    name: text(block, V7.name),
    linkname: text(block, LINKNAME),
    mode,
    uid,
    gid,
    size,
    mtimeSeconds: Number(mtime),
    mtimeNanoseconds: 0,
    uname: EMPTY,
    gname: EMPTY,
    devMajor: 0,
    devMinor: 0,
    extendedSparse: false,
  };
  if (form === "v7") return header;
  const devMajor = numeric(block, USTAR.devMajor);
  const devMinor = numeric(block, USTAR.devMinor);
  if (devMajor === null || devMinor === null) return BAD_NUMBER;
  header.devMajor = devMajor;
  header.devMinor = devMinor;
  header.uname = text(block, USTAR.uname);
  header.gname = text(block, USTAR.gname);
  let prefix = EMPTY;
  if (form === "ustar") prefix = text(block, USTAR.prefix);
  if (form === "star") {
    if (numeric(block, STAR.atime) === null || numeric(block, STAR.ctime) === null) return BAD_NUMBER;
    prefix = text(block, STAR.prefix);
  }
  if (form === "gnu") {
    header.extendedSparse = block[GNU_IS_EXTENDED] !== 0;
    // old Go writers put a prefix where GNU has times
    const times = [GNU.atime, GNU.ctime].every((field) => block[field[0]] === 0 || numeric(block, field) !== null);
    if (!times) {
      const candidate = text(block, USTAR.prefix);
      if (candidate.every((byte) => byte < 0x80)) prefix = candidate;
    }
  }
  if (prefix.byteLength > 0) header.name = joined(prefix, header.name);
  return header;
}

const BAD_NUMBER = "a header with a malformed number";
const EMPTY: Uint8Array = new Uint8Array(0);

function numeric(block: Uint8Array, field: readonly [number, number]): Int64 | null {
  return parseNumeric(block, field[0], field[1]);
}

/** A copy of a string field: to the first NUL, or all of it. */
function text(block: Uint8Array, field: readonly [number, number]): Uint8Array {
  const [offset, length] = field;
  let end = offset;
  while (end < offset + length && block[end] !== 0) end++;
  if (end === offset) return EMPTY;
  // not slice(): on a Buffer that is a view, and the block is used again
  const copy = new Uint8Array(end - offset);
  copy.set(block.subarray(offset, end));
  return copy;
}

function joined(prefix: Uint8Array, name: Uint8Array): Uint8Array {
  const whole = new Uint8Array(prefix.byteLength + 1 + name.byteLength);
  whole.set(prefix);
  whole[prefix.byteLength] = 0x2f;
  whole.set(name, prefix.byteLength + 1);
  return whole;
}

function headerForm(block: Uint8Array): "ustar" | "star" | "gnu" | "v7" {
  // "ustar" at 257
  if (
    block[MAGIC] !== 0x75 ||
    block[258] !== 0x73 ||
    block[259] !== 0x74 ||
    block[260] !== 0x61 ||
    block[261] !== 0x72
  ) {
    return "v7";
  }
  if (block[262] === 0) {
    const star = block[STAR_TRAILER] === 0x74 && block[509] === 0x61 && block[510] === 0x72 && block[511] === 0;
    return star ? "star" : "ustar";
  }
  return block[262] === 0x20 && block[263] === 0x20 && block[264] === 0 ? "gnu" : "v7";
}

/** The sum over the block with blanks for the checksum, bytes taken as unsigned or, by old writers, as signed. */
function checksumHolds(block: Uint8Array): boolean {
  const wanted = parseOctal(block, CHECKSUM[0], CHECKSUM[1]);
  if (wanted === null) return false;
  let sum = 8 * 0x20;
  for (let index = 0; index < 148; index++) sum += block[index]!;
  for (let index = 156; index < TAR_BLOCK; index++) sum += block[index]!;
  if (sum === wanted) return true;
  let negative = 0;
  for (let index = 0; index < TAR_BLOCK; index++) {
    if (block[index]! >= 0x80 && (index < 148 || index >= 156)) negative++;
  }
  return sum - 256 * negative === wanted;
}

function isZero(block: Uint8Array): boolean {
  for (let index = 0; index < TAR_BLOCK; index++) if (block[index] !== 0) return false;
  return true;
}
