/** kernelLines in a thread of its own: a read of a lazy tree waits for a registry that may be in this process. */

import { parentPort, workerData } from "node:worker_threads";
import { kernelLines } from "./kernel-lines.ts";

const { root, unpackedNs } = workerData as { root: string; unpackedNs: bigint };
parentPort!.postMessage(kernelLines(root, unpackedNs));
