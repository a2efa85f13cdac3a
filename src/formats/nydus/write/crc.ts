/** CRC-32C of chunks, which the peer's chunk records carry. The library's is twice as fast as base/crc32c.ts, and is loaded only here. */

/** The Castagnoli polynomial, reflected. */
const POLYNOMIAL = 0x82f6_3b78;

/** The usual value: complemented. */
export async function chunkCrc(): Promise<(bytes: Uint8Array) => number> {
  const { createCRC32 } = await import("hash-wasm");
  const hasher = await createCRC32(POLYNOMIAL);
  return (bytes) => {
    hasher.init();
    hasher.update(bytes);
    const [a, b, c, d] = hasher.digest("binary");
    return ((a! << 24) | (b! << 16) | (c! << 8) | d!) >>> 0;
  };
}
