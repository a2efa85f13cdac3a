/**
 * Bad indexes as a user meets them (specs/soci.md, chapter 4): an image whose index or zTOC is wrong in one way, with every digest bound again so that the wrong artifact is properly
 * named, is pulled through CRI. The layer is pulled whole instead, at once, the container sees the right content, and the status says why. What a reader must tolerate stays lazy.
 */

import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { type TestContext, test } from "node:test";
import { gzipSync } from "node:zlib";
import { type Digest, sha256 } from "../../src/base/digest.ts";
import type { ZtocEntry } from "../../src/formats/soci/entries.ts";
import { writePrefetch } from "../../src/formats/soci/index-write.ts";
import { SOCI_ANNOTATIONS } from "../../src/formats/soci/ondisk.ts";
import { tarZinfo, writeZtoc, type ZtocContent } from "../../src/formats/soci/write.ts";
import type { CriPod } from "../../src/sandbox/cri-client.ts";
import { type BuiltLayer, layerOf, layerOfTar } from "../../src/sandbox/image-builder.ts";
import type { SandboxNode } from "../../src/sandbox/node.ts";
import { type TarEntry, writeTar } from "../../src/sandbox/tar-writer.ts";
import { type IndexedBlob, type SociImageOptions, ztocContent } from "../suites/soci-image.ts";
import { noise } from "../suites/soci-sample.ts";
import { image as imageLine } from "./daemon-status.ts";
import { FakePlace, headstartStatus, runShell } from "./fake-place.ts";

const SPAN_SIZE = 32_768;
const RECORD = 32_785;
/** A node that is busy with other tests too: far less than anything that waits for a time-out. */
const START_MS_MAX = 8_000;

interface Sample {
  readonly layer: BuiltLayer;
  readonly content: ZtocContent;
  /** What a script prints that reads all of the layer's files. */
  readonly output: string;
}

const SCRIPT = "cat /data/first /data/big /data/last | sha256sum; ls /data | wc -l";

/** Different bytes for each case: layers are shared by digest. */
function makeSample(seed: number, options: { compression?: "gzip" | "none"; members?: number } = {}): Sample {
  const files = { first: Buffer.from(`first of ${seed}\n`), big: noise(200_000, seed), last: Buffer.from("last\n") };
  const entries: TarEntry[] = [
    { path: "data/" },
    ...Object.entries(files).map(([name, data]) => ({ path: `data/${name}`, data })),
  ];
  const { compression = "gzip", members = 1 } = options;
  const layer = members === 1 ? layerOf(entries, { compression }) : multiMember(writeTar(entries), members);
  const hash = createHash("sha256")
    .update(Buffer.concat(Object.values(files)))
    .digest("hex");
  return {
    layer,
    content: ztocContent(layer.source as Uint8Array, SPAN_SIZE),
    output: `${hash}  -\n3\n`,
  };
}

function multiMember(tar: Buffer, members: number): BuiltLayer {
  const plain = layerOfTar(tar);
  const size = Math.ceil(tar.byteLength / members);
  const parts = Array.from({ length: members }, (_, part) => gzipSync(tar.subarray(part * size, (part + 1) * size)));
  const source = Buffer.concat(parts);
  return {
    ...plain,
    source,
    descriptor: { ...plain.descriptor, digest: sha256(source), size: source.byteLength },
  };
}

type Change = (content: ZtocContent, sample: Sample) => ZtocContent;

interface Case {
  /** As in the table of chapter 4. */
  readonly id: string;
  readonly what: string;
  readonly content?: Change;
  readonly ztoc?: (bytes: Uint8Array) => Uint8Array;
  readonly prefetch?: Uint8Array;
  readonly image?: (sample: Sample) => Partial<SociImageOptions>;
  readonly sample?: Parameters<typeof makeSample>[1];
  /** Null: it is tolerated, and the layer lazy. */
  readonly reason: RegExp | null;
}

/** The checkpoints with their records changed in place. */
function checkpoints(change: (view: DataView, record: (span: number) => number) => void): Change {
  return (content) => {
    const bytes = Uint8Array.from(content.checkpoints);
    change(new DataView(bytes.buffer), (span) => 12 + span * RECORD);
    return { ...content, checkpoints: bytes };
  };
}

const IN = 0;
const OUT = 8;
const BITS = 16;

function entry(name: string, change: Partial<ZtocEntry> | ((entry: ZtocEntry) => Partial<ZtocEntry>)): Change {
  return (content) => ({
    ...content,
    entries: content.entries.map((one) =>
      Buffer.from(one.name).toString() === name
        ? { ...one, ...(typeof change === "function" ? change(one) : change) }
        : one,
    ),
  });
}

interface IndexDocument {
  readonly config: object;
  readonly layers: readonly object[];
}

const json = (change: (document: IndexDocument) => unknown) => ({
  index: (bytes: Uint8Array) => Buffer.from(JSON.stringify(change(JSON.parse(Buffer.from(bytes).toString())))),
});

const CASES: readonly Case[] = [
  {
    id: "B3",
    what: "a checkpoint goes back in the archive",
    content: checkpoints((view, record) => view.setBigInt64(record(2) + OUT, 1n, true)),
    reason: /goes back/,
  },
  {
    id: "B3",
    what: "a checkpoint does not advance in the blob",
    content: checkpoints((view, record) =>
      view.setBigInt64(record(2) + IN, view.getBigInt64(record(1) + IN, true), true),
    ),
    reason: /span 1 is stored at/,
  },
  {
    id: "B4",
    what: "there are no checkpoints by their own count",
    content: checkpoints((view) => view.setInt32(0, 0, true)),
    reason: /their number is 0/,
  },
  {
    id: "B5",
    what: "the count of checkpoints overflows to the right length",
    content: (content) => ({ ...content, checkpoints: wrapping() }),
    reason: /their number is 131005/,
  },
  {
    id: "B6",
    what: "the count of checkpoints is negative",
    content: checkpoints((view) => view.setInt32(0, -1, true)),
    reason: /their number is -1/,
  },
  {
    id: "B6",
    what: "the checkpoints are cut",
    content: (content) => ({ ...content, checkpoints: content.checkpoints.subarray(0, -100) }),
    reason: /do not hold/,
  },
  {
    id: "B6",
    what: "there are no checkpoints at all",
    content: (content) => ({ ...content, checkpoints: new Uint8Array(0) }),
    reason: /no checkpoints/,
  },
  {
    id: "B7",
    what: "a digest is missing",
    content: (content) => ({ ...content, spanDigests: content.spanDigests.slice(1) }),
    reason: /max_span_id/,
  },
  {
    id: "B7",
    what: "a digest is none",
    content: (content) => ({ ...content, spanDigests: ["sha256:00", ...content.spanDigests.slice(1)] }),
    reason: /digest of span 0/,
  },
  {
    id: "B8",
    what: "a checkpoint begins at bit 9",
    content: checkpoints((view, record) => view.setUint8(record(1) + BITS, 9)),
    reason: /bits of 1 are 9/,
  },
  {
    id: "B9",
    what: "a checkpoint's place is negative",
    content: checkpoints((view, record) => view.setBigInt64(record(1) + IN, -5n, true)),
    reason: /in of 1 is -5/,
  },
  {
    id: "B9",
    what: "a checkpoint's place is beyond 2^53",
    content: checkpoints((view, record) => view.setBigInt64(record(1) + OUT, 2n ** 60n, true)),
    reason: /out of 1 is/,
  },
  {
    id: "B9",
    what: "a checkpoint lies behind the blob",
    content: checkpoints((view, record) => view.setBigInt64(record(1) + IN, 2n ** 40n, true)),
    reason: /is stored at/,
  },
  {
    id: "B9",
    what: "the first span begins inside the gzip header",
    content: checkpoints((view, record) => view.setBigInt64(record(0) + IN, 3n, true)),
    reason: /first span begins at byte 3/,
  },
  {
    id: "B11",
    what: "the zTOC is about a blob of another size",
    content: (content) => ({ ...content, compressedSize: content.compressedSize + 1 }),
    reason: /HS_INDEX_MISMATCH.*it is about a blob of/,
  },
  {
    id: "B12",
    what: "a directory has a size",
    content: entry("data/", { size: 512 }),
    reason: null,
  },
  {
    id: "B12",
    what: "two entries overlap",
    content: entry("data/last", (one) => ({ dataOffset: one.dataOffset - 512 })),
    reason: /an entry's data begin at/,
  },
  {
    id: "B13",
    what: "an entry lies behind the archive",
    content: entry("data/last", { size: 10_000_000 }),
    reason: /an entry ends at/,
  },
  {
    id: "B13",
    what: "an entry has a negative offset",
    content: entry("data/first", { dataOffset: -512 }),
    reason: /at -512/,
  },
  {
    id: "B13",
    what: "an entry has a negative size",
    content: entry("data/first", { size: -1 }),
    reason: /an entry of -1 bytes/,
  },
  {
    id: "B13",
    what: "offset and size of an entry overflow",
    content: entry("data/last", { size: Number.MAX_SAFE_INTEGER - 1 }),
    reason: /an entry of \d+ bytes/,
  },
  { id: "B15", what: "the zTOC is no flatbuffer", ztoc: () => noise(5000), reason: /HS_INDEX_INVALID|HS_FORMAT/ },
  { id: "B15", what: "the zTOC is empty", ztoc: () => new Uint8Array(0), reason: /HS_/ },
  {
    id: "B15",
    what: "the root table points outside",
    ztoc: (bytes) => {
      const bad = Uint8Array.from(bytes);
      new DataView(bad.buffer).setUint32(0, 0x7fff_fff0, true);
      return bad;
    },
    reason: /HS_INDEX_INVALID/,
  },
  {
    id: "B15",
    what: "the zTOC is cut in half",
    ztoc: (bytes) => bytes.subarray(0, bytes.byteLength / 2),
    reason: /HS_INDEX_INVALID/,
  },
  { id: "B16", what: "a vector claims a billion entries", ztoc: hugeVector, reason: /HS_INDEX_INVALID/ },
  {
    id: "B16",
    what: "a name is longer than any path",
    content: entry("data/last", { name: Buffer.from(`data/${"x".repeat(5000)}`) }),
    reason: /longer than 4096/,
  },
  {
    id: "B17",
    what: "a span claims gigabytes",
    content: (content) => ({ ...content, uncompressedSize: 3_000_000_000 }),
    reason: /HS_LIMIT|HS_INDEX_INVALID/,
  },
  {
    id: "B19",
    what: "a plain tar's span size is 0",
    sample: { compression: "none" },
    content: (content, { layer }) => ({ ...content, checkpoints: tarZinfo(0, layer.descriptor.size) }),
    reason: /span_size 0/,
  },
  {
    id: "B19",
    what: "a plain tar's span size is negative",
    sample: { compression: "none" },
    content: (content, { layer }) => ({ ...content, checkpoints: tarZinfo(-4096, layer.descriptor.size) }),
    reason: /span_size -4096/,
  },
  {
    id: "B20",
    what: "a plain tar's checkpoints are of another size",
    sample: { compression: "none" },
    content: (content, { layer }) => ({ ...content, checkpoints: tarZinfo(SPAN_SIZE, layer.descriptor.size + 1) }),
    reason: /of a blob of/,
  },
  {
    id: "-",
    what: "a plain tar with sound checkpoints",
    sample: { compression: "none" },
    content: (content, { layer }) => ({ ...content, checkpoints: tarZinfo(SPAN_SIZE, layer.descriptor.size) }),
    reason: null,
  },
  {
    id: "B21",
    what: "prefetch ranges are negative, inverted and endless",
    prefetch: writePrefetch([
      { start: -7, end: 1, priority: 0 },
      { start: 5, end: 2, priority: 0 },
      { start: 0, end: 2 ** 31 - 1, priority: 0 },
    ]),
    reason: null,
  },
  {
    id: "B22",
    what: "a prefetch artifact is of an unknown version",
    prefetch: Buffer.from('{"version":"9","prefetch_spans":[{"start_span":0,"end_span":1}]}'),
    reason: null,
  },
  {
    id: "B22",
    what: "a prefetch artifact is about a layer without a zTOC, and there are two of one layer",
    prefetch: Buffer.from("{"),
    image: () =>
      json((document) => {
        const prefetch = document.layers.at(-1)!;
        const foreign = { ...prefetch, annotations: { [SOCI_ANNOTATIONS.imageLayerDigest]: sha256(Buffer.from("x")) } };
        return { ...document, layers: [...document.layers, prefetch, foreign] };
      }),
    reason: null,
  },
  {
    id: "B23",
    what: "the index is of an unknown type",
    image: () =>
      json((document) => ({
        ...document,
        config: { ...document.config, mediaType: "application/vnd.amazon.soci.index.v7+json" },
      })),
    reason: /config type/,
  },
  {
    id: "B23",
    what: "the index has no layers",
    image: () => json((document) => ({ ...document, layers: [] })),
    reason: /it names no zTOC/,
  },
  {
    id: "B23",
    what: "the index is of another image",
    image: () =>
      json((document) => ({
        ...document,
        layers: document.layers.map((layer) => ({
          ...layer,
          annotations: { [SOCI_ANNOTATIONS.imageLayerDigest]: sha256(Buffer.from("another")) },
        })),
      })),
    reason: /has no table for any layer of this image/,
  },
  {
    id: "B23",
    what: "the index has a second zTOC for one layer, and one for an unknown layer",
    image: () =>
      json((document) => {
        const [first] = document.layers;
        const bad = { ...first, digest: sha256(Buffer.from("nothing")) };
        const foreign = { ...first, annotations: { [SOCI_ANNOTATIONS.imageLayerDigest]: sha256(Buffer.from("y")) } };
        return { ...document, layers: [foreign, first, bad] };
      }),
    reason: null,
  },
  { id: "B23", what: "the index is no JSON", image: () => ({ index: () => Buffer.from("{oops") }), reason: /not JSON/ },
  {
    id: "B24",
    what: "the index has a byte order mark, blanks and unknown fields",
    image: () => ({
      index: (bytes) =>
        Buffer.from(`\ufeff${JSON.stringify({ more: 1, ...JSON.parse(Buffer.from(bytes).toString()) }, null, 2)}\n`),
    }),
    reason: null,
  },
  {
    id: "B25",
    what: "the manifest names an index that is not there, and a good one is attached as a referrer",
    image: () => ({ missing: (what) => what === "index" }),
    reason: /index that the manifest names cannot be used/,
  },
  {
    id: "B25",
    what: "the manifest names an index by something that is no digest",
    image: () => ({ annotation: () => "latest" }),
    reason: /is no digest/,
  },
  {
    id: "B29",
    what: "a layer of two gzip members is indexed to the end of the first",
    sample: { members: 2 },
    content: (content) => ({
      ...content,
      uncompressedSize: 110_000,
      entries: content.entries.filter((one) => one.dataOffset + one.size <= 110_000),
    }),
    reason: /HS_INDEX/,
  },
  {
    id: "B32",
    what: "the image's descriptor has no platform",
    image: () => ({ root: (all) => all.map(({ platform, ...one }) => one) }),
    reason: null,
  },
];

/** 131 005 checkpoints by their count, which 32-bit arithmetic takes for these 31 641 bytes. */
function wrapping(): Uint8Array {
  const bytes = new Uint8Array(31_641);
  new DataView(bytes.buffer).setInt32(0, 131_005, true);
  return bytes;
}

/** The count of the first vector that has exactly four entries (the table of contents') becomes a billion. */
function hugeVector(bytes: Uint8Array): Uint8Array {
  const bad = Uint8Array.from(bytes);
  const view = new DataView(bad.buffer);
  for (let at = bad.byteLength - 64; at >= 0; at -= 4) {
    if (view.getUint32(at, true) !== 4) continue;
    view.setUint32(at, 1_000_000_000, true);
  }
  return bad;
}

let seed = 1000;

function build(place: FakePlace, one: Case): { reference: string; layer: Digest; output: string } {
  const sample = makeSample(++seed, one.sample);
  const content = one.content?.(sample.content, sample) ?? sample.content;
  const written = writeZtoc(content);
  const part: IndexedBlob = {
    layer: sample.layer,
    ztoc: one.ztoc?.(written) ?? written,
    ...(one.prefetch && { prefetch: one.prefetch }),
  };
  const { reference } = place.image(`case/${seed}`, [part], one.image?.(sample) ?? {});
  return { reference, layer: sample.layer.descriptor.digest, output: sample.output };
}

async function modeOf(node: SandboxNode, reference: string, layer: Digest) {
  const line = await imageLine(node, reference);
  const found = line.layers.find((one) => one.digest === layer);
  assert.ok(found, `no layer ${layer}`);
  return { mode: found.mode, reason: found.reason ?? "" };
}

async function runCase(t: TestContext, at: { place: FakePlace; node: SandboxNode; pod: CriPod }, one: Case) {
  const { place, node, pod } = at;
  const { reference, layer, output } = build(place, one);
  const started = performance.now();
  const ran = await runShell(node, pod, reference, SCRIPT);
  const tookMs = performance.now() - started;
  assert.deepEqual(ran, { exitCode: 0, output });
  const { mode, reason } = await modeOf(node, reference, layer);
  t.diagnostic(`${mode}, ${Math.round(tookMs)} ms${reason === "" ? "" : `: ${reason}`}`);
  assert.equal(mode, one.reason === null ? "lazy" : "eager", reason);
  if (one.reason !== null) {
    assert.match(reason, one.reason);
    const { layers } = await headstartStatus(node);
    const reasons = layers.filter((row) => row.digest === layer).map((row) => row.reason);
    assert.ok(
      reasons.some((text) => text !== null && one.reason!.test(text)),
      reasons.join(),
    );
  }
  assert.ok(tookMs < START_MS_MAX, `${Math.round(tookMs)} ms`);
}

test("a bad index costs the lazy start and nothing else", async (t) => {
  await using place = await FakePlace.make();
  const node = await place.node({ policy: "referrers" });
  const pod = await node.cri.runPod("cases");
  for (const one of CASES) {
    await t.test(`${one.id}: ${one.what}`, (sub) => runCase(sub, { place, node, pod }, one));
  }
});
