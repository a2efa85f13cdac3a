/**
 * Entry of the thread that checks one filled layer as a whole: the stream is put together again and must hash to the diffID. Then everything that stays is synced. An
 * index cannot lie past this point: not about content (the diffID), and not about names and attributes (`compareTree`).
 */

import { createHash } from "node:crypto";
import { fsyncSync } from "node:fs";
import { parentPort, workerData } from "node:worker_threads";
import { digestAlgorithm, digestHex } from "../base/digest.ts";
import { describeError, HeadstartError, kindOf } from "../base/errors.ts";
import { failpoint } from "../base/failpoint.ts";
import type { SealAnswer, SealRequest } from "./seal.ts";
import { streamBack } from "./stream-back.ts";

/** Behind the end of an archive tar writers pad to their record size (GNU: 10 KiB; `-b` up to 1 MiB); an index need not count that. */
const PADDING_BYTES_MAX = 1024 * 1024;

function seal(request: SealRequest): void {
  const { diffID } = request;
  const hash = createHash(digestAlgorithm(diffID));
  streamBack(request, (bytes) => {
    hash.update(bytes);
  });
  const zeros = new Uint8Array(512);
  let padding = 0;
  let got = hash.copy().digest("hex");
  const first = got;
  while (got !== digestHex(diffID) && padding < PADDING_BYTES_MAX) {
    padding += zeros.byteLength;
    got = hash.update(zeros).copy().digest("hex");
  }
  if (got !== digestHex(diffID)) {
    const what = `the filled layer's stream of ${request.streamLength} bytes hashes to ${first}, its diffID is ${diffID}`;
    throw new HeadstartError("HS_DIFFID_MISMATCH", { what });
  }
  failpoint("layer:seal-fsync");
  fsyncSync(request.imageFd);
}

let answer: SealAnswer;
try {
  seal(workerData as SealRequest);
  answer = { t: "sealed" };
} catch (error) {
  const what = describeError(error);
  answer =
    error instanceof HeadstartError
      ? { t: "failed", code: error.code, what }
      : { t: "failed", code: kindOf(error) === "exhausted" ? "HS_DISK_FULL" : "HS_INTERNAL", what };
}
parentPort!.postMessage(answer);
