/**
 * A FUSE reader thread: blocking read(2) of /dev/fuse, one request at a time. Metadata requests and READs of filled ranges are answered here, without any other
 * thread; a READ of a hole goes with its journal slot to the main thread, and this one is back in read(2) at once. Its event loop never turns: it learns of new
 * files by `receiveMessageOnPort` when it meets an unknown name or node id. It ends when the device closes or when it meets the stop name: a
 * thread that is blocked in read(2) cannot be ended in any other way.
 *
 * Invariant: this thread never touches a path under our own mounts, and waits for nothing but the kernel and a free journal slot.
 */

import { readSync } from "node:fs";
import { parentPort, receiveMessageOnPort, workerData } from "node:worker_threads";
import { failpoint } from "../base/failpoint.ts";
import { readFully } from "../base/files.ts";
import { initReply, negotiate, saveNegotiated } from "./connection.ts";
import { FileTable, type SharedFile } from "./file-table.ts";
import { Journal } from "./journal.ts";
import { answer, lookupName, readNodeid } from "./namespace.ts";
import { Errno, IN_HEADER, Opcode, OUT_HEADER, READ_BYTES_MAX, READ_IN, REQUEST_BYTES_MAX } from "./ondisk.ts";
import { ReaderCounter, type ReaderData, type ReaderMessage } from "./reader-contract.ts";
import { replyBuffer, type Sent, sendReply } from "./reply.ts";

const data = workerData as ReaderData;
const journal = new Journal(data.journalPath, data.taken);
const table = new FileTable();
const counters = new Float64Array(data.counters);
/** In the journal: what read(2) puts here outlives this process. */
const request = journal.landing(data.index);
const view = new DataView(request.buffer, request.byteOffset, request.byteLength);
const reply = replyBuffer(READ_BYTES_MAX);
const replyBody = reply.subarray(OUT_HEADER.size);
const OFFSET = IN_HEADER.size + READ_IN.offsets.offset;
const SIZE = IN_HEADER.size + READ_IN.offsets.size;

run();

function run(): void {
  for (;;) {
    const length = nextRequest();
    if (length < 0) {
      post({ kind: "closed" });
      return;
    }
    failpoint("fuse:read");
    let outcome: Sent | "handed" | "stop";
    try {
      outcome = serve(length);
    } catch (error) {
      // a fault of ours must not take the thread, and with it every mount: this request fails, the next is served
      post({ kind: "trouble", error: error instanceof Error ? error : new Error(String(error)) });
      outcome = sendReply(data.fd, request, reply, Errno.EIO, 0);
    }
    failpoint("fuse:served");
    journal.clearLanding(data.index);
    if (outcome === "closed") post({ kind: "closed" });
    if (outcome === "stop" || outcome === "closed") return;
  }
}

/** Bytes of the next request in `request`; -1 when there will be none. */
function nextRequest(): number {
  for (;;) {
    try {
      const length = readSync(data.fd, request, 0, REQUEST_BYTES_MAX, null);
      if (length >= IN_HEADER.size) return length;
      if (length === 0) return -1;
    } catch (error) {
      const code = (error as NodeJS.ErrnoException).code;
      // ENOENT: interrupted before we had it
      if (code === "EINTR" || code === "EAGAIN" || code === "ENOENT") continue;
      if (code === "ENODEV" || code === "ECONNABORTED" || code === "ENOTCONN") return -1;
      throw error;
    }
  }
}

function serve(length: number): Sent | "handed" | "stop" {
  const opcode = view.getUint32(IN_HEADER.offsets.opcode, true);
  if (opcode === Opcode.read && length >= IN_HEADER.size + READ_IN.size) return serveRead();
  counters[ReaderCounter.others]!++;
  const whole = request.subarray(0, length);
  if (opcode === Opcode.init) return serveInit(whole.subarray(IN_HEADER.size));
  if (opcode === Opcode.lookup && lookupName(whole) === data.stopName) {
    sendReply(data.fd, request, reply, Errno.ENOENT, 0);
    return "stop";
  }
  refresh();
  const answered = answer(whole, table);
  if (answered === null) return "gone";
  replyBody.set(answered.body);
  return sendReply(data.fd, request, reply, answered.error, answered.body.byteLength);
}

function serveInit(body: Uint8Array): Sent {
  const negotiated = negotiate(body);
  if (negotiated !== null) {
    saveNegotiated(data.connectionPath, negotiated);
    post({ kind: "init", negotiated });
  }
  const out = initReply(negotiated);
  replyBody.set(out);
  return sendReply(data.fd, request, reply, 0, out.byteLength);
}

function serveRead(): Sent | "handed" {
  const nodeid = readNodeid(view);
  let file = table.byNodeid(nodeid);
  if (file === undefined) {
    refresh();
    file = table.byNodeid(nodeid);
    // not yet opened again after a restart: the main thread waits for it
    if (file === undefined) return handOver();
  }
  const offset = view.getUint32(OFFSET + 4, true) * 2 ** 32 + view.getUint32(OFFSET, true);
  const size = Math.max(0, Math.min(view.getUint32(SIZE, true), file.size - offset));
  if (size > READ_BYTES_MAX) return sendReply(data.fd, request, reply, Errno.EINVAL, 0);
  if (!file.fillMap.hasAll(Math.floor(offset / 4096), Math.ceil((offset + size) / 4096))) return handOver();
  if (!file.enter()) return sendReply(data.fd, request, reply, Errno.ESTALE, 0);
  let got: number;
  try {
    got = readFully(file.fd, replyBody.subarray(0, size), offset);
  } finally {
    file.leave();
  }
  // a file shorter than its size must not become zeros
  if (got !== size) return sendReply(data.fd, request, reply, Errno.EIO, 0);
  counters[ReaderCounter.reads]!++;
  counters[ReaderCounter.readBytes]! += size;
  return sendReply(data.fd, request, reply, 0, size);
}

function handOver(): "handed" {
  const copy = request.slice(0, IN_HEADER.size + READ_IN.size);
  const slot = journal.claim();
  journal.store(slot, copy);
  failpoint("fuse:stored");
  post({ kind: "fault", slot, request: copy });
  return "handed";
}

/** Takes the files that came since. */
function refresh(): void {
  for (let next = receiveMessageOnPort(data.files); next !== undefined; next = receiveMessageOnPort(data.files)) {
    table.add(next.message as SharedFile);
  }
}

function post(message: ReaderMessage): void {
  parentPort!.postMessage(message);
}
