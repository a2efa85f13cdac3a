/** Entry of a thread that stages and places layers (workers.ts), one job after the other. */

import { parentPort } from "node:worker_threads";
import { describeError, HeadstartError, kindOf } from "../base/errors.ts";
import { placeLayer } from "./place.ts";
import { stageLayer } from "./stage.ts";
import type { VolumeAnswer, VolumeJob, VolumeResults } from "./workers.ts";

const port = parentPort!;

port.on("message", (job: VolumeJob) => port.postMessage(answer(job)));

function answer(job: VolumeJob): VolumeAnswer {
  try {
    return { t: "done", result: run(job) };
  } catch (error) {
    const what = describeError(error);
    // whoever makes an error of this again puts the code in front
    if (error instanceof HeadstartError)
      return { t: "failed", code: error.code, what: what.replace(`[${error.code}] `, "") };
    if (kindOf(error) === "exhausted") return { t: "failed", code: "HS_DISK_FULL", what };
    const fromKernel = error instanceof Error && "errno" in error;
    return { t: "failed", code: fromKernel ? "HS_SYSCALL" : "HS_INTERNAL", what };
  }
}

function run(job: VolumeJob): VolumeResults[VolumeJob["t"]] {
  switch (job.t) {
    case "stage":
      return stageLayer(job.request);
    case "place":
      placeLayer(job.request);
      return null;
    default:
      throw job satisfies never;
  }
}
