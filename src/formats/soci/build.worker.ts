/** Entry of the threads that index a layer: build-protocol.ts says what they do. */

import { type MessagePort, parentPort, workerData } from "node:worker_threads";
import { HeadstartError } from "../../base/errors.ts";
import { LayerHasher } from "./build-hash.ts";
import { LayerIndexer, NotIndexable } from "./build-index.ts";
import {
  type BackToFront,
  type BuildRings,
  type BuildWorkerData,
  type Cut,
  DECODED_BUFFER_SIZE,
  DECODED_BUFFERS,
  type FrontToBack,
  STORED_SLOT_SIZE,
  type ToFront,
  type ToMain,
} from "./build-protocol.ts";

const { role, rings, port } = workerData as BuildWorkerData;
const main = parentPort!;
if (role === "front") serveFront(main, port, rings);
else serveBack(main, port, rings);
tellMain({ t: "ready" });

function tellMain(message: ToMain, transfer: ArrayBuffer[] = []): void {
  main.postMessage(message, transfer);
}

/** Runs `work`; what it throws goes to the main thread, which ends this pair. */
function guarded(work: () => void): void {
  try {
    work();
  } catch (error) {
    if (error instanceof NotIndexable) tellMain({ t: "notIndexable", reason: error.message });
    else if (error instanceof HeadstartError) {
      const { cause: _, ...details } = error.details;
      tellMain({ t: "failed", code: error.code, details: { ...details, what: error.details.what } });
    } else
      tellMain({
        t: "failed",
        code: null,
        details: { what: error instanceof Error ? (error.stack ?? error.message) : String(error) },
      });
  }
}

function serveFront(commands: MessagePort, back: MessagePort, { stored, decoded, decodedBusy }: BuildRings): void {
  const busy = new Int32Array(decodedBusy);
  let untold: FrontToBack[] = [];
  const tell = (message: FrontToBack) => untold.push(message);
  const send = () => {
    if (untold.length > 0) back.postMessage(untold);
    untold = [];
  };
  let current = -1;
  /** The next buffer of the ring, once back has hashed what was in it. */
  const nextBuffer = () => {
    if (current >= 0) tell({ t: "release", buffer: current });
    current = (current + 1) % DECODED_BUFFERS;
    while (Atomics.load(busy, current) !== 0) {
      // it may be one of those that back has not heard of
      send();
      Atomics.wait(busy, current, 1);
    }
    Atomics.store(busy, current, 1);
    return new Uint8Array(decoded, current * DECODED_BUFFER_SIZE, DECODED_BUFFER_SIZE);
  };
  let indexer: LayerIndexer | null = null;
  let buildTool = "";
  let cuts: Cut[] = [];
  commands.on("message", (message: ToFront) =>
    guarded(() => {
      switch (message.t) {
        case "start": {
          indexer?.[Symbol.dispose]();
          if (current >= 0) tell({ t: "release", buffer: current });
          current = -1;
          cuts = [];
          buildTool = message.buildTool;
          tell({ t: "start" });
          indexer = new LayerIndexer(
            { spanSize: message.spanSize, layer: message.layer, nextBuffer },
            {
              decoded: (bytes) => {
                const start = bytes.byteOffset - current * DECODED_BUFFER_SIZE;
                tell({ t: "decoded", buffer: current, start, end: start + bytes.byteLength });
              },
              cut: (offset, previousEnd) => cuts.push({ offset, previousEnd }),
              memberEnd: (crc, length) => tell({ t: "memberEnd", crc, length }),
            },
          );
          return;
        }
        case "chunk":
          indexer!.push(new Uint8Array(stored, message.slot * STORED_SLOT_SIZE, message.length));
          tell({ t: "stored", slot: message.slot, length: message.length, cuts });
          send();
          cuts = [];
          return;
        case "end":
          indexer!.finish();
          tell({ t: "finish" });
          send();
          return;
        default:
          message satisfies never;
      }
    }),
  );
  back.on("message", ({ hashes }: BackToFront) =>
    guarded(() => {
      // the writer's buffer may be larger than what it wrote
      const ztoc = indexer!.writeZtoc(buildTool, hashes.spans).slice();
      const { toc, compression } = indexer!;
      tellMain(
        {
          t: "built",
          ztoc,
          hashes,
          compression,
          entryCount: toc.entries.length,
          uncompressedSize: toc.archiveEnd,
          hasXattrs: toc.hasXattrs,
        },
        [ztoc.buffer],
      );
      indexer![Symbol.dispose]();
      indexer = null;
    }),
  );
}

function serveBack(_commands: MessagePort, front: MessagePort, { stored, decoded, decodedBusy }: BuildRings): void {
  const busy = new Int32Array(decodedBusy);
  let hasher = new LayerHasher();
  const handle = (message: FrontToBack) => {
    switch (message.t) {
      case "start":
        hasher = new LayerHasher();
        return;
      case "stored":
        hasher.stored(new Uint8Array(stored, message.slot * STORED_SLOT_SIZE, message.length), message.cuts);
        tellMain({ t: "free", slot: message.slot });
        return;
      case "decoded": {
        const base = message.buffer * DECODED_BUFFER_SIZE;
        hasher.decoded(new Uint8Array(decoded, base + message.start, message.end - message.start));
        return;
      }
      case "release":
        Atomics.store(busy, message.buffer, 0);
        Atomics.notify(busy, message.buffer);
        return;
      case "memberEnd":
        hasher.memberEnd(message.crc, message.length);
        return;
      case "finish":
        front.postMessage({ t: "hashes", hashes: hasher.finish() } satisfies BackToFront);
        return;
      default:
        message satisfies never;
    }
  };
  front.on("message", (messages: readonly FrontToBack[]) => guarded(() => messages.forEach(handle)));
}
