/**
 * One pass over a layer blob, the half that hashes: the blob's digest, the spans' digests, the diffID, and the CRC-32 and length of each gzip member.
 * Told where spans begin by build-index.ts, always before it is given bytes beyond that place.
 */

import { createHash, type Hash } from "node:crypto";
import { crc32 } from "node:zlib";
import type { DiffID, Digest } from "../../base/digest.ts";
import { HeadstartError } from "../../base/errors.ts";

export interface LayerHashes {
  readonly blob: Digest;
  readonly diffID: DiffID;
  readonly blobSize: number;
  readonly spans: readonly string[];
}

export class LayerHasher {
  readonly #blob = createHash("sha256");
  readonly #decoded = createHash("sha256");
  #hasDecoded = false;
  #blobSize = 0;
  #span: Hash | null = null;
  readonly #spans: string[] = [];
  #crc = 0;
  #memberLength = 0;
  /** Neighbouring spans may share a byte, and it may be the last of the chunk before. */
  readonly #lastByte = new Uint8Array(1);

  /** A chunk of the blob and the cuts in it: where a span's stored bytes begin, and where those of the one before end. */
  stored(chunk: Uint8Array, cuts: readonly { readonly offset: number; readonly previousEnd: number }[]): void {
    const base = this.#blobSize;
    this.#blob.update(chunk);
    let done = 0;
    for (const { offset, previousEnd } of cuts) {
      const end = previousEnd - base;
      this.#span?.update(chunk.subarray(done, end));
      this.#endSpan();
      this.#span = createHash("sha256");
      done = end;
      if (offset === previousEnd) continue;
      if (end > 0) done = end - 1;
      else this.#span.update(this.#lastByte);
    }
    this.#span?.update(chunk.subarray(done));
    this.#blobSize += chunk.byteLength;
    if (chunk.byteLength > 0) this.#lastByte[0] = chunk[chunk.byteLength - 1]!;
  }

  decoded(bytes: Uint8Array): void {
    this.#hasDecoded = true;
    this.#decoded.update(bytes);
    this.#crc = crc32(bytes, this.#crc);
    this.#memberLength += bytes.byteLength;
  }

  /** Throws HS_LAYER_REFUSED. */
  memberEnd(crc: number, length: number): void {
    this.#hasDecoded = true;
    if (crc !== this.#crc || length !== this.#memberLength % 2 ** 32) {
      const reason = "the CRC-32 or length of a gzip member is wrong";
      throw new HeadstartError("HS_LAYER_REFUSED", { what: `gzip: ${reason}`, refusal: "gzip", reason });
    }
    this.#crc = 0;
    this.#memberLength = 0;
  }

  finish(): LayerHashes {
    this.#endSpan();
    const blob = `sha256:${this.#blob.digest("hex")}` as Digest;
    const diffID = (this.#hasDecoded ? `sha256:${this.#decoded.digest("hex")}` : blob) as DiffID;
    return { blob, diffID, blobSize: this.#blobSize, spans: this.#spans };
  }

  #endSpan(): void {
    if (this.#span !== null) this.#spans.push(`sha256:${this.#span.digest("hex")}`);
    this.#span = null;
  }
}
