/**
 * Node's own zstd decoder, which the executable exports as it does zlib (zlib.ts): synchronous, straight into the caller's buffers. The same rules of memory safety: buffers stay
 * referenced while they are set; always dispose.
 */

import { HeadstartError } from "../base/errors.ts";
import { executable, koffi } from "./ffi.ts";

const ZSTD_createDCtx = executable.func("void *ZSTD_createDCtx()");
const ZSTD_freeDCtx = executable.func("size_t ZSTD_freeDCtx(void *dctx)");
const ZSTD_DCtx_setParameter = executable.func("size_t ZSTD_DCtx_setParameter(void *dctx, int param, int value)");
const ZSTD_decompressStream = executable.func("size_t ZSTD_decompressStream(void *dctx, void *output, void *input)");
const ZSTD_isError = executable.func("unsigned int ZSTD_isError(size_t code)");
const ZSTD_getErrorName = executable.func("const char *ZSTD_getErrorName(size_t code)");

const ZSTD_d_windowLogMax = 100;
/** zstd.h, ZSTD_inBuffer and ZSTD_outBuffer: address, size, position. */
const BUFFER = { size: 24, address: 0, length: 8, position: 16 } as const;

export class ZstdDecoder implements Disposable {
  #context: unknown;
  readonly #input = new DataView(new ArrayBuffer(BUFFER.size));
  readonly #output = new DataView(new ArrayBuffer(BUFFER.size));
  readonly #inputAddress: bigint;
  readonly #outputAddress: bigint;
  #inputBytes: Uint8Array = EMPTY;
  #outputBytes: Uint8Array = EMPTY;

  /** `windowLogMax`: a frame that needs a larger window than 2 to its power is an error. */
  constructor(options: { windowLogMax: number }) {
    this.#inputAddress = koffi.address(new Uint8Array(this.#input.buffer));
    this.#outputAddress = koffi.address(new Uint8Array(this.#output.buffer));
    const context: unknown = ZSTD_createDCtx();
    if (context === null) throw new HeadstartError("HS_INTERNAL", { what: "zstd: out of memory" });
    this.#context = context;
    const result: number = ZSTD_DCtx_setParameter(context, ZSTD_d_windowLogMax, options.windowLogMax);
    if (ZSTD_isError(result) !== 0) throw new HeadstartError("HS_INTERNAL", { what: "zstd: windowLogMax" });
  }

  setInput(bytes: Uint8Array): void {
    this.#inputBytes = bytes;
    setBuffer(this.#input, bytes);
  }

  setOutput(bytes: Uint8Array): void {
    this.#outputBytes = bytes;
    setBuffer(this.#output, bytes);
  }

  get consumed(): number {
    return Number(this.#input.getBigUint64(BUFFER.position, true));
  }

  get availableIn(): number {
    return this.#inputBytes.byteLength - this.consumed;
  }

  get produced(): number {
    return Number(this.#output.getBigUint64(BUFFER.position, true));
  }

  get availableOut(): number {
    return this.#outputBytes.byteLength - this.produced;
  }

  /** True when a frame has just ended and all of it was written. A string: the bytes are no zstd, and why. */
  run(): boolean | string {
    if (this.#context === null) throw new HeadstartError("HS_INTERNAL", { what: "zstd: use after dispose" });
    const result: number | bigint = ZSTD_decompressStream(this.#context, this.#outputAddress, this.#inputAddress);
    if (ZSTD_isError(result) !== 0) return ZSTD_getErrorName(result) as string;
    return Number(result) === 0;
  }

  [Symbol.dispose](): void {
    if (this.#context !== null) ZSTD_freeDCtx(this.#context);
    this.#context = null;
    this.#inputBytes = EMPTY;
    this.#outputBytes = EMPTY;
  }
}

const EMPTY = new Uint8Array(0);
const NOWHERE = new Uint8Array(new ArrayBuffer(8));

function setBuffer(buffer: DataView, bytes: Uint8Array): void {
  buffer.setBigUint64(BUFFER.address, koffi.address(bytes.byteLength === 0 ? NOWHERE : bytes), true);
  buffer.setBigUint64(BUFFER.length, BigInt(bytes.byteLength), true);
  buffer.setBigUint64(BUFFER.position, 0n, true);
}
