/**
 * A layer blob to its tar: gzip, zstd or neither, told by the first bytes whatever the media type says (specs/layer.md 1.1, C21). One wrapping only.
 *
 * `LayerDecoder` is synchronous (workers); `openLayerStream` is the same over an async source. Throws HS_LAYER_REFUSED: media-type, gzip, zstd.
 */

import { isHeadstartError } from "../../base/errors.ts";
import { GzipInflate } from "../gzip/inflate.ts";
import { isGzip } from "../gzip/member.ts";
import { isZstd, ZstdStream } from "../zstd/stream.ts";
import { refusal } from "./refusal.ts";

export type LayerCompression = "none" | "gzip" | "zstd";

const LAYER_TYPE =
  /^application\/vnd\.(?:oci\.image\.layer\.(?:nondistributable\.)?v1\.tar(?:\+[a-z0-9.-]+)*|docker\.image\.rootfs\.(?:foreign\.)?diff\.tar(?:\.(?:gzip|zstd))?)$/;

/** Throws HS_LAYER_REFUSED (media-type) for anything that is no layer, or is encrypted. */
export function checkLayerType(mediaType: string, layer: string): void {
  const bare = mediaType.split(";", 1)[0]!.trim().toLowerCase();
  if (LAYER_TYPE.test(bare) && !bare.endsWith("+encrypted")) return;
  const reason = bare.endsWith("+encrypted") ? "the layer is encrypted" : "this is no layer of a file system";
  throw refusal("media-type", `${reason}: ${JSON.stringify(mediaType.slice(0, 200))}`, { layer });
}

/** How many bytes `detectCompression` wants to see, where there are so many. */
export const MAGIC_BYTES = 8;

export function detectCompression(start: Uint8Array): LayerCompression {
  return isGzip(start) ? "gzip" : isZstd(start) ? "zstd" : "none";
}

interface Inflate extends Disposable {
  push(chunk: Uint8Array): void;
  finish(): void;
}

export interface LayerDecoderOptions {
  /** Bytes of the tar in order: a view that is valid until the call returns. */
  readonly data: (bytes: Uint8Array) => void;
  /** Names the layer in errors. */
  readonly layer: string;
}

export class LayerDecoder implements Disposable {
  readonly #options: LayerDecoderOptions;
  /** The first bytes, until there are enough to know. */
  #start: Uint8Array | null = new Uint8Array(0);
  #compression: LayerCompression | null = null;
  #inflate: Inflate | null = null;
  #pushed = 0;

  constructor(options: LayerDecoderOptions) {
    this.#options = options;
  }

  /** Null until the first 8 bytes have come. */
  get compression(): LayerCompression | null {
    return this.#compression;
  }

  /** All output of the chunk has been handed out when this returns. */
  push(chunk: Uint8Array): void {
    if (this.#start === null) {
      this.#decode(chunk);
      return;
    }
    this.#start = this.#start.byteLength === 0 ? chunk : Buffer.concat([this.#start, chunk]);
    if (this.#start.byteLength >= MAGIC_BYTES) this.#begin();
    else this.#start = Uint8Array.from(this.#start);
  }

  /** The blob has ended. */
  finish(): void {
    if (this.#start !== null) this.#begin();
    this.#guard(() => this.#inflate?.finish());
  }

  [Symbol.dispose](): void {
    this.#inflate?.[Symbol.dispose]();
    this.#inflate = null;
  }

  #begin(): void {
    const start = this.#start!;
    this.#start = null;
    this.#compression = detectCompression(start);
    if (this.#compression === "gzip") this.#inflate = new GzipInflate({ data: this.#options.data });
    if (this.#compression === "zstd") this.#inflate = new ZstdStream({ data: this.#options.data });
    if (start.byteLength > 0) this.#decode(start);
  }

  #decode(chunk: Uint8Array): void {
    if (this.#inflate === null) this.#options.data(chunk);
    else this.#guard(() => this.#inflate!.push(chunk));
    this.#pushed += chunk.byteLength;
  }

  /** Codecs do not know which layer they decode. */
  #guard(work: () => void): void {
    try {
      work();
    } catch (error) {
      if (!isHeadstartError(error, "HS_LAYER_REFUSED") || error.details.layer !== undefined) throw error;
      const code = error.details.refusal === "zstd" ? "zstd" : "gzip";
      throw refusal(code, String(error.details.reason), { layer: this.#options.layer, offset: this.#pushed }, error);
    }
  }
}

/** What one push may hold at most: a thousandfold expansion of it must fit into memory. */
const PUSH_BYTES = 16 * 1024;

/** The tar of a layer blob, piece by piece; pieces are the reader's own. Leaving the loop early closes the source. */
export async function* openLayerStream(
  mediaType: string,
  source: AsyncIterable<Uint8Array>,
  options: { readonly layer?: string } = {},
): AsyncGenerator<Uint8Array, void, undefined> {
  const layer = options.layer ?? "(unnamed)";
  checkLayerType(mediaType, layer);
  const pieces: Uint8Array[] = [];
  using decoder = new LayerDecoder({ layer, data: (bytes) => pieces.push(Uint8Array.from(bytes)) });
  for await (const chunk of source) {
    for (let at = 0; at < chunk.byteLength; at += PUSH_BYTES) {
      decoder.push(chunk.subarray(at, at + PUSH_BYTES));
      yield* pieces.splice(0);
    }
  }
  decoder.finish();
  yield* pieces.splice(0);
}
