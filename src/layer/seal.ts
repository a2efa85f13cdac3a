/**
 * The check of one filled layer as a whole, before it is sealed. The stream is put together again: it must hash to the diffID, and what it says as a tar must be the tree that is mounted. So an
 * index cannot lie past this point, neither about content nor about names and attributes. Reads and hashes everything once more: for a thread.
 */

import { createHash } from "node:crypto";
import { digestAlgorithm, digestHex } from "../base/digest.ts";
import { HeadstartError } from "../base/errors.ts";
import type { Placement } from "../erofs/placement.ts";
import type { LayerIdentity, LayerRole } from "../formats/format.ts";
import { LayerTreeBuilder } from "../formats/tar/apply.ts";
import { TarReader } from "../formats/tar/records.ts";
import type { RestMap } from "./rest.ts";
import { streamBack } from "./stream-back.ts";
import { readTree, sameTree } from "./tree-file.ts";

export interface SealRequest {
  readonly imageFd: number;
  readonly restFd: number;
  readonly placement: Placement;
  readonly rest: RestMap;
  readonly streamLength: number;
  readonly identity: LayerIdentity;
  readonly role: LayerRole;
  /** The tree that the index gave, and that is mounted (tree-file.ts). */
  readonly treePath: string;
}

/** Behind the end of an archive tar writers pad to their record size (GNU: 10 KiB; `-b` up to 1 MiB); an index need not count that. */
const PADDING_BYTES_MAX = 1024 * 1024;

/** Throws HS_DIFFID_MISMATCH, HS_INDEX_MISMATCH, HS_LAYER_REFUSED. */
export async function checkWhole(request: SealRequest): Promise<{ t: "sealed" }> {
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
  return { t: "sealed" };
}
