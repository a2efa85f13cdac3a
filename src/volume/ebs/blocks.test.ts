import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { test } from "node:test";
import fc from "fast-check";
import { isHeadstartError } from "../../base/errors.ts";
import {
  type BlockMap,
  changedBlocks,
  contentDigest,
  keepFreed,
  linearChecksum,
  parseDescription,
  ZERO_BLOCK,
} from "./blocks.ts";

const digest = (seed: number) => createHash("sha256").update(String(seed)).digest("hex");
const map = fc
  .dictionary(fc.integer({ min: 0, max: 40 }).map(String), fc.integer({ min: 0, max: 3 }))
  .map((entries): BlockMap => new Map(Object.entries(entries).map(([index, seed]) => [Number(index), digest(seed)])));

/** What a child holds after `put`, as EBS composes it. */
function composed(parent: BlockMap, put: BlockMap): BlockMap {
  return new Map([...new Map([...parent, ...put])].filter(([, value]) => value !== ZERO_BLOCK));
}

test("the blocks that are put make a child of what its file is, and none of them is needless", () => {
  fc.assert(
    fc.property(map, map, (blocks, parent) => {
      const put = changedBlocks(blocks, parent);
      assert.equal(contentDigest(composed(parent, put)), contentDigest(blocks));
      for (const [index, value] of put) assert.notEqual(parent.get(index) ?? ZERO_BLOCK, value);
    }),
  );
});

test("freed runs keep the parent's blocks, and nothing else does", () => {
  fc.assert(
    fc.property(
      map,
      map,
      fc.array(fc.tuple(fc.integer({ min: 0, max: 9 }), fc.integer({ min: 1, max: 5 })), { maxLength: 5 }),
      (blocks, parent, gaps) => {
        let at = 0;
        const unused = gaps.map(([gap, count]) => {
          const first = at + gap;
          at = first + count;
          return { first, count };
        });
        const kept = keepFreed(blocks, parent, unused);
        const freed = (index: number) => unused.some(({ first, count }) => first <= index && index < first + count);
        for (let index = 0; index <= 40; index++) {
          const wanted = blocks.get(index) ?? (freed(index) ? parent.get(index) : undefined);
          assert.equal(kept.get(index), wanted);
        }
      },
    ),
  );
});

test("LINEAR is over raw digests in the order of their indexes, whatever the order of the map", () => {
  const [a, b] = [digest(1), digest(2)];
  const wanted = createHash("sha256")
    .update(Buffer.from(a + b, "hex"))
    .digest("base64");
  assert.equal(
    linearChecksum(
      new Map([
        [3, a],
        [20, b],
      ]),
    ),
    wanted,
  );
  assert.equal(
    linearChecksum(
      new Map([
        [20, b],
        [3, a],
      ]),
    ),
    wanted,
  );
  assert.equal(linearChecksum(new Map()), "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=");
});

const parse = (value: unknown) => parseDescription(Buffer.from(JSON.stringify(value)), "x.json");
const blocks = { size: 524_288, sha256: { 7: digest(1), 9: ZERO_BLOCK }, unused: [[3, 2]] };

test("blocks are found in a manifest, in the statement around one, and in the record of a push", () => {
  for (const document of [
    { blocks, size: 10 },
    { predicate: { headstart_volume: { blocks, size: 10 } } },
    { blocks, size: 10, snapshot: { id: "snap-1" } },
  ]) {
    const found = parse(document)!;
    assert.deepEqual([...found.blocks], [[7, digest(1)]]);
    assert.deepEqual([found.sizeBytes, found.unused], [10, [{ first: 3, count: 2 }]]);
  }
  assert.equal(parse({ blocks, snapshot: { id: "snap-1" } })?.snapshot, "snap-1");
  assert.equal(parse({ images: [] }), undefined);
});

test("a description that is not sound is refused", () => {
  for (const wrong of [
    { ...blocks, size: 4096 },
    { ...blocks, sha256: { x: digest(1) } },
    { ...blocks, sha256: { "01": digest(1) } },
    { ...blocks, sha256: { 999999999: digest(1) } },
    { ...blocks, sha256: { 1: "ab" } },
    { ...blocks, sha256: [] },
    { ...blocks, unused: [[5, 0]] },
    {
      ...blocks,
      unused: [
        [5, 2],
        [6, 1],
      ],
    },
    { ...blocks, unused: {} },
  ]) {
    assert.throws(
      () => parse({ blocks: wrong }),
      (error) => isHeadstartError(error, "HS_MANIFEST"),
      JSON.stringify(wrong),
    );
  }
  fc.assert(
    fc.property(fc.json(), (text) => {
      try {
        parseDescription(Buffer.from(text), "x");
      } catch (error) {
        assert.ok(isHeadstartError(error, "HS_MANIFEST"), String(error));
      }
    }),
  );
});
