/**
 * The journal: which requests were read from the kernel and not yet answered. A file on tmpfs in the state directory, mapped by every thread of the server:
 *
 *   0                              "HSJOURN2", then zeros                                     4 KiB
 *   LANDINGS                       one area for each reader: read(2) of the device puts the
 *                                  request right here                                         8 x 8 KiB
 *   SLOTS                          the first 128 bytes (fuse_in_header, fuse_read_in) of
 *                                  requests that readers handed to the main thread            4096 x 128 bytes
 *
 * A place is in use when its first u32, the request's `len`, is not 0. There is no moment in which a request is ours and not in the file: the kernel copies it there
 * itself, and when a reader hands it over, it is in its slot before it leaves the landing. It is cleared after its reply was written. So the successor
 * of a killed server finds every request that the kernel waits for, also on kernels that cannot resend (before 6.9). A request that was
 * answered but not cleared is answered again, which the kernel refuses with ENOENT (specs/erofs-fuse.md 14.3).
 * The mapping is locked into memory: were a kill to hit read(2) while it waits for a missing page, the kernel would fail that request with EIO.
 * Which slots are taken is a SharedArrayBuffer beside the file. All of it survives the process, not the machine: neither does the mount.
 */

import { closeSync, constants, ftruncateSync, openSync } from "node:fs";
import { reserve } from "../linux/fallocate.ts";
import { mapShared } from "../linux/mapping.ts";
import { IN_HEADER, REQUEST_BYTES_MAX } from "./ondisk.ts";

export const READERS_MAX = 8;
const HEAD_BYTES = 4096;
const SLOT_BYTES = 128;
const MAGIC = Buffer.from("HSJOURN2");
/** One for each process that waits for a hole: foreground requests are not bounded by max_background. 512 KiB of tmpfs. */
const SLOT_COUNT = 4096;
const SLOTS = HEAD_BYTES + READERS_MAX * REQUEST_BYTES_MAX;
const FILE_BYTES = SLOTS + SLOT_COUNT * SLOT_BYTES;

export interface JournalEntry {
  readonly slot: number;
  /** A copy of the first bytes of the request, at most 128. */
  readonly request: Uint8Array;
}

export class Journal {
  readonly path: string;
  /** One Int32 a slot: 1 taken; the last element counts releases and is what waiters sleep on. */
  readonly taken: Int32Array<SharedArrayBuffer>;
  readonly #bytes: Uint8Array<ArrayBuffer>;
  readonly #view: DataView;
  #hint = 0;

  /** Maps a journal that `open` made, for another thread. */
  constructor(path: string, taken: SharedArrayBuffer) {
    this.path = path;
    this.taken = new Int32Array(taken);
    const fd = openSync(path, constants.O_RDWR | constants.O_CREAT, 0o600);
    try {
      ftruncateSync(fd, FILE_BYTES);
      // a mapped page that tmpfs cannot give would kill the process
      reserve(fd, 0, FILE_BYTES);
      this.#bytes = mapShared(fd, FILE_BYTES);
    } finally {
      closeSync(fd);
    }
    this.#view = new DataView(this.#bytes.buffer);
  }

  /** What a predecessor left is in `entries`, in slots that are taken; the landings are empty. A file of another layout is emptied. Throws HS_DISK_FULL. */
  static open(path: string): { journal: Journal; entries: JournalEntry[] } {
    const journal = new Journal(path, new SharedArrayBuffer((SLOT_COUNT + 1) * 4));
    const bytes = journal.#bytes;
    if (!MAGIC.equals(bytes.subarray(0, MAGIC.byteLength))) {
      bytes.fill(0);
      bytes.set(MAGIC);
    }
    const entries: JournalEntry[] = [];
    for (let slot = 0; slot < SLOT_COUNT; slot++) {
      const request = journal.#stored(SLOTS + slot * SLOT_BYTES, SLOT_BYTES);
      if (request === null) continue;
      journal.taken[slot] = 1;
      entries.push({ slot, request });
    }
    for (let reader = 0; reader < READERS_MAX; reader++) {
      const request = journal.#stored(HEAD_BYTES + reader * REQUEST_BYTES_MAX, REQUEST_BYTES_MAX);
      const slot = request === null ? -1 : journal.tryClaim();
      if (request !== null && slot >= 0) {
        journal.store(slot, request);
        entries.push({ slot, request: request.slice(0, SLOT_BYTES) });
      }
      journal.clearLanding(reader);
    }
    return { journal, entries };
  }

  /** Where reader `index` reads requests to. */
  landing(index: number): Uint8Array<ArrayBuffer> {
    const start = HEAD_BYTES + index * REQUEST_BYTES_MAX;
    return this.#bytes.subarray(start, start + REQUEST_BYTES_MAX);
  }

  /** The request there was answered, or stored in a slot. */
  clearLanding(index: number): void {
    this.#view.setUint32(HEAD_BYTES + index * REQUEST_BYTES_MAX, 0, true);
  }

  /** A free slot; -1 when all are taken. Any thread. */
  tryClaim(): number {
    for (let step = 0; step < SLOT_COUNT; step++) {
      const slot = (this.#hint + step) % SLOT_COUNT;
      if (Atomics.compareExchange(this.taken, slot, 0, 1) === 0) {
        this.#hint = slot + 1;
        return slot;
      }
    }
    return -1;
  }

  /** Blocks the calling thread until a slot is free: the kernel keeps what is not read yet. Never from the main thread, which frees them. */
  claim(): number {
    for (;;) {
      const released = Atomics.load(this.taken, SLOT_COUNT);
      const slot = this.tryClaim();
      if (slot >= 0) return slot;
      Atomics.wait(this.taken, SLOT_COUNT, released, 1000);
    }
  }

  /** Keeps a request, or its first 128 bytes, in a slot that was claimed. */
  store(slot: number, request: Uint8Array): void {
    const start = SLOTS + slot * SLOT_BYTES;
    const length = Math.min(request.byteLength, SLOT_BYTES);
    // `len` last: a slot that is cut off by a kill is a free one
    this.#bytes.set(request.subarray(4, length), start + 4);
    this.#bytes.set(request.subarray(0, 4), start);
  }

  /** The request was answered: the slot is free. */
  release(slot: number): void {
    this.#view.setUint32(SLOTS + slot * SLOT_BYTES, 0, true);
    Atomics.store(this.taken, slot, 0);
    Atomics.add(this.taken, SLOT_COUNT, 1);
    Atomics.notify(this.taken, SLOT_COUNT);
  }

  /** A copy of the request at `start`, or null; room for `limit` bytes is there. */
  #stored(start: number, limit: number): Uint8Array | null {
    const length = this.#view.getUint32(start, true);
    return length < IN_HEADER.size ? null : this.#bytes.slice(start, start + Math.min(length, limit));
  }
}
