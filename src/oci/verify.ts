/** Streams of bytes checked against a descriptor: a stream that ends without an error had exactly the size and digest it should have. */

import { createHash } from "node:crypto";
import { type Digest, digestAlgorithm } from "../base/digest.ts";
import { HeadstartError } from "../base/errors.ts";
import { MiB } from "../base/limits.ts";
import type { Descriptor } from "./descriptor.ts";
import type { StoredBlob } from "./store.ts";

/** What `readAll` takes into memory unless told otherwise: the largest thing read whole is a zTOC. */
export const READ_ALL_LIMIT = 512 * MiB;

/** Passes chunks on; throws HS_SIZE_MISMATCH at the first byte too many, HS_SIZE_MISMATCH or HS_DIGEST_MISMATCH instead of ending. */
export async function* verified(
  chunks: AsyncIterable<Uint8Array>,
  descriptor: Pick<Descriptor, "digest" | "size">,
  what: string,
): AsyncGenerator<Uint8Array> {
  const hash = createHash(digestAlgorithm(descriptor.digest));
  let total = 0;
  for await (const chunk of chunks) {
    total += chunk.byteLength;
    if (total > descriptor.size) break;
    hash.update(chunk);
    yield chunk;
  }
  if (total !== descriptor.size) throw sizeMismatch(total, descriptor, what);
  const got = `${digestAlgorithm(descriptor.digest)}:${hash.digest("hex")}`;
  if (got !== descriptor.digest) throw digestMismatch(got, descriptor.digest, what);
}

/** Passes chunks on and counts and hashes them on the way. */
export class DigestingStream implements AsyncIterable<Uint8Array> {
  readonly #chunks: AsyncIterable<Uint8Array>;
  readonly #hash = createHash("sha256");
  #size = 0;
  #stored: StoredBlob | null = null;

  constructor(chunks: AsyncIterable<Uint8Array>) {
    this.#chunks = chunks;
  }

  /** Once the stream has been read to its end. */
  get stored(): StoredBlob {
    if (this.#stored === null)
      throw new HeadstartError("HS_INTERNAL", { what: "a stream that was not read to its end" });
    return this.#stored;
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<Uint8Array> {
    for await (const chunk of this.#chunks) {
      this.#hash.update(chunk);
      this.#size += chunk.byteLength;
      yield chunk;
    }
    this.#stored = { digest: `sha256:${this.#hash.digest("hex")}` as Digest, size: this.#size };
  }
}

/** All of a verified stream in one buffer. Throws HS_LIMIT before anything is read. */
export async function collectVerified(
  chunks: AsyncIterable<Uint8Array>,
  descriptor: Pick<Descriptor, "digest" | "size">,
  what: string,
  limit: number = READ_ALL_LIMIT,
): Promise<Uint8Array> {
  checkLimit(descriptor.size, limit, what);
  const bytes = new Uint8Array(descriptor.size);
  let position = 0;
  for await (const chunk of verified(chunks, descriptor, what)) {
    bytes.set(chunk, position);
    position += chunk.byteLength;
  }
  return bytes;
}

export function checkLimit(size: number, limit: number, what: string): void {
  if (size > limit) throw new HeadstartError("HS_LIMIT", { what: `${what}: ${size} bytes, at most ${limit} are read` });
}

/** The place for [start, end) of a blob in memory. Throws HS_INTERNAL when the range or the place is not sound: a caller's fault. */
export function rangeTarget(
  start: number,
  end: number,
  size: number,
  into: Uint8Array | undefined,
  what: string,
): Uint8Array {
  if (!(Number.isSafeInteger(start) && Number.isSafeInteger(end) && start >= 0 && start <= end && end <= size)) {
    throw new HeadstartError("HS_INTERNAL", { what: `${what}: range ${start}..${end} of ${size} bytes` });
  }
  if (into === undefined) return new Uint8Array(end - start);
  if (into.byteLength < end - start) {
    throw new HeadstartError("HS_INTERNAL", { what: `${what}: ${end - start} bytes do not fit in ${into.byteLength}` });
  }
  return into.subarray(0, end - start);
}

export function sizeMismatch(got: number, want: Pick<Descriptor, "digest" | "size">, what: string): HeadstartError {
  const words = got > want.size ? "more" : `only ${got}`;
  return new HeadstartError("HS_SIZE_MISMATCH", {
    what: `${what}: ${want.digest} has ${want.size} bytes, got ${words}`,
    got,
    want: want.size,
  });
}

export function digestMismatch(got: string, want: Digest, what: string): HeadstartError {
  return new HeadstartError("HS_DIGEST_MISMATCH", { what: `${what}: want ${want}, got ${got}`, got, want });
}
