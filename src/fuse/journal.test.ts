import assert from "node:assert/strict";
import { mkdtempSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { Journal } from "./journal.ts";

const directory = mkdtempSync(join(tmpdir(), "headstart-journal-"));
after(() => rmSync(directory, { recursive: true, force: true }));

function request(unique: number): Uint8Array {
  const bytes = Buffer.alloc(80);
  bytes.writeUInt32LE(80, 0);
  bytes.writeUInt32LE(15, 4);
  bytes.writeUInt32LE(unique, 8);
  return bytes;
}

test("a successor finds what was stored and not released, and its slots are taken", () => {
  const path = join(directory, "a");
  const { journal, entries } = Journal.open(path);
  assert.deepEqual(entries, []);
  const slots = [journal.claim(), journal.claim(), journal.claim()];
  assert.equal(new Set(slots).size, 3);
  for (const [index, slot] of slots.entries()) journal.store(slot, request(index + 1));
  journal.release(slots[1]!);
  const next = Journal.open(path);
  assert.deepEqual(
    next.entries.map((entry) => [entry.slot, Buffer.from(entry.request).readUInt32LE(8)]),
    [
      [slots[0], 1],
      [slots[2], 3],
    ],
  );
  const fresh = next.journal.claim();
  assert.ok(fresh !== slots[0] && fresh !== slots[2]);
  for (const entry of next.entries) next.journal.release(entry.slot);
  const last = Journal.open(path);
  assert.deepEqual(last.entries, []);
});

test("a stored request longer than a slot keeps its beginning; a later shorter one replaces it", () => {
  const path = join(directory, "b");
  const { journal } = Journal.open(path);
  const slot = journal.claim();
  const long = Buffer.alloc(300, 1);
  long.writeUInt32LE(300, 0);
  journal.store(slot, long);
  assert.equal(Journal.open(path).entries[0]?.request.byteLength, 128);
  journal.store(slot, request(9));
  assert.equal(Journal.open(path).entries[0]?.request.byteLength, 80);
});

test("when every slot is taken there is none, until one is released", () => {
  const { journal } = Journal.open(join(directory, "c"));
  let count = 0;
  let last = -1;
  for (let slot = journal.tryClaim(); slot >= 0; slot = journal.tryClaim()) {
    last = slot;
    count++;
  }
  assert.equal(count, 4096);
  journal.release(last);
  assert.equal(journal.claim(), last);
});

test("what read(2) put into a reader's landing is found too, until it is cleared", () => {
  const path = join(directory, "l");
  const { journal } = Journal.open(path);
  journal.landing(0).set(request(5));
  journal.landing(1).set(request(6));
  journal.clearLanding(1);
  const next = Journal.open(path);
  assert.deepEqual(
    next.entries.map((entry) => Buffer.from(entry.request).readUInt32LE(8)),
    [5],
  );
  assert.equal(new DataView(next.journal.landing(0).buffer, next.journal.landing(0).byteOffset).getUint32(0, true), 0);
  // it has a slot now, so a third one finds it as well
  assert.equal(Journal.open(path).entries.length, 1);
});

test("a file of another layout or cut short is emptied, not trusted, and its blocks are reserved", () => {
  const path = join(directory, "d");
  writeFileSync(path, Buffer.alloc(128 * 4097, 0x41));
  const first = Journal.open(path);
  assert.deepEqual(first.entries, []);
  assert.ok(statSync(path).blocks * 512 >= statSync(path).size);
  writeFileSync(join(directory, "short"), "HSJOURN2");
  assert.deepEqual(Journal.open(join(directory, "short")).entries, []);
});
