import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { gzipSync } from "node:zlib";
import fc from "fast-check";
import { fixtureLayers, goldenPath, goldenZtocs } from "../../../test/suites/golden-soci.ts";
import { noise, tarFile, tarHeader } from "../../../test/suites/soci-sample.ts";
import { sha256 } from "../../base/digest.ts";
import { decoderFor } from "../all.ts";
import { openSociLayer } from "./adapter.ts";
import { ZtocBuilders, type ZtocBuildInput } from "./build.ts";
import { DECODED_BUFFER_SIZE, DECODED_BUFFERS } from "./build-protocol.ts";
import { sociDecoder } from "./decode.ts";
import { makeStraddleTable } from "./header-check.ts";
import { SOCI_BUILD_TOOL } from "./ondisk.ts";
import { readZtoc } from "./read.ts";
import { spanStoredEnd, spanStoredStart } from "./spans.ts";
import { spanUnits } from "./units.ts";

async function* chunks(bytes: Uint8Array, size: number): AsyncGenerator<Uint8Array> {
  for (let at = 0; at < bytes.byteLength; at += size) yield bytes.subarray(at, at + size);
}

function input(bytes: Buffer, more: Partial<ZtocBuildInput> = {}): ZtocBuildInput {
  return {
    blob: chunks(bytes, 70_001),
    layer: { digest: sha256(bytes), size: bytes.length },
    spanSize: 65_536,
    buildTool: SOCI_BUILD_TOOL,
    ...more,
  };
}

test("the zTOC of every variant, odd ones too, at every span size is the real tool's, byte for byte; layers are built side by side", async () => {
  await using builders = new ZtocBuilders(2);
  let count = 0;
  await Promise.all(
    goldenZtocs().map(async (golden) => {
      const { digest, size, diffID, bytes } = fixtureLayers(golden.variant)[golden.layerNumber]!;
      const built = await builders.build(input(bytes, { layer: { digest, size, diffID }, spanSize: golden.spanSize }));
      assert.equal(built.kind, "built");
      if (built.kind !== "built") return;
      assert.ok(Buffer.compare(built.ztoc, golden.bytes) === 0, golden.name);
      assert.equal(built.digest, sha256(golden.bytes));
      assert.equal(built.diffID, diffID);
      // layer 0 has xattrs, layer 1 an opaque mark
      if (golden.variant === "gogz") assert.equal(built.hasXattrs, golden.layerNumber < 2);
      count++;
    }),
  );
  assert.equal(count, 62);
});

test("layers that SOCI cannot index get no zTOC and a reason: zstd, pax global header, contiguous, sparse", async () => {
  await using builders = new ZtocBuilders(1);
  for (const variant of ["zstd", "odd-pax-global", "odd-contiguous"]) {
    const built = await builders.build(input(fixtureLayers(variant)[0]!.bytes));
    assert.equal(built.kind, "none", variant);
    const output = variant === "zstd" ? "" : readFileSync(goldenPath("options", variant, "output.txt"), "utf8");
    assert.ok(variant === "zstd" || /exit status [^0]/.test(output));
  }
  const records = "20 GNU.sparse.major=1\n".replace("20", "22");
  const pax = Buffer.concat([
    tarHeader({ name: "x", type: "x", size: records.length }),
    Buffer.from(records),
    Buffer.alloc(512 - records.length),
  ]);
  const sparse = Buffer.concat([pax, tarFile("s", Buffer.from("hi")), Buffer.alloc(1024)]);
  assert.equal((await builders.build(input(sparse))).kind, "none");
  assert.equal((await builders.build(input(Buffer.alloc(0)))).kind, "none");
});

test("a directory with a size in its header has none in the zTOC, so that SOCI's reader takes it", async () => {
  await using builders = new ZtocBuilders(1);
  const tar = Buffer.concat([
    tarHeader({ name: "d/", type: "5", size: 4096 }),
    tarFile("d/f", Buffer.from("hi")),
    Buffer.alloc(1024),
  ]);
  const built = await builders.build(input(gzipSync(tar)));
  assert.equal(built.kind, "built");
  if (built.kind === "built") assert.deepEqual([...readZtoc(built.ztoc).entries.dataSize], [0, 2]);
});

test("a wrong digest, size or diffID, damaged gzip, a cut blob and bytes behind the last member are errors, and the builders go on", async () => {
  await using builders = new ZtocBuilders(1);
  const { bytes, digest, diffID } = fixtureLayers("gogz")[2]!;
  const size = bytes.length;
  const failing: [Partial<ZtocBuildInput>, string][] = [
    [{ layer: { digest: sha256(Buffer.from("x")), size } }, "HS_DIGEST_MISMATCH"],
    [{ layer: { digest, size: size + 1 } }, "HS_SIZE_MISMATCH"],
    [{ layer: { digest, size: size - 1 } }, "HS_SIZE_MISMATCH"],
    [{ layer: { digest, size, diffID: digest } }, "HS_DIFFID_MISMATCH"],
    [{ blob: chunks(bytes.subarray(0, size - 20), 1000) }, "HS_LAYER_REFUSED"],
    [{ spanSize: -1 }, "HS_USAGE"],
  ];
  const crc = Buffer.from(bytes);
  crc[size - 8] = crc[size - 8]! ^ 1;
  failing.push([{ blob: chunks(crc, 1000) }, "HS_LAYER_REFUSED"]);
  const garbage = Buffer.concat([bytes, Buffer.from("garbage")]);
  failing.push([
    { blob: chunks(garbage, 1000), layer: { digest: sha256(garbage), size: garbage.length } },
    "HS_LAYER_REFUSED",
  ]);
  for (const [change, code] of failing) await assert.rejects(builders.build(input(bytes, change)), { code }, code);
  assert.equal((await builders.build(input(bytes, { layer: { digest, size, diffID } }))).kind, "built");
});

test("zeros behind the last gzip member are padding", async () => {
  await using builders = new ZtocBuilders(1);
  const padded = Buffer.concat([fixtureLayers("multigz")[2]!.bytes, Buffer.alloc(3000)]);
  const built = await builders.build(input(padded));
  assert.equal(built.kind, "built");
});

test("a layer whose tar ends with its last file's data, without padding, is indexed and read back", async () => {
  await using builders = new ZtocBuilders(1);
  const tar = tarFile("f", Buffer.from("hi")).subarray(0, 514);
  for (const blob of [gzipSync(tar), tar]) {
    const built = await builders.build(input(blob));
    assert.equal(built.kind, "built");
    if (built.kind !== "built") return;
    const layer = { digest: sha256(blob), size: blob.length, mediaType: "", diffID: built.diffID };
    const { streamLength, decode, units } = openSociLayer({ ztoc: built.ztoc, layer, role: "lowest" });
    assert.equal(streamLength, tar.length);
    const decoder = decoderFor(decode, units);
    const decoded = decoder.decode(0, blob.subarray(units.unitStart[0]!, units.unitEnd[0]!));
    assert.ok(Buffer.compare(decoded, tar) === 0);
    decoder.check(0, decoded);
  }
});

test("a chunk that decodes to many times what the threads' buffers hold is indexed", async () => {
  await using builders = new ZtocBuilders(1);
  const file = Buffer.alloc(5 * DECODED_BUFFERS * DECODED_BUFFER_SIZE, 1);
  const tar = Buffer.concat([tarFile("f", file), Buffer.alloc(1024)]);
  const built = await builders.build(input(gzipSync(tar, { level: 1 })));
  assert.equal(built.kind, "built");
  if (built.kind === "built") assert.equal(built.diffID, sha256(tar));
});

test("an aborted build and a stream that fails end the call with that reason", async () => {
  await using builders = new ZtocBuilders(1);
  const { bytes } = fixtureLayers("gogz")[0]!;
  const controller = new AbortController();
  async function* stalling(): AsyncGenerator<Uint8Array> {
    yield bytes.subarray(0, 1000);
    controller.abort(new Error("enough"));
    yield bytes.subarray(1000);
  }
  await assert.rejects(builders.build(input(bytes, { blob: stalling(), signal: controller.signal })), /enough/);
  async function* failing(): AsyncGenerator<Uint8Array> {
    yield bytes.subarray(0, 1000);
    throw new Error("connection lost");
  }
  await assert.rejects(builders.build(input(bytes, { blob: failing() })), /connection lost/);
});

test("zTOCs built over random members, levels and span sizes decode to the tar; no two checkpoints are at one place", async () => {
  await using builders = new ZtocBuilders(1);
  const member = fc.record({
    length: fc.integer({ min: 0, max: 40_000 }),
    level: fc.integer({ min: 0, max: 9 }),
    strategy: fc.constantFrom(0, 2, 3, 4),
  });
  await fc.assert(
    fc.asyncProperty(
      fc.array(member, { maxLength: 6 }),
      fc.constantFrom(0, 1, 500, 20_000),
      fc.nat(),
      async (members, spanSize, seed) => {
        const tar = Buffer.concat([
          tarFile("a", noise(60_000, seed)),
          tarHeader({ name: "d/", type: "5" }),
          tarFile("d/b", Buffer.alloc(30_000, seed)),
          Buffer.alloc(1024),
        ]);
        const parts: Buffer[] = [];
        let at = 0;
        for (const { length, level, strategy } of members) {
          parts.push(gzipSync(tar.subarray(at, at + length), { level, strategy }));
          at += length;
        }
        parts.push(gzipSync(tar.subarray(at)));
        const blob = Buffer.concat(parts);
        const built = await builders.build(input(blob, { spanSize }));
        assert.equal(built.kind, "built");
        if (built.kind !== "built") return;
        assert.equal(built.diffID, sha256(tar));
        const ztoc = readZtoc(built.ztoc);
        const decoder = sociDecoder(
          { codec: "soci-gzip", ztoc, straddle: makeStraddleTable(ztoc) },
          spanUnits(ztoc.spans, built.digest),
        );
        for (let span = 0; span < ztoc.spans.count; span++) {
          if (span > 0) assert.ok(ztoc.spans.out[span]! > ztoc.spans.out[span - 1]!);
          const stored = blob.subarray(spanStoredStart(ztoc.spans, span), spanStoredEnd(ztoc.spans, span));
          assert.equal(
            sha256(stored).slice(7),
            Buffer.from(ztoc.spans.digests.subarray(span * 32, span * 32 + 32)).toString("hex"),
          );
          const decoded = decoder.decode(span, stored);
          assert.ok(
            Buffer.compare(decoded, tar.subarray(ztoc.spans.out[span]!, ztoc.spans.out[span]! + decoded.byteLength)) ===
              0,
          );
          decoder.check(span, decoded);
        }
      },
    ),
    { numRuns: 40 },
  );
});
