import assert from "node:assert/strict";
import { test } from "node:test";
import { constants, zstdCompressSync } from "node:zlib";
import fc from "fast-check";
import { isHeadstartError } from "../../base/errors.ts";
import { isZstd, ZstdStream } from "./stream.ts";

const TEXT = Buffer.from(Array.from({ length: 300_000 }, (_, index) => `line ${index % 977}\n`).join(""));
const SKIPPABLE = Buffer.from("502a4d1805000000aabbccddee", "hex");
const refused = (error: unknown) => isHeadstartError(error, "HS_LAYER_REFUSED");

function decode(stored: Uint8Array, chunkBytes = stored.byteLength): Buffer {
  const parts: Buffer[] = [];
  using stream = new ZstdStream({ data: (bytes) => parts.push(Buffer.from(bytes)) });
  for (let at = 0; at < stored.byteLength; at += chunkBytes) stream.push(stored.subarray(at, at + chunkBytes));
  stream.finish();
  return Buffer.concat(parts);
}

test("frames, empty frames and skippable frames in a row are one stream, however they are cut", () => {
  const frames = [
    zstdCompressSync(TEXT),
    SKIPPABLE,
    zstdCompressSync(Buffer.alloc(0)),
    zstdCompressSync(TEXT.subarray(0, 99)),
  ];
  const want = Buffer.concat([TEXT, TEXT.subarray(0, 99)]);
  for (const chunkBytes of [1, 7, 4096, 1 << 20]) {
    assert.ok(decode(Buffer.concat(frames), chunkBytes).equals(want), `chunks of ${chunkBytes}`);
  }
  assert.equal(decode(SKIPPABLE).byteLength, 0);
});

test("a cut frame, a wrong checksum and anything behind the last frame are refused", () => {
  const frame = zstdCompressSync(TEXT, { params: { [constants.ZSTD_c_checksumFlag]: 1 } });
  const wrong = Buffer.from(frame);
  wrong[wrong.byteLength - 1]! ^= 1;
  assert.throws(() => decode(wrong), refused);
  assert.throws(() => decode(frame.subarray(0, frame.byteLength - 1)), refused);
  assert.throws(() => decode(frame.subarray(0, 3)), refused);
  assert.throws(() => decode(Buffer.concat([frame, Buffer.from("garbage")])), refused);
  assert.throws(() => decode(Buffer.concat([frame, Buffer.alloc(4)])), refused);
});

test("arbitrary and damaged bytes end in data or a refusal", () => {
  const frame = zstdCompressSync(TEXT.subarray(0, 5000));
  const damage = fc.array(fc.tuple(fc.nat(frame.byteLength - 1), fc.nat(255)), { maxLength: 4 });
  fc.assert(
    fc.property(damage, fc.uint8Array({ maxLength: 40 }), fc.integer({ min: 1, max: 100 }), (changes, tail, cut) => {
      const bytes = Buffer.concat([frame, tail]);
      for (const [at, value] of changes) bytes[at] = value;
      try {
        decode(bytes, cut);
      } catch (error) {
        if (!refused(error)) throw error;
      }
    }),
  );
});

test("the bytes tell a zstd stream from others", () => {
  assert.ok(isZstd(zstdCompressSync(Buffer.from("x"))));
  assert.ok(isZstd(SKIPPABLE));
  assert.ok(!isZstd(SKIPPABLE.subarray(0, 6)));
  assert.ok(!isZstd(Buffer.from("1f8b0800", "hex")));
});
