import assert from "node:assert/strict";
import { test } from "node:test";
import { deflateRawSync, gunzipSync, gzipSync } from "node:zlib";
import { fixtureLayers, goldenZtocs } from "../../../test/suites/golden-soci.ts";
import { sampleZtoc } from "../../../test/suites/soci-sample.ts";
import { cpuMs } from "../../../test/tools/cpu-time.ts";
import { sha256 } from "../../base/digest.ts";
import { sociDecoder } from "./decode.ts";
import { makeStraddleTable } from "./header-check.ts";
import { readZtoc, type Ztoc } from "./read.ts";
import { spanDecodedLength, spanStoredEnd, spanStoredStart } from "./spans.ts";
import { spanUnits } from "./units.ts";

function decoderOf(ztoc: Ztoc) {
  const codec = ztoc.spans.compression === "gzip" ? "soci-gzip" : "soci-tar";
  return sociDecoder({ codec, ztoc, straddle: makeStraddleTable(ztoc) }, spanUnits(ztoc.spans, sha256(ztoc.bytes)));
}

function stored(ztoc: Ztoc, blob: Uint8Array, span: number): Uint8Array {
  // a copy of exactly the range: a read outside of it would not find its neighbours
  return Uint8Array.from(blob.subarray(spanStoredStart(ztoc.spans, span), spanStoredEnd(ztoc.spans, span)));
}

test("every span of every golden zTOC decodes to its part of the tar, in any order, and its headers agree", () => {
  let spans = 0;
  for (const golden of goldenZtocs()) {
    const layer = fixtureLayers(golden.variant)[golden.layerNumber]!;
    const ztoc = readZtoc(golden.bytes, golden.name);
    const tar = ztoc.spans.compression === "gzip" ? gunzipSync(layer.bytes) : layer.bytes;
    const decoder = decoderOf(ztoc);
    for (let index = ztoc.spans.count - 1; index >= 0; index--) {
      const bytes = stored(ztoc, layer.bytes, index);
      const digest = Buffer.from(ztoc.spans.digests.subarray(index * 32, index * 32 + 32)).toString("hex");
      assert.equal(sha256(bytes), `sha256:${digest}`, golden.name);
      const decoded = decoder.decode(index, bytes);
      const start = ztoc.spans.out[index]!;
      const want = tar.subarray(start, start + spanDecodedLength(ztoc.spans, index));
      assert.ok(Buffer.compare(decoded, want) === 0, `${golden.name} span ${index}`);
      decoder.check(index, decoded);
      spans++;
    }
  }
  assert.ok(spans > 400, `${spans}`);
});

test("headers that lie across spans are put together and compared, whatever the order", () => {
  let straddling = 0;
  for (const golden of goldenZtocs()) {
    const ztoc = readZtoc(golden.bytes);
    const straddle = makeStraddleTable(ztoc);
    if (straddle.count === 0) continue;
    straddling += straddle.count;
    const layer = fixtureLayers(golden.variant)[golden.layerNumber]!;
    const codec = ztoc.spans.compression === "gzip" ? "soci-gzip" : "soci-tar";
    const units = spanUnits(ztoc.spans, layer.digest);
    const decoder = sociDecoder({ codec, ztoc, straddle }, units);
    for (let round = 0; round < 2; round++) {
      for (let span = ztoc.spans.count - 1; span >= 0; span--) {
        decoder.check(span, decoder.decode(span, stored(ztoc, layer.bytes, span)));
      }
    }
    assert.ok(straddle.remaining.every((count) => count === 0));
    // the same with one bit of the first straddling header changed, in the part that its first span has
    const again = sociDecoder({ codec, ztoc, straddle: makeStraddleTable(ztoc) }, units);
    const place = ztoc.entries.headerOffset[straddle.entry[0]!]!;
    assert.throws(
      () => {
        for (let span = 0; span < ztoc.spans.count; span++) {
          const decoded = Uint8Array.from(again.decode(span, stored(ztoc, layer.bytes, span)));
          const at = place - ztoc.spans.out[span]!;
          if (at >= 0 && at < decoded.byteLength) decoded[at] = decoded[at]! ^ 1;
          again.check(span, decoded);
        }
      },
      { code: "HS_INDEX_MISMATCH" },
    );
  }
  assert.ok(straddling > 0);
});

test("B1: a zTOC whose span inflates short fails at once", () => {
  const { ztoc, blob } = sampleZtoc({ uncompressedSize: (size) => size + 10_000_000 });
  const decoder = decoderOf(ztoc);
  const bytes = stored(ztoc, blob, 0);
  const ms = cpuMs(() => assert.throws(() => decoder.decode(0, bytes), { code: "HS_UNIT_DECODE" }));
  assert.ok(ms < 1000, `${ms} ms`);
});

test("B2: a span that begins inside a byte reads nothing outside of its range", () => {
  for (const golden of goldenZtocs().filter((candidate) => candidate.name.startsWith("gogz/span-65536"))) {
    const layer = fixtureLayers("gogz")[golden.layerNumber]!;
    const ztoc = readZtoc(golden.bytes);
    const decoder = decoderOf(ztoc);
    for (let span = 0; span < ztoc.spans.count; span++) {
      if (ztoc.spans.bits[span] === 0) continue;
      // nothing but the shared byte
      assert.throws(() => decoder.decode(span, stored(ztoc, layer.bytes, span).subarray(0, 1)), {
        code: "HS_UNIT_DECODE",
      });
      assert.throws(() => decoder.decode(span, new Uint8Array(0)), { code: "HS_UNIT_DECODE" });
    }
  }
});

test("B10: a last span that lies behind the end of the archive has no bytes", () => {
  const { ztoc, blob } = sampleZtoc({ padding: 300_000, spanSize: 65_536, compression: "tar" });
  const decoder = decoderOf(ztoc);
  const last = ztoc.spans.count - 1;
  assert.ok(ztoc.spans.out[last]! > ztoc.uncompressedSize);
  assert.equal(spanDecodedLength(ztoc.spans, last), 0);
  for (let span = 0; span < ztoc.spans.count; span++)
    decoder.check(span, decoder.decode(span, stored(ztoc, blob, span)));
});

test("B14: a zTOC with another name, size, mode, owner, time or link target than the tar is found out when the header passes by", () => {
  const changes = [
    { name: Buffer.from("b") },
    { mode: 0o600 },
    { uid: 7 },
    { gid: 7 },
    { mtime: { seconds: 1_700_000_001, nanoseconds: 0 } },
    { mtime: { seconds: 1_700_000_000, nanoseconds: 1 } },
    { linkname: Buffer.from("x") },
    { type: "fifo" as const },
    { devmajor: 1 },
    { pax: [{ key: Buffer.from("SCHILY.xattr.user.a"), value: Buffer.from("1") }] },
    { size: 1 },
  ];
  const sound = sampleZtoc({});
  const decoder = decoderOf(sound.ztoc);
  decoder.check(0, decoder.decode(0, stored(sound.ztoc, sound.blob, 0)));
  for (const change of changes) {
    const { ztoc, blob } = sampleZtoc({ change });
    const changed = decoderOf(ztoc);
    const decoded = changed.decode(0, stored(ztoc, blob, 0));
    assert.throws(() => changed.check(0, decoded), { code: "HS_INDEX_MISMATCH" }, JSON.stringify(change));
  }
});

test("B14: names that the zTOC hides are found out", () => {
  const { ztoc, blob } = sampleZtoc({ hideLast: true });
  const decoder = decoderOf(ztoc);
  const decoded = decoder.decode(0, stored(ztoc, blob, 0));
  assert.throws(() => decoder.check(0, decoded), { code: "HS_INDEX_MISMATCH" });
});

test("B18: a deflate bomb behind a small claimed length costs only that length", () => {
  const bomb = gzipSync(Buffer.alloc(64 * 1024 * 1024));
  const { ztoc } = sampleZtoc({ blob: bomb });
  const decoder = decoderOf(ztoc);
  const bytes = stored(ztoc, bomb, 0);
  const ms = cpuMs(() => assert.equal(decoder.decode(0, bytes).byteLength, ztoc.uncompressedSize));
  const wholeMs = cpuMs(() => gunzipSync(bomb));
  assert.ok(ms < wholeMs / 2, `${ms} ms, and all of it ${wholeMs} ms`);
});

test("B27: version 1 with a gzip header that has a name decodes from where the data begin", () => {
  for (const name of ["", "layer.tar"]) {
    const { ztoc, blob, tar } = sampleZtoc({ zinfoVersion: 1, fileName: name });
    assert.equal(ztoc.spans.zinfoVersion, 1);
    const decoder = decoderOf(ztoc);
    const decoded = decoder.decode(0, stored(ztoc, blob, 0));
    assert.ok(Buffer.compare(decoded, tar.subarray(0, ztoc.uncompressedSize)) === 0);
    decoder.check(0, decoded);
  }
  const damaged = sampleZtoc({ zinfoVersion: 1, fileName: "x", uncompressedSize: (size) => size + 512 });
  assert.throws(() => decoderOf(damaged.ztoc).decode(0, stored(damaged.ztoc, damaged.blob, 0)), {
    code: "HS_UNIT_DECODE",
  });
});

test("bytes that are no deflate data, and a cut header of the next member, are errors", () => {
  const { ztoc } = sampleZtoc({ uncompressedSize: (size) => size + 5_000 });
  const decoder = decoderOf(ztoc);
  assert.throws(() => decoder.decode(0, Buffer.alloc(100, 0xff)), { code: "HS_UNIT_DECODE" });
  const member = deflateRawSync(Buffer.alloc(100));
  for (const tail of [
    "",
    "00000000",
    "0000000000000000",
    "00000000000000001f8b08",
    "0000000000000000ffffffffffffffffffff",
  ]) {
    const bytes = Buffer.concat([member, Buffer.from(tail, "hex")]);
    assert.throws(() => decoder.decode(0, bytes), { code: "HS_UNIT_DECODE" }, tail);
  }
});
