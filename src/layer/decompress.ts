/**
 * From a layer's stored bytes to its tar stream, whatever they are: the bytes decide between gzip, zstd and plain, as for containerd, but a type that says plain tar means it
 * (specs/layer.md 1.1).
 */

import { GzipInflate } from "../formats/gzip/inflate.ts";
import { isGzip } from "../formats/gzip/member.ts";
import { isZstd, ZstdStream } from "../formats/zstd/stream.ts";
import { layerKind } from "../oci/media-types.ts";

export interface StreamDecoder extends Disposable {
  /** All output of the chunk has been handed out when it resolves. Throws HS_LAYER_REFUSED. */
  push(chunk: Uint8Array): void | Promise<void>;
  /** Throws HS_LAYER_REFUSED when the stream is cut. */
  finish(): void | Promise<void>;
}

/** Bytes that tell the kind: a zstd skippable frame's header. */
const MAGIC_BYTES = 8;

/** Decoded bytes go to `data`, as views that are valid during the call. */
export class LayerDecoder implements StreamDecoder {
  readonly #plain: boolean;
  readonly #data: (bytes: Uint8Array) => void;
  #held: Uint8Array = new Uint8Array(0);
  #decoder: StreamDecoder | null = null;

  constructor(mediaType: string, data: (bytes: Uint8Array) => void) {
    // Docker's plain type is decompressed too (specs/layer.md 1.1)
    this.#plain = mediaType.startsWith("application/vnd.oci.") && layerKind(mediaType)?.compression === "none";
    this.#data = data;
  }

  push(chunk: Uint8Array): void | Promise<void> {
    if (this.#decoder !== null) return this.#decoder.push(chunk);
    this.#held = this.#held.byteLength === 0 ? chunk : Buffer.concat([this.#held, chunk]);
    if (this.#held.byteLength >= MAGIC_BYTES) return this.#begin();
    // a view of the caller's memory does not outlive the call
    this.#held = Uint8Array.from(this.#held);
  }

  async finish(): Promise<void> {
    if (this.#decoder === null) await this.#begin();
    await this.#decoder!.finish();
  }

  [Symbol.dispose](): void {
    this.#decoder?.[Symbol.dispose]();
  }

  #begin(): void | Promise<void> {
    const held = this.#held;
    this.#held = new Uint8Array(0);
    if (!this.#plain && isGzip(held)) this.#decoder = new GzipInflate({ data: this.#data });
    else if (!this.#plain && isZstd(held)) this.#decoder = new ZstdStream({ data: this.#data });
    else this.#decoder = new PlainStream(this.#data);
    return this.#decoder.push(held);
  }
}

class PlainStream implements StreamDecoder {
  readonly #data: (bytes: Uint8Array) => void;

  constructor(data: (bytes: Uint8Array) => void) {
    this.#data = data;
  }

  push(chunk: Uint8Array): void {
    if (chunk.byteLength > 0) this.#data(chunk);
  }

  finish(): void {}

  [Symbol.dispose](): void {}
}
