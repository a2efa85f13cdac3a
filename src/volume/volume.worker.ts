/** Entry of a thread that stages, places and writes layers (workers.ts), one job after the other. */

import { parentPort } from "node:worker_threads";
import { workerAnswer, workerReady } from "../base/worker-pool.ts";
import { fillImage, hashBlocks } from "./fill.ts";
import { placeLayer } from "./place.ts";
import { stageLayer } from "./stage.ts";
import type { VolumeJob, VolumeResults } from "./workers.ts";

const port = parentPort!;

port.on("message", (job: VolumeJob) => {
  void workerAnswer(() => run(job)).then((message) => port.postMessage(message));
});
workerReady(port);

function run(job: VolumeJob): VolumeResults[VolumeJob["t"]] {
  switch (job.t) {
    case "stage":
      return stageLayer(job.request);
    case "place":
      placeLayer(job.request);
      return null;
    case "fill":
      fillImage(job.request);
      return null;
    case "hash":
      return hashBlocks(job.request);
    default:
      throw job satisfies never;
  }
}
