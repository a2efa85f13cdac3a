/**
 * What a decoder thread does: verifies the stored bytes of one unit, decodes them, checks what else must hold, and scatters them into the layer file. It never
 * sets a bit: the main thread does when the answer is there, so bytes are always on disk before anybody can believe in them.
 */

import { hash } from "node:crypto";
import type { MessagePort } from "node:worker_threads";
import { describeError, HeadstartError, kindOf } from "../base/errors.ts";
import type { DecodeTable, UnitDecoder, UnitTable } from "../formats/format.ts";
import type { DecodeContext, FromDecoder, ToDecoder } from "./decode-protocol.ts";
import { Scatterer } from "./scatter.ts";

interface OpenLayer {
  readonly context: DecodeContext;
  /** Made at the first unit: a layer that is only mounted costs a worker nothing. */
  decoder: UnitDecoder | null;
}

type DecoderFactory = (table: DecodeTable, units: UnitTable) => UnitDecoder;

/** Answers `port` until the thread ends. */
export function serveDecodes(port: MessagePort, decoderFor: DecoderFactory): void {
  const layers = new Map<number, OpenLayer>();
  const scatterer = new Scatterer();
  port.on("message", (message: ToDecoder) => {
    switch (message.t) {
      case "open":
        layers.set(message.context.layer, { context: message.context, decoder: null });
        return;
      case "close":
        layers.delete(message.layer);
        return;
      case "decode":
        port.postMessage(decode(layers.get(message.layer), message, decoderFor, scatterer));
        return;
      default:
        message satisfies never;
    }
  });
}

function decode(
  layer: OpenLayer | undefined,
  message: Extract<ToDecoder, { t: "decode" }>,
  decoderFor: DecoderFactory,
  scatterer: Scatterer,
): FromDecoder {
  const started = performance.now();
  const { job, unit, stored } = message;
  try {
    if (layer === undefined)
      throw new HeadstartError("HS_INTERNAL", { what: `decoder: layer ${message.layer} is not open` });
    const { context } = layer;
    verifyStored(context, unit, stored);
    layer.decoder ??= decoderFor(context.decode, context.units);
    const decoded = layer.decoder.decode(unit, stored);
    verifyPieces(context, unit, decoded);
    layer.decoder.check(unit, decoded);
    const writes = scatterer.scatter(context, unit, decoded);
    return { t: "done", job, decodeMs: performance.now() - started, writes };
  } catch (error) {
    const what = `unit ${unit} of ${layer?.context.what}: ${describeError(error)}`;
    if (error instanceof HeadstartError) return { t: "failed", job, code: error.code, what };
    return { t: "failed", job, code: kindOf(error) === "exhausted" ? "HS_DISK_FULL" : "HS_INTERNAL", what };
  }
}

/** Throws HS_UNIT_DIGEST: another source may have the right bytes. */
function verifyStored(context: DecodeContext, unit: number, stored: Uint8Array): void {
  const { units } = context;
  const length = units.unitEnd[unit]! - units.unitStart[unit]!;
  if (stored.byteLength !== length)
    throw new HeadstartError("HS_UNIT_DIGEST", { what: `${stored.byteLength} stored bytes, not ${length}` });
  if (units.unitDigest === null) return;
  const want = Buffer.from(units.unitDigest.subarray(unit * 32, unit * 32 + 32)).toString("hex");
  const got = hash("sha256", stored, "hex");
  if (got !== want)
    throw new HeadstartError("HS_UNIT_DIGEST", { what: `stored bytes have sha256 ${got}, not ${want}`, got, want });
}

function verifyPieces(context: DecodeContext, unit: number, decoded: Uint8Array): void {
  const { units, pieces } = context;
  if (decoded.byteLength !== units.unitDecodedLength[unit])
    throw new HeadstartError("HS_UNIT_DECODE", {
      what: `it decodes to ${decoded.byteLength} bytes, not ${units.unitDecodedLength[unit]}`,
    });
  if (units.pieceDigest === null) return;
  for (let index = pieces.start[unit]!; index < pieces.start[unit + 1]!; index++) {
    const piece = pieces.pieces[index]!;
    const offset = units.pieceOffset[piece]!;
    const want = Buffer.from(units.pieceDigest.subarray(piece * 32, piece * 32 + 32)).toString("hex");
    const got = hash("sha256", decoded.subarray(offset, offset + units.pieceLength[piece]!), "hex");
    // where the stored bytes were right, other ones would not help
    if (got !== want)
      throw new HeadstartError(units.unitDigest === null ? "HS_UNIT_DIGEST" : "HS_UNIT_DECODE", {
        what: `piece ${piece} has sha256 ${got}, not ${want}`,
        got,
        want,
      });
  }
}
