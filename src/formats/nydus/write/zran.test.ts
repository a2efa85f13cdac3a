/** The rules of zran contexts (specs/nydus.md 3.3) on made-up places. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { ZranContexts } from "./zran.ts";

const MiB = 1024 * 1024;
const WINDOW = new Uint8Array(32_768).fill(7);

/** Members, blocks and chunks as a decoder would pass them. */
class Walk {
  readonly contexts = new ZranContexts("test", MiB, 100 * MiB);

  header(stored: number, plain: number): this {
    this.contexts.boundary({ stored, plain }, 0, 0, true);
    return this;
  }

  block(stored: number, plain: number, bits = 3): this {
    this.contexts.boundary({ stored, plain }, bits, 0xab, false);
    return this;
  }

  chunk(from: readonly [number, number], to: readonly [number, number], isNew = true) {
    this.contexts.handed(() => WINDOW);
    this.contexts.begin({ stored: from[0], plain: from[1] });
    return this.contexts.end({ stored: to[0], plain: to[1] }, isNew);
  }
}

test("a context takes chunks until it has half a megabyte stored, or would come to two megabytes plain", () => {
  const walk = new Walk().header(10, 0);
  assert.deepEqual(walk.chunk([100, 512], [1000, 5000]), { context: 0, offset: 512 });
  walk.block(1100, 6000);
  assert.deepEqual(walk.chunk([200_000, 100_000], [300_000, 200_000]), { context: 0, offset: 100_000 });
  // 512 KiB from its start: a new one, from the last block
  walk.block(600_000, 300_000);
  assert.deepEqual(walk.chunk([610_000, 310_000], [620_000, 320_000]), { context: 1, offset: 10_000 });
  // one more megabyte would be two
  walk.block(630_000, 1_400_000);
  assert.deepEqual(walk.chunk([640_000, 1_410_000], [650_000, 1_420_000]), { context: 2, offset: 10_000 });
  const points = walk.contexts.finish();
  assert.deepEqual([...points.storedOffset], [10, 600_000, 630_000]);
  assert.deepEqual([...points.storedSize], [299_990, 20_000, 20_000]);
  assert.deepEqual([...points.size], [200_000, 20_000, 20_000]);
  assert.deepEqual([...points.bits], [0, 3, 3]);
  assert.deepEqual([...points.byte], [0, 0xab, 0xab]);
  assert.deepEqual([...points.dictionarySize], [0, 32_768, 32_768]);
  assert.deepEqual([...points.dictionaryStart], [0, 0, 32_768]);
});

test("a context goes on as long as no other block has begun", () => {
  const walk = new Walk().header(10, 0);
  walk.chunk([100, 512], [1000, 5000]);
  assert.deepEqual(walk.chunk([900_000, 3 * MiB], [900_100, 4 * MiB]), { context: 0, offset: 3 * MiB });
});

test("a window reaches back no further than its member", () => {
  const walk = new Walk().header(10, 0).header(600_000, 5_000_000).block(600_100, 5_000_100);
  walk.chunk([600_200, 5_000_200], [600_300, 5_000_300]);
  assert.deepEqual([...walk.contexts.finish().dictionarySize], [100]);
});

test("a chunk that was there before begins no context, and ends none", () => {
  const walk = new Walk().header(10, 0);
  walk.chunk([100, 512], [1000, 5000]);
  walk.block(700_000, 800_000);
  assert.equal(walk.chunk([700_100, 800_100], [700_200, 800_200], false), null);
  walk.block(700_300, 800_300);
  assert.deepEqual(walk.chunk([700_400, 800_400], [700_500, 800_500]), { context: 1, offset: 100 });
  const points = walk.contexts.finish();
  assert.deepEqual([...points.storedOffset], [10, 700_300]);
  assert.deepEqual([...points.storedSize], [990, 200]);
});

test("a context that ends with a member goes into the next one that has data, and none ends before it", () => {
  const walk = new Walk().header(10, 0);
  walk.chunk([100, 512], [600_000, 2 * MiB]);
  walk.contexts.memberEnd(2 * MiB);
  // an empty member, then one with data, whose file ends soon
  walk.header(600_020, 2 * MiB);
  walk.contexts.memberEnd(2 * MiB);
  walk.header(600_040, 2 * MiB);
  assert.deepEqual(walk.chunk([600_041, 2 * MiB], [600_050, 2 * MiB + 5]), { context: 1, offset: 0 });
  const points = walk.contexts.finish();
  assert.deepEqual([...points.storedOffset], [10, 600_040]);
  assert.deepEqual([...points.storedSize], [600_040 + 64 - 10, 64]);
});

test("a context that ends with the layer is refused", () => {
  const walk = new Walk().header(10, 0);
  walk.chunk([100, 512], [1000, 1024]);
  walk.contexts.memberEnd(1024);
  walk.header(1020, 1024);
  walk.contexts.memberEnd(1024);
  assert.throws(() => walk.contexts.finish(), { code: "HS_NYDUS_LIMIT" });
});
