/**
 * The hole server: all virtual files of the one FUSE mount. Reader threads answer what is there; this thread takes the faults that they hand over, asks
 * the file to `ensure` the range, then does one pread and one write itself and clears the journal slot.
 *
 *   open -> (addFile ...) -> start -> addFile / removeFile / store ... -> dispose
 *
 * Invariants: no byte is sent whose fill bit is not set, whatever `ensure` says. Every request that was read is answered by us or, if this process dies or
 * is disposed of first, stays in the journal for its successor. Nothing here touches a path under the mount with a blocking call.
 */

import { write } from "node:fs";
import { stat } from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";
import { type Clock, systemClock } from "../base/clock.ts";
import { HeadstartError } from "../base/errors.ts";
import { publish } from "../base/events.ts";
import { failpoint } from "../base/failpoint.ts";
import { readFully } from "../base/files.ts";
import type { Range } from "../base/ranges.ts";
import { type ConnectionState, canResend, initReply, loadConnection, negotiate, saveNegotiated } from "./connection.ts";
import { errnoOf } from "./errno.ts";
import { FileTable, type HoleFile, type SharedFile, type TableFile } from "./file-table.ts";
import { Journal, type JournalEntry } from "./journal.ts";
import { answer, readNodeid } from "./namespace.ts";
import { fillStore, invalEntry, resend, STORE_ROOM } from "./notify.ts";
import { IN_HEADER, Opcode, OUT_HEADER, READ_BYTES_MAX, READ_IN, ROOT_NODEID } from "./ondisk.ts";
import { ReaderCounter, type ReaderMessage } from "./reader-contract.ts";
import { Readers } from "./readers.ts";
import { replyBuffer, type Sent, sendReply, writeOnce } from "./reply.ts";

export type { HoleFile } from "./file-table.ts";

export interface HoleServerOptions {
  /** The descriptor of /dev/fuse, inherited from the supervisor. */
  readonly fd: number;
  /** On tmpfs: the mount is `<stateDirectory>/fuse`; our journal and connection file lie beside it. */
  readonly stateDirectory: string;
  /** Blocking reader threads; more than 2 do not help on 2 cores (specs/erofs-fuse.md 11.3). */
  readonly readers?: number;
  /** After this a READ is answered EIO: a process in D state cannot be stopped by containerd in time. */
  readonly faultDeadlineMs?: number;
  /** False: trust the journal alone, as on kernels before 6.9. */
  readonly resend?: boolean;
  readonly clock?: Clock;
  /** A READ waits for a file that was not added (yet); called once for each such READ. */
  readonly onUnknownFile?: (nodeid: number) => void;
}

export interface HoleStatistics {
  readonly state: ConnectionState["t"];
  readonly files: number;
  /** READs that readers answered by themselves, and their bytes. */
  readonly reads: number;
  readonly readBytes: number;
  /** Requests of other kinds. */
  readonly otherRequests: number;
  /** READs of holes. */
  readonly faults: number;
  readonly faultsPending: number;
  readonly faultsFailed: number;
  /** What was done at start for the predecessor's requests. */
  readonly recovery: "none" | "resent" | "replayed";
  readonly replayed: number;
}

interface Fault {
  readonly slot: number;
  readonly request: Uint8Array;
  readonly nodeid: number;
  readonly offset: number;
  readonly size: number;
  readonly controller: AbortController;
}

const FAULT_DEADLINE_MS = 5 * 60_000;
const STORE_CHUNK = 128 * 1024;
const STOP_DEADLINE_MS = 5000;
const writeAsync = promisify(write) as (
  fd: number,
  bytes: Uint8Array,
  offset: number,
  length: number,
  position: number | null,
) => Promise<unknown>;

export class HoleServer implements AsyncDisposable {
  readonly mountPath: string;
  /** The connection was in use before this process: mounts over it may be alive. False on a new FUSE mount: all that were there before are dead. */
  readonly adopted: boolean;
  readonly #fd: number;
  readonly #connectionPath: string;
  readonly #clock: Clock;
  readonly #faultDeadlineMs: number;
  readonly #readerCount: number;
  readonly #resend: boolean;
  readonly #onUnknownFile: ((nodeid: number) => void) | undefined;
  readonly #journal: Journal;
  readonly #left: JournalEntry[];
  readonly #table = new FileTable();
  readonly #files = new Map<number, HoleFile>();
  readonly #removed = new Set<number>();
  readonly #arrivals = new Map<number, (() => void)[]>();
  readonly #readers: Readers;
  readonly #faults = new Set<Fault>();
  #state: ConnectionState;
  #recovery: HoleStatistics["recovery"] = "none";
  #replayed = 0;
  #faultCount = 0;
  #failed = 0;
  #stopping = false;

  private constructor(options: HoleServerOptions, state: ConnectionState) {
    this.#fd = options.fd;
    this.mountPath = join(options.stateDirectory, "fuse");
    this.#connectionPath = join(options.stateDirectory, "connection.json");
    this.#clock = options.clock ?? systemClock;
    this.#faultDeadlineMs = options.faultDeadlineMs ?? FAULT_DEADLINE_MS;
    this.#readerCount = options.readers ?? 2;
    this.#resend = options.resend ?? true;
    this.#onUnknownFile = options.onUnknownFile;
    this.#state = state;
    this.adopted = state.t === "ready";
    const { journal, entries } = Journal.open(join(options.stateDirectory, "journal"));
    this.#journal = journal;
    this.#left = entries;
    this.#readers = new Readers({
      fd: options.fd,
      journal,
      connectionPath: this.#connectionPath,
      onMessage: (message) => this.#onMessage(message),
    });
  }

  /** Takes over what a predecessor on this descriptor left, but reads nothing before `start`. Throws HS_FUSE_PROTOCOL. */
  static async open(options: HoleServerOptions): Promise<HoleServer> {
    return new HoleServer(options, loadConnection(join(options.stateDirectory, "connection.json")));
  }

  get statistics(): HoleStatistics {
    return {
      state: this.#state.t,
      files: this.#files.size,
      reads: this.#readers.sum(ReaderCounter.reads),
      readBytes: this.#readers.sum(ReaderCounter.readBytes),
      otherRequests: this.#readers.sum(ReaderCounter.others),
      faults: this.#faultCount,
      faultsPending: this.#faults.size,
      faultsFailed: this.#failed,
      recovery: this.#recovery,
      replayed: this.#replayed,
    };
  }

  path(file: Pick<HoleFile, "name">): string {
    return join(this.mountPath, file.name);
  }

  /** The file is there for the kernel from now on. Its descriptor must stay open until `removeFile` resolved. */
  addFile(file: HoleFile): void {
    if (this.#files.has(file.nodeid) || file.nodeid <= ROOT_NODEID || !/^[\w.-]{1,80}$/.test(file.name)) {
      throw new HeadstartError("HS_INTERNAL", { what: `virtual file ${file.name} with node id ${file.nodeid}` });
    }
    const shared: SharedFile = {
      nodeid: file.nodeid,
      name: file.name,
      size: file.size,
      fd: file.fd,
      bits: file.fillMap.buffer,
      control: new SharedArrayBuffer(8),
    };
    this.#files.set(file.nodeid, file);
    this.#removed.delete(file.nodeid);
    this.#table.add(shared);
    this.#readers.add(shared);
    for (const wake of this.#arrivals.get(file.nodeid) ?? []) wake();
    this.#arrivals.delete(file.nodeid);
  }

  /** Reads of it fail with ESTALE from now on; when this resolves nobody uses its descriptor. Unmount what lies over it first. */
  async removeFile(nodeid: number): Promise<void> {
    const file = this.#table.byNodeid(nodeid);
    if (file === undefined) return;
    file.remove();
    this.#files.delete(nodeid);
    this.#removed.add(nodeid);
    const gone = new HeadstartError("HS_NOT_FOUND", { what: `${file.name} was removed` });
    for (const fault of this.#faults) if (fault.nodeid === nodeid) fault.controller.abort(gone);
    while (file.inside > 0) await this.#clock.sleep(1);
    await this.#notify(invalEntry(file.name));
  }

  /**
   * Begins to serve: asks the kernel for the requests that a predecessor had read (RESEND, Linux 6.9), or else answers them from the journal. Add the files that
   * were there before it first: a READ of a file that is still missing waits for it up to the deadline.
   */
  async start(): Promise<void> {
    const left = this.#left.splice(0);
    if (this.#resend && canResend(this.#state) && writeOnce(this.#fd, resend(), OUT_HEADER.size) === "sent") {
      this.#recovery = "resent";
      for (const entry of left) this.#journal.release(entry.slot);
    }
    this.#readers.start(
      this.#readerCount,
      this.#table.list().map((file) => file.shared),
    );
    if (this.#recovery === "resent" || left.length === 0) return;
    this.#recovery = "replayed";
    this.#replayed = left.length;
    for (const entry of left) this.#replay(entry);
  }

  /** Puts bytes that are filled into the kernel's page cache, so that it need not ask. The file must be added, its blocks set. */
  async store(nodeid: number, range: Range): Promise<void> {
    const file = this.#files.get(nodeid);
    if (file === undefined) throw new HeadstartError("HS_NOT_FOUND", { what: `no virtual file has node id ${nodeid}` });
    // the kernel takes bytes only for a node that it has looked up
    await stat(this.path(file));
    for (let offset = range.start; offset < range.end; offset += STORE_CHUNK) {
      const bytes = this.#read(nodeid, offset, Math.min(STORE_CHUNK, range.end - offset), STORE_ROOM);
      fillStore(bytes, nodeid, offset);
      if (!(await this.#notify(bytes))) return;
    }
  }

  /**
   * Stops reading. Faults that are pending are given up without an answer: they stay in the journal for the next server on this descriptor.
   * Throws HS_CANCELED when a reader did not end in time (then only the end of the process ends it).
   */
  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#stopping) return;
    this.#stopping = true;
    const reason = new HeadstartError("HS_CANCELED", { what: "the hole server stops" });
    for (const fault of this.#faults) fault.controller.abort(reason);
    const deadline = this.#clock.monotonic() + STOP_DEADLINE_MS;
    this.#readers.stop(this.mountPath);
    while ((this.#readers.alive > 0 || this.#faults.size > 0) && this.#clock.monotonic() < deadline) {
      await this.#clock.sleep(2);
    }
    if (this.#readers.alive > 0) throw new HeadstartError("HS_CANCELED", { what: "a FUSE reader did not end" });
  }

  #onMessage(message: ReaderMessage): void {
    switch (message.kind) {
      case "fault":
        this.#take(message.slot, message.request);
        break;
      case "init":
        this.#state = { t: "ready", negotiated: message.negotiated };
        publish("fuse:init", { minor: message.negotiated.minor, flags: message.negotiated.flags.toString(16) });
        break;
      case "trouble":
        publish("fuse:trouble", { error: message.error });
        break;
      case "closed":
        this.#close();
        break;
      default:
        message satisfies never;
    }
  }

  #close(): void {
    if (this.#state.t === "closed") return;
    this.#state = { t: "closed" };
    publish("fuse:closed", {});
    const reason = new HeadstartError("HS_CANCELED", { what: "the FUSE connection is closed" });
    for (const fault of this.#faults) fault.controller.abort(reason);
  }

  #replay(entry: JournalEntry): void {
    const view = new DataView(entry.request.buffer, entry.request.byteOffset, entry.request.byteLength);
    const opcode = view.getUint32(IN_HEADER.offsets.opcode, true);
    if (opcode === Opcode.read && entry.request.byteLength >= IN_HEADER.size + READ_IN.size) {
      this.#take(entry.slot, entry.request);
      return;
    }
    if (opcode === Opcode.init) {
      const negotiated = negotiate(entry.request.subarray(IN_HEADER.size));
      if (negotiated !== null) {
        saveNegotiated(this.#connectionPath, negotiated);
        this.#state = { t: "ready", negotiated };
      }
      this.#send(entry.slot, entry.request, initReply(negotiated), 0);
      return;
    }
    const answered = answer(entry.request, this.#table);
    if (answered === null) this.#journal.release(entry.slot);
    else this.#send(entry.slot, entry.request, answered.body, answered.error);
  }

  #send(slot: number, request: Uint8Array, body: Uint8Array, error: number): void {
    const buffer = replyBuffer(body.byteLength);
    buffer.set(body, OUT_HEADER.size);
    this.#reply(slot, request, buffer, error, body.byteLength);
  }

  #reply(slot: number, request: Uint8Array, buffer: Uint8Array, error: number, bodyLength: number): Sent {
    failpoint("fuse:reply");
    const sent = sendReply(this.#fd, request, buffer, error, bodyLength);
    failpoint("fuse:sent");
    this.#journal.release(slot);
    if (sent === "closed") this.#close();
    return sent;
  }

  #take(slot: number, request: Uint8Array): void {
    if (this.#stopping) return;
    const view = new DataView(request.buffer, request.byteOffset, request.byteLength);
    const fault: Fault = {
      slot,
      request,
      nodeid: readNodeid(view),
      offset: Number(view.getBigUint64(IN_HEADER.size + READ_IN.offsets.offset, true)),
      size: view.getUint32(IN_HEADER.size + READ_IN.offsets.size, true),
      controller: new AbortController(),
    };
    this.#faultCount++;
    this.#faults.add(fault);
    void this.#serve(fault).finally(() => this.#faults.delete(fault));
  }

  async #serve(fault: Fault): Promise<void> {
    const started = this.#clock.monotonic();
    const deadline = new AbortController();
    void this.#clock.sleep(this.#faultDeadlineMs, deadline.signal).then(
      () =>
        fault.controller.abort(
          new HeadstartError("HS_CANCELED", { what: `a read waited ${this.#faultDeadlineMs} ms` }),
        ),
      () => undefined,
    );
    let outcome = "ok";
    try {
      const buffer = await orAbort(this.#fill(fault), fault.controller.signal);
      this.#reply(fault.slot, fault.request, buffer, 0, buffer.byteLength - OUT_HEADER.size);
    } catch (error) {
      if (this.#stopping) return;
      outcome = error instanceof HeadstartError ? error.code : String((error as Error)?.name);
      this.#failed++;
      publish("fuse:fault-failed", { nodeid: fault.nodeid, offset: fault.offset, size: fault.size, error });
      if (this.#state.t === "closed") this.#journal.release(fault.slot);
      else this.#reply(fault.slot, fault.request, replyBuffer(0), errnoOf(error), 0);
    } finally {
      deadline.abort();
    }
    publish("fuse:fault", {
      nodeid: fault.nodeid,
      name: this.#files.get(fault.nodeid)?.name ?? null,
      offset: fault.offset,
      size: fault.size,
      waitMs: this.#clock.monotonic() - started,
      outcome,
    });
  }

  /** The bytes behind room for a reply header. */
  async #fill(fault: Fault): Promise<Uint8Array> {
    const { nodeid, offset } = fault;
    const file = this.#files.get(nodeid) ?? (await this.#arrival(nodeid, fault.controller.signal));
    const size = Math.max(0, Math.min(fault.size, file.size - offset));
    if (size > READ_BYTES_MAX) throw new HeadstartError("HS_FUSE_PROTOCOL", { what: `a READ of ${size} bytes` });
    const range = { start: offset, end: offset + size };
    if (!isFilled(file, range)) await file.ensure(range, { signal: fault.controller.signal });
    fault.controller.signal.throwIfAborted();
    return this.#read(nodeid, offset, size, OUT_HEADER.size);
  }

  /** Filled bytes of a file, behind `room` bytes. Throws HS_INTERNAL where a block is not filled, HS_NOT_FOUND when the file is gone. */
  #read(nodeid: number, offset: number, size: number, room: number): Uint8Array {
    const file = this.#files.get(nodeid);
    const entry: TableFile | undefined = this.#table.byNodeid(nodeid);
    if (file === undefined || entry?.enter() !== true) {
      throw new HeadstartError("HS_NOT_FOUND", { what: `no virtual file has node id ${nodeid}` });
    }
    try {
      if (!isFilled(file, { start: offset, end: offset + size })) {
        throw new HeadstartError("HS_INTERNAL", {
          what: `${file.name}: bytes ${offset}-${offset + size} were promised and are not filled`,
        });
      }
      const buffer = new Uint8Array(room + size);
      if (readFully(file.fd, buffer.subarray(room), offset) !== size) {
        throw new HeadstartError("HS_TRUNCATED", { what: `${file.name} ends before byte ${offset + size}` });
      }
      return buffer;
    } finally {
      entry.leave();
    }
  }

  #arrival(nodeid: number, signal: AbortSignal): Promise<HoleFile> {
    return new Promise((resolve, reject) => {
      if (this.#removed.has(nodeid)) {
        reject(new HeadstartError("HS_NOT_FOUND", { what: `the virtual file with node id ${nodeid} was removed` }));
        return;
      }
      const waiting = this.#arrivals.get(nodeid) ?? [];
      this.#arrivals.set(nodeid, waiting);
      waiting.push(() => resolve(this.#files.get(nodeid)!));
      signal.addEventListener("abort", () => reject(signal.reason), { once: true });
      this.#onUnknownFile?.(nodeid);
    });
  }

  /** False when the kernel has no such node (any more). On a thread of the pool: the kernel may wait for pages that are being read. */
  async #notify(bytes: Uint8Array): Promise<boolean> {
    try {
      await writeAsync(this.#fd, bytes, 0, bytes.byteLength, null);
      return true;
    } catch (error) {
      const code = (error as NodeJS.ErrnoException).code;
      if (code === "ENOENT" || code === "ENODEV" || code === "ENOTCONN" || code === "EPERM") return false;
      throw error;
    }
  }
}

function isFilled(file: HoleFile, range: Range): boolean {
  return file.fillMap.hasAll(Math.floor(range.start / 4096), Math.ceil(range.end / 4096));
}

/** `work`, but not longer than the signal: whoever fills may not look at it. */
function orAbort<T>(work: Promise<T>, signal: AbortSignal): Promise<T> {
  return new Promise((resolve, reject) => {
    const onAbort = () => reject(signal.reason);
    signal.addEventListener("abort", onAbort, { once: true });
    work.then(resolve, reject).finally(() => signal.removeEventListener("abort", onAbort));
  });
}
