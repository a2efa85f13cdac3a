/**
 * Node's own zlib, which the executable exports, for what `node:zlib` cannot do: stop at deflate block boundaries (Z_BLOCK), start at any bit
 * (`inflatePrime`) with a given window (`inflateSetDictionary`), write straight into a buffer of the caller. Never the system's libz: symbols of the
 * two mix and the heap breaks (specs/soci.md 3.3).
 *
 * Memory safety: the native stream holds raw addresses into the input and output buffers, so `RawInflate` keeps both referenced for as long as they are
 * set; backing stores of (Shared)ArrayBuffers never move. zlib reads at most avail_in bytes and writes at most avail_out. Always dispose: the
 * decoder's state is native memory that no garbage collector sees.
 */

import { HeadstartError } from "../base/errors.ts";
import { executable, koffi } from "./ffi.ts";

export const Z_NO_FLUSH = 0;
export const Z_SYNC_FLUSH = 2;
export const Z_BLOCK = 5;

export const Z_OK = 0;
export const Z_STREAM_END = 1;
export const Z_BUF_ERROR = -5;
const Z_DATA_ERROR = -3;
const Z_MEM_ERROR = -4;

/** zlib.h, struct z_stream_s on 64-bit Linux: 14 words. */
const Z_STREAM = { size: 112, next_in: 0, avail_in: 8, next_out: 24, avail_out: 32, data_type: 88 } as const;

const inflateInit2_ = executable.func(
  "int inflateInit2_(void *strm, int windowBits, const char *version, int stream_size)",
);
const inflate = executable.func("int inflate(void *strm, int flush)");
const inflatePrime = executable.func("int inflatePrime(void *strm, int bits, int value)");
const inflateSetDictionary = executable.func(
  "int inflateSetDictionary(void *strm, void *dictionary, unsigned int length)",
);
const inflateReset = executable.func("int inflateReset(void *strm)");
const inflateEnd = executable.func("int inflateEnd(void *strm)");
/**
 * One raw deflate decoder (windowBits -15). `setInput` and `setOutput` give it buffers, `run` decodes until one of them is used up, a block ends
 * (Z_BLOCK) or the stream ends. Input and output may be over SharedArrayBuffers.
 */
export class RawInflate implements Disposable {
  readonly #stream = new Uint8Array(new ArrayBuffer(Z_STREAM.size));
  readonly #words = new DataView(this.#stream.buffer);
  readonly #address: bigint;
  #input: Uint8Array = EMPTY;
  #output: Uint8Array = EMPTY;
  #open = false;

  constructor() {
    this.#address = koffi.address(this.#stream);
    const result: number = inflateInit2_(this.#address, -15, "1.3", Z_STREAM.size);
    if (result !== Z_OK) throw zlibFailure("inflateInit2", result);
    this.#open = true;
  }

  /** Back to the start of a stream: no window, no bits; buffers stay as they are. */
  reset(): void {
    this.#check(inflateReset(this.#live()), "inflateReset");
  }

  /** Puts `bits` (1..16) bits in front of the input, the lowest of `value` first. */
  prime(bits: number, value: number): void {
    this.#check(inflatePrime(this.#live(), bits, value), "inflatePrime");
  }

  /** The output before this point, at most the last 32 KiB of it. */
  setDictionary(window: Uint8Array): void {
    this.#check(inflateSetDictionary(this.#live(), window, window.byteLength), "inflateSetDictionary");
  }

  setInput(bytes: Uint8Array): void {
    this.#input = bytes;
    this.#setBuffer(Z_STREAM.next_in, Z_STREAM.avail_in, bytes);
  }

  setOutput(bytes: Uint8Array): void {
    this.#output = bytes;
    this.#setBuffer(Z_STREAM.next_out, Z_STREAM.avail_out, bytes);
  }

  /** Input bytes that were not consumed. */
  get availableIn(): number {
    return this.#words.getUint32(Z_STREAM.avail_in, true);
  }

  /** Output bytes that were not written. */
  get availableOut(): number {
    return this.#words.getUint32(Z_STREAM.avail_out, true);
  }

  get consumed(): number {
    return this.#input.byteLength - this.availableIn;
  }

  get produced(): number {
    return this.#output.byteLength - this.availableOut;
  }

  /** Bits 0-2: unused bits of the last consumed byte; 64: inside the last block; 128: just behind a block (zlib.h, inflate with Z_BLOCK). */
  get dataType(): number {
    return this.#words.getInt32(Z_STREAM.data_type, true);
  }

  /**
   * Z_OK, Z_STREAM_END or Z_BUF_ERROR (no progress was possible: not an error by itself). Returns Z_DATA_ERROR's negative number for bytes that are
   * no deflate stream; throws only when memory is out or the stream was misused.
   */
  run(flush: number): number {
    const result: number = inflate(this.#live(), flush);
    if (result === Z_MEM_ERROR || result === -2) throw zlibFailure("inflate", result);
    return result;
  }

  [Symbol.dispose](): void {
    if (!this.#open) return;
    this.#open = false;
    inflateEnd(this.#address);
    this.#input = EMPTY;
    this.#output = EMPTY;
  }

  #setBuffer(pointer: number, available: number, bytes: Uint8Array): void {
    this.#live();
    if (bytes.byteLength > 0xffff_ffff) throw zlibFailure("buffer beyond 4 GiB", Z_DATA_ERROR);
    this.#words.setBigUint64(pointer, koffi.address(bytes.byteLength === 0 ? NOWHERE : bytes), true);
    this.#words.setUint32(available, bytes.byteLength, true);
  }

  #live(): bigint {
    if (!this.#open) throw zlibFailure("use after dispose", -2);
    return this.#address;
  }

  #check(result: number, what: string): void {
    if (result !== Z_OK) throw zlibFailure(what, result);
  }
}

const EMPTY = new Uint8Array(0);
/** What empty buffers point to: zlib takes a null output pointer for misuse, even with no room. */
const NOWHERE = new Uint8Array(new ArrayBuffer(8));

function zlibFailure(what: string, result: number): HeadstartError {
  return new HeadstartError("HS_INTERNAL", { what: `zlib: ${what}: ${result}`, result });
}
