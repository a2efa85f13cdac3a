import assert from "node:assert/strict";
import { test } from "node:test";
import { Tap, tapped } from "./tap.ts";

async function* chunks(count: number, size: number): AsyncGenerator<Uint8Array> {
  for (let index = 0; index < count; index++) yield new Uint8Array(size).fill(index);
}

async function total(bytes: AsyncIterable<Uint8Array>): Promise<number> {
  let sum = 0;
  for await (const chunk of bytes) sum += chunk.byteLength;
  return sum;
}

test("both readers get all bytes", async () => {
  const tap = new Tap();
  const [first, second] = await Promise.all([total(tapped(chunks(100, 1 << 20), tap)), total(tap)]);
  assert.deepEqual([first, second], [100 << 20, 100 << 20]);
  assert.equal(tap.isBroken, false);
});

test("a second reader that is 8 MiB behind holds the first up until it has taken some", async () => {
  const tap = new Tap();
  const sizes = [8 << 20, 1, 1];
  await tap.offer(new Uint8Array(sizes[0]!));
  let passed = 0;
  const rest = (async () => {
    for (const size of sizes.slice(1)) {
      await tap.offer(new Uint8Array(size));
      passed++;
    }
    tap.end();
  })();
  await new Promise((resolve) => setImmediate(resolve));
  assert.equal(passed, 0);
  const got: number[] = [];
  for await (const chunk of tap) got.push(chunk.byteLength);
  await rest;
  assert.deepEqual(got, sizes);
});

test("a second reader that leaves does not hold the first up", async () => {
  const tap = new Tap();
  const leave = async () => {
    for await (const _ of tap) return;
  };
  const [first] = await Promise.all([total(tapped(chunks(100, 1 << 20), tap)), leave()]);
  assert.equal(first, 100 << 20);
});

test("a first reader that leaves, and a stream that fails, are an error for the second", async () => {
  const tap = new Tap();
  const leave = async () => {
    for await (const _ of tapped(chunks(3, 10), tap)) return;
  };
  await Promise.all([leave(), assert.rejects(total(tap), { code: "HS_CANCELED" })]);
  assert.equal(tap.isBroken, true);
  async function* failing(): AsyncGenerator<Uint8Array> {
    yield new Uint8Array(1);
    throw new Error("gone");
  }
  const other = new Tap();
  await Promise.all([assert.rejects(total(tapped(failing(), other)), /gone/), assert.rejects(total(other), /gone/)]);
});
