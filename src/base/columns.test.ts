import assert from "node:assert/strict";
import { test } from "node:test";
import { ByteColumn, Column } from "./columns.ts";

test("a column holds what was pushed, in order, however often it grew", () => {
  const column = new Column((length) => new Float64Array(length));
  assert.deepEqual([column.length, [...column.items]], [0, []]);
  const values = Array.from({ length: 1000 }, (_, index) => index * 2 ** 40 + 0.5);
  for (const value of values) column.push(value);
  assert.equal(column.length, 1000);
  assert.deepEqual([...column.items], values);
  assert.deepEqual([column.at(999), column.at(1000)], [values[999], undefined]);
});

test("a column's array decides what a number becomes", () => {
  const column = new Column((length) => new Uint8Array(length));
  for (const value of [255, 256, -1]) column.push(value);
  assert.deepEqual([...column.items], [255, 0, 255]);
});

test("bytes are copied, and found where put() said, also one piece larger than all before", () => {
  const column = new ByteColumn();
  const piece = Buffer.from("abc");
  assert.equal(column.put(piece), 0);
  piece.fill(0);
  assert.equal(column.put(new Uint8Array(0)), 3);
  const large = Buffer.alloc(100_000, "x");
  assert.equal(column.put(large), 3);
  assert.equal(column.put(Buffer.from("end")), 100_003);
  assert.equal(column.length, 100_006);
  assert.equal(Buffer.from(column.bytes.subarray(0, 3)).toString(), "abc");
  assert.ok(large.equals(column.bytes.subarray(3, 100_003)));
  assert.equal(Buffer.from(column.bytes.subarray(100_003)).toString(), "end");
});
