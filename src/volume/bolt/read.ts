/**
 * Reads a bbolt file whole: bytes in, its buckets out. The file may be anybody's, so nothing in it is believed: every page is asked for at most once, has to
 * carry its own number and one flag, and lies below the high-water mark; keys ascend; sizes are checked before anything is made.
 *
 * Throws HS_MALFORMED, HS_TRUNCATED, HS_LIMIT.
 */

import { Reader } from "../../base/bytes.ts";
import { HeadstartError } from "../../base/errors.ts";
import {
  BOLT_MAGIC,
  BOLT_VERSION,
  BUCKET_ELEMENT,
  BUCKET_HEADER,
  type Bucket,
  COUNT_OVERFLOW,
  fnv1a,
  KEY_BYTES_MAX,
  LEAF_ELEMENT,
  META,
  NO_FREELIST,
  PAGE_HEADER,
  PageFlag,
} from "./ondisk.ts";

export interface BoltFile {
  /** The bucket that holds the top-level buckets. */
  readonly root: Bucket;
  readonly pageSize: number;
  readonly txid: number;
  /** Pages in use or free: the first id that was never used. */
  readonly highWater: number;
  /** Free pages; null when the file does not keep the list. */
  readonly freelist: readonly number[] | null;
  /** Ids of the pages of the tree, without overflow pages, in the order of the walk. */
  readonly pages: readonly number[];
}

/** Buckets in buckets; containerd's have nine levels. Pages of one tree: 2^64 keys are fewer than 64 levels. */
const DEPTH_MAX = 64;
const PAGE_SIZE_MIN = 512;
const PAGE_SIZE_MAX = 65_536;

interface Meta {
  readonly pageSize: number;
  readonly rootPage: number;
  readonly rootSequence: number;
  readonly freelist: number | null;
  readonly highWater: number;
  readonly txid: number;
}

/** `what` names the file in errors. */
export function readBolt(bytes: Uint8Array, what: string): BoltFile {
  const meta = chooseMeta(bytes, what);
  if (meta.highWater * meta.pageSize > bytes.byteLength) {
    throw new HeadstartError("HS_TRUNCATED", {
      what: `${what}: ${meta.highWater} pages of ${meta.pageSize} bytes wanted, the file has ${bytes.byteLength} bytes`,
    });
  }
  return new Walk(bytes, meta, what).run();
}

/** The valid meta page with the higher transaction. The second one lies at the page size, which only the first one tells: the usual sizes are tried. */
function chooseMeta(bytes: Uint8Array, what: string): Meta {
  const first = readMeta(bytes, 0, what);
  const sizes = first !== null ? [first.pageSize] : [4096, 8192, 16_384, 32_768, 65_536, 2048, 1024, 512];
  let best = first;
  for (const size of sizes) {
    const second = readMeta(bytes, size, what);
    if (second === null || second.pageSize !== size) continue;
    if (best === null || second.txid > best.txid) best = second;
    break;
  }
  if (best === null) throw new HeadstartError("HS_MALFORMED", { what: `${what}: no valid meta page: no bbolt file` });
  return best;
}

function readMeta(bytes: Uint8Array, offset: number, what: string): Meta | null {
  if (offset + PAGE_HEADER.size + META.size > bytes.byteLength) return null;
  const start = offset + PAGE_HEADER.size;
  const reader = new Reader(bytes.subarray(start, start + META.size), { what: `${what}: meta page`, base: start });
  if (reader.u32("magic") !== BOLT_MAGIC || reader.u32("version") !== BOLT_VERSION) return null;
  const pageSize = reader.u32("pageSize");
  reader.skip(4, "flags");
  if (pageSize < PAGE_SIZE_MIN || pageSize > PAGE_SIZE_MAX || (pageSize & (pageSize - 1)) !== 0) return null;
  if (reader.at(META.offsets.checksum).u64big("checksum") !== fnv1a(reader.bytes.subarray(0, META.offsets.checksum)))
    return null;
  reader.at(META.offsets.rootPage);
  const rootPage = reader.u64("root page");
  const rootSequence = reader.u64("root sequence");
  const freelist = reader.u64big("freelist");
  const highWater = reader.u64("high-water mark");
  const txid = reader.u64("txid");
  return {
    pageSize,
    rootPage,
    rootSequence,
    freelist: freelist === NO_FREELIST ? null : Number(freelist),
    highWater,
    txid,
  };
}

class Walk {
  readonly #bytes: Uint8Array;
  readonly #meta: Meta;
  readonly #what: string;
  /** One byte a page: taken by the tree or the freelist. */
  readonly #taken: Uint8Array;
  readonly #pages: number[] = [];

  constructor(bytes: Uint8Array, meta: Meta, what: string) {
    this.#bytes = bytes;
    this.#meta = meta;
    this.#what = what;
    this.#taken = new Uint8Array(meta.highWater);
    this.#taken.fill(1, 0, 2);
  }

  run(): BoltFile {
    const { rootPage, rootSequence, pageSize, txid, highWater } = this.#meta;
    const root: Bucket = { sequence: rootSequence, entries: this.#tree(rootPage, 0) };
    const freelist = this.#freelist();
    return { root, pageSize, txid, highWater, freelist, pages: this.#pages };
  }

  #tree(page: number, depth: number): Map<string, Uint8Array | Bucket> {
    const entries = new Map<string, Uint8Array | Bucket>();
    this.#page(page, depth, 0, entries, { last: null });
    return entries;
  }

  #page(
    id: number,
    depth: number,
    level: number,
    entries: Map<string, Uint8Array | Bucket>,
    order: { last: string | null },
  ): void {
    if (level > DEPTH_MAX) throw this.#malformed(`page ${id}: the tree is deeper than ${DEPTH_MAX} levels`);
    const page = this.#open(id);
    const flags = page.flags;
    this.#pages.push(id);
    if (flags === PageFlag.leaf) {
      this.#leaf(page.reader, page.count, depth, entries, order);
      return;
    }
    if (flags !== PageFlag.branch)
      throw this.#malformed(`page ${id}: flags ${flags} where a branch or a leaf should be`);
    if (page.count === 0) throw this.#malformed(`page ${id}: an empty branch`);
    const { reader } = page;
    for (let index = 0; index < page.count; index++) {
      const at = PAGE_HEADER.size + index * 16;
      reader.at(at);
      const pos = reader.u32("branch pos");
      const keySize = reader.u32("branch key size");
      const child = reader.u64("branch page");
      const key = this.#key(reader, at + pos, keySize);
      if (order.last !== null && key <= order.last) throw this.#malformed(`page ${id}: keys do not ascend`);
      this.#page(child, depth, level + 1, entries, order);
    }
  }

  #leaf(
    reader: Reader,
    count: number,
    depth: number,
    entries: Map<string, Uint8Array | Bucket>,
    order: { last: string | null },
  ): void {
    if (count * LEAF_ELEMENT.size > reader.length - PAGE_HEADER.size)
      throw reader.malformed(`${count} elements do not fit`);
    for (let index = 0; index < count; index++) {
      const at = PAGE_HEADER.size + index * LEAF_ELEMENT.size;
      reader.at(at);
      const flags = reader.u32("leaf flags");
      const pos = reader.u32("leaf pos");
      const keySize = reader.u32("leaf key size");
      const valueSize = reader.u32("leaf value size");
      const key = this.#key(reader, at + pos, keySize);
      if (order.last !== null && key <= order.last) throw reader.malformed("keys do not ascend");
      order.last = key;
      const value = reader.at(at + pos + keySize).take(valueSize, "value");
      if (flags === BUCKET_ELEMENT) entries.set(key, this.#bucket(value, depth + 1));
      else if (flags === 0) entries.set(key, value);
      else throw reader.malformed(`element flags ${flags}`);
    }
  }

  #bucket(value: Uint8Array, depth: number): Bucket {
    if (depth > DEPTH_MAX) throw this.#malformed(`buckets are nested deeper than ${DEPTH_MAX} levels`);
    const reader = new Reader(value, {
      what: `${this.#what}: bucket`,
      base: value.byteOffset - this.#bytes.byteOffset,
    });
    const root = reader.u64("root page");
    const sequence = reader.u64("sequence");
    if (root !== 0) {
      if (value.byteLength !== BUCKET_HEADER.size)
        throw reader.malformed("a bucket with a page of its own is 16 bytes");
      return { sequence, entries: this.#tree(root, depth) };
    }
    const inline = reader.sub(reader.remaining, "inline page");
    const id = inline.u64("page id");
    const flags = inline.u16("page flags");
    const count = inline.u16("page count");
    if (id !== 0 || flags !== PageFlag.leaf) throw inline.malformed("an inline page is a leaf of number 0");
    const entries = new Map<string, Uint8Array | Bucket>();
    this.#leaf(inline, count, depth, entries, { last: null });
    return { sequence, entries };
  }

  #key(reader: Reader, at: number, size: number): string {
    if (size > KEY_BYTES_MAX) throw reader.malformed(`a key of ${size} bytes`, "HS_LIMIT");
    return reader.at(at).ascii(size, "key");
  }

  #open(id: number): { readonly reader: Reader; readonly flags: number; readonly count: number } {
    const { pageSize, highWater } = this.#meta;
    if (!(id >= 2 && id < highWater)) throw this.#malformed(`page ${id} lies outside of 2..${highWater - 1}`);
    const base = id * pageSize;
    const header = new Reader(this.#bytes.subarray(base, base + pageSize), { what: `${this.#what}: page ${id}`, base });
    const own = header.u64("page id");
    const flags = header.u16("page flags");
    const count = header.u16("page count");
    const overflow = header.u32("page overflow");
    if (own !== id) throw header.malformed(`the page says that it is page ${own}`);
    if (overflow >= highWater - id) throw header.malformed(`${overflow} overflow pages`);
    for (let page = id; page <= id + overflow; page++) {
      if (this.#taken[page] !== 0) throw header.malformed(`page ${page} is used twice`);
      this.#taken[page] = 1;
    }
    const whole = this.#bytes.subarray(base, base + (overflow + 1) * pageSize);
    return { reader: new Reader(whole, { what: `${this.#what}: page ${id}`, base }), flags, count };
  }

  #freelist(): number[] | null {
    const id = this.#meta.freelist;
    if (id === null) return null;
    const page = this.#open(id);
    if (page.flags !== PageFlag.freelist) throw this.#malformed(`page ${id}: flags ${page.flags}, no freelist`);
    const { reader } = page;
    reader.at(PAGE_HEADER.size);
    const count = page.count === COUNT_OVERFLOW ? reader.u64("free pages") : page.count;
    if (count > reader.remaining / 8) throw reader.malformed(`${count} free pages do not fit`);
    const ids: number[] = [];
    for (let index = 0; index < count; index++) {
      const free = reader.u64("free page");
      if (free >= this.#meta.highWater || this.#taken[free] !== 0) {
        throw reader.malformed(`page ${free} is on the freelist, and is used or does not exist`);
      }
      this.#taken[free] = 1;
      ids.push(free);
    }
    return ids;
  }

  #malformed(message: string): HeadstartError {
    return new HeadstartError("HS_MALFORMED", { what: `${this.#what}: ${message}` });
  }
}
