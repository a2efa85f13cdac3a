/** Thread entry: compares two trees and says the result. */

import { parentPort, workerData } from "node:worker_threads";
import type { CompareSettings } from "./compare.ts";
import { walkTrees } from "./compare-walk.ts";

const { left, right, settings } = workerData as { left: string; right: string; settings: CompareSettings };
parentPort!.postMessage(walkTrees(left, right, settings));
