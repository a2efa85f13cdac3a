import assert from "node:assert/strict";
import { test } from "node:test";
import { hashName, hashState } from "./hash.ts";

const STATE = hashState(Buffer.from("aaaaaaaabbbbccccddddeeeeeeeeeeee", "hex"));

test("names hash as the kernel hashes them, bytes signed", () => {
  assert.deepEqual(hashName(Buffer.from("some-file-name-0.txt"), STATE), { hash: 0x06a64be2, minor: 0x9ca7dfcc });
  assert.equal(hashName(Buffer.from("ü"), STATE).hash, 0x4405dc32);
  assert.equal(hashName(Buffer.from("ü"), STATE, true).hash, 0x4633e2ea);
  assert.equal(hashName(Buffer.alloc(255, 0x61), STATE).hash, 0x97bc151a);
});

test("a seed of zeros means MD4's own start", () => {
  assert.deepEqual([...hashState(new Uint8Array(16))], [0x67452301, 0xefcdab89 | 0, 0x98badcfe | 0, 0x10325476]);
});
