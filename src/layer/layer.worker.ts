/** Entry of a thread for whatever is heavy about whole layers (jobs.ts), one job after the other. */

import { parentPort } from "node:worker_threads";
import { HeadstartError } from "../base/errors.ts";
import { collectIfGrown } from "../base/heap.ts";
import { workerAnswer, workerReady } from "../base/worker-pool.ts";
import { FORMATS } from "../formats/all.ts";
import { readBootstrap } from "../formats/nydus/bootstrap.ts";
import { mergedNydus } from "../formats/nydus/merged.ts";
import { ByteRing } from "./byte-ring.ts";
import { unpackLayer } from "./eager-unpack.ts";
import type { JobResults, LayerJob } from "./jobs.ts";
import { type OpenLazy, prepareAgain, prepareNew } from "./prepare.ts";
import { dataKeys, makeData, makeImage, openData } from "./prepare-data.ts";
import { checkWhole } from "./seal.ts";

const port = parentPort!;

port.on("message", (job: LayerJob) => {
  void workerAnswer(() => run(job)).then((message) => {
    port.postMessage(message);
    // the tree of a large layer is tens of MiB: the next job shall not come on top of it
    setImmediate(collectIfGrown);
  });
});
workerReady(port);

const openLazy: OpenLazy = (name, input) => {
  const format = FORMATS.find((candidate) => candidate.name === name);
  if (format === undefined) throw new HeadstartError("HS_FORMAT_UNSUPPORTED", { what: `layer format ${name}` });
  return format.openLayer(input);
};

async function run(job: LayerJob): Promise<JobResults[keyof JobResults]> {
  switch (job.t) {
    case "unpack": {
      const ring = new ByteRing(job.ring);
      try {
        return await unpackLayer(job.request, ring.read());
      } finally {
        // nobody shall wait for room that is never made
        ring.cancel();
      }
    }
    case "prepare":
      return await prepareNew(job.request, openLazy);
    case "prepare-again":
      return await prepareAgain(job.request, openLazy);
    case "seal":
      return await checkWhole(job.request);
    case "data-keys":
      return dataKeys(job.tables);
    case "make-data":
      return await makeData(job.request);
    case "open-data":
      return await openData(job.request);
    case "make-image":
      return await makeImage(job.request);
    case "read-bootstrap":
      return readBootstrap(job.bytes, job.what);
    case "merge-nydus":
      return mergedNydus(job.bootstrap, job.infos, job.sizes, job.what);
    default:
      throw job satisfies never;
  }
}
