import assert from "node:assert/strict";
import { test } from "node:test";
import { bytesToText, textToBytes } from "./tree-lines.ts";

test("a name that is no UTF-8 comes back from its text", () => {
  for (const bytes of [
    [0x61, 0xff, 0x62],
    [0xf0, 0x9f, 0x98, 0x80, 0x80],
    [0x2f, 0xc3, 0xa9],
  ]) {
    assert.deepEqual([...textToBytes(bytesToText(Uint8Array.from(bytes)))], bytes);
  }
});
