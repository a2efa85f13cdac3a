/**
 * Decodes the units of a Nydus image (specs/nydus.md 3.1, 3.2), in a worker thread or where an image is looked into: one chunk or batch (stored as it is, zstd, LZ4,
 * each perhaps encrypted), or one zran context of an unmodified layer. Digests are the caller's: each piece has one.
 */

import { HeadstartError, isHeadstartError } from "../../base/errors.ts";
import type { DecodeTable, UnitDecoder, UnitTable } from "../format.ts";
import { ResumeInflate } from "../gzip/resume.ts";
import type { NydusBlob } from "./blob-table.ts";
import { decompress, decryptWith, PADDED_SIZE } from "./chunk-info.ts";
import { Compressor } from "./ondisk.ts";

export interface NydusDecodeTable extends DecodeTable {
  readonly codec: "nydus-chunks";
  /** Compressor by unit; gzip is a zran context. */
  readonly unitCodec: Uint8Array;
  /** Of zran contexts: bits of the first stored byte, and the window before. */
  readonly unitBits: Uint8Array;
  readonly dictionaryStart: Float64Array;
  readonly dictionarySize: Uint32Array;
  readonly dictionaries: Uint8Array;
  /** By blob. */
  readonly ciphers: readonly NydusBlob["cipher"][];
}

export function nydusDecoder(table: NydusDecodeTable, units: UnitTable): UnitDecoder {
  return new NydusDecoder(table, units);
}

class NydusDecoder implements UnitDecoder {
  readonly #table: NydusDecodeTable;
  readonly #units: UnitTable;
  #inflate: ResumeInflate | null = null;

  constructor(table: NydusDecodeTable, units: UnitTable) {
    this.#table = table;
    this.#units = units;
  }

  decode(unit: number, stored: Uint8Array): Uint8Array {
    const size = this.#units.unitDecodedLength[unit]!;
    const codec = this.#table.unitCodec[unit] as Compressor;
    const what = `unit ${unit}`;
    if (codec === Compressor.gzip) return this.#decodeContext(unit, stored, size, what);
    const cipher = this.#table.ciphers[this.#units.unitBlob[unit]!] ?? null;
    if (cipher === null) return decompress(codec, stored, size, what);
    return decodeEncrypted(codec, decryptWith(cipher, stored), size, what);
  }

  /** Chunks have digests, and nothing beside. */
  check(): void {}

  #decodeContext(unit: number, stored: Uint8Array, size: number, what: string): Uint8Array {
    const { unitBits, dictionaryStart, dictionarySize, dictionaries } = this.#table;
    if (this.#inflate === null) {
      this.#inflate = new ResumeInflate();
      abandoned.register(this, this.#inflate);
    }
    const start = dictionaryStart[unit]!;
    const length = dictionarySize[unit]!;
    const output = new Uint8Array(size);
    const window = length === 0 ? null : dictionaries.subarray(start, start + length);
    // a context ends where its last chunk does, in the middle of a block: what follows is not looked at
    this.#inflate.decode(stored, { bits: unitBits[unit]!, window }, output, what);
    return output;
  }
}

/** zlib's state is native memory: it goes with the decoder that a worker forgot. */
const abandoned = new FinalizationRegistry<ResumeInflate>((inflate) => inflate[Symbol.dispose]());

/**
 * Fewer than 16 bytes were padded before they were encrypted: to 16 with bytes that say how many, then 78 90. A genuine 18-byte chunk may look like that, so the
 * padding is only taken off where the length of what is left is right.
 */
function decodeEncrypted(codec: Compressor, plain: Uint8Array, size: number, what: string): Uint8Array {
  const trimmed = withoutPadding(plain);
  if (trimmed === null) return decompress(codec, plain, size, what);
  try {
    return decompress(codec, trimmed, size, what);
  } catch (error) {
    if (!isHeadstartError(error, "HS_UNIT_DECODE")) throw error;
    return decompress(codec, plain, size, what);
  }
}

function withoutPadding(plain: Uint8Array): Uint8Array | null {
  if (plain.byteLength !== PADDED_SIZE || plain[16] !== 0x78 || plain[17] !== 0x90) return null;
  const count = plain[15]!;
  if (!(count > 0 && count <= 16)) return null;
  for (let index = 16 - count; index < 16; index++) if (plain[index] !== count) return null;
  return plain.subarray(0, 16 - count);
}

/** For those who check that a table is one of ours. Throws HS_FORMAT_UNSUPPORTED. */
export function asNydusTable(table: DecodeTable): NydusDecodeTable {
  if (table.codec !== "nydus-chunks")
    throw new HeadstartError("HS_FORMAT_UNSUPPORTED", { what: `no Nydus table: ${table.codec}` });
  return table as NydusDecodeTable;
}
