/** A decoder thread that knows the codec "plain" of plain-layer.ts only. */

import { parentPort } from "node:worker_threads";
import { HeadstartError } from "../../src/base/errors.ts";
import type { DecodeTable, UnitDecoder, UnitTable } from "../../src/formats/format.ts";
import { serveDecodes } from "../../src/layer/decode-unit.ts";
import { headerOf } from "./plain-layer.ts";

serveDecodes(parentPort!, (table: DecodeTable, units: UnitTable): UnitDecoder => {
  const headers = table.headers as readonly { address: number; name: string; size: number }[];
  return {
    decode: (_, stored) => stored,
    check(unit, decoded) {
      const start = units.pieceAddress[unit]!;
      for (const { address, name, size } of headers) {
        if (address < start || address + 512 > start + decoded.byteLength) continue;
        const header = decoded.subarray(address - start, address - start + 512);
        if (Buffer.compare(header, headerOf(name, size)) !== 0)
          throw new HeadstartError("HS_INDEX_MISMATCH", { what: `the header at ${address} is not that of ${name}` });
      }
    },
  };
});
