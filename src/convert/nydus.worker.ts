/** Entry of a thread that converts layers, one after the other (nydus-threads.ts). */

import { parentPort } from "node:worker_threads";
import { workerAnswer, workerReady } from "../base/worker-pool.ts";
import { ChunkDictionary } from "../formats/nydus/write/dictionary.ts";
import { buildNativeLayer, type NydusLayer } from "../formats/nydus/write/native.ts";
import { buildRefLayer } from "../formats/nydus/write/ref.ts";
import { ByteRing } from "../layer/byte-ring.ts";
import { type NydusJob, ringSink } from "./nydus-threads.ts";

const port = parentPort!;

port.on("message", (job: NydusJob) => {
  void workerAnswer(() => build(job)).then((message) => port.postMessage(message));
});
workerReady(port);

async function build(job: NydusJob): Promise<NydusLayer> {
  const stored = new ByteRing(job.stored);
  const blob = new ByteRing(job.blob);
  const { layer, role, options } = job;
  const input = { bytes: stored.read(), layer, role, options, sink: ringSink(blob) };
  try {
    const made =
      job.t === "native"
        ? await buildNativeLayer({
            ...input,
            dictionary: job.dictionary === null ? null : new ChunkDictionary(job.dictionary),
          })
        : await buildRefLayer(input);
    blob.end();
    return made;
  } finally {
    // nobody shall wait for room that is never made, or for bytes that never come
    stored.cancel();
  }
}
