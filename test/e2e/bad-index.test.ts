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
import { writePrefetch, writeSociIndex } from "../../src/formats/soci/index-write.ts";
import { SOCI_ANNOTATIONS } from "../../src/formats/soci/ondisk.ts";
import { tarZinfo, writeZtoc, type ZtocContent } from "../../src/formats/soci/write.ts";
import type { Descriptor } from "../../src/oci/descriptor.ts";
import { MEDIA_TYPES } from "../../src/oci/media-types.ts";
import type { CriPod } from "../../src/sandbox/cri-client.ts";
import { type BuiltLayer, layerOf, layerOfTar } from "../../src/sandbox/image-builder.ts";
import type { SandboxNode } from "../../src/sandbox/node.ts";
import { type TarEntry, writeTar } from "../../src/sandbox/tar-writer.ts";
import { type IndexedBlob, indexed, type SociImageOptions, ztocContent } from "../suites/soci-image.ts";
import { noise } from "../suites/soci-sample.ts";
import { image as imageLine } from "./daemon-status.ts";
import { FakePlace, headstartStatus, runShell } from "./fake-place.ts";

const SPAN_SIZE = 32_768;
const RECORD = 32_785;
/** A node that is busy with other tests too: far less than anything that waits for a time-out. */
const START_MS_MAX = 14_000;

interface Sample {
  readonly layer: BuiltLayer;
  readonly content: ZtocContent;
  /** What a script prints that reads all of the layer's files. */
  readonly output: string;
  /** sha256 of each file, by name. */
  readonly hashes: ReadonlyMap<string, string>;
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
  const hashOf = (data: Buffer) => createHash("sha256").update(data).digest("hex");
  const hash = hashOf(Buffer.concat(Object.values(files)));
  return {
    layer,
    content: ztocContent(layer.source as Uint8Array, SPAN_SIZE),
    output: `${hash}  -\n3\n`,
    hashes: new Map(Object.entries(files).map(([name, data]) => [name, hashOf(data)])),
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
    what: "a layer of two gzip members has checkpoints in the first alone",
    sample: { members: 2 },
    content: (content, { layer }) => {
      const view = Buffer.from(content.checkpoints);
      const member = content.uncompressedSize / 2;
      const kept = content.spanDigests.filter(
        (_, span) => view.readBigInt64LE(12 + span * RECORD + OUT) < member,
      ).length;
      const last = Number(view.readBigInt64LE(12 + (kept - 1) * RECORD + IN));
      const shared = view[12 + (kept - 1) * RECORD + BITS] === 0 ? 0 : 1;
      view.writeInt32LE(kept, 0);
      return {
        ...content,
        checkpoints: view.subarray(0, 12 + kept * RECORD),
        spanDigests: [
          ...content.spanDigests.slice(0, kept - 1),
          sha256((layer.source as Buffer).subarray(last - shared)),
        ],
      };
    },
    reason: null,
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

/** What is wrong only about bytes that nobody has seen yet: found when they pass by. */
const LIES: readonly Case[] = [
  {
    id: "B1",
    what: "a span decodes to less than it says",
    content: checkpoints((view, record) => move(view, record(2) + OUT, 700)),
    reason: /HS_UNIT_DECODE/,
  },
  {
    id: "B18",
    what: "a span decodes to more than it says, and all bytes behind it would be shifted",
    content: checkpoints((view, record) => move(view, record(2) + OUT, -700)),
    reason: /HS_UNIT_DECODE/,
  },
  {
    id: "B14",
    what: "a file has another name",
    content: entry("data/last", { name: Buffer.from("data/lost") }),
    reason: /another name/,
  },
  {
    id: "B14",
    what: "two files have each other's names",
    content: (content, sample) =>
      entry("data/first", { name: Buffer.from("data/big") })(
        entry("data/big", { name: Buffer.from("data/first") })(content, sample),
        sample,
      ),
    reason: /another name/,
  },
  { id: "B14", what: "a file is longer", content: entry("data/last", { size: 300 }), reason: /another size/ },
  {
    id: "B14",
    what: "a file belongs to another user and is set-uid",
    content: entry("data/big", { uid: 7, mode: 0o4755 }),
    reason: /another mode/,
  },
  {
    id: "B14",
    what: "the last file is hidden",
    content: (content) => ({ ...content, entries: content.entries.slice(0, -1) }),
    reason: /the tar goes on/,
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
    reason: /HS_INDEX|HS_UNIT_DECODE/,
  },
];

function move(view: DataView, at: number, by: number): void {
  view.setBigInt64(at, view.getBigInt64(at, true) + BigInt(by), true);
}

let seed = 1000;

interface Built {
  readonly reference: string;
  readonly layer: Digest;
  readonly output: string;
  readonly hashes: ReadonlyMap<string, string>;
}

function build(place: FakePlace, one: Case): Built {
  const sample = makeSample(++seed, one.sample);
  const content = one.content?.(sample.content, sample) ?? sample.content;
  const written = writeZtoc(content);
  const part: IndexedBlob = {
    layer: sample.layer,
    ztoc: one.ztoc?.(written) ?? written,
    ...(one.prefetch && { prefetch: one.prefetch }),
  };
  const { reference } = place.image(`case/${seed}`, [part], one.image?.(sample) ?? {});
  return { reference, layer: sample.layer.descriptor.digest, output: sample.output, hashes: sample.hashes };
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

async function runLie(t: TestContext, at: { place: FakePlace; node: SandboxNode; pod: CriPod }, one: Case) {
  const { place, node, pod } = at;
  const { reference, layer, output, hashes } = build(place, one);
  const ran = await runShell(node, pod, reference, "for f in /data/*; do sha256sum $f 2>&1; done");
  let failed = 0;
  for (const line of ran.output.split("\n").filter((text) => text !== "")) {
    const hashed = /^([0-9a-f]{64}) {2}\/data\/(\w+)$/.exec(line);
    if (hashed === null) {
      assert.match(line, /I\/O error|Input\/output error/);
      failed++;
    } else assert.equal(hashed[1], hashes.get(hashed[2]!), line);
  }
  t.diagnostic(`${failed} of the files could not be read`);
  assert.ok(failed > 0);
  assert.deepEqual(await runShell(node, pod, reference, SCRIPT), { exitCode: 0, output });
  const { mode, reason } = await modeOf(node, reference, layer);
  assert.equal(mode, "eager", reason);
  assert.match(reason, one.reason!);
  // another image with the same layer and index, in another chain, does not begin with the same lie
  const extra = { layer: layerOf([{ path: `extra/${seed}` }]), ztoc: null };
  const again = place.image(`again/${seed}`, [extra, ...place.partsOf(reference)]);
  assert.deepEqual(await runShell(node, pod, again.reference, SCRIPT), { exitCode: 0, output });
  assert.equal((await modeOf(node, again.reference, layer)).mode, "eager");
}

test("an index that lies is found when what it lies about passes by: never other bytes, and the next container has a whole layer", async (t) => {
  await using place = await FakePlace.make();
  // in the background it would be found before the container reads
  const node = await place.node({ policy: "bound", config: { fetch: { background: false } } });
  const pod = await node.cri.runPod("lies");
  for (const one of LIES) {
    await t.test(`${one.id}: ${one.what}`, (sub) => runLie(sub, { place, node, pod }, one));
  }
});

test("one table of several that cannot be had makes that layer eager alone", async (t) => {
  await using place = await FakePlace.make();
  const node = await place.node({ policy: "bound" });
  const pod = await node.cri.runPod("tables");
  const outages: Readonly<Record<string, (repository: string, ztoc: Digest) => void>> = {
    "is not there": (repository, ztoc) => place.registry.stored(repository).blobs.delete(ztoc),
    "comes as other bytes": (repository, ztoc) => place.registry.stored(repository).blobs.set(ztoc, noise(3000)),
    "comes as an error each time": (_, ztoc) =>
      place.registry.inject({ match: ztoc, times: 1000, fault: { kind: "status", status: 500 } }),
    "may not be read": (_, ztoc) =>
      place.registry.inject({ match: ztoc, times: 1000, fault: { kind: "status", status: 403 } }),
  };
  for (const [what, outage] of Object.entries(outages)) {
    await t.test(`B34: it ${what}`, async () => {
      const lost = makeSample(++seed);
      const other = layerOf([{ path: "other/file", data: noise(100_000, seed + 500) }]);
      const parts = [indexed(lost.layer, SPAN_SIZE), indexed(other, SPAN_SIZE)];
      const { reference } = place.image(`case/${seed}`, parts);
      outage(`case/${seed}`, sha256(parts[0]!.ztoc!));
      assert.deepEqual(await runShell(node, pod, reference, SCRIPT), { exitCode: 0, output: lost.output });
      assert.equal((await modeOf(node, reference, lost.layer.descriptor.digest)).mode, "eager");
      assert.equal((await modeOf(node, reference, other.descriptor.digest)).mode, "lazy");
    });
  }
});

test("B26: the newest fitting index is found in a long, paged list of referrers", async () => {
  await using place = await FakePlace.make({ pageSize: 2 });
  const node = await place.node({ policy: "referrers" });
  const pod = await node.cri.runPod("referrers");
  const sample = makeSample(++seed);
  const repository = `case/${seed}`;
  const { reference, manifest } = place.image(repository, [{ layer: sample.layer, ztoc: null }]);
  const { subject: _, ...good } = sociIndexV1(place, repository, sample, manifest);
  const attach = (document: object) =>
    place.registry.putManifest(repository, { ...document, subject: manifest }, MEDIA_TYPES.ociManifest);
  const foreign = (type: string, number: number) => ({
    schemaVersion: 2,
    mediaType: MEDIA_TYPES.ociManifest,
    artifactType: type,
    config: { ...good.config, mediaType: "application/vnd.oci.empty.v1+json" },
    layers: [],
    annotations: { number: String(number) },
  });
  for (let number = 0; number < 5; number++) attach(foreign("application/vnd.example.sbom", number));
  const created = (time: string) => ({ "org.opencontainers.image.created": time });
  const stale = { ...good, layers: [{ ...good.layers[0], digest: sha256(Buffer.from("gone")) }] };
  attach({ ...stale, annotations: created("2020-01-01T00:00:00Z") });
  attach({ ...good, annotations: created("2024-01-01T00:00:00Z") });
  attach(foreign("application/vnd.example.signature", 9));
  assert.deepEqual(await runShell(node, pod, reference, SCRIPT), { exitCode: 0, output: sample.output });
  assert.equal((await modeOf(node, reference, sample.layer.descriptor.digest)).mode, "lazy");
});

/** Stores what a v1 index of that layer names; the index as a document. */
function sociIndexV1(place: FakePlace, repository: string, sample: Sample, subject: Descriptor) {
  const ztoc = place.registry.putBlob(repository, writeZtoc(sample.content));
  const bytes = writeSociIndex({
    version: 1,
    layers: [{ layer: sample.layer.descriptor, ztoc: { digest: ztoc.digest as Digest, size: ztoc.size } }],
    spanSize: SPAN_SIZE,
    buildTool: "test",
    subject,
  });
  return JSON.parse(Buffer.from(bytes).toString()) as IndexDocument & { subject: unknown };
}

test("a bad index costs the lazy start and nothing else", async (t) => {
  await using place = await FakePlace.make();
  const node = await place.node({ policy: "referrers" });
  const pod = await node.cri.runPod("cases");
  for (const one of CASES) {
    await t.test(`${one.id}: ${one.what}`, (sub) => runCase(sub, { place, node, pod }, one));
  }
});
