/**
 * The journal: which requests were read from the kernel and not yet answered. A file on tmpfs in the state directory:
 *
 *   slot 0                     "HSJOURN1", slot count u32
 *   slot 1 + n, 128 bytes      the request's first 128 bytes (fuse_in_header, fuse_read_in); its first u32, `len`, is 0 in a free slot
 *
 * A request is stored before any other work and cleared after its reply was written, so the successor of a killed server finds every request that the kernel
 * waits for; a reply that was sent but not cleared is sent again, which the kernel refuses with ENOENT (specs/erofs-fuse.md 14.3). A reader
 * reuses one slot for what it answers itself; a request that it hands to the main thread takes its slot along, and the reader claims another.
 * Which slots are taken is a SharedArrayBuffer that all threads of the process see. Survives the process, not the machine: neither does the mount.
 */

import { closeSync, constants, fstatSync, ftruncateSync, openSync, writeSync } from "node:fs";
import { readFully } from "../base/files.ts";
import { IN_HEADER } from "./ondisk.ts";

const SLOT_BYTES = 128;
const MAGIC = Buffer.from("HSJOURN1");
/** One per process that waits for a hole: foreground requests are not bounded by max_background. 512 KiB of tmpfs. */
const SLOTS = 4096;
const FREE = new Uint8Array(4);

export interface JournalEntry {
  readonly slot: number;
  /** The first bytes of the request, at most 128. */
  readonly request: Uint8Array;
}

export class Journal {
  readonly fd: number;
  /** One Int32 a slot: 1 taken; the last element counts releases and is what waiters sleep on. */
  readonly taken: Int32Array<SharedArrayBuffer>;
  #hint = 0;

  constructor(fd: number, taken: SharedArrayBuffer) {
    this.fd = fd;
    this.taken = new Int32Array(taken);
  }

  /** Opens or makes the file. What a predecessor left is in `entries`, its slots are taken. A file of another layout is emptied. */
  static open(path: string): { journal: Journal; entries: JournalEntry[] } {
    const fd = openSync(path, constants.O_RDWR | constants.O_CREAT, 0o600);
    const journal = new Journal(fd, new SharedArrayBuffer((SLOTS + 1) * 4));
    const size = SLOT_BYTES * (SLOTS + 1);
    const bytes = Buffer.alloc(size);
    const whole = fstatSync(fd).size === size && readFully(fd, bytes, 0) === size;
    if (!whole || !bytes.subarray(0, 8).equals(MAGIC) || bytes.readUInt32LE(8) !== SLOTS) {
      ftruncateSync(fd, 0);
      ftruncateSync(fd, size);
      const head = Buffer.alloc(SLOT_BYTES);
      MAGIC.copy(head);
      head.writeUInt32LE(SLOTS, 8);
      writeSync(fd, head, 0, head.byteLength, 0);
      return { journal, entries: [] };
    }
    const entries: JournalEntry[] = [];
    for (let slot = 0; slot < SLOTS; slot++) {
      const start = SLOT_BYTES * (slot + 1);
      const length = bytes.readUInt32LE(start);
      if (length === 0) continue;
      if (length < IN_HEADER.size) {
        journal.#erase(slot);
        continue;
      }
      journal.taken[slot] = 1;
      entries.push({ slot, request: bytes.subarray(start, start + Math.min(length, SLOT_BYTES)) });
    }
    return { journal, entries };
  }

  close(): void {
    closeSync(this.fd);
  }

  /** A free slot; -1 when all are taken. Any thread. */
  tryClaim(): number {
    for (let step = 0; step < SLOTS; step++) {
      const slot = (this.#hint + step) % SLOTS;
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
      const released = Atomics.load(this.taken, SLOTS);
      const slot = this.tryClaim();
      if (slot >= 0) return slot;
      Atomics.wait(this.taken, SLOTS, released, 1000);
    }
  }

  /** `request` is the whole request or its beginning. */
  store(slot: number, request: Uint8Array, length: number): void {
    writeSync(this.fd, request, 0, Math.min(length, SLOT_BYTES), SLOT_BYTES * (slot + 1));
  }

  /** The request was answered: the slot is free. */
  release(slot: number): void {
    this.#erase(slot);
    Atomics.store(this.taken, slot, 0);
    Atomics.add(this.taken, SLOTS, 1);
    Atomics.notify(this.taken, SLOTS);
  }

  #erase(slot: number): void {
    writeSync(this.fd, FREE, 0, FREE.byteLength, SLOT_BYTES * (slot + 1));
  }
}
