/** Digests over decoded pieces: sha256 is Node's, blake3 (Nydus) a WebAssembly library, loaded where an image has such digests. */

import { hash } from "node:crypto";
import { HeadstartError } from "../base/errors.ts";
import type { UnitTable } from "./format.ts";

export type PieceHash = (bytes: Uint8Array) => Uint8Array;

/** The function itself is synchronous: it may be called where decoders run. */
export async function pieceHash(algorithm: "sha256" | "blake3"): Promise<PieceHash> {
  if (algorithm === "sha256") return (bytes) => hash("sha256", bytes, "buffer");
  const { createBLAKE3 } = await import("hash-wasm");
  const hasher = await createBLAKE3();
  return (bytes) => {
    hasher.init();
    hasher.update(bytes);
    return hasher.digest("binary");
  };
}

/** Throws HS_UNIT_DIGEST unless `bytes`, the whole of piece `piece`, are what the table says. */
export function verifyPiece(units: UnitTable, piece: number, bytes: Uint8Array, digest: PieceHash, what: string): void {
  if (units.pieceDigest === null) return;
  const want = Buffer.from(units.pieceDigest.subarray(piece * 32, piece * 32 + 32)).toString("hex");
  const got = Buffer.from(digest(bytes)).toString("hex");
  if (got !== want)
    throw new HeadstartError("HS_UNIT_DIGEST", {
      what: `${what}: piece ${piece} has ${units.pieceDigestAlgorithm} ${got}, not ${want}`,
      got,
      want,
    });
}
