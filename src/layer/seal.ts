/** Checks a filled layer as a whole, in a thread of its own: it reads and hashes everything once more. */

import { Worker } from "node:worker_threads";
import { type ErrorCode, HeadstartError } from "../base/errors.ts";
import type { Placement } from "../erofs/placement.ts";
import type { LayerIdentity, LayerRole } from "../formats/format.ts";
import type { RestMap } from "./rest.ts";

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

export type SealAnswer =
  | { readonly t: "sealed" }
  | { readonly t: "failed"; readonly code: ErrorCode; readonly what: string };

/** Resolves when the layer file is what the diffID says. Throws HS_DIFFID_MISMATCH, HS_INDEX_MISMATCH, HS_LAYER_REFUSED, or the signal's reason. */
export function checkWhole(request: SealRequest, options: { what: string; signal: AbortSignal }): Promise<void> {
  const { what, signal } = options;
  return new Promise((resolve, reject) => {
    signal.throwIfAborted();
    const worker = new Worker(new URL("./seal.worker.ts", import.meta.url), {
      name: "headstart-seal",
      workerData: request,
    });
    let ended = false;
    // the thread must be gone before its descriptors may be closed, so every way out waits for its end
    const end = (finish: () => void) => {
      if (ended) return;
      ended = true;
      signal.removeEventListener("abort", onAbort);
      void worker.terminate().then(finish, finish);
    };
    const onAbort = () => end(() => reject(signal.reason));
    signal.addEventListener("abort", onAbort, { once: true });
    worker.on("message", (answer: SealAnswer) => {
      if (answer.t === "sealed") end(resolve);
      else end(() => reject(new HeadstartError(answer.code, { what: `${what}: ${answer.what}` })));
    });
    worker.on("error", (cause) =>
      end(() => reject(new HeadstartError("HS_INTERNAL", { what: `${what}: seal`, cause }))),
    );
    worker.on("exit", () =>
      end(() => reject(new HeadstartError("HS_INTERNAL", { what: `${what}: seal ended early` }))),
    );
  });
}
