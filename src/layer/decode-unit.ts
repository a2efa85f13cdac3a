/**
 * What a decoder thread does: verifies the stored bytes of one unit, decodes them, checks what else must hold, and scatters them into the layer file. It never
 * sets a bit: the main thread does when the answer is there, so bytes are always on disk before anybody can believe in them.
 */

import { hash } from "node:crypto";
import type { MessagePort } from "node:worker_threads";
import { describeError, HeadstartError, isHeadstartError, kindOf } from "../base/errors.ts";
import { freeBuffer } from "../base/heap.ts";
import type { DecodeTable, UnitDecoder, UnitTable } from "../formats/format.ts";
import { type PieceHash, pieceHash, verifyPiece } from "../formats/piece-hash.ts";
import { copyPiece } from "./copy-piece.ts";
import type { BadPieces, DecodeContext, FromDecoder, ToDecoder } from "./decode-protocol.ts";
import { Scatterer } from "./scatter.ts";

interface OpenLayer {
  readonly context: DecodeContext;
  /** Made at the first unit: a layer that is only mounted costs a worker nothing. */
  decoder: UnitDecoder | null;
  pieceHash: PieceHash | null;
}

type DecoderFactory = (table: DecodeTable, units: UnitTable) => UnitDecoder;
type Done = Omit<Extract<FromDecoder, { t: "done" }>, "t" | "job" | "decodeMs">;

/** Answers `port` until the thread ends. It is asked for one thing at a time. */
export function serveDecodes(port: MessagePort, decoderFor: DecoderFactory): void {
  const layers = new Map<number, OpenLayer>();
  const scatterer = new Scatterer();
  port.on("message", (message: ToDecoder) => {
    switch (message.t) {
      case "open":
        layers.set(message.context.layer, { context: message.context, decoder: null, pieceHash: null });
        return;
      case "close":
        layers.delete(message.layer);
        return;
      case "decode":
        void answer(layers.get(message.layer), message, (layer) => decode(layer, message, decoderFor, scatterer)).then(
          (result) => {
            freeBuffer(message.stored);
            port.postMessage(result);
          },
        );
        return;
      case "copy":
        void answer(layers.get(message.layer), message, (layer) => copy(layer, message)).then((result) =>
          port.postMessage(result),
        );
        return;
      default:
        message satisfies never;
    }
  });
  port.postMessage({ t: "ready" } satisfies FromDecoder);
}

async function answer(
  layer: OpenLayer | undefined,
  message: Extract<ToDecoder, { t: "decode" | "copy" }>,
  work: (layer: OpenLayer) => Done,
): Promise<FromDecoder> {
  const started = performance.now();
  const { job, unit } = message;
  try {
    if (layer === undefined)
      throw new HeadstartError("HS_INTERNAL", { what: `decoder: layer ${message.layer} is not open` });
    const { pieceDigest, pieceDigestAlgorithm } = layer.context.units;
    if (pieceDigest !== null) layer.pieceHash ??= await pieceHash(pieceDigestAlgorithm!);
    return { t: "done", job, decodeMs: performance.now() - started, ...work(layer) };
  } catch (error) {
    const what = `unit ${unit} of ${layer?.context.what}: ${describeError(error)}`;
    if (error instanceof HeadstartError) return { t: "failed", job, code: error.code, what };
    return { t: "failed", job, code: kindOf(error) === "exhausted" ? "HS_DISK_FULL" : "HS_INTERNAL", what };
  }
}

function decode(
  layer: OpenLayer,
  message: Extract<ToDecoder, { t: "decode" }>,
  decoderFor: DecoderFactory,
  scatterer: Scatterer,
): Done {
  const { unit, stored } = message;
  const { context } = layer;
  verifyStored(context, unit, stored);
  layer.decoder ??= decoderFor(context.decode, context.units);
  const decoded = decodeStored(layer.decoder, context, unit, stored);
  if (message.pieces === null) {
    const { start, pieces } = context.pieces;
    if (context.units.pieceDigest !== null) {
      for (let index = start[unit]!; index < start[unit + 1]!; index++) verifyWhole(layer, pieces[index]!, decoded);
    }
    layer.decoder.check(unit, decoded);
    return { writes: scatterer.scatter(context, unit, decoded), bad: null };
  }
  layer.decoder.check(unit, decoded);
  const wrong = new BadCollector(context, unit);
  const good = message.pieces.filter((piece) => wrong.passes(piece, () => verify(layer, piece, decoded)));
  return { writes: scatterer.scatter(context, unit, decoded, good), bad: wrong.found };
}

function copy(layer: OpenLayer, message: Extract<ToDecoder, { t: "copy" }>): Done {
  const { context } = layer;
  const { units } = context;
  const { pieces, fds, offsets } = message.copy;
  const wrong = new BadCollector(context, message.unit);
  pieces.forEach((piece, index) => {
    const bytes = copyPiece({
      from: fds[index]!,
      fromOffset: offsets[index]!,
      to: context.imageFd,
      toOffset: units.pieceAddress[piece]!,
      length: units.pieceLength[piece]!,
    });
    wrong.passes(piece, () => verifyPiece(units, piece, bytes, layer.pieceHash!, context.what));
  });
  return { writes: pieces.length, bad: wrong.found };
}

/** Keeps the pieces that are wrong; the rest of a unit may be right. */
class BadCollector {
  readonly #context: DecodeContext;
  readonly #unit: number;
  readonly #pieces: number[] = [];
  #what = "";

  constructor(context: DecodeContext, unit: number) {
    this.#context = context;
    this.#unit = unit;
  }

  passes(piece: number, check: () => void): boolean {
    try {
      check();
      return true;
    } catch (error) {
      if (!isHeadstartError(error, "HS_UNIT_DIGEST")) throw error;
      this.#pieces.push(piece);
      this.#what ||= `unit ${this.#unit} of ${this.#context.what}: ${error.details.what}`;
      return false;
    }
  }

  get found(): BadPieces | null {
    return this.#pieces.length === 0 ? null : { pieces: Uint32Array.from(this.#pieces), what: this.#what };
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

/** Throws HS_UNIT_DECODE where the stored bytes are known to be right, else HS_UNIT_DIGEST: other ones may decode. */
function decodeStored(decoder: UnitDecoder, context: DecodeContext, unit: number, stored: Uint8Array): Uint8Array {
  const { units } = context;
  try {
    const decoded = decoder.decode(unit, stored);
    if (decoded.byteLength === units.unitDecodedLength[unit]) return decoded;
    throw new HeadstartError("HS_UNIT_DECODE", {
      what: `it decodes to ${decoded.byteLength} bytes, not ${units.unitDecodedLength[unit]}`,
    });
  } catch (error) {
    if (units.unitDigest !== null || !isHeadstartError(error, "HS_UNIT_DECODE")) throw error;
    throw new HeadstartError("HS_UNIT_DIGEST", { what: error.details.what, cause: error });
  }
}

function verify(layer: OpenLayer, piece: number, decoded: Uint8Array): void {
  const { units, what } = layer.context;
  const offset = units.pieceOffset[piece]!;
  verifyPiece(units, piece, decoded.subarray(offset, offset + units.pieceLength[piece]!), layer.pieceHash!, what);
}

/** Where the stored bytes were right, other ones would not help. */
function verifyWhole(layer: OpenLayer, piece: number, decoded: Uint8Array): void {
  try {
    verify(layer, piece, decoded);
  } catch (error) {
    if (layer.context.units.unitDigest === null || !isHeadstartError(error, "HS_UNIT_DIGEST")) throw error;
    throw new HeadstartError("HS_UNIT_DECODE", { what: error.details.what, cause: error });
  }
}
