/**
 * Writes a bbolt file once, from its buckets: the same buckets give the same bytes (specs/warm-volume.md 6).
 *
 *   0, 1 meta (txid 0 and 1)   2 freelist, empty   3.. the tree, depth first, a bucket's pages before the page that names it   last: the root's topmost page
 *
 * A bucket without sub-buckets whose page would be at most a quarter of a page stands inline in its parent, as bbolt itself does it.
 */

import { Writer } from "../../base/bytes.ts";
import { HeadstartError } from "../../base/errors.ts";
import {
  BOLT_MAGIC,
  BOLT_VERSION,
  BRANCH_ELEMENT,
  BUCKET_ELEMENT,
  BUCKET_HEADER,
  type Bucket,
  fnv1a,
  isBucket,
  KEY_BYTES_MAX,
  LEAF_ELEMENT,
  META,
  PAGE_HEADER,
  PAGE_SIZE,
  PageFlag,
  VALUE_BYTES_MAX,
} from "./ondisk.ts";

interface LeafItem {
  readonly key: Uint8Array;
  readonly value: Uint8Array;
  readonly bucket: boolean;
}

interface BranchItem {
  readonly key: Uint8Array;
  readonly page: number;
}

const FREELIST_PAGE = 2;
const INLINE_BYTES_MAX = PAGE_SIZE / 4;
/** bbolt's minKeysPerPage: a page of a split node holds at least so many. */
const KEYS_PER_PAGE_MIN = 2;

/** Throws HS_LIMIT for a key or value that bbolt does not take. */
export function writeBolt(root: Bucket): Uint8Array {
  const file = new BoltWriter();
  const rootPage = file.tree(root);
  return file.finish(rootPage, root.sequence);
}

class BoltWriter {
  readonly #pages = new Writer(16 * PAGE_SIZE);
  #nextPage = 0;

  constructor() {
    // both meta pages and the freelist are patched in or already right at the end
    this.#pages.zeros(2 * PAGE_SIZE);
    this.#nextPage = 2;
    this.#emit(PageFlag.freelist, 0, new Uint8Array(0));
  }

  /** Writes the bucket's sub-buckets and pages; the id of its topmost page. */
  tree(bucket: Bucket): number {
    return this.#items(this.#itemsOf(bucket));
  }

  finish(rootPage: number, sequence: number): Uint8Array {
    const highWater = this.#nextPage;
    const bytes = this.#pages.finish();
    for (const txid of [0, 1]) {
      const meta = new Writer(PAGE_HEADER.size + META.size);
      meta.u64(txid).u16(PageFlag.meta).u16(0).u32(0);
      meta.u32(BOLT_MAGIC).u32(BOLT_VERSION).u32(PAGE_SIZE).u32(0);
      meta.u64(rootPage).u64(sequence).u64(FREELIST_PAGE).u64(highWater).u64(txid);
      meta.u64(fnv1a(meta.finish().subarray(PAGE_HEADER.size)));
      bytes.set(meta.finish(), txid * PAGE_SIZE);
    }
    return bytes;
  }

  #itemsOf(bucket: Bucket): LeafItem[] {
    // one char a byte: the default order, of code units, is that of the bytes
    const keys = [...bucket.entries.keys()].sort();
    return keys.map((name) => {
      const value = bucket.entries.get(name)!;
      const key = Buffer.from(name, "latin1");
      if (key.byteLength === 0 || key.byteLength > KEY_BYTES_MAX) {
        throw new HeadstartError("HS_LIMIT", { what: `bbolt: a key of ${key.byteLength} bytes` });
      }
      if (isBucket(value)) return { key, value: this.#bucketValue(value), bucket: true };
      if (value.byteLength > VALUE_BYTES_MAX) {
        throw new HeadstartError("HS_LIMIT", { what: `bbolt: a value of ${value.byteLength} bytes` });
      }
      return { key, value, bucket: false };
    });
  }

  #bucketValue(bucket: Bucket): Uint8Array {
    const items = this.#itemsOf(bucket);
    const inline = PAGE_HEADER.size + leafBytes(items) <= INLINE_BYTES_MAX && !items.some((item) => item.bucket);
    const value = new Writer(BUCKET_HEADER.size);
    if (!inline) return value.u64(this.#items(items)).u64(bucket.sequence).finish();
    value.u64(0).u64(bucket.sequence);
    return value.u64(0).u16(PageFlag.leaf).u16(items.length).u32(0).put(leafBody(items)).finish();
  }

  /** Leaf pages, then branch pages over them until one page is left. */
  #items(items: readonly LeafItem[]): number {
    let level = split(items, leafItemBytes).map(
      (group): BranchItem => ({
        key: group[0]?.key ?? new Uint8Array(0),
        page: this.#emit(PageFlag.leaf, group.length, leafBody(group)),
      }),
    );
    while (level.length > 1) {
      level = split(level, branchItemBytes).map((group) => ({
        key: group[0]!.key,
        page: this.#emit(PageFlag.branch, group.length, branchBody(group)),
      }));
    }
    return level[0]!.page;
  }

  #emit(flags: number, count: number, body: Uint8Array): number {
    const id = this.#nextPage;
    const pages = Math.ceil((PAGE_HEADER.size + body.byteLength) / PAGE_SIZE);
    this.#pages
      .u64(id)
      .u16(flags)
      .u16(count)
      .u32(pages - 1)
      .put(body)
      .align(PAGE_SIZE);
    this.#nextPage += pages;
    return id;
  }
}

const leafItemBytes = (item: LeafItem) => LEAF_ELEMENT.size + item.key.byteLength + item.value.byteLength;
const branchItemBytes = (item: BranchItem) => BRANCH_ELEMENT.size + item.key.byteLength;

function leafBytes(items: readonly LeafItem[]): number {
  return items.reduce((sum, item) => sum + leafItemBytes(item), 0);
}

/** Groups that each fill a page as far as it goes; at least one group, which may be empty. */
function split<T>(items: readonly T[], sizeOf: (item: T) => number): T[][] {
  const groups: T[][] = [[]];
  let size = PAGE_HEADER.size;
  for (const [index, item] of items.entries()) {
    const group = groups.at(-1)!;
    const full = size + sizeOf(item) > PAGE_SIZE && group.length >= KEYS_PER_PAGE_MIN;
    // what is left must be enough for a page of its own
    if (full && items.length - index >= KEYS_PER_PAGE_MIN) {
      groups.push([item]);
      size = PAGE_HEADER.size + sizeOf(item);
    } else {
      group.push(item);
      size += sizeOf(item);
    }
  }
  return groups;
}

/** All elements, then keys and values; positions count from the start of their own element. */
function leafBody(items: readonly LeafItem[]): Uint8Array {
  const body = new Writer();
  let data = items.length * LEAF_ELEMENT.size;
  for (const [index, item] of items.entries()) {
    body.u32(item.bucket ? BUCKET_ELEMENT : 0).u32(data - index * LEAF_ELEMENT.size);
    body.u32(item.key.byteLength).u32(item.value.byteLength);
    data += item.key.byteLength + item.value.byteLength;
  }
  for (const item of items) body.put(item.key).put(item.value);
  return body.finish();
}

function branchBody(items: readonly BranchItem[]): Uint8Array {
  const body = new Writer();
  let data = items.length * BRANCH_ELEMENT.size;
  for (const [index, item] of items.entries()) {
    body
      .u32(data - index * BRANCH_ELEMENT.size)
      .u32(item.key.byteLength)
      .u64(item.page);
    data += item.key.byteLength;
  }
  for (const item of items) body.put(item.key);
  return body.finish();
}
