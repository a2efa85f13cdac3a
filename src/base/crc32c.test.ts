import assert from "node:assert/strict";
import { test } from "node:test";
import { crc32c, crc32cWord } from "./crc32c.ts";

test("the complement is CRC-32C as RFC 3720 B.4 lists it", () => {
  assert.equal(~crc32c(Buffer.from("123456789")) >>> 0, 0xe3069283);
  assert.equal(~crc32c(new Uint8Array(32)) >>> 0, 0x8a9136aa);
  assert.equal(~crc32c(new Uint8Array(32).fill(0xff)) >>> 0, 0x62a8ab43);
});

test("a sum over two parts is the sum over the whole", () => {
  const bytes = Buffer.from("hello, erofs");
  assert.equal(crc32c(bytes.subarray(5), crc32c(bytes.subarray(0, 5))), crc32c(bytes));
});

test("sums do not depend on where the parts are cut, and a word is four bytes", () => {
  const bytes = Uint8Array.from({ length: 61 }, (_, index) => (index * 7919) & 0xff);
  for (let cut = 0; cut <= bytes.length; cut++) {
    assert.equal(crc32c(bytes.subarray(cut), crc32c(bytes.subarray(0, cut))), crc32c(bytes));
  }
  assert.equal(crc32cWord(0x84838281, 0x12345678), crc32c(Uint8Array.of(0x81, 0x82, 0x83, 0x84), 0x12345678));
});
