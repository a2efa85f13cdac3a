import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { gunzipSync } from "node:zlib";
import { fixtureLayers, goldenPath, goldenZtocs } from "../../../test/suites/golden-soci.ts";
import { sample } from "../../../test/suites/soci-sample.ts";
import { sha256 } from "../../base/digest.ts";
import { parseManifest } from "../../oci/manifest.ts";
import { decoderFor, FORMATS } from "../all.ts";
import { LayerTreeBuilder } from "../tar/apply.ts";
import { TarReader } from "../tar/records.ts";
import { openSociLayer, sociFormat } from "./adapter.ts";
import type { ZtocEntry } from "./entries.ts";
import { writeZtoc, type ZtocContent } from "./write.ts";

function open(content: ZtocContent, blob: Uint8Array, prefetch?: Uint8Array) {
  const layer = { digest: sha256(blob), size: blob.byteLength, mediaType: "", diffID: sha256(blob) as never };
  return openSociLayer({ ztoc: writeZtoc(content), layer, role: "lowest", ...(prefetch && { prefetch }) });
}

test("the tree from a golden table of contents is the tree from the tar, as lowest and as upper layer", () => {
  for (const golden of goldenZtocs()) {
    const layer = fixtureLayers(golden.variant)[golden.layerNumber]!;
    const tar = golden.variant === "tar" ? layer.bytes : gunzipSync(layer.bytes);
    for (const role of ["lowest", "upper"] as const) {
      const builder = new LayerTreeBuilder(role, layer.digest);
      const reader = new TarReader(
        { entry: (entry) => builder.add(entry).dataWanted, data() {} },
        { layer: layer.digest },
      );
      reader.push(tar);
      reader.finish();
      const lazy = openSociLayer({ ztoc: golden.bytes, layer, role });
      assert.deepEqual(lazy.tree, builder.finish(), `${golden.name} ${role}`);
    }
  }
});

test("units are the spans, their pieces cover the stream without gaps, and the decode table crosses to a worker", () => {
  for (const golden of goldenZtocs()) {
    const layer = fixtureLayers(golden.variant)[golden.layerNumber]!;
    const { units, streamLength, decode } = openSociLayer({ ztoc: golden.bytes, layer, role: "lowest" });
    let end = 0;
    for (let piece = 0; piece < units.pieceCount; piece++) {
      assert.equal(units.pieceAddress[piece], end);
      end += units.pieceLength[piece]!;
    }
    assert.equal(end, streamLength);
    assert.equal(units.unitEnd[units.unitCount - 1], layer.size);
    const decoder = decoderFor(structuredClone(decode), structuredClone(units));
    const decoded = decoder.decode(0, layer.bytes.subarray(units.unitStart[0]!, units.unitEnd[0]!));
    assert.equal(decoded.byteLength, units.unitDecodedLength[0]);
  }
});

test("the bytes of a zTOC over shared memory are used as they are", () => {
  const { content, blob } = sample();
  const written = writeZtoc(content);
  const shared = new Uint8Array(new SharedArrayBuffer(written.byteLength));
  shared.set(written);
  const layer = { digest: sha256(blob), size: blob.length, mediaType: "", diffID: sha256(blob) as never };
  const { decode } = openSociLayer({ ztoc: shared, layer, role: "lowest" });
  assert.equal((decode.ztoc as { bytes: Uint8Array }).bytes.buffer, shared.buffer);
});

test("B11: a zTOC of a blob of another size is refused", () => {
  const { content, blob } = sample();
  assert.throws(() => open(content, Buffer.concat([blob, Buffer.alloc(1)])), { code: "HS_INDEX_MISMATCH" });
});

test("B12: a size on a directory entry counts as 0; a sparse file is refused", () => {
  const { content, blob } = sample();
  const [a, d, b] = content.entries as [ZtocEntry, ZtocEntry, ZtocEntry];
  const { tree } = open({ ...content, entries: [a, { ...d, size: 4096 }, b] }, blob);
  assert.equal(tree.inodeCount, 4);
  const sparse = { ...b, pax: [{ key: Buffer.from("GNU.sparse.major"), value: Buffer.from("1") }] };
  assert.throws(() => open({ ...content, entries: [a, d, sparse] }, blob), { code: "HS_INDEX_INVALID" });
});

test("B21, B22: a prefetch artifact gives units in order, clamped; one that cannot be read gives none", () => {
  const { content, blob } = sample({ compression: "tar", spanSize: 20_000 });
  const hint = (spans: unknown, version = "1.0") => Buffer.from(JSON.stringify({ version, prefetch_spans: spans }));
  const ranges = [
    { start_span: 5, end_span: 2 },
    { start_span: 3, end_span: 4, priority: 1 },
    { start_span: -7, end_span: 1 },
    { start_span: 9, end_span: 2_147_483_647 },
  ];
  assert.deepEqual(open(content, blob, hint(ranges)).prefetchUnits, [0, 1, 9, 10, 3, 4]);
  for (const bad of [
    hint([]),
    hint(ranges, "2.0"),
    hint([{ start_span: 0.5, end_span: 1 }]),
    Buffer.from("{"),
    Buffer.from("[]"),
  ]) {
    assert.deepEqual(open(content, blob, bad).prefetchUnits, []);
  }
});

test("B23: an index gives tables for the layers of this image alone, the first of duplicates", () => {
  const bytes = readFileSync(goldenPath("gogz/span-65536/soci-index-v2.amd64.json"));
  const layers = fixtureLayers("gogz").map(({ digest, size, mediaType }) => ({ digest, size, mediaType }));
  const image = { manifest: sha256(bytes), layers };
  const tables = sociFormat.readIndex(bytes, image);
  assert.deepEqual(
    [...tables.keys()],
    layers.map((layer) => layer.digest),
  );
  assert.equal(sociFormat.readIndex(bytes, { ...image, layers: layers.slice(1) }).size, 2);
  assert.equal(sociFormat.readIndex(bytes, { ...image, layers: [] }).size, 0);
  const document = JSON.parse(bytes.toString());
  document.layers.push({ ...document.layers[0], size: 1 }, { ...document.layers[0], annotations: {} });
  const twice = sociFormat.readIndex(Buffer.from(JSON.stringify(document)), image);
  assert.deepEqual(twice.get(layers[0]!.digest), tables.get(layers[0]!.digest));
});

test("B25: an annotation that is no digest is an error, none is no index", () => {
  const manifest = parseManifest(readFileSync(goldenPath("gogz/span-65536/image-manifest.amd64.json")), "manifest");
  assert.match(sociFormat.boundIndex(manifest)!, /^sha256:/);
  const annotated = (value: string) => ({ ...manifest, annotations: { "com.amazon.soci.index-digest": value } });
  assert.throws(() => sociFormat.boundIndex(annotated("latest")), { code: "HS_INDEX_INVALID" });
  assert.equal(sociFormat.boundIndex({ ...manifest, annotations: {} }), null);
});

test("a codec that nobody has is an error", () => {
  assert.ok(FORMATS.includes(sociFormat));
  const { content, blob } = sample();
  const { units } = open(content, blob);
  assert.throws(() => decoderFor({ codec: "toString" }, units), { code: "HS_FORMAT_UNSUPPORTED" });
});
