import assert from "node:assert/strict";
import { test } from "node:test";
import { zstdDecompressSync } from "node:zlib";
import { ZstdEncoder, zstdBound } from "./zstd-encode.ts";

test("frames of one encoder decode to what was given, empty input too", async () => {
  using encoder = new ZstdEncoder(3);
  for (const size of [0, 1, 4095, 300_000]) {
    const input = Uint8Array.from({ length: size }, (_, index) => (index * index) >> 3);
    const output = new Uint8Array(zstdBound(size));
    const length = await encoder.encode(input, output);
    assert.deepEqual(new Uint8Array(zstdDecompressSync(output.subarray(0, length))), input);
  }
});

test("encoders work at the same time, and each gives the same bytes again", async () => {
  const input = Buffer.from(Array.from({ length: 100_000 }, (_, index) => `line ${index % 331}\n`).join(""));
  const encoders = [new ZstdEncoder(3), new ZstdEncoder(3), new ZstdEncoder(3)];
  const frames = await Promise.all(
    encoders.map(async (encoder) => {
      const output = new Uint8Array(zstdBound(input.byteLength));
      const first = Buffer.from(output.subarray(0, await encoder.encode(input, output))).toString("hex");
      const second = Buffer.from(output.subarray(0, await encoder.encode(input, output))).toString("hex");
      assert.equal(first, second);
      return first;
    }),
  );
  assert.equal(new Set(frames).size, 1);
  for (const encoder of encoders) encoder[Symbol.dispose]();
});

test("an output that is too small, and use after dispose, are errors", async () => {
  const encoder = new ZstdEncoder(1);
  const noise = Uint8Array.from({ length: 1000 }, (_, index) => Math.imul(index + 1, 2_654_435_761) >>> 24);
  await assert.rejects(encoder.encode(noise, new Uint8Array(10)), { code: "HS_INTERNAL" });
  encoder[Symbol.dispose]();
  await assert.rejects(encoder.encode(noise, new Uint8Array(2000)), { code: "HS_INTERNAL" });
});
