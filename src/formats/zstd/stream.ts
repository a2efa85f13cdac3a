/**
 * Decodes a zstd stream of any number of frames as it arrives, as containerd's unpack does (specs/layer.md 1.3): skippable frames anywhere, windows up to 512 MiB, checksums verified; nothing may
 * stand behind the last frame, and nothing may be cut. One thread, synchronous.
 */

import { HeadstartError } from "../../base/errors.ts";
import { ZstdDecoder } from "../../linux/zstd.ts";

/** 2^29, as klauspost/compress allows (specs/layer.md C23). */
const WINDOW_LOG_MAX = 29;
const BUFFER_BYTES = 1024 * 1024;

export interface ZstdStreamOptions {
  /** Decoded bytes in order: a view that is valid until the call returns. */
  readonly data: (bytes: Uint8Array) => void;
}

export class ZstdStream implements Disposable {
  readonly #decoder = new ZstdDecoder({ windowLogMax: WINDOW_LOG_MAX });
  readonly #data: (bytes: Uint8Array) => void;
  readonly #buffer = new Uint8Array(new ArrayBuffer(BUFFER_BYTES));
  #consumed = 0;
  /** No frame is half read. */
  #atBorder = true;

  constructor(options: ZstdStreamOptions) {
    this.#data = options.data;
  }

  /** Decodes one chunk; all its output has been handed out when this returns. Throws HS_LAYER_REFUSED. */
  push(chunk: Uint8Array): void {
    const decoder = this.#decoder;
    decoder.setInput(chunk);
    for (;;) {
      if (decoder.availableIn === 0 && this.#atBorder) break;
      decoder.setOutput(this.#buffer);
      const before = decoder.consumed;
      const ended = decoder.run();
      if (typeof ended === "string")
        throw refused(`${ended}, near byte ${this.#consumed + decoder.consumed} of the blob`);
      const { produced } = decoder;
      if (decoder.consumed > before || produced > 0) this.#atBorder = ended;
      if (produced > 0) this.#data(this.#buffer.subarray(0, produced));
      // with room left in the output nothing more comes without more input
      if (decoder.availableIn === 0 && produced < this.#buffer.byteLength) break;
    }
    this.#consumed += chunk.byteLength;
    decoder.setInput(EMPTY);
  }

  /** Throws HS_LAYER_REFUSED when the stream is cut inside a frame. */
  finish(): void {
    if (!this.#atBorder) throw refused("the last frame is cut off");
  }

  [Symbol.dispose](): void {
    this.#decoder[Symbol.dispose]();
  }
}

/** True where a zstd frame or a skippable frame of at least 8 bytes begins (specs/layer.md 1.1). */
export function isZstd(bytes: Uint8Array): boolean {
  if (bytes.byteLength < 4) return false;
  if (bytes[0] === 0x28 && bytes[1] === 0xb5 && bytes[2] === 0x2f && bytes[3] === 0xfd) return true;
  return (
    bytes.byteLength >= 8 && (bytes[0]! & 0xf0) === 0x50 && bytes[1] === 0x2a && bytes[2] === 0x4d && bytes[3] === 0x18
  );
}

const EMPTY = new Uint8Array(0);

function refused(message: string): HeadstartError {
  return new HeadstartError("HS_LAYER_REFUSED", { what: `zstd: ${message}`, refusal: "zstd", reason: message });
}
