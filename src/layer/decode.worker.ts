/** Entry of a decoder thread: every format of formats/all.ts. */

import { parentPort } from "node:worker_threads";
import { decoderFor } from "../formats/all.ts";
import { serveDecodes } from "./decode-unit.ts";

serveDecodes(parentPort!, decoderFor);
