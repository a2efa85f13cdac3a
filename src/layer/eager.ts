/**
 * Eager pulls: a whole blob, streamed into a layer file in one pass. The network is read here, everything heavy is done in a thread (eager-unpack.ts); in between is a ring of
 * bounded size (byte-ring.ts). A stream that breaks is asked for again from where it stood.
 */

import type { Clock } from "../base/clock.ts";
import { HeadstartError, kindOf } from "../base/errors.ts";
import { publish } from "../base/events.ts";
import { MiB } from "../base/limits.ts";
import { ByteRing } from "./byte-ring.ts";
import type { Unpacked, UnpackRequest } from "./eager-unpack.ts";
import type { BlobStream } from "./interfaces.ts";
import type { LayerWorkers } from "./jobs.ts";

/** Compressed bytes between network and thread: some tens of milliseconds of a fast link. */
const RING_BYTES = 4 * MiB;
/** Breaks without one byte of progress between them before a pull is given up. */
const BREAKS_MAX = 6;
const PAUSE_MS_FIRST = 500;
const PAUSE_MS_MAX = 15_000;

export interface PullOptions {
  readonly workers: LayerWorkers;
  readonly clock: Clock;
  readonly signal: AbortSignal;
  readonly onProgress?: ((storedBytes: number) => void) | undefined;
}

/**
 * Makes the layer file. Throws HS_DIGEST_MISMATCH, HS_SIZE_MISMATCH, HS_DIFFID_MISMATCH, HS_LAYER_REFUSED, HS_EROFS_LIMIT, HS_LIMIT, HS_DISK_FULL, HS_REGISTRY_*, or the signal's
 * reason; what the file holds is then worth nothing, and no thread uses it any more.
 */
export async function pullEager(request: UnpackRequest, blob: BlobStream, options: PullOptions): Promise<Unpacked> {
  const { workers, signal } = options;
  const ring = new ByteRing(RING_BYTES);
  // whichever side fails ends the other, and its error is the one that counts
  const stop = new AbortController();
  let networkError: unknown;
  let feeding: Promise<void> = Promise.resolve();
  const begin = () => {
    feeding = feed(ring, blob, { ...options, signal: AbortSignal.any([signal, stop.signal]) }).catch((error) => {
      if (!stop.signal.aborted) networkError = error;
      ring.cancel();
    });
  };
  try {
    return await workers.run({ t: "unpack", ring: ring.buffer, request }, { signal, begin });
  } catch (error) {
    signal.throwIfAborted();
    throw networkError ?? error;
  } finally {
    stop.abort();
    await feeding;
  }
}

/** Reads the blob into the ring, over breaks. Returns early when the thread gave up. */
async function feed(ring: ByteRing, blob: BlobStream, options: PullOptions): Promise<void> {
  const { signal } = options;
  let offset = 0;
  let breaks = 0;
  let pauseMs = PAUSE_MS_FIRST;
  while (offset < blob.size) {
    const startedAt = offset;
    try {
      for await (const chunk of blob.stream(offset, { signal })) {
        if (offset + chunk.byteLength > blob.size)
          throw new HeadstartError("HS_SIZE_MISMATCH", {
            what: `blob ${blob.digest}: more than its ${blob.size} bytes`,
          });
        if (!(await ring.write(chunk))) return;
        offset += chunk.byteLength;
        options.onProgress?.(offset);
      }
      if (offset === blob.size) break;
      throw new HeadstartError("HS_SIZE_MISMATCH", {
        what: `blob ${blob.digest}: ${offset} of its ${blob.size} bytes`,
      });
    } catch (error) {
      signal.throwIfAborted();
      if (offset > startedAt) {
        breaks = 0;
        pauseMs = PAUSE_MS_FIRST;
      }
      if (!mayPass(error) || ++breaks >= BREAKS_MAX) throw error;
      publish("layer:pull-broken", { digest: blob.digest, offset, pauseMs, error });
      await options.clock.sleep(pauseMs, signal);
      pauseMs = Math.min(PAUSE_MS_MAX, pauseMs * 2);
    }
  }
  ring.end();
}

/** A break that a new request may mend. */
function mayPass(error: unknown): boolean {
  switch (kindOf(error)) {
    case "denied":
    case "not-found":
    case "invalid":
    case "exhausted":
    case "unsupported":
      return false;
    default:
      return true;
  }
}
