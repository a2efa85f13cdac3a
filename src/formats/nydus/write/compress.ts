/**
 * Compresses chunks, several at once, on libuv's pool. What does not become strictly smaller is stored as it is (specs/nydus.md 2.2): then the result is the input itself.
 */

import { createRequire } from "node:module";
import { Limit } from "../../../base/limit.ts";
import { ZstdEncoder, zstdBound } from "../../../linux/zstd-encode.ts";
import type { NydusOptions } from "./options.ts";

/** Its end waits for what still runs, whose buffers and native memory are in use until then. */
export interface ChunkCompressor extends AsyncDisposable {
  compress(plain: Uint8Array): Promise<Uint8Array>;
}

/** `sizeMax`: bytes that one input has at most. */
export function chunkCompressor(options: NydusOptions, sizeMax: number): ChunkCompressor {
  switch (options.compressor) {
    case "zstd":
      return new ZstdCompressor(options.compressionLevel, sizeMax);
    case "lz4_block":
      return new Lz4Compressor();
    case "none":
      return STORE;
    default:
      return options.compressor satisfies never;
  }
}

const STORE: ChunkCompressor = {
  compress: (plain) => Promise.resolve(plain),
  [Symbol.asyncDispose]: () => Promise.resolve(),
};

/** More than the pool has threads: the next input is there when a thread is free, also while the caller's loop does not turn. */
const AT_ONCE = 8;

interface Lane {
  readonly encoder: ZstdEncoder;
  readonly output: Uint8Array;
}

class ZstdCompressor implements ChunkCompressor {
  readonly #limit = new Limit(AT_ONCE);
  readonly #lanes: Lane[] = [];
  readonly #level: number;
  readonly #bound: number;
  readonly #running = new Set<Promise<Uint8Array>>();

  constructor(level: number, sizeMax: number) {
    this.#level = level;
    this.#bound = zstdBound(sizeMax);
  }

  compress(plain: Uint8Array): Promise<Uint8Array> {
    const work = this.#compress(plain);
    this.#running.add(work);
    const done = () => this.#running.delete(work);
    work.then(done, done);
    return work;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.allSettled(this.#running);
    for (const lane of this.#lanes.splice(0)) lane.encoder[Symbol.dispose]();
  }

  #compress(plain: Uint8Array): Promise<Uint8Array> {
    return this.#limit.run(async () => {
      const lane = this.#lanes.pop() ?? {
        encoder: new ZstdEncoder(this.#level),
        output: new Uint8Array(new ArrayBuffer(this.#bound)),
      };
      try {
        const length = await lane.encoder.encode(plain, lane.output);
        return length < plain.byteLength ? lane.output.slice(0, length) : plain;
      } finally {
        this.#lanes.push(lane);
      }
    });
  }
}

interface Lz4 {
  compress(data: Uint8Array): Promise<Uint8Array>;
}

/** The library puts the length in front. */
const LZ4_PREFIX = 4;

class Lz4Compressor implements ChunkCompressor {
  readonly #library = createRequire(import.meta.url)("lz4-napi") as Lz4;
  readonly #limit = new Limit(AT_ONCE);

  compress(plain: Uint8Array): Promise<Uint8Array> {
    return this.#limit.run(async () => {
      const block = (await this.#library.compress(plain)).subarray(LZ4_PREFIX);
      return block.byteLength < plain.byteLength ? block : plain;
    });
  }

  /** The library keeps what it compresses. */
  [Symbol.asyncDispose](): Promise<void> {
    return Promise.resolve();
  }
}
