import assert from "node:assert/strict";
import { test } from "node:test";
import { crc32, deflateRawSync, gunzipSync, gzipSync } from "node:zlib";
import fc from "fast-check";
import { fixtureLayers } from "../../../test/suites/golden-soci.ts";
import { noise } from "../../../test/suites/soci-sample.ts";
import { HeadstartError } from "../../base/errors.ts";
import { GzipInflate, WINDOW } from "./inflate.ts";
import { gzipHeaderLength } from "./member.ts";
import { ResumeInflate } from "./resume.ts";

function inflate(bytes: Uint8Array, chunk = 1000): Buffer {
  const parts: Buffer[] = [];
  using stream = new GzipInflate({ data: (part) => parts.push(Buffer.from(part)) });
  for (let at = 0; at < bytes.byteLength; at += chunk) stream.push(bytes.subarray(at, at + chunk));
  stream.finish();
  return Buffer.concat(parts);
}

/** A member with the header fields of `flags`. */
function member(
  data: Buffer,
  fields: { extra?: Buffer; name?: string; comment?: string; crc?: boolean; flags?: number } = {},
): Buffer {
  let flags = fields.flags ?? 0;
  const parts: Buffer[] = [];
  if (fields.extra) {
    flags |= 4;
    parts.push(Buffer.from([fields.extra.length & 255, fields.extra.length >> 8]), fields.extra);
  }
  if (fields.name !== undefined) {
    flags |= 8;
    parts.push(Buffer.from(`${fields.name}\0`));
  }
  if (fields.comment !== undefined) {
    flags |= 16;
    parts.push(Buffer.from(`${fields.comment}\0`));
  }
  if (fields.crc) flags |= 2;
  let header = Buffer.concat([Buffer.from([0x1f, 0x8b, 8, flags, 0, 0, 0, 0, 0, 3]), ...parts]);
  if (fields.crc) {
    const sum = crc32(header) & 0xffff;
    header = Buffer.concat([header, Buffer.from([sum & 255, sum >> 8])]);
  }
  const trailer = Buffer.alloc(8);
  trailer.writeUInt32LE(crc32(data), 0);
  trailer.writeUInt32LE(data.length, 4);
  return Buffer.concat([header, deflateRawSync(data), trailer]);
}

test("members of all header forms decode, at every cut of the stream", () => {
  const data = noise(5000);
  const forms = [
    {},
    { name: "layer.tar" },
    { extra: noise(70) },
    { comment: "c" },
    { crc: true },
    { extra: noise(3), name: "n", comment: "c", crc: true },
  ];
  const blob = Buffer.concat(forms.map((fields) => member(data, fields)));
  const want = Buffer.concat(forms.map(() => data));
  for (const chunk of [1, 2, 7, 100, 1 << 20]) assert.ok(inflate(blob, chunk).equals(want));
  for (const fields of forms) {
    const header = member(Buffer.alloc(0), fields);
    const length = gzipHeaderLength(header);
    assert.equal(length, header.length - 8 - 2);
    for (let cut = 0; cut < length; cut++) assert.equal(gzipHeaderLength(header.subarray(0, cut)), -1);
  }
});

test("empty members, an empty stream and zeros behind the last member are fine", () => {
  const empty = member(Buffer.alloc(0));
  const data = member(noise(100));
  assert.equal(inflate(Buffer.alloc(0)).length, 0);
  assert.equal(inflate(empty).length, 0);
  assert.equal(inflate(Buffer.concat([empty, data, empty, empty, data, Buffer.alloc(5000)]), 13).length, 200);
});

test("what containerd refuses is refused: damage, cuts, wrong sums, reserved flags, bytes behind the end", () => {
  const data = noise(3000);
  const good = member(data, { name: "n", crc: true });
  const change = (at: number, xor: number) => {
    const copy = Buffer.from(good);
    copy[at < 0 ? good.length + at : at]! ^= xor;
    return copy;
  };
  const bad: [string, Buffer][] = [
    ["magic", change(0, 1)],
    ["method", change(2, 1)],
    ["reserved flag", change(3, 0x80)],
    ["header crc", change(12, 1)],
    ["crc", change(-8, 1)],
    ["length", change(-1, 1)],
    ["block type", change(14, 0x06)],
    ["garbage behind", Buffer.concat([good, Buffer.from("x")])],
    ["garbage behind zeros", Buffer.concat([good, Buffer.alloc(10), good])],
    ["no gzip", Buffer.from("hello world")],
  ];
  for (const [what, bytes] of bad) {
    for (const chunk of [1, 1 << 20]) assert.throws(() => inflate(bytes, chunk), { code: "HS_LAYER_REFUSED" }, what);
  }
  for (let cut = 1; cut < good.length; cut += 7)
    assert.throws(() => inflate(good.subarray(0, cut)), { code: "HS_LAYER_REFUSED" }, `cut ${cut}`);
});

test("output, boundaries and windows are the same however the blob is cut; a quiet stretch has no boundaries", () => {
  const blob = fixtureLayers("multigz")[0]!.bytes;
  const tar = gunzipSync(blob);
  const walk = (chunk: number, quiet: number) => {
    const seen: string[] = [];
    using stream = new GzipInflate({
      data() {},
      boundary(consumed, produced, bits) {
        seen.push(`${consumed} ${produced} ${bits}`);
        const window = Buffer.alloc(WINDOW);
        tar.copy(window, Math.max(0, WINDOW - produced), Math.max(0, produced - WINDOW), produced);
        assert.ok(window.equals(stream.window), `window at ${produced}`);
        return produced + quiet;
      },
    });
    for (let at = 0; at < blob.length; at += chunk) stream.push(blob.subarray(at, at + chunk));
    stream.finish();
    assert.equal(stream.produced, tar.length);
    return seen;
  };
  const all = walk(1 << 20, 0);
  assert.ok(all.length > 30);
  for (const chunk of [1, 999, 65_536]) assert.deepEqual(walk(chunk, 0), all);
  const few = walk(1000, 100_000);
  assert.ok(few.length < all.length);
  assert.ok(few.every((boundary) => all.includes(boundary)));
});

test("every boundary can be resumed from, whatever the strategy of the compressor", () => {
  using resume = new ResumeInflate();
  fc.assert(
    fc.property(
      fc.integer({ min: 0, max: 9 }),
      fc.constantFrom(0, 1, 2, 3, 4),
      fc.integer({ min: 0, max: 100_000 }),
      fc.nat(),
      (level, strategy, length, seed) => {
        const data = Buffer.concat([
          noise(length, seed),
          Buffer.alloc(length >> 1),
          Buffer.from("text ".repeat(length >> 4)),
        ]);
        const blob = gzipSync(data, { level, strategy, memLevel: 1 });
        const points: { start: number; produced: number; bits: number; window: Uint8Array }[] = [];
        using stream = new GzipInflate({
          data() {},
          boundary(consumed, produced, bits) {
            points.push({
              start: consumed - (bits === 0 ? 0 : 1),
              produced,
              bits,
              window: Uint8Array.from(stream.window),
            });
            return 0;
          },
        });
        stream.push(blob);
        for (const { start, produced, bits, window } of points) {
          const output = new Uint8Array(Math.min(20_000, data.length - produced));
          resume.decode(blob.subarray(start), { bits, window }, output, "test");
          assert.ok(Buffer.compare(output, data.subarray(produced, produced + output.length)) === 0);
        }
      },
    ),
    { numRuns: 60 },
  );
});

test("random bytes are refused or decoded, never worse", () => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 300 }), fc.nat(400), (bytes, at) => {
      const blob = Buffer.from(member(noise(300), { name: "n" }));
      blob.set(bytes.subarray(0, Math.max(0, blob.length - at)), Math.min(at, blob.length));
      try {
        inflate(blob, 17);
      } catch (error) {
        assert.ok(error instanceof HeadstartError, String(error));
      }
    }),
    { numRuns: 300 },
  );
});
