import assert from "node:assert/strict";
import { test } from "node:test";
import { xxh32 } from "./xxh32.ts";

test("known answers of XXH32, shorter and longer than a stripe, with and without a seed", () => {
  assert.equal(xxh32(Buffer.from(""), 0), 0x02cc5d05);
  assert.equal(xxh32(Buffer.from("a"), 0), 0x550d7456);
  assert.equal(xxh32(Buffer.from("abc"), 0), 0x32d153ff);
  assert.equal(xxh32(Buffer.from("Nobody inspects the spammish repetition"), 0), 0xe2293b2f);
  // the sanity buffer of the reference implementation, 101 bytes, seed PRIME32
  const buffer = Buffer.alloc(101);
  let value = 2654435761n;
  for (let index = 0; index < buffer.length; index++) {
    buffer[index] = Number((value >> 24n) & 0xffn);
    value = (value * value) & 0xffffffffn;
  }
  assert.equal(xxh32(buffer.subarray(0, 1), 0), 0xb85cbee5);
  assert.equal(xxh32(buffer.subarray(0, 14), 2654435761), 0x4481951d);
  assert.equal(xxh32(buffer, 0), 0x1f1aa412);
  assert.equal(xxh32(buffer, 2654435761), 0x498ec8e2);
});
