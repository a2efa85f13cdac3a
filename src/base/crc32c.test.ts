import assert from "node:assert/strict";
import { test } from "node:test";
import { crc32c } from "./crc32c.ts";

test("the complement is CRC-32C as RFC 3720 B.4 lists it", () => {
  assert.equal(~crc32c(Buffer.from("123456789")) >>> 0, 0xe3069283);
  assert.equal(~crc32c(new Uint8Array(32)) >>> 0, 0x8a9136aa);
  assert.equal(~crc32c(new Uint8Array(32).fill(0xff)) >>> 0, 0x62a8ab43);
});

test("a sum over two parts is the sum over the whole", () => {
  const bytes = Buffer.from("hello, erofs");
  assert.equal(crc32c(bytes.subarray(5), crc32c(bytes.subarray(0, 5))), crc32c(bytes));
});
