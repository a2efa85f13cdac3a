/**
 * Entry of the thread that checks one filled layer as a whole. The stream is put together again: it must hash to the diffID, and what it says as a tar must be the tree that
 * is mounted. So an index cannot lie past this point, neither about content nor about names and attributes.
 */

import { createHash } from "node:crypto";
import { parentPort, workerData } from "node:worker_threads";
import { digestAlgorithm, digestHex } from "../base/digest.ts";
import { describeError, HeadstartError, kindOf } from "../base/errors.ts";
import { LayerTreeBuilder } from "../formats/tar/apply.ts";
import { TarReader } from "../formats/tar/records.ts";
import type { SealAnswer, SealRequest } from "./seal.ts";
import { streamBack } from "./stream-back.ts";
import { readTree, sameTree } from "./tree-file.ts";

/** Behind the end of an archive tar writers pad to their record size (GNU: 10 KiB; `-b` up to 1 MiB); an index need not count that. */
const PADDING_BYTES_MAX = 1024 * 1024;

async function seal(request: SealRequest): Promise<void> {
  const { identity, role, treePath } = request;
  const { diffID } = identity;
  const hash = createHash(digestAlgorithm(diffID));
  const builder = new LayerTreeBuilder(role, identity.digest);
  const reader = new TarReader(
    {
      entry(entry) {
        builder.add(entry);
        return false;
      },
      data() {},
    },
    { layer: identity.digest },
  );
  streamBack(request, (bytes) => {
    hash.update(bytes);
    reader.push(bytes);
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
  reader.finish();
  if (!sameTree(builder.finish(), await readTree(treePath)))
    throw new HeadstartError("HS_INDEX_MISMATCH", { what: "the tar has other entries than its index says" });
}

let answer: SealAnswer;
try {
  await seal(workerData as SealRequest);
  answer = { t: "sealed" };
} catch (error) {
  const what = describeError(error);
  answer =
    error instanceof HeadstartError
      ? { t: "failed", code: error.code, what }
      : { t: "failed", code: kindOf(error) === "exhausted" ? "HS_DISK_FULL" : "HS_INTERNAL", what };
}
parentPort!.postMessage(answer);
