import assert from "node:assert/strict";
import { test } from "node:test";
import { deflateRawSync } from "node:zlib";
import { RawInflate, Z_BLOCK, Z_BUF_ERROR, Z_OK, Z_STREAM_END, Z_SYNC_FLUSH } from "./zlib.ts";

const DATA = Buffer.from("the quick brown fox jumps over the lazy dog. ".repeat(5000));
const DEFLATED = deflateRawSync(DATA);

test("a raw stream inflates into the caller's buffer, which may be shared memory", () => {
  using inflate = new RawInflate();
  const input = new Uint8Array(new SharedArrayBuffer(DEFLATED.length));
  input.set(DEFLATED);
  for (const buffer of [new ArrayBuffer(DATA.length), new SharedArrayBuffer(DATA.length)]) {
    const output = new Uint8Array(buffer);
    inflate.reset();
    inflate.setInput(input);
    inflate.setOutput(output);
    assert.equal(inflate.run(Z_SYNC_FLUSH), Z_STREAM_END);
    assert.deepEqual([inflate.consumed, inflate.produced], [DEFLATED.length, DATA.length]);
    assert.ok(DATA.equals(Buffer.from(output)));
  }
});

test("no byte is written beyond the output, and empty buffers are no misuse", () => {
  using inflate = new RawInflate();
  const guarded = new Uint8Array(1100).fill(0xaa);
  inflate.setInput(DEFLATED);
  inflate.setOutput(guarded.subarray(50, 1050));
  assert.equal(inflate.run(Z_SYNC_FLUSH), Z_OK);
  assert.equal(inflate.availableOut, 0);
  assert.ok(
    guarded.subarray(0, 50).every((byte) => byte === 0xaa) && guarded.subarray(1050).every((byte) => byte === 0xaa),
  );
  inflate.setOutput(new Uint8Array(0));
  assert.equal(inflate.run(Z_SYNC_FLUSH), Z_BUF_ERROR);
  inflate.setInput(new Uint8Array(0));
  inflate.setOutput(new Uint8Array(10));
  assert.ok([Z_OK, Z_BUF_ERROR].includes(inflate.run(Z_SYNC_FLUSH)));
});

test("bits in front of the input and a window are honoured", () => {
  const head = deflateRawSync(DATA.subarray(0, 1000));
  const tail = deflateRawSync(DATA.subarray(1000, 3000), { dictionary: DATA.subarray(0, 1000) });
  assert.ok(tail.length < head.length);
  using inflate = new RawInflate();
  inflate.prime(3, tail[0]! & 7);
  // the other five bits of the first byte, and the rest moved by three
  const shifted = Buffer.alloc(tail.length);
  for (let index = 0; index < tail.length; index++)
    shifted[index] = (tail[index]! >> 3) | ((tail[index + 1] ?? 0) << 5);
  inflate.setDictionary(DATA.subarray(0, 1000));
  inflate.setInput(shifted);
  const output = new Uint8Array(2000);
  inflate.setOutput(output);
  inflate.run(Z_SYNC_FLUSH);
  assert.ok(Buffer.from(output).equals(DATA.subarray(1000, 3000)));
});

test("Z_BLOCK stops behind each block and says so", () => {
  using inflate = new RawInflate();
  const blocks = Buffer.concat([deflateRawSync(DATA.subarray(0, 100), { finishFlush: 2 }), DEFLATED]);
  inflate.setInput(blocks);
  inflate.setOutput(new Uint8Array(DATA.length + 100));
  let boundaries = 0;
  for (;;) {
    const result = inflate.run(Z_BLOCK);
    if (result === Z_STREAM_END) break;
    assert.equal(result, Z_OK);
    if ((inflate.dataType & 128) !== 0) boundaries++;
  }
  assert.ok(boundaries >= 2);
});

test("bytes that are no deflate data give a negative result, not a crash; use after dispose is an error", () => {
  const inflate = new RawInflate();
  inflate.setInput(Buffer.alloc(100, 0xff));
  inflate.setOutput(new Uint8Array(100));
  assert.ok(inflate.run(Z_SYNC_FLUSH) < 0);
  inflate[Symbol.dispose]();
  inflate[Symbol.dispose]();
  assert.throws(() => inflate.run(Z_SYNC_FLUSH), { code: "HS_INTERNAL" });
  assert.throws(() => inflate.setInput(new Uint8Array(1)), { code: "HS_INTERNAL" });
});
