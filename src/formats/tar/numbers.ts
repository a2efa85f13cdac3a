/**
 * Numbers in tar headers and PAX records (specs/layer.md 2.2, 2.3; Go archive/tar, strconv.go). A result is null where Go's reader refuses; a `bigint`
 * stands only where a double would lose bits.
 */

export type Int64 = number | bigint;

const INT64_MAX = 2n ** 63n - 1n;
const INT64_MIN = -(2n ** 63n);

/** A numeric header field: octal, or base 256 when the first byte has its high bit set. */
export function parseNumeric(block: Uint8Array, offset: number, length: number): Int64 | null {
  return block[offset]! >= 0x80 ? parseBase256(block, offset, length) : parseOctal(block, offset, length);
}

/** Blanks and NULs at both ends are stripped, it is cut at the first NUL inside, empty is 0. */
export function parseOctal(block: Uint8Array, offset: number, length: number): number | null {
  let start = offset;
  let end = offset + length;
  while (start < end && (block[start] === 0 || block[start] === 0x20)) start++;
  while (end > start && (block[end - 1] === 0 || block[end - 1] === 0x20)) end--;
  let value = 0;
  for (let index = start; index < end; index++) {
    const byte = block[index]!;
    if (byte === 0) break;
    if (byte < 0x30 || byte > 0x37) return null;
    value = value * 8 + (byte - 0x30);
  }
  return value;
}

/** Two's complement of 8 * length - 1 bits, big endian. Beyond 63 bits: null. */
function parseBase256(block: Uint8Array, offset: number, length: number): Int64 | null {
  const negative = (block[offset]! & 0x40) !== 0;
  const invert = negative ? 0xff : 0;
  let value = 0n;
  for (let index = 0; index < length; index++) {
    let byte = block[offset + index]! ^ invert;
    if (index === 0) byte &= 0x7f;
    if (value >> 56n > 0n) return null;
    value = (value << 8n) | BigInt(byte);
  }
  if (value >> 63n > 0n) return null;
  return shrink(negative ? -value - 1n : value);
}

/** A decimal of 64 bits, sign allowed (strconv.ParseInt). `text` has one char a byte. */
export function parseInt64(text: string): Int64 | null {
  const match = /^([+-]?)0*([0-9]*)$/.exec(text);
  // 19 digits are the most; longer ones are not even looked at, BigInt takes quadratic time
  if (match === null || text === match[1] || match[2]!.length > 19) return null;
  if (match[2]!.length <= 15) return match[1] === "-" ? 0 - Number(match[2]) : Number(match[2]);
  const value = BigInt(match[1] === "-" ? `-${match[2]}` : match[2]!);
  return value > INT64_MAX || value < INT64_MIN ? null : shrink(value);
}

export interface Instant {
  readonly seconds: number;
  /** 0..999,999,999. */
  readonly nanoseconds: number;
}

/** `[+-]digits[.digits]`; the first nine digits of the fraction count. Seconds beyond 2^53 lose bits: no rule depends on them. */
export function parsePaxTime(text: string): Instant | null {
  const point = text.indexOf(".");
  const whole = point < 0 ? text : text.slice(0, point);
  const fraction = point < 0 ? "" : text.slice(point + 1);
  const parsed = parseInt64(whole);
  if (parsed === null || !/^[0-9]*$/.test(fraction)) return null;
  const seconds = Number(parsed);
  const nanoseconds = Number(fraction.slice(0, 9).padEnd(9, "0"));
  if (!whole.startsWith("-") || nanoseconds === 0) return { seconds, nanoseconds };
  return { seconds: seconds - 1, nanoseconds: 1_000_000_000 - nanoseconds };
}

/** Low 32 bits, unsigned: what a 64-bit owner number means to the kernel. */
export function low32(value: Int64): number {
  return typeof value === "bigint" ? Number(BigInt.asUintN(32, value)) : value >>> 0;
}

/** The number itself where a double can hold it, else its low 32 bits: for fields of which only low bits are ever used. */
export function exactOrLow32(value: Int64): number {
  return typeof value === "bigint" ? Number(BigInt.asUintN(32, value)) : value;
}

function shrink(value: bigint): Int64 {
  const number = Number(value);
  return Number.isSafeInteger(number) ? number : value;
}
