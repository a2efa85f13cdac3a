import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { gunzipSync } from "node:zlib";
import fc from "fast-check";
import { isHeadstartError } from "../../base/errors.ts";
import { PROJECT } from "../../base/project.ts";
import { type Bucket, fnv1a, isBucket } from "./ondisk.ts";
import { type BoltFile, readBolt } from "./read.ts";
import { writeBolt } from "./write.ts";

const GOLDEN = join(PROJECT, "test/golden/volume/containerd-1.6.20");
const golden = (name: string) => Uint8Array.from(gunzipSync(readFileSync(join(GOLDEN, `${name}.gz`))));
const expected = (name: string) => JSON.parse(Buffer.from(golden(`${name}.json`)).toString()) as Expected;

interface Expected {
  readonly metas: readonly { readonly hwm: number; readonly txid: number }[];
  readonly chosenMeta: number;
  readonly freelist: { readonly ids: readonly number[] };
  readonly pagesVisited: readonly { readonly id: number }[];
  readonly root: Tree;
}

type Tree = { readonly [key: string]: { readonly hex: string } | { readonly bucket: Tree; readonly sequence: number } };

/** As the golden decoder writes it: keys that are not printable ASCII in hex. */
function asTree(bucket: Bucket): Tree {
  const entries = [...bucket.entries].map(([key, value]): [string, Tree[string]] => {
    const name = /^[\x20-\x7e]*$/.test(key) ? key : `0x${Buffer.from(key, "latin1").toString("hex")}`;
    if (isBucket(value)) return [name, { bucket: asTree(value), sequence: value.sequence }];
    return [name, { hex: Buffer.from(value).toString("hex") }];
  });
  return Object.fromEntries(entries);
}

/** Only what both trees have. */
function bare(tree: Tree): Tree {
  return Object.fromEntries(
    Object.entries(tree).map(([key, value]) => [
      key,
      "bucket" in value ? { bucket: bare(value.bucket), sequence: value.sequence } : { hex: value.hex },
    ]),
  );
}

for (const name of ["meta.db", "metadata.db"]) {
  test(`containerd's own ${name} decodes to the same buckets, pages and free pages as the golden decoder's`, () => {
    const file = readBolt(golden(name), name);
    const want = expected(name);
    assert.deepEqual(asTree(file.root), bare(want.root));
    assert.equal(file.txid, want.metas[want.chosenMeta]!.txid);
    assert.equal(file.highWater, want.metas[want.chosenMeta]!.hwm);
    assert.deepEqual(file.freelist, want.freelist.ids);
    assert.deepEqual(
      file.pages,
      want.pagesVisited.map((page) => page.id),
    );
  });

  test(`${name}, written again from what was read, has the same buckets and sequences, twice the same bytes`, () => {
    const { root } = readBolt(golden(name), name);
    const bytes = writeBolt(root);
    const again = readBolt(bytes, "ours");
    assertSame(again.root, root);
    assert.deepEqual(again.freelist, []);
    assert.deepEqual(writeBolt(again.root), bytes);
    assert.equal(bytes.byteLength, again.highWater * 4096);
  });

  test(`${name} with any byte changed is read, or refused with an error of ours`, () => {
    const bytes = golden(name).subarray(0, expected(name).metas[0]!.hwm * 4096);
    fc.assert(
      fc.property(fc.nat(bytes.byteLength - 1), fc.nat(255), (offset, value) => {
        const damaged = Uint8Array.from(bytes);
        damaged[offset] = value;
        mustNotCrash(() => readBolt(damaged, "damaged"));
      }),
      { numRuns: 300 },
    );
  });
}

test("any tree of buckets survives writing and reading", () => {
  const key = fc.string({ minLength: 1, maxLength: 40, unit: fc.nat(255).map((code) => String.fromCharCode(code)) });
  const { bucket } = fc.letrec<{ bucket: Bucket; value: Uint8Array | Bucket }>((tie) => ({
    bucket: fc.record({
      sequence: fc.nat(1_000_000),
      entries: fc.array(fc.tuple(key, tie("value")), { maxLength: 12 }).map((entries) => new Map(entries)),
    }),
    value: fc.oneof({ depthSize: "small" }, fc.uint8Array({ maxLength: 3000 }), tie("bucket")),
  }));
  fc.assert(
    fc.property(bucket, (root) => {
      assertSame(readBolt(writeBolt(root), "ours").root, root);
    }),
    { numRuns: 60 },
  );
});

test("thousands of keys over three levels, and values larger than a page, come back", () => {
  const entries = new Map<string, Uint8Array>();
  for (let index = 0; index < 5000; index++) {
    entries.set(
      `a-key-of-some-length-that-fills-branch-pages-${index}`.padEnd(90, "x"),
      new Uint8Array(index % 300).fill(index),
    );
  }
  entries.set("large", new Uint8Array(20_000).fill(7));
  const root: Bucket = { sequence: 3, entries: new Map([["v1", { sequence: 9, entries }]]) };
  const file = readBolt(writeBolt(root), "large");
  assertSame(file.root, root);
  assert.ok(file.pages.length > 150, "more than one branch page");
});

test("every page is refused that is cut off, belongs to another number, or is named twice", () => {
  const { root } = readBolt(golden("meta.db"), "meta.db");
  const bytes = writeBolt(root);
  assert.throws(() => readBolt(bytes.subarray(0, bytes.byteLength - 4096), "cut"), { code: "HS_TRUNCATED" });
  const wrong = Uint8Array.from(bytes);
  wrong[3 * 4096] = 9;
  assert.throws(() => readBolt(wrong, "number"), { code: "HS_MALFORMED" });
  assert.throws(() => readBolt(new Uint8Array(100_000), "zeros"), { code: "HS_MALFORMED" });
  assert.throws(() => readBolt(withRoot(bytes, 2), "freelist as root"), { code: "HS_MALFORMED" });
});

test("a file whose freelist was not kept is read", () => {
  const bytes = withMeta(writeBolt({ sequence: 0, entries: new Map() }), (meta) =>
    meta.setBigUint64(24 + 8, 2n ** 64n - 1n, true),
  );
  assert.equal(readBolt(bytes, "no freelist").freelist, null);
});

function withRoot(bytes: Uint8Array, page: number): Uint8Array {
  return withMeta(bytes, (meta) => meta.setBigUint64(16, BigInt(page), true));
}

/** Changes both meta pages (the view begins at the magic), and mends their checksums. */
function withMeta(bytes: Uint8Array, change: (meta: DataView) => void): Uint8Array {
  const changed = Uint8Array.from(bytes);
  for (const start of [16, 4096 + 16]) {
    const view = new DataView(changed.buffer, start, 64);
    change(view);
    view.setBigUint64(56, fnv1a(changed.subarray(start, start + 56)), true);
  }
  return changed;
}

function assertSame(got: Bucket, want: Bucket): void {
  assert.deepEqual(asTree(got), asTree(want));
  assert.equal(got.sequence, want.sequence);
}

function mustNotCrash(work: () => BoltFile): void {
  try {
    work();
  } catch (error) {
    if (!isHeadstartError(error)) throw error;
  }
}
