/**
 * Conversion of layers in threads of their own (nydus.worker.ts): a layer costs as much CPU as its inflation, its digests and its compression, and the thread that speaks to
 * registries has none to spare. Stored bytes go in, blob bytes come out, each by a ring of bounded size.
 *
 *   source -> [ring] -> thread: build -> [ring] -> sink
 */

import { HeadstartError } from "../base/errors.ts";
import { MiB } from "../base/limits.ts";
import { WorkerPool } from "../base/worker-pool.ts";
import type { LayerRole } from "../formats/format.ts";
import type { BlobSink } from "../formats/nydus/write/container.ts";
import type { ImageBlob } from "../formats/nydus/write/model.ts";
import { buildNativeLayer, type NativeLayerInput, type NydusLayer } from "../formats/nydus/write/native.ts";
import type { NydusOptions } from "../formats/nydus/write/options.ts";
import { buildRefLayer, type RefLayerInput } from "../formats/nydus/write/ref.ts";
import type { SourceLayer, SourceStream } from "../formats/nydus/write/source.ts";
import { ByteRing } from "../layer/byte-ring.ts";

export interface NydusJob {
  readonly t: "native" | "ref";
  readonly stored: SharedArrayBuffer;
  readonly blob: SharedArrayBuffer;
  readonly layer: SourceLayer;
  readonly role: LayerRole;
  readonly options: NydusOptions;
  /** Blobs of the chunk dictionary. */
  readonly dictionary: readonly ImageBlob[] | null;
}

/** Some chunks of each: neither side waits for the other's every step. */
const RING_BYTES = 4 * MiB;
/** Stored bytes of a layer up to which it is converted here: a thread costs more to start. */
const SMALL_BYTES = 2 * MiB;
/** Threads are kept for the next layer of the image. */
const IDLE_MAX = 4;
const IDLE_MS = 1000;

export class NydusThreads implements AsyncDisposable {
  readonly #pool = new WorkerPool<NydusJob>({
    entry: new URL("./nydus.worker.ts", import.meta.url),
    options: { name: "headstart-nydus" },
    idleMax: IDLE_MAX,
    idleMs: IDLE_MS,
  });

  /** As `buildNativeLayer`. */
  async native(input: NativeLayerInput): Promise<NydusLayer> {
    if (input.layer.size <= SMALL_BYTES) return await buildNativeLayer(input);
    const { layer, role, options, dictionary } = input;
    const blobs = dictionary?.blobs ?? null;
    const made = await this.#run(input, input.sink, { t: "native", layer, role, options, dictionary: blobs });
    const known = new Map(blobs?.map((blob) => [blob.facts.id, blob]));
    // the blobs themselves, not the copies that crossed
    const used = made.layer.dictionary.map(({ facts }) => known.get(facts.id)!);
    return { ...made, layer: { ...made.layer, dictionary: used } };
  }

  /** As `buildRefLayer`. */
  async ref(input: Omit<RefLayerInput, "options"> & { readonly options: NydusOptions }): Promise<NydusLayer> {
    if (input.layer.size <= SMALL_BYTES) return await buildRefLayer(input);
    const { layer, role, options } = input;
    return await this.#run(input, input.sink, { t: "ref", layer, role, options, dictionary: null });
  }

  /** Jobs that run end with an error. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.#pool[Symbol.asyncDispose]();
  }

  async #run(source: SourceStream, sink: BlobSink, job: Omit<NydusJob, "stored" | "blob">): Promise<NydusLayer> {
    const stored = new ByteRing(RING_BYTES);
    const blob = new ByteRing(RING_BYTES);
    let failure: { readonly error: unknown } | null = null;
    // what happened first is told; that the rings were given up is only what followed from it
    const fail = (error: unknown) => {
      failure ??= { error };
      stored.cancel();
      blob.cancel();
    };
    // the thread ends its work itself: it has native memory to give back
    const { signal } = source;
    const onAbort = () => fail(signal!.reason);
    signal?.throwIfAborted();
    signal?.addEventListener("abort", onAbort, { once: true });
    const feeding = feed(stored, source).catch(fail);
    const draining = drain(blob, sink).catch(fail);
    try {
      const request = { ...job, stored: stored.buffer, blob: blob.buffer };
      const made = (await this.#pool.run(request)) as NydusLayer;
      await draining;
      if (failure === null) return made;
    } catch (error) {
      fail(error);
    } finally {
      signal?.removeEventListener("abort", onAbort);
    }
    await Promise.all([feeding, draining]);
    throw failure!.error;
  }
}

async function feed(ring: ByteRing, { bytes, signal, onProgress }: SourceStream): Promise<void> {
  let total = 0;
  for await (const chunk of bytes) {
    signal?.throwIfAborted();
    // the thread has given up, and tells why
    if (!(await ring.write(chunk))) return;
    total += chunk.byteLength;
    onProgress?.(total);
  }
  ring.end();
}

async function drain(ring: ByteRing, sink: BlobSink): Promise<void> {
  for await (const bytes of ring.read()) await sink(Uint8Array.from(bytes));
}

/** In the thread: the sink of the blob's ring. */
export function ringSink(ring: ByteRing): BlobSink {
  return async (bytes) => {
    if (!(await ring.write(bytes)))
      throw new HeadstartError("HS_CANCELED", { what: "the blob is not wanted any more" });
  };
}
