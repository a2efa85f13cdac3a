/** The stored bytes of a source layer, checked on their way: whatever is made of them is only given out when they were those that the manifest names. */

import { createHash } from "node:crypto";
import type { DiffID, Digest } from "../../../base/digest.ts";
import { digestAlgorithm } from "../../../base/digest.ts";
import { HeadstartError, isHeadstartError } from "../../../base/errors.ts";

export interface SourceLayer {
  readonly digest: Digest;
  /** Stored bytes. */
  readonly size: number;
  readonly mediaType: string;
  /** What the configuration says; checked where it is known. */
  readonly diffID?: Digest | null;
}

export interface SourceStream {
  /** The blob from its first byte; chunks of any size. */
  readonly bytes: AsyncIterable<Uint8Array>;
  readonly layer: SourceLayer;
  readonly signal?: AbortSignal | undefined;
  /** Called with the stored bytes that were taken so far. */
  readonly onProgress?: ((bytes: number) => void) | undefined;
}

/** What one push may hold at most: a thousandfold expansion of it must fit into memory. */
const PUSH_BYTES = 16 * 1024;
/** After so many stored bytes other work of the thread gets its turn: threads that compress report there. */
const TURN_BYTES = 128 * 1024;

/**
 * Hands the blob to `push` in pieces of 16 KiB (the last one shorter), each awaited. Throws HS_DIGEST_MISMATCH and HS_SIZE_MISMATCH, also where `push` refuses bytes that are not the layer's; else what `push`
 * throws.
 */
export async function readSource(
  source: SourceStream,
  push: (bytes: Uint8Array) => void | Promise<void>,
): Promise<void> {
  const { layer, signal } = source;
  const hash = createHash(digestAlgorithm(layer.digest));
  let size = 0;
  let turn = TURN_BYTES;
  let failure: unknown = null;
  // pieces end at the same places however the source came: where zlib stops within a block depends on what it was given
  let held: Uint8Array = new Uint8Array(0);
  const give = async () => {
    const piece = held;
    held = new Uint8Array(0);
    try {
      await push(piece);
    } catch (error) {
      // whether the layer is bad or its transport, only the digest of all of it can tell
      if (!isHeadstartError(error, "HS_LAYER_REFUSED")) throw error;
      failure = error;
    }
  };
  for await (const chunk of source.bytes) {
    signal?.throwIfAborted();
    size += chunk.byteLength;
    if (size > layer.size) throw sizeMismatch(layer, `more than ${layer.size} bytes`);
    hash.update(chunk);
    for (let at = 0; at < chunk.byteLength && failure === null; ) {
      const take = Math.min(PUSH_BYTES - held.byteLength, chunk.byteLength - at);
      const piece = chunk.subarray(at, at + take);
      at += take;
      held = held.byteLength === 0 ? piece : Buffer.concat([held, piece]);
      if (held.byteLength < PUSH_BYTES) {
        held = Uint8Array.from(held);
        continue;
      }
      await give();
      turn -= PUSH_BYTES;
      if (turn > 0) continue;
      turn = TURN_BYTES;
      await new Promise((resolve) => setImmediate(resolve));
    }
    source.onProgress?.(size);
  }
  if (held.byteLength > 0 && failure === null) await give();
  const cause = failure === null ? {} : { cause: failure };
  if (size !== layer.size) throw sizeMismatch(layer, `${size} bytes instead of ${layer.size}`, cause);
  const got = `${digestAlgorithm(layer.digest)}:${hash.digest("hex")}`;
  if (got !== layer.digest) {
    throw new HeadstartError("HS_DIGEST_MISMATCH", {
      what: `layer ${layer.digest}: got ${got}`,
      got,
      want: layer.digest,
      ...cause,
    });
  }
  if (failure !== null) throw failure;
}

/** Throws HS_DIFFID_MISMATCH. */
export function checkDiffID({ digest, diffID }: SourceLayer, got: DiffID): void {
  if (!diffID || diffID === got) return;
  throw new HeadstartError("HS_DIFFID_MISMATCH", {
    what: `layer ${digest}: its tar has ${got}, the configuration names ${diffID}`,
    got,
    want: diffID,
  });
}

function sizeMismatch(layer: SourceLayer, message: string, cause: { cause?: unknown } = {}): HeadstartError {
  return new HeadstartError("HS_SIZE_MISMATCH", { what: `layer ${layer.digest}: ${message}`, ...cause });
}
