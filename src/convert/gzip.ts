/** Gzip as a stream whose bytes depend on its input alone: no name, no time in the header, one level. Compresses on libuv's threads. */

import { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";
import { createGzip } from "node:zlib";

/** As containerd and docker compress layers. */
const LEVEL = 6;
const OUTPUT_BYTES = 256 * 1024;

export async function* gzipped(chunks: AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array> {
  const gzip = createGzip({ level: LEVEL, chunkSize: OUTPUT_BYTES });
  const feeding = pipeline(Readable.from(chunks, { objectMode: true, highWaterMark: 2 }), gzip);
  // whoever reads gets the source's error from the stream itself
  feeding.catch(() => {});
  try {
    for await (const chunk of gzip) yield chunk as Uint8Array;
    await feeding;
  } finally {
    gzip.destroy();
  }
}
