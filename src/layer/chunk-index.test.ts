import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { test } from "node:test";
import { ChunkIndex } from "./chunk-index.ts";

const digest = (name: string | number) => createHash("sha256").update(String(name)).digest();
const open = () => true;

test("what was added is found by digest and length, in a file that is open, until the file is removed", () => {
  const index = new ChunkIndex();
  for (let piece = 0; piece < 20_000; piece++) {
    index.add(digest(piece), 100 + (piece % 7), { file: 1 + (piece % 3), offset: piece * 4096 });
    // again: nothing more
    index.add(digest(piece), 100 + (piece % 7), { file: 1 + (piece % 3), offset: piece * 4096 });
  }
  assert.equal(index.count, 20_000);
  for (let piece = 0; piece < 20_000; piece += 13) {
    const place = { file: 1 + (piece % 3), offset: piece * 4096 };
    assert.deepEqual(index.find(digest(piece), 100 + (piece % 7), open), place);
    assert.equal(index.find(digest(piece), 99, open), null);
    assert.equal(
      index.find(digest(piece), 100 + (piece % 7), (file) => file !== place.file),
      null,
    );
  }
  index.remove(2);
  for (let piece = 0; piece < 20_000; piece += 13)
    assert.equal(index.find(digest(piece), 100 + (piece % 7), open) === null, piece % 3 === 1);
});

test("one piece may be in several files: another one is found when the first is closed", () => {
  const index = new ChunkIndex();
  index.add(digest("x"), 5, { file: 1, offset: 0 });
  index.add(digest("x"), 5, { file: 2, offset: 8192 });
  assert.deepEqual(index.find(digest("x"), 5, open), { file: 1, offset: 0 });
  assert.deepEqual(
    index.find(digest("x"), 5, (file) => file === 2),
    { file: 2, offset: 8192 },
  );
});

test("it does not grow beyond its bound: what comes later is not found, what was there is", () => {
  const index = new ChunkIndex({ slotsMax: 1024 });
  for (let piece = 0; piece < 5000; piece++) index.add(digest(piece), 1, { file: 1, offset: piece * 4096 });
  assert.equal(index.count, 512);
  assert.deepEqual(index.find(digest(0), 1, open), { file: 1, offset: 0 });
  assert.equal(index.find(digest(4999), 1, open), null);
});
