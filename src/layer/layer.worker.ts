/** Entry of a thread for whatever is heavy about whole layers (jobs.ts), one job after the other. */

import { parentPort } from "node:worker_threads";
import { describeError, HeadstartError, kindOf } from "../base/errors.ts";
import { FORMATS } from "../formats/all.ts";
import { ByteRing } from "./byte-ring.ts";
import { unpackLayer } from "./eager-unpack.ts";
import type { JobAnswer, JobResults, LayerJob } from "./jobs.ts";
import { type OpenLazy, prepareAgain, prepareNew } from "./prepare.ts";
import { checkWhole } from "./seal.ts";

const port = parentPort!;

port.on("message", (job: LayerJob) => {
  void answer(job).then((message) => port.postMessage(message));
});

const openLazy: OpenLazy = (name, input) => {
  const format = FORMATS.find((candidate) => candidate.name === name);
  if (format === undefined) throw new HeadstartError("HS_FORMAT_UNSUPPORTED", { what: `layer format ${name}` });
  return format.openLayer(input);
};

async function answer(job: LayerJob): Promise<JobAnswer> {
  try {
    return { t: "done", result: await run(job) };
  } catch (error) {
    const what = describeError(error);
    if (error instanceof HeadstartError) {
      // whoever makes an error of this again puts the code in front
      return { t: "failed", code: error.code, what: what.replace(`[${error.code}] `, ""), details: plain(error) };
    }
    return { t: "failed", code: kindOf(error) === "exhausted" ? "HS_DISK_FULL" : "HS_INTERNAL", what, details: {} };
  }
}

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
    default:
      throw job satisfies never;
  }
}

/** Details that survive a message: strings and numbers. */
function plain(error: HeadstartError): Record<string, unknown> {
  const kept = Object.entries(error.details).filter(
    ([field, value]) => field !== "what" && (typeof value === "string" || typeof value === "number"),
  );
  return Object.fromEntries(kept);
}
