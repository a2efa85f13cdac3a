import assert from "node:assert/strict";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import fc from "fast-check";
import { isHeadstartError } from "../base/errors.ts";
import { canResend, initReply, loadConnection, negotiate, saveNegotiated } from "./connection.ts";
import { INIT_OUT, InitFlag } from "./ondisk.ts";

const directory = mkdtempSync(join(tmpdir(), "headstart-connection-"));
after(() => rmSync(directory, { recursive: true, force: true }));

function initIn(major: number, minor: number, flags: number, flags2: number): Uint8Array {
  const bytes = Buffer.alloc(64);
  bytes.writeUInt32LE(major, 0);
  bytes.writeUInt32LE(minor, 4);
  bytes.writeUInt32LE(131_072, 8);
  bytes.writeUInt32LE(flags, 12);
  bytes.writeUInt32LE(flags2, 16);
  return bytes;
}

test("Linux 6.18's INIT is answered with what we want of it, and never with passthrough or a request timeout", () => {
  const negotiated = negotiate(initIn(7, 45, 0x73fffffb, 0x5fd));
  assert.ok(negotiated);
  assert.equal(negotiated.minor, 45);
  const reply = initReply(negotiated);
  const view = new DataView(reply.buffer);
  assert.equal(view.getUint32(INIT_OUT.offsets.major, true), 7);
  const flags =
    BigInt(view.getUint32(INIT_OUT.offsets.flags, true)) |
    (BigInt(view.getUint32(INIT_OUT.offsets.flags2, true)) << 32n);
  assert.equal(flags, negotiated.flags);
  assert.ok(flags & InitFlag.hasResend);
  assert.ok(flags & InitFlag.noOpenSupport);
  assert.equal(flags & ((1n << 37n) | (1n << 42n) | (1n << 12n) | (1n << 16n)), 0n);
  assert.equal(view.getUint16(INIT_OUT.offsets.max_pages, true), 256);
});

test("an old kernel without flags2 gets no resend; a newer major is told ours; an older one is refused", () => {
  const old = negotiate(initIn(7, 31, 0x003ffffb, 0xffffffff).subarray(0, 16));
  assert.equal(old?.minor, 31);
  assert.equal(canResend({ t: "ready", negotiated: old! }), false);
  assert.equal(negotiate(initIn(8, 0, 0, 0)), null);
  assert.equal(new DataView(initReply(null).buffer).getUint32(0, true), 7);
  assert.throws(
    () => negotiate(initIn(7, 8, 0, 0)),
    (error) => isHeadstartError(error, "HS_FUSE_PROTOCOL"),
  );
  assert.throws(
    () => negotiate(new Uint8Array(8)),
    (error) => isHeadstartError(error, "HS_FUSE_PROTOCOL"),
  );
});

test("what was agreed is read back as it was saved", () => {
  const path = join(directory, "connection.json");
  assert.deepEqual(loadConnection(path), { t: "fresh" });
  const negotiated = negotiate(initIn(7, 45, 0x73fffffb, 0x5fd))!;
  saveNegotiated(path, negotiated);
  assert.deepEqual(loadConnection(path), { t: "ready", negotiated });
});

test("a damaged state file is refused, whatever is in it", () => {
  const path = join(directory, "bad.json");
  fc.assert(
    fc.property(fc.oneof(fc.string(), fc.json()), (text) => {
      writeFileSync(path, text);
      assert.throws(
        () => loadConnection(path),
        (error) => isHeadstartError(error, "HS_FUSE_PROTOCOL"),
      );
    }),
  );
});
