/** The thread behind tables.ts: opens one table after the other. */

import { parentPort } from "node:worker_threads";
import { describeError, HeadstartError } from "../base/errors.ts";
import { FORMATS } from "../formats/all.ts";
import type { LazyLayer } from "../formats/format.ts";
import type { FromTables, TableInput, ToTables } from "./tables.ts";

const port = parentPort!;

port.on("message", ({ id, input }: ToTables) => {
  let answer: FromTables;
  try {
    answer = { id, t: "opened", lazy: open(input) };
  } catch (error) {
    answer =
      error instanceof HeadstartError
        ? { id, t: "failed", code: error.code, what: error.details.what }
        : { id, t: "failed", code: "HS_INTERNAL", what: describeError(error) };
  }
  port.postMessage(answer);
});

function open(input: TableInput): LazyLayer {
  const format = FORMATS.find((candidate) => candidate.name === input.format);
  if (format === undefined) throw new HeadstartError("HS_FORMAT_UNSUPPORTED", { what: `layer format ${input.format}` });
  return format.openLayer(input);
}
