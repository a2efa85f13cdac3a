/** The formats there are, one line each. `decoderFor` is what a decoder thread calls. */

import { HeadstartError } from "../base/errors.ts";
import type { DecodeTable, FormatAdapter, UnitDecoder, UnitTable } from "./format.ts";
import { asNydusTable, nydusDecoder } from "./nydus/decode.ts";
import { sociFormat } from "./soci/adapter.ts";
import { type SociDecodeTable, sociDecoder } from "./soci/decode.ts";

/** In the order in which an image is asked for them. */
export const FORMATS: readonly FormatAdapter[] = [sociFormat];

type Decoder = (table: DecodeTable, units: UnitTable) => UnitDecoder;

/** Decoders by the `codec` of a DecodeTable. */
const DECODERS: { readonly [codec: string]: Decoder } = {
  "nydus-chunks": (table, units) => nydusDecoder(asNydusTable(table), units),
  "soci-gzip": (table, units) => sociDecoder(table as SociDecodeTable, units),
  "soci-tar": (table, units) => sociDecoder(table as SociDecodeTable, units),
};

/** Throws HS_FORMAT_UNSUPPORTED. */
export function decoderFor(table: DecodeTable, units: UnitTable): UnitDecoder {
  const decoder = Object.hasOwn(DECODERS, table.codec) ? DECODERS[table.codec] : undefined;
  if (decoder === undefined)
    throw new HeadstartError("HS_FORMAT_UNSUPPORTED", { what: `no decoder for ${table.codec}` });
  return decoder(table, units);
}
