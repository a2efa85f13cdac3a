import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import fc from "fast-check";
import { sha256 } from "../base/digest.ts";
import { type ErrorCode, HeadstartError, isHeadstartError } from "../base/errors.ts";
import type { Descriptor } from "./descriptor.ts";
import { goIndex, goJson, goManifest } from "./gojson.ts";
import { loadImage, parseConfig, parseIndex, parseManifest, rankEntries, sniffManifestType } from "./manifest.ts";
import { layerKind, MEDIA_TYPES } from "./media-types.ts";
import { parsePlatform } from "./platform.ts";
import type { BlobHandle, ImageReader } from "./store.ts";

const golden = (name: string) => readFileSync(new URL(`../../test/golden/oci/${name}`, import.meta.url));
const json = (value: unknown) => Buffer.from(JSON.stringify(value));
const DIGEST = `sha256:${"1".repeat(64)}`;
const descriptor = (mediaType: string = MEDIA_TYPES.ociConfig) => ({ mediaType, digest: DIGEST, size: 1 });
const manifest = { schemaVersion: 2, config: descriptor(), layers: [descriptor(MEDIA_TYPES.ociLayerGzip)] };

const throwsCode = (code: ErrorCode, run: () => unknown, what: string) =>
  assert.throws(run, (error) => isHeadstartError(error, code), what);

for (const name of ["soci-index-v1.json", "soci-index-v2.amd64.json", "image-manifest.amd64.json"]) {
  test(`${name}, read and printed again, is byte for byte what the real tool wrote`, () => {
    const bytes = golden(name);
    assert.equal(Buffer.from(goManifest(parseManifest(bytes, name))).toString(), bytes.toString());
  });
}

test("the golden OCI index, read and printed again, is byte for byte the same", () => {
  const bytes = golden("oci-index.json");
  assert.equal(Buffer.from(goIndex(parseIndex(bytes, "index"))).toString(), bytes.toString());
});

test("strings are escaped as Go escapes them, and maps sorted by bytes", () => {
  assert.equal(
    goJson("<a>&\u2028\u2029\b\f\n\u0001\u007f😀"),
    '"\\u003ca\\u003e\\u0026\\u2028\\u2029\\b\\f\\n\\u0001\u007f😀"',
  );
  const annotations = { b: "1", "10": "2", "9": "3", "\uffff": "4", "😀": "5", "": "6" };
  const text = Buffer.from(goIndex({ mediaType: MEDIA_TYPES.ociIndex, manifests: [], annotations })).toString();
  assert.ok(text.endsWith('"annotations":{"":"6","10":"2","9":"3","b":"1","\uffff":"4","😀":"5"}}'), text);
});

test("a manifest with unknown fields, a byte order mark and blanks is read", () => {
  const bytes = Buffer.concat([Buffer.from("\ufeff \n"), json({ ...manifest, extra: { deep: [1] } })]);
  assert.equal(parseManifest(bytes, "m").layers.length, 1);
});

test("null counts as absent, as for Go", () => {
  const parsed = parseManifest(json({ ...manifest, layers: null, annotations: null, subject: null }), "m");
  assert.deepEqual(parsed.layers, []);
  assert.equal(parsed.subject, undefined);
});

test("documents that are not what they should be are refused", () => {
  const cases: [string, ErrorCode, Buffer][] = [
    ["no JSON", "HS_MANIFEST", Buffer.from("{")],
    ["no UTF-8", "HS_MANIFEST", Buffer.from([0x7b, 0xff, 0x7d])],
    ["an array", "HS_MANIFEST", json([])],
    ["no version", "HS_MANIFEST", json({ ...manifest, schemaVersion: undefined })],
    ["schema 1", "HS_FORMAT_UNSUPPORTED", json({ schemaVersion: 1, fsLayers: [] })],
    ["manifest and index at once", "HS_MANIFEST", json({ ...manifest, manifests: [] })],
    ["an index's media type", "HS_MANIFEST", json({ ...manifest, mediaType: MEDIA_TYPES.ociIndex })],
    ["no config", "HS_MANIFEST", json({ ...manifest, config: undefined })],
    ["a negative size", "HS_MANIFEST", json({ ...manifest, config: { ...descriptor(), size: -1 } })],
    ["a size beyond 2^53", "HS_MANIFEST", json({ ...manifest, config: { ...descriptor(), size: 2 ** 60 } })],
    ["a broken size", "HS_MANIFEST", json({ ...manifest, config: { ...descriptor(), size: 1.5 } })],
    ["a short digest", "HS_DIGEST_SYNTAX", json({ ...manifest, config: { ...descriptor(), digest: "sha256:12" } })],
    [
      "an unknown algorithm",
      "HS_DIGEST_SYNTAX",
      json({ ...manifest, config: { ...descriptor(), digest: `md5:${"1".repeat(32)}` } }),
    ],
    ["layers that are no list", "HS_MANIFEST", json({ ...manifest, layers: {} })],
    ["an annotation that is no text", "HS_MANIFEST", json({ ...manifest, annotations: { a: 1 } })],
    ["more layers than there can be", "HS_LIMIT", json({ ...manifest, layers: Array(2001).fill(descriptor()) })],
    ["more bytes than there can be", "HS_LIMIT", Buffer.alloc(9 * 1024 * 1024, 0x20)],
  ];
  for (const [what, code, bytes] of cases) throwsCode(code, () => parseManifest(bytes, "m"), what);
  throwsCode("HS_MANIFEST", () => parseIndex(json(manifest), "i"), "a manifest as an index");
});

test("an annotation called __proto__ is an annotation", () => {
  const bytes = Buffer.from(
    `{"schemaVersion":2,"config":${JSON.stringify(descriptor())},"annotations":{"__proto__":"x"}}`,
  );
  assert.deepEqual(Object.entries(parseManifest(bytes, "m").annotations!), [["__proto__", "x"]]);
});

test("layers say how they are compressed, and whether they are foreign or encrypted", () => {
  const plain = { foreign: false, encrypted: false };
  assert.deepEqual(layerKind(MEDIA_TYPES.ociLayer), { compression: "none", ...plain });
  assert.deepEqual(layerKind(MEDIA_TYPES.dockerLayerGzip), { compression: "gzip", ...plain });
  assert.deepEqual(layerKind(MEDIA_TYPES.ociLayerZstd), { compression: "zstd", ...plain });
  assert.deepEqual(layerKind(MEDIA_TYPES.dockerForeignGzip), { compression: "gzip", foreign: true, encrypted: false });
  assert.deepEqual(layerKind("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"), {
    compression: "gzip",
    foreign: true,
    encrypted: false,
  });
  assert.deepEqual(layerKind("application/vnd.oci.image.layer.v1.tar+gzip+encrypted"), {
    compression: "gzip",
    foreign: false,
    encrypted: true,
  });
  assert.equal(layerKind(MEDIA_TYPES.sociIndexV1), undefined);
});

test("the type of a manifest without one is seen from its fields", () => {
  assert.equal(sniffManifestType(json(manifest), "m"), MEDIA_TYPES.ociManifest);
  assert.equal(sniffManifestType(json({ schemaVersion: 2, manifests: [] }), "m"), MEDIA_TYPES.ociIndex);
  assert.equal(
    sniffManifestType(json({ ...manifest, mediaType: MEDIA_TYPES.dockerManifest }), "m"),
    MEDIA_TYPES.dockerManifest,
  );
});

test("SOCI indexes, attestations and other artifacts of an index are never chosen", () => {
  const { manifests } = parseIndex(golden("oci-index.json"), "index");
  assert.ok(manifests.some((entry) => entry.artifactType !== undefined));
  const attestation: Descriptor = {
    ...(descriptor(MEDIA_TYPES.ociManifest) as Descriptor),
    platform: { os: "unknown", architecture: "unknown" },
    annotations: { "vnd.docker.reference.type": "attestation-manifest" },
  };
  const disguised = { ...attestation, platform: { os: "linux", architecture: "amd64" } };
  for (const name of ["linux/amd64", "linux/arm64"]) {
    const ranked = rankEntries([disguised, attestation, ...[...manifests].reverse()], parsePlatform(name));
    assert.equal(ranked.length, 1, name);
    assert.equal(ranked[0]!.entry.artifactType, undefined);
    assert.equal(ranked[0]!.entry.platform!.architecture, name.slice(6));
  }
});

/** An image in memory. */
function memoryReader(root: Descriptor, blobs: readonly Uint8Array[]): ImageReader {
  const all = new Map<string, Uint8Array>(blobs.map((bytes) => [sha256(bytes), bytes]));
  const get = async (digest: string) => {
    const bytes = all.get(digest);
    if (bytes === undefined) throw new HeadstartError("HS_NOT_FOUND", { what: digest });
    return bytes;
  };
  return {
    what: "memory",
    resolve: async () => root,
    readManifest: async (which) => get(typeof which === "string" ? which : which.digest),
    openBlob: (wanted) => ({ readAll: () => get(wanted.digest) }) as unknown as BlobHandle,
    referrers: async () => [],
  };
}

const describe = (bytes: Uint8Array, mediaType: string, more: Partial<Descriptor> = {}): Descriptor => ({
  mediaType,
  digest: sha256(bytes),
  size: bytes.byteLength,
  ...more,
});

function imageFor(architecture: string) {
  const config = json({
    architecture,
    os: "linux",
    rootfs: { type: "layers", diff_ids: [DIGEST] },
    config: { Env: ["A=b"] },
  });
  const bytes = json({
    schemaVersion: 2,
    config: describe(config, MEDIA_TYPES.ociConfig),
    layers: [descriptor(MEDIA_TYPES.ociLayerGzip)],
  });
  return { config, bytes };
}

test("an index entry without a platform is what its configuration says", async () => {
  const [arm, amd] = [imageFor("arm64"), imageFor("amd64")];
  const index = json({
    schemaVersion: 2,
    manifests: [describe(arm.bytes, MEDIA_TYPES.ociManifest), describe(amd.bytes, MEDIA_TYPES.ociManifest)],
  });
  const reader = memoryReader(describe(index, MEDIA_TYPES.ociIndex), [
    index,
    arm.config,
    arm.bytes,
    amd.config,
    amd.bytes,
  ]);
  const image = await loadImage(reader, parsePlatform("linux/amd64"));
  assert.equal(image.config.platform.architecture, "amd64");
  assert.deepEqual(image.config.process.env, ["A=b"]);
  assert.equal(image.index!.manifests.length, 2);
  await assert.rejects(loadImage(reader, parsePlatform("linux/s390x")), (error) =>
    isHeadstartError(error, "HS_PLATFORM"),
  );
});

test("an index within an index is walked, a loop of indexes ends", async () => {
  const amd = imageFor("amd64");
  const inner = json({
    schemaVersion: 2,
    manifests: [describe(amd.bytes, MEDIA_TYPES.ociManifest, { platform: { os: "linux", architecture: "amd64" } })],
  });
  const outer = json({ schemaVersion: 2, manifests: Array(50).fill(describe(inner, MEDIA_TYPES.ociIndex)) });
  const reader = memoryReader(describe(outer, MEDIA_TYPES.ociIndex), [outer, inner, amd.bytes, amd.config]);
  assert.equal((await loadImage(reader, parsePlatform("amd64"))).layers.length, 1);
});

test("an image whose layers and diffIDs differ in number, and an artifact, are no images", async () => {
  const config = json({ architecture: "amd64", os: "linux", rootfs: { diff_ids: [] } });
  const bytes = json({ ...manifest, config: describe(config, MEDIA_TYPES.ociConfig) });
  const odd = memoryReader(describe(bytes, MEDIA_TYPES.ociManifest), [bytes, config]);
  await assert.rejects(loadImage(odd), (error) => isHeadstartError(error, "HS_MANIFEST"));
  const soci = golden("soci-index-v1.json");
  const artifact = memoryReader(describe(soci, MEDIA_TYPES.ociManifest), [soci]);
  await assert.rejects(loadImage(artifact), (error) => isHeadstartError(error, "HS_MANIFEST"));
});

test("a configuration's diffIDs are checked", () => {
  const bad = json({ rootfs: { diff_ids: ["sha256:zz"] } });
  throwsCode("HS_DIGEST_SYNTAX", () => parseConfig(bad, "c"), "diff_ids");
});

test("property: a mutated document gives a value or a typed error", () => {
  const sources = ["soci-index-v1.json", "oci-index.json", "image-manifest.amd64.json"].map(golden);
  const mutation = fc.record({
    source: fc.constantFrom(...sources),
    at: fc.nat(),
    bytes: fc.uint8Array({ minLength: 1, maxLength: 6 }),
    cut: fc.nat({ max: 8 }),
  });
  fc.assert(
    fc.property(mutation, ({ source, at, bytes, cut }) => {
      const position = at % source.length;
      const mutated = Buffer.concat([source.subarray(0, position), bytes, source.subarray(position + cut)]);
      for (const parse of [parseManifest, parseIndex, parseConfig]) {
        try {
          parse(mutated, "mutated");
        } catch (error) {
          assert.ok(error instanceof HeadstartError, String(error));
        }
      }
    }),
    { numRuns: 1000 },
  );
});

test("property: any JSON gives a value or a typed error", () => {
  fc.assert(
    fc.property(fc.json(), (text) => {
      for (const parse of [parseManifest, parseIndex, parseConfig]) {
        try {
          parse(Buffer.from(text), "any");
        } catch (error) {
          assert.ok(error instanceof HeadstartError, String(error));
        }
      }
    }),
    { numRuns: 500 },
  );
});

test("property: annotations survive printing and reading", () => {
  fc.assert(
    fc.property(
      fc.dictionary(fc.string({ unit: "grapheme" }), fc.string({ unit: "grapheme" }), { minKeys: 1 }),
      (annotations) => {
        const bytes = goIndex({ mediaType: MEDIA_TYPES.ociIndex, manifests: [], annotations });
        assert.deepEqual({ ...parseIndex(bytes, "i").annotations }, { ...annotations });
      },
    ),
  );
});
