/** Entry of a thread that unpacks layers, one after the other. */

import { parentPort } from "node:worker_threads";
import { describeError, HeadstartError, kindOf } from "../base/errors.ts";
import { ByteRing } from "./byte-ring.ts";
import type { FromEager, ToEager } from "./eager.ts";
import { unpackLayer } from "./eager-unpack.ts";

const port = parentPort!;

port.on("message", (message: ToEager) => {
  void unpack(message).then((answer) => port.postMessage(answer));
});

async function unpack(message: ToEager): Promise<FromEager> {
  const ring = new ByteRing(message.ring);
  try {
    return { t: "done", unpacked: await unpackLayer(message.request, ring.read()) };
  } catch (error) {
    // nobody shall wait for room that is never made
    ring.cancel();
    const what = describeError(error);
    if (error instanceof HeadstartError) return { t: "failed", code: error.code, what, details: plain(error) };
    return { t: "failed", code: kindOf(error) === "exhausted" ? "HS_DISK_FULL" : "HS_INTERNAL", what, details: {} };
  }
}

/** Details that survive a message: strings and numbers. */
function plain(error: HeadstartError): Record<string, unknown> {
  const kept = Object.entries(error.details).filter(
    ([field, value]) => field !== "what" && (typeof value === "string" || typeof value === "number"),
  );
  return Object.fromEntries(kept);
}
