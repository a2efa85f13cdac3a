import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { Writer } from "../base/bytes.ts";
import { FileTable, type SharedFile } from "./file-table.ts";
import { answer } from "./namespace.ts";
import { ENTRY_OUT, Opcode } from "./ondisk.ts";

function shared(nodeid: number, name: string): SharedFile {
  return { nodeid, name, size: 8192, fd: -1, bits: new SharedArrayBuffer(1), control: new SharedArrayBuffer(8) };
}

function request(opcode: number, nodeid: number, body: Uint8Array = new Uint8Array(0)): Uint8Array {
  return new Writer()
    .u32(40 + body.byteLength)
    .u32(opcode)
    .u64(7)
    .u64(nodeid)
    .zeros(16)
    .put(body)
    .finish();
}

const table = new FileTable();
table.add(shared(2, "2.erofs"));
const gone = table.add(shared(3, "3.erofs"));
table.add(shared(10, "10.erofs"));

test("a name is looked up in the root only, and has its size, mode and node id", () => {
  const found = answer(request(Opcode.lookup, 1, Buffer.from("10.erofs\0")), table)!;
  assert.equal(found.error, 0);
  const view = new DataView(found.body.buffer);
  assert.equal(view.getBigUint64(0, true), 10n);
  assert.equal(view.getBigUint64(ENTRY_OUT.offsets.attr + 8, true), 8192n);
  assert.equal(view.getUint32(ENTRY_OUT.offsets.attr + 60, true), 0o100444);
  assert.equal(answer(request(Opcode.lookup, 1, Buffer.from("nothing\0")), table)?.error, 2);
  assert.equal(answer(request(Opcode.lookup, 2, Buffer.from("10.erofs\0")), table)?.error, 2);
});

test("a removed file is gone for lookup, attributes and listing, on every thread that shares it", () => {
  const other = new FileTable();
  other.add(gone.shared);
  gone.remove();
  for (const each of [table, other]) {
    assert.equal(answer(request(Opcode.lookup, 1, Buffer.from("3.erofs\0")), each)?.error, 2);
    assert.equal(answer(request(Opcode.getattr, 3), each)?.error, 116);
  }
  assert.equal(gone.enter(), false);
  assert.equal(gone.inside, 0);
});

test("a listing goes on behind the offset it is given", () => {
  const list = (offset: number, size: number) => {
    const body = new Writer().u64(0).u64(offset).u32(size).zeros(20).finish();
    const bytes = Buffer.from(answer(request(Opcode.readdir, 1, body), table)!.body);
    const names: string[] = [];
    for (let at = 0; at < bytes.length; at += 24 + Math.ceil(bytes.readUInt32LE(at + 16) / 8) * 8) {
      names.push(bytes.toString("latin1", at + 24, at + 24 + bytes.readUInt32LE(at + 16)));
    }
    return names;
  };
  assert.deepEqual(list(0, 4096), ["2.erofs", "10.erofs"]);
  assert.deepEqual(list(2, 4096), ["10.erofs"]);
  assert.deepEqual(list(0, 40), ["2.erofs"]);
  assert.deepEqual(list(10, 4096), []);
});

test("what would write is EROFS, OPEN and the unknown are ENOSYS, FORGET and INTERRUPT get no reply", () => {
  assert.equal(answer(request(Opcode.mkdir, 1), table)?.error, 30);
  assert.equal(answer(request(Opcode.write, 2), table)?.error, 30);
  assert.equal(answer(request(Opcode.open, 2), table)?.error, 38);
  assert.equal(answer(request(9999, 1), table)?.error, 38);
  assert.equal(answer(request(Opcode.forget, 2), table), null);
  assert.equal(answer(request(Opcode.interrupt, 2), table), null);
});

test("any request is answered, never an exception", () => {
  fc.assert(
    fc.property(fc.uint8Array({ minLength: 40, maxLength: 200 }), fc.nat(60), (bytes, opcode) => {
      new DataView(bytes.buffer).setUint32(4, opcode, true);
      const answered = answer(bytes, table);
      assert.ok(answered === null || answered.error >= 0);
    }),
  );
});
