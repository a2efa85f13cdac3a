import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { Builder, ByteBuffer } from "flatbuffers";
import { goldenZtocs } from "../../../test/suites/golden-soci.ts";
import { type SampleOptions, sample } from "../../../test/suites/soci-sample.ts";
import { cpuMs } from "../../../test/tools/cpu-time.ts";
import { sha256 } from "../../base/digest.ts";
import { HeadstartError } from "../../base/errors.ts";
import { openSociLayer } from "./adapter.ts";
import { entryAt, parseTime, type ZtocEntry } from "./entries.ts";
import { FlatBuffer } from "./flatbuffer.ts";
import { readZtoc } from "./read.ts";
import { spanDecodedLength } from "./spans.ts";
import { tarZinfo, writeZtoc, type ZtocContent } from "./write.ts";

const RECORD = 32_785;

/** Reads the sample with something wrong in it. */
function reading(
  change: (content: ZtocContent, view: DataView) => Partial<ZtocContent>,
  options: SampleOptions = { spanSize: 65_536 },
) {
  const { content } = sample(options);
  const checkpoints = Uint8Array.from(content.checkpoints);
  const copy = { ...content, checkpoints };
  return readZtoc(writeZtoc({ ...copy, ...change(copy, new DataView(checkpoints.buffer)) }));
}

function refused(
  change: (content: ZtocContent, view: DataView) => Partial<ZtocContent>,
  options?: SampleOptions,
  code = "HS_INDEX_INVALID",
) {
  const ms = cpuMs(() => assert.throws(() => reading(change, options), { code }));
  assert.ok(ms < 1000, `${ms} ms`);
}

/** The first entry of the sample with other fields. */
function first(content: ZtocContent, change: Partial<ZtocEntry>): Partial<ZtocContent> {
  const [entry, ...rest] = content.entries;
  return { entries: [{ ...entry!, ...change }, ...rest] };
}

test("every golden zTOC reads, and sizes, spans and entries are those of the flatbuffers package", () => {
  for (const golden of goldenZtocs()) {
    const ztoc = readZtoc(golden.bytes, golden.name);
    const bb = new ByteBuffer(Uint8Array.from(golden.bytes));
    const root = bb.readInt32(0);
    const field = (table: number, id: number) => {
      const offset = bb.__offset(table, 4 + 2 * id);
      return offset === 0 ? 0 : table + offset;
    };
    assert.equal(BigInt(ztoc.compressedSize), bb.readInt64(field(root, 2)));
    assert.equal(BigInt(ztoc.uncompressedSize), bb.readInt64(field(root, 3)));
    const toc = bb.__indirect(field(root, 4));
    const metadata = field(toc, 0);
    assert.equal(ztoc.entries.count, bb.__vector_len(metadata));
    const buffer = new FlatBuffer(golden.bytes, golden.name);
    for (let index = 0; index < ztoc.entries.count; index++) {
      const table = bb.__indirect(bb.__vector(metadata) + 4 * index);
      const entry = entryAt(buffer, ztoc.entries, index);
      const string = (id: number) => Buffer.from(bb.__string(field(table, id), 1 as never) as unknown as Uint8Array);
      assert.deepEqual(Buffer.from(entry.name), string(0));
      assert.equal(entry.type, string(1).toString());
      assert.equal(BigInt(entry.dataOffset), bb.readInt64(field(table, 2)));
    }
    const info = bb.__indirect(field(root, 5));
    assert.equal(ztoc.spans.count, bb.__vector_len(field(info, 2)));
  }
});

test("both zinfo versions are told apart by their length", () => {
  assert.equal(reading(() => ({})).spans.zinfoVersion, 2);
  const { content } = sample({ spanSize: 65_536, zinfoVersion: 1 });
  const { spans } = readZtoc(writeZtoc(content));
  assert.equal(spans.zinfoVersion, 1);
  assert.deepEqual([spans.in[0], spans.out[0], spans.bits[0]], [10, 0, 0]);
  assert.ok(spans.count > 2);
});

test("B3: an empty span between equal checkpoints is kept as one without bytes; a falling one is refused", () => {
  const ztoc = reading((content, view) => {
    view.setBigInt64(12 + RECORD + 8, 0n, true);
    return content;
  });
  assert.equal(spanDecodedLength(ztoc.spans, 0), 0);
  refused((content, view) => {
    view.setBigInt64(12 + 2 * RECORD + 8, 1n, true);
    return content;
  });
  refused((content, view) => {
    view.setBigInt64(12 + 2 * RECORD, view.getBigInt64(12 + RECORD, true), true);
    return content;
  });
});

test("B4, B5, B6: a number of checkpoints that is 0, negative, or does not match the length exactly is refused", () => {
  for (const have of [0, -1, -2_147_483_648, 1, 5, 131_005, 2_147_483_647]) {
    refused((content, view) => {
      view.setInt32(0, have, true);
      return content;
    });
  }
  // 32785 * 131005 wraps 2^32 to the length of this blob
  const wrapped = new Uint8Array(31_641);
  new DataView(wrapped.buffer).setInt32(0, 131_005, true);
  refused(() => ({ checkpoints: wrapped }));
  for (const length of [0, 1, 11, 12, 13, 12 + RECORD - 1]) {
    refused((content) => ({ checkpoints: content.checkpoints.subarray(0, length) }));
  }
});

test("B7: max_span_id and digests that do not match the spans are refused", () => {
  refused((content) => ({ spanDigests: content.spanDigests.slice(1) }));
  refused((content) => ({ spanDigests: [...content.spanDigests, content.spanDigests[0]!] }));
  for (const bad of ["", "sha256:00", `sha512:${"0".repeat(64)}`, `sha256:${"G".repeat(64)}`]) {
    refused((content) => ({ spanDigests: [bad, ...content.spanDigests.slice(1)] }));
  }
});

test("B8: bits beyond 7 are refused", () => {
  refused((content, view) => {
    view.setUint8(12 + RECORD + 16, 8);
    return content;
  });
});

test("B9: offsets that are negative, beyond 2^53 or beyond the archive, and a first span outside of a gzip header's reach are refused", () => {
  for (const value of [-1n, 2n ** 53n, 2n ** 63n - 1n, 10n ** 12n]) {
    for (const field of [0, 8]) {
      refused((content, view) => {
        view.setBigInt64(12 + 2 * RECORD + field, value, true);
        return content;
      });
    }
  }
  for (const value of [0n, 9n, 65_537n]) {
    refused((content, view) => {
      view.setBigInt64(12, value, true);
      return content;
    });
  }
  refused((content, view) => {
    view.setBigInt64(12 + 8, 512n, true);
    return content;
  });
  for (const compressedSize of [0, -5]) refused(() => ({ compressedSize }));
  refused(() => ({ uncompressedSize: -1 }));
  refused(() => ({ uncompressedSize: 2 ** 45 }));
});

test("B12: entries that overlap are refused", () => {
  refused((content) => first(content, { size: 100_000 }));
  refused((content) => first(content, { dataOffset: 0 }));
  refused((content) => first(content, { dataOffset: 511 }));
  const ztoc = reading((content) => ({ entries: [...content.entries].reverse() }));
  assert.deepEqual([...ztoc.entries.dataOffset], [512, 1536, 2048]);
});

test("B13: an entry beyond the archive, negative or overflowing offsets and sizes are refused", () => {
  for (const change of [
    { size: -1 },
    { dataOffset: -512 },
    { size: Number.MAX_SAFE_INTEGER },
    { dataOffset: 2 ** 52 },
  ]) {
    refused((content) => first(content, change));
  }
  refused(() => ({ uncompressedSize: 10_000 }), {});
});

test("B15: cyclic, overlapping and outlying tables are refused in bounded time", () => {
  // a megabyte of vectors that all name one entry, which has a vector of a hundred thousand records, all one
  const builder = new Builder(1024);
  const text = builder.createString("x");
  builder.startObject(2);
  builder.addFieldOffset(0, text, 0);
  builder.addFieldOffset(1, text, 0);
  const record = builder.endObject();
  const repeat = (offset: number, count: number) => {
    builder.startVector(4, count, 4);
    for (let index = 0; index < count; index++) builder.addOffset(offset);
    return builder.endVector();
  };
  const xattrs = repeat(record, 100_000);
  const reg = builder.createString("reg");
  builder.startObject(14);
  builder.addFieldOffset(0, text, 0);
  builder.addFieldOffset(1, reg, 0);
  builder.addFieldInt64(2, 512n, 0n);
  builder.addFieldOffset(13, xattrs, 0);
  const entry = builder.endObject();
  const metadata = repeat(entry, 10_000);
  builder.startObject(1);
  builder.addFieldOffset(0, metadata, 0);
  const toc = builder.endObject();
  const checkpoints = builder.createByteVector(tarZinfo(4096, 4096));
  const digests = repeat(builder.createString(`sha256:${"0".repeat(64)}`), 1);
  builder.startObject(4);
  builder.addFieldInt8(0, 2, 1);
  builder.addFieldOffset(2, digests, 0);
  builder.addFieldOffset(3, checkpoints, 0);
  const info = builder.endObject();
  const version = builder.createString("0.9");
  builder.startObject(6);
  builder.addFieldOffset(0, version, 0);
  builder.addFieldInt64(2, 4096n, 0n);
  builder.addFieldInt64(3, 4096n, 0n);
  builder.addFieldOffset(4, toc, 0);
  builder.addFieldOffset(5, info, 0);
  builder.finish(builder.endObject());
  const bytes = builder.asUint8Array();
  const ms = cpuMs(() => assert.throws(() => readZtoc(bytes), { code: "HS_INDEX_INVALID", message: /overlap/ }));
  assert.ok(ms < 1000, `${ms} ms`);
  for (const bytes of ["", "00", "00000000", "04000000", "ffffffff", "0400000004000000", "04000000fcffffff0000"]) {
    assert.throws(() => readZtoc(Buffer.from(bytes, "hex")), { code: "HS_INDEX_INVALID" });
  }
});

test("B16: counts and lengths that the file cannot hold are refused before anything is allocated", () => {
  const { content } = sample();
  const bytes = writeZtoc(content);
  const view = new DataView(bytes.buffer, bytes.byteOffset);
  // every aligned word in turn claims to be huge: vectors, strings and references among them
  for (const huge of [0x7fff_ffff, 0xffff_ffff, 1_000_000_000]) {
    for (let at = 0; at + 4 <= bytes.byteLength; at += at < 4096 ? 4 : 4096) {
      const before = view.getUint32(at, true);
      view.setUint32(at, huge, true);
      try {
        readZtoc(bytes);
      } catch (error) {
        assert.ok(error instanceof HeadstartError, String(error));
      }
      view.setUint32(at, before, true);
    }
  }
  refused((content) => first(content, { name: Buffer.alloc(4097, 0x61) }));
  const big = { key: Buffer.from("comment"), value: Buffer.alloc(600_000) };
  refused((content) => first(content, { pax: [big, big] }));
  assert.throws(() => readZtoc({ byteLength: 2 ** 30 } as Uint8Array), { code: "HS_LIMIT" });
});

test("B17: a span of more than 256 MiB is refused", () => {
  refused(() => ({ uncompressedSize: 2 ** 30 }), {});
});

test("B19, B20: a tar zinfo with a span size of 0 or less, or of another size than the blob, is refused", () => {
  const tar: SampleOptions = { compression: "tar" };
  for (const spanSize of [0, -1])
    refused((content) => ({ checkpoints: tarZinfo(spanSize, content.compressedSize) }), tar);
  refused((content) => ({ checkpoints: tarZinfo(4_194_304, content.compressedSize - 1) }), tar);
  refused(() => ({ checkpoints: tarZinfo(1, 0) }), tar);
  refused((content) => ({ checkpoints: tarZinfo(1, content.compressedSize) }), tar);
});

test("B29: entries that reach beyond what the spans hold are refused", () => {
  refused((content) => ({ uncompressedSize: content.entries.at(-1)!.dataOffset + 10 }), {});
});

test("B30: names that lead out are cleaned; names with NUL or a component of over 255 bytes make the layer eager", () => {
  const { content, blob } = sample();
  const open = (name: string) => {
    const ztoc = writeZtoc({ ...content, ...first(content, { name: Buffer.from(name, "latin1") }) });
    return openSociLayer({
      ztoc,
      layer: { digest: sha256(blob), size: blob.length, mediaType: "", diffID: sha256(blob) as never },
      role: "lowest",
    });
  };
  for (const name of ["/a", "../../a", "./a", "\xff\xfe", "a/../b", "x/", `${"n".repeat(255)}`])
    assert.ok(open(name).tree.inodeCount > 3);
  for (const name of ["", ".", "/", "a/.."]) assert.equal(open(name).tree.inodeCount, 3);
  for (const name of [`${"n".repeat(256)}`, "d/".repeat(2048)])
    assert.throws(() => open(name), { code: "HS_LAYER_REFUSED" }, name);
  assert.throws(() => open("a\0b"), HeadstartError);
});

test("an unknown version, algorithm or entry type is refused", () => {
  const bytes = Uint8Array.from(writeZtoc(sample().content));
  const at = Buffer.from(bytes).lastIndexOf("0.9");
  bytes[at] = 0x31;
  assert.throws(() => readZtoc(bytes), { code: "HS_FORMAT_UNSUPPORTED" });
  const tar = Uint8Array.from(writeZtoc(sample({ compression: "tar" }).content));
  const algorithm = tar.subarray(0, 128).indexOf(2, 76);
  tar[algorithm] = 3;
  assert.throws(() => readZtoc(tar), { code: "HS_FORMAT_UNSUPPORTED" });
  refused((content) => first(content, { type: "contiguous" as never }));
});

test("times: fractions, zones, years of five digits; what does not parse is year 1", () => {
  assert.deepEqual(parseTime(Buffer.from("2023-11-14T22:13:20.1234Z")), {
    seconds: 1_700_000_000,
    nanoseconds: 123_400_000,
  });
  assert.deepEqual(parseTime(Buffer.from("2023-11-15T00:13:20+02:00")), { seconds: 1_700_000_000, nanoseconds: 0 });
  assert.deepEqual(parseTime(Buffer.from("1969-12-31T20:34:15-00:00")), { seconds: -12_345, nanoseconds: 0 });
  assert.equal(parseTime(Buffer.from("33658-09-27T01:46:40Z")).seconds, 1e12);
  for (const bad of [
    "",
    "yesterday",
    "2023-13-14T22:13:20Z",
    "2023-11-14 22:13:20Z",
    "2023-11-14T22:13:20",
    "2023-11-14T22:13:20Zx",
    "2023-11-14T22:13:20.Z",
    "2023-11-14T22:13:20+1:00",
    "x023-11-14T22:13:20Z",
  ]) {
    assert.deepEqual(parseTime(Buffer.from(bad)), { seconds: -62_135_596_800, nanoseconds: 0 });
  }
});

test("a golden zTOC with any bytes changed or cut reads to a value or a typed error, in bounded time", () => {
  const golden = goldenZtocs().filter((candidate) => candidate.bytes.length < 100_000);
  const edits = fc.array(fc.tuple(fc.double({ min: 0, max: 1, noNaN: true }), fc.integer({ min: 0, max: 255 })), {
    minLength: 1,
    maxLength: 8,
  });
  fc.assert(
    fc.property(
      fc.constantFrom(...golden),
      edits,
      fc.option(fc.double({ min: 0, max: 1, noNaN: true })),
      (ztoc, changes, cut) => {
        const bytes = Buffer.from(ztoc.bytes);
        // windows are most of the bytes and cannot be wrong: aim at the rest
        const places = [...bytes.keys()].filter((at) => at < 256 || at > bytes.length - 6000);
        for (const [where, value] of changes) bytes[places[Math.floor(where * (places.length - 1))]!] = value;
        const cutBytes = cut === null ? bytes : bytes.subarray(0, Math.floor(cut * bytes.length));
        const ms = cpuMs(() => {
          try {
            const value = readZtoc(cutBytes);
            assert.ok(value.spans.count >= 1);
          } catch (error) {
            assert.ok(error instanceof HeadstartError, String(error));
          }
        });
        assert.ok(ms < 500, `${ms} ms`);
      },
    ),
    { numRuns: 500 },
  );
});
