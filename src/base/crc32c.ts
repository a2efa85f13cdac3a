/** crc32c (Castagnoli, reflected polynomial 0x82F63B78), as EROFS and ext4 want it: initial 0xFFFFFFFF and no final xor. */

/** Tables for eight bytes a step: TABLES[k * 256 + b] is what byte b does k bytes further on. Three times the speed of one byte a step. */
const STEP = 8;
const TABLES = new Uint32Array(STEP * 256);
for (let index = 0; index < 256; index++) {
  let crc = index;
  for (let bit = 0; bit < 8; bit++) crc = crc & 1 ? (crc >>> 1) ^ 0x82f63b78 : crc >>> 1;
  TABLES[index] = crc >>> 0;
}
for (let index = 256; index < TABLES.length; index++) {
  const before = TABLES[index - 256]!;
  TABLES[index] = (before >>> 8) ^ TABLES[before & 0xff]!;
}

/** The raw register after `bytes`; pass a former result to go on. The usual CRC-32C value is its complement. */
export function crc32c(bytes: Uint8Array, crc = 0xffffffff): number {
  let register = crc | 0;
  let at = 0;
  for (const end = bytes.length - (STEP - 1); at < end; at += STEP) {
    register ^= bytes[at]! | (bytes[at + 1]! << 8) | (bytes[at + 2]! << 16) | (bytes[at + 3]! << 24);
    register =
      TABLES[1792 + (register & 0xff)]! ^
      TABLES[1536 + ((register >>> 8) & 0xff)]! ^
      TABLES[1280 + ((register >>> 16) & 0xff)]! ^
      TABLES[1024 + (register >>> 24)]! ^
      TABLES[768 + bytes[at + 4]!]! ^
      TABLES[512 + bytes[at + 5]!]! ^
      TABLES[256 + bytes[at + 6]!]! ^
      TABLES[bytes[at + 7]!]!;
  }
  for (; at < bytes.length; at++) register = TABLES[(register ^ bytes[at]!) & 0xff]! ^ (register >>> 8);
  return register >>> 0;
}

/** As crc32c over the four little-endian bytes of `value`. */
export function crc32cWord(value: number, crc: number): number {
  const register = crc ^ value;
  return (
    (TABLES[768 + (register & 0xff)]! ^
      TABLES[512 + ((register >>> 8) & 0xff)]! ^
      TABLES[256 + ((register >>> 16) & 0xff)]! ^
      TABLES[register >>> 24]!) >>>
    0
  );
}
