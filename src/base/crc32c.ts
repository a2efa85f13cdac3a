/** crc32c (Castagnoli, reflected polynomial 0x82F63B78), as EROFS and ext4 want it: initial 0xFFFFFFFF and no final xor. */

const TABLE = new Uint32Array(256);
for (let index = 0; index < 256; index++) {
  let crc = index;
  for (let bit = 0; bit < 8; bit++) crc = crc & 1 ? (crc >>> 1) ^ 0x82f63b78 : crc >>> 1;
  TABLE[index] = crc >>> 0;
}

/** The raw register after `bytes`; pass a former result to go on. The usual CRC-32C value is its complement. */
export function crc32c(bytes: Uint8Array, crc = 0xffffffff): number {
  for (let index = 0; index < bytes.length; index++) crc = TABLE[(crc ^ bytes[index]!) & 0xff]! ^ (crc >>> 8);
  return crc >>> 0;
}
