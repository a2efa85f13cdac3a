/** CRC-32C of chunks, which the peer's chunk records carry. The library's is twice as fast as base/crc32c.ts, and is loaded only here. */

/** The Castagnoli polynomial, reflected. */
const POLYNOMIAL = 0x82f6_3b78;

/** One sum at a time. */
export interface ChunkCrc {
  begin(): void;
  update(bytes: Uint8Array): void;
  /** The usual value: complemented. */
  end(): number;
}

export async function chunkCrc(): Promise<ChunkCrc> {
  const { createCRC32 } = await import("hash-wasm");
  const hasher = await createCRC32(POLYNOMIAL);
  return {
    begin: () => void hasher.init(),
    update: (bytes) => void hasher.update(bytes),
    end() {
      const [a, b, c, d] = hasher.digest("binary");
      return ((a! << 24) | (b! << 16) | (c! << 8) | d!) >>> 0;
    },
  };
}

export function crcOf(crc: ChunkCrc, bytes: Uint8Array): number {
  crc.begin();
  crc.update(bytes);
  return crc.end();
}
