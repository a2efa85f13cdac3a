/** Raw LZ4 blocks, as Nydus stores them: no frame, the length is known from elsewhere. */

import { createRequire } from "node:module";
import { HeadstartError } from "../../base/errors.ts";

interface Lz4 {
  uncompressSync(block: Uint8Array): Uint8Array;
}

let library: Lz4 | null = null;

/** Exactly `size` bytes, which the caller has bounded. Throws HS_UNIT_DECODE. */
export function lz4Decompress(block: Uint8Array, size: number, what: string): Uint8Array {
  // a native library: only images that need it pay for loading it
  library ??= createRequire(import.meta.url)("lz4-napi") as Lz4;
  // it wants the length in front, and allocates that much
  const sized = Buffer.allocUnsafe(4 + block.byteLength);
  sized.writeUInt32LE(size, 0);
  sized.set(block, 4);
  let plain: Uint8Array;
  try {
    plain = library.uncompressSync(sized);
  } catch (cause) {
    throw new HeadstartError("HS_UNIT_DECODE", { what: `${what}: lz4 data that do not decode`, cause });
  }
  if (plain.byteLength !== size)
    throw new HeadstartError("HS_UNIT_DECODE", { what: `${what}: ${plain.byteLength} bytes instead of ${size}` });
  return plain;
}
