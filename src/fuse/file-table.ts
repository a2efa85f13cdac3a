/**
 * The files of the one FUSE mount, as each thread knows them: a flat directory, names and node ids both unique, nothing ever changes but that files come and go.
 * `SharedFile` crosses to the readers by postMessage; its `control` words are shared, so a removal is seen by all threads at once.
 *
 * Invariant: a thread reads a file's descriptor only between `enter` and `leave`; a descriptor is closed only after `remove` and when nobody is inside: a number
 * that was closed and used again would give another file's bytes.
 */

import { Bitmap } from "../base/bitmap.ts";
import type { Range } from "../base/ranges.ts";

/** One layer's virtual file, given by whoever owns the layer. */
export interface HoleFile {
  /** Stable over restarts, never reused, > 1. */
  readonly nodeid: number;
  /** 1-80 ASCII characters without "/". */
  readonly name: string;
  /** Bytes, a multiple of 4096; never changes. The file behind `fd` is as long. */
  readonly size: number;
  readonly fd: number;
  /** One bit per 4096-byte block: set when its bytes are in the file and verified. */
  readonly fillMap: Bitmap;
  /** Resolves when every block of the range is set. */
  ensure(range: Range, options: { signal?: AbortSignal }): Promise<void>;
}

export interface SharedFile {
  readonly nodeid: number;
  readonly name: string;
  readonly size: number;
  readonly fd: number;
  readonly bits: SharedArrayBuffer;
  /** Int32: [0] 1 = removed, [1] threads inside. */
  readonly control: SharedArrayBuffer;
}

const REMOVED = 0;
const INSIDE = 1;

export class TableFile {
  readonly shared: SharedFile;
  readonly nodeid: number;
  readonly name: string;
  readonly size: number;
  readonly fd: number;
  readonly fillMap: Bitmap;
  readonly #control: Int32Array<SharedArrayBuffer>;

  constructor(shared: SharedFile) {
    this.shared = shared;
    this.nodeid = shared.nodeid;
    this.name = shared.name;
    this.size = shared.size;
    this.fd = shared.fd;
    this.fillMap = new Bitmap(Math.ceil(shared.size / 4096), shared.bits);
    this.#control = new Int32Array(shared.control);
  }

  get removed(): boolean {
    return Atomics.load(this.#control, REMOVED) === 1;
  }

  get inside(): number {
    return Atomics.load(this.#control, INSIDE);
  }

  /** False when the file is removed; otherwise its descriptor is good until `leave`. */
  enter(): boolean {
    // count first, look second: whoever removes marks first and counts second
    Atomics.add(this.#control, INSIDE, 1);
    if (!this.removed) return true;
    this.leave();
    return false;
  }

  leave(): void {
    Atomics.sub(this.#control, INSIDE, 1);
  }

  remove(): void {
    Atomics.store(this.#control, REMOVED, 1);
  }
}

export class FileTable {
  readonly #byNodeid = new Map<number, TableFile>();
  readonly #byName = new Map<string, TableFile>();

  add(shared: SharedFile): TableFile {
    const file = new TableFile(shared);
    this.#byNodeid.set(file.nodeid, file);
    this.#byName.set(file.name, file);
    return file;
  }

  byNodeid(nodeid: number): TableFile | undefined {
    return this.#living(this.#byNodeid.get(nodeid));
  }

  byName(name: string): TableFile | undefined {
    return this.#living(this.#byName.get(name));
  }

  /** Ascending by node id: positions in a directory listing are stable. */
  list(): TableFile[] {
    return [...this.#byNodeid.values()].filter((file) => !file.removed).sort((a, b) => a.nodeid - b.nodeid);
  }

  #living(file: TableFile | undefined): TableFile | undefined {
    if (file === undefined || !file.removed) return file;
    this.#byNodeid.delete(file.nodeid);
    if (this.#byName.get(file.name) === file) this.#byName.delete(file.name);
    return undefined;
  }
}
