import assert from "node:assert/strict";
import { test } from "node:test";
import { Reader, Writer } from "./bytes.ts";

test("a writer grows at every kind of value", () => {
  const writer = new Writer(1);
  for (let round = 0; round < 100; round++) writer.u8(1).u16(2).u32(3).i32(-4).u64(5).put(Buffer.from("ab")).zeros(3);
  const reader = new Reader(writer.finish(), { what: "test" });
  for (let round = 0; round < 100; round++) {
    assert.deepEqual(
      [reader.u8(), reader.u16(), reader.u32(), reader.i32(), reader.u64(), reader.ascii(2), reader.u8(), reader.u16()],
      [1, 2, 3, -4, 5, "ab", 0, 0],
    );
  }
  assert.equal(reader.remaining, 0);
});
