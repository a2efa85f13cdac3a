/**
 * Node's own zstd encoder, which the executable exports as it does the decoder (zstd.ts): one frame a call, on a thread of libuv's pool, straight from and into the caller's
 * buffers. A context is 1 to 10 MB of native memory that is used again: `node:zlib` makes one for each buffer, which for small ones costs five times the compression.
 *
 * Memory safety: while a call runs, its closure holds both buffers and the context is in use; dispose only when no call runs.
 */

import { HeadstartError } from "../base/errors.ts";
import { executable, koffi } from "./ffi.ts";

const ZSTD_createCCtx = executable.func("void *ZSTD_createCCtx()");
const ZSTD_freeCCtx = executable.func("size_t ZSTD_freeCCtx(void *cctx)");
const ZSTD_CCtx_setParameter = executable.func("size_t ZSTD_CCtx_setParameter(void *cctx, int param, int value)");
const ZSTD_compress2 = executable.func(
  "size_t ZSTD_compress2(void *cctx, void *output, size_t outputSize, void *input, size_t inputSize)",
);
const ZSTD_compressBound = executable.func("size_t ZSTD_compressBound(size_t size)");
const ZSTD_isError = executable.func("unsigned int ZSTD_isError(size_t code)");
const ZSTD_getErrorName = executable.func("const char *ZSTD_getErrorName(size_t code)");

const ZSTD_c_compressionLevel = 100;

/** Bytes that a frame of `size` bytes has at most. */
export function zstdBound(size: number): number {
  return Number(ZSTD_compressBound(size));
}

export class ZstdEncoder implements Disposable {
  #context: unknown;

  constructor(level: number) {
    const context: unknown = ZSTD_createCCtx();
    if (context === null) throw new HeadstartError("HS_INTERNAL", { what: "zstd: out of memory" });
    this.#context = context;
    const result: number = ZSTD_CCtx_setParameter(context, ZSTD_c_compressionLevel, level);
    if (ZSTD_isError(result) !== 0) throw new HeadstartError("HS_INTERNAL", { what: `zstd: level ${level}` });
  }

  /** Writes one frame with its content size into `output`, which has `zstdBound` bytes or more; its length. One call at a time. */
  async encode(input: Uint8Array, output: Uint8Array): Promise<number> {
    if (this.#context === null) throw new HeadstartError("HS_INTERNAL", { what: "zstd: use after dispose" });
    const result = await new Promise<number | bigint>((resolve, reject) => {
      const done = (error: unknown, size: number | bigint) => {
        if (error) reject(error);
        else resolve(size);
      };
      ZSTD_compress2.async(
        this.#context,
        koffi.address(output),
        output.byteLength,
        koffi.address(input.byteLength === 0 ? NOWHERE : input),
        input.byteLength,
        done,
      );
    });
    // the promise is done: both buffers lived until here
    if (ZSTD_isError(result) !== 0) {
      throw new HeadstartError("HS_INTERNAL", {
        what: `zstd: ${ZSTD_getErrorName(result)} for ${input.byteLength} bytes into ${output.byteLength}`,
      });
    }
    return Number(result);
  }

  [Symbol.dispose](): void {
    if (this.#context !== null) ZSTD_freeCCtx(this.#context);
    this.#context = null;
  }
}

const NOWHERE = new Uint8Array(new ArrayBuffer(8));
