/** Thread entry: compares two trees and says the result. */

import { parentPort } from "node:worker_threads";
import { workerAnswer, workerReady } from "../base/worker-pool.ts";
import type { CompareJob } from "./compare.ts";
import { walkTrees } from "./compare-walk.ts";

const port = parentPort!;

port.on("message", ({ left, right, settings }: CompareJob) => {
  void workerAnswer(() => walkTrees(left, right, settings)).then((answer) => port.postMessage(answer));
});
workerReady(port);
