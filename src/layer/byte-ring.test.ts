import assert from "node:assert/strict";
import { test } from "node:test";
import { setTimeout } from "node:timers/promises";
import { noise } from "../../test/fakes/plain-layer.ts";
import { isHeadstartError } from "../base/errors.ts";
import { ByteRing } from "./byte-ring.ts";

async function readAll(ring: ByteRing, pauseEvery = 0): Promise<Buffer> {
  const parts: Buffer[] = [];
  for await (const view of ring.read()) {
    parts.push(Buffer.from(view));
    if (pauseEvery > 0 && parts.length % pauseEvery === 0) await setTimeout(1);
  }
  return Buffer.concat(parts);
}

test("bytes come out as they went in, whichever side is slower and however they are cut", async () => {
  const bytes = noise(100_000, 1);
  for (const [chunkBytes, pauseEvery] of [
    [1000, 0],
    [37, 50],
    [5000, 3],
  ] as const) {
    const ring = new ByteRing(1024);
    const read = readAll(new ByteRing(ring.buffer), pauseEvery);
    for (let at = 0; at < bytes.byteLength; at += chunkBytes) {
      assert.equal(await ring.write(bytes.subarray(at, at + chunkBytes)), true);
    }
    ring.end();
    assert.equal(Buffer.compare(await read, bytes), 0);
  }
});

test("counters that pass 2^31 and 2^32 do no harm", async () => {
  const ring = new ByteRing(1024);
  const words = new Int32Array(ring.buffer, 0, 4);
  for (const start of [2 ** 31 - 500, -500]) {
    words.fill(start | 0, 0, 2);
    words[2] = 0;
    const bytes = noise(3000, 2);
    const read = readAll(ring);
    await ring.write(bytes);
    ring.end();
    assert.equal(Buffer.compare(await read, bytes), 0);
  }
});

test("a reader that cancels frees a writer that waits for room, and the other way round", async () => {
  const full = new ByteRing(16);
  const writing = full.write(new Uint8Array(100));
  full.cancel();
  assert.equal(await writing, false);
  const empty = new ByteRing(16);
  const reading = readAll(empty);
  empty.cancel();
  await assert.rejects(reading, (error) => isHeadstartError(error, "HS_CANCELED"));
});

test("what was written before the end is read after it", async () => {
  const ring = new ByteRing(1024);
  await ring.write(Buffer.from("abc"));
  ring.end();
  assert.equal((await readAll(ring)).toString(), "abc");
});
