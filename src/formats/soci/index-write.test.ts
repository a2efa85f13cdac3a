import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { fixtureLayers, goldenPath, goldenZtocs } from "../../../test/suites/golden-soci.ts";
import { sha256 } from "../../base/digest.ts";
import { readPrefetch, readSociIndex } from "./index.ts";
import { type IndexedLayer, planPrefetch, sociRefuses, writePrefetch, writeSociIndex } from "./index-write.ts";
import { SOCI_BUILD_TOOL } from "./ondisk.ts";
import { readZtoc, type Ztoc } from "./read.ts";

const ZTOCS = goldenZtocs();
const SPAN_SIZES = [65_536, 262_144, 4_194_304];

function golden(variant: string, spanSize: number, layerNumber: number): Uint8Array {
  const name = variant === "dockergz" ? "gogz" : variant;
  return ZTOCS.find((ztoc) => ztoc.name === `${name}/span-${spanSize}/layer-${layerNumber}`)!.bytes;
}

function indexed(variant: string, spanSize: number): IndexedLayer[] {
  return fixtureLayers(variant).map(({ digest, size, mediaType }, number) => {
    const ztoc = golden(variant, spanSize, number);
    return { layer: { digest, size, mediaType }, ztoc: { digest: sha256(ztoc), size: ztoc.byteLength } };
  });
}

test("the v2 and v1 index of every variant and span size are the real tool's, byte for byte", () => {
  for (const variant of ["tar", "gogz", "pigz", "multigz", "fnamegz", "dotgz", "dockergz"]) {
    for (const spanSize of SPAN_SIZES) {
      const folder = `${variant}/span-${spanSize}`;
      const layers = indexed(variant, spanSize);
      const common = { layers, spanSize, buildTool: SOCI_BUILD_TOOL };
      const v2 = writeSociIndex({ ...common, version: 2 });
      assert.equal(
        Buffer.from(v2).toString(),
        readFileSync(goldenPath(folder, "soci-index-v2.amd64.json"), "utf8"),
        folder,
      );
      const v1 = readFileSync(goldenPath(folder, "soci-index-v1.json"), "utf8");
      const { subject } = JSON.parse(v1);
      assert.equal(Buffer.from(writeSociIndex({ ...common, version: 1, subject })).toString(), v1, folder);
      assert.deepEqual(readSociIndex(v2).version, 2);
      assert.equal(readSociIndex(Buffer.from(v1)).subject?.digest, subject.digest);
    }
  }
});

test("the xattr optimization, a sparse index and prefetch artifacts are the real tool's, byte for byte", () => {
  const all = indexed("gogz", 262_144);
  const xattr = all.map((layer, number) => ({ ...layer, disableXattrs: number === 2 }));
  const expected = (name: string) => readFileSync(goldenPath("options", name, "soci-index-v2.amd64.json"), "utf8");
  const common = { version: 2, spanSize: 262_144, buildTool: SOCI_BUILD_TOOL } as const;
  assert.equal(Buffer.from(writeSociIndex({ ...common, layers: xattr })).toString(), expected("xattr"));
  const sparse = [all[0]!, all[2]!];
  assert.equal(
    Buffer.from(writeSociIndex({ ...common, layers: sparse })).toString(),
    expected("min-layer-size-sparse"),
  );

  const cases = [
    {
      name: "prefetch",
      variant: "gogz",
      span: 65_536,
      files: ["/data/text-1m-plus-1", "etc/keep", "/data/many-spans", "/no/such/file"],
    },
    {
      name: "prefetch-links-and-dirs",
      variant: "gogz",
      span: 65_536,
      files: ["/etc/hard-b", "/etc/absolute", "/data/sub"],
    },
    { name: "prefetch-dot-names", variant: "dotgz", span: 65_536, files: ["/data/text-1m-plus-1", "./etc/keep"] },
    {
      name: "prefetch-json",
      variant: "tar",
      span: 262_144,
      files: JSON.parse(readFileSync(goldenPath("options/prefetch-json/list.json"), "utf8")) as string[],
    },
  ];
  for (const { name, variant, span, files } of cases) {
    const ztocs: Ztoc[] = [0, 1, 2].map((number) => readZtoc(golden(variant, span, number)));
    const plan = planPrefetch(files, ztocs);
    const layers = indexed(variant, span).map((layer, number) => {
      const ranges = plan.ranges[number]!;
      if (ranges.length === 0) return layer;
      const bytes = writePrefetch(ranges);
      const path = goldenPath("options", name, `prefetch.amd64.layer-${number}.json`);
      assert.equal(Buffer.from(bytes).toString(), readFileSync(path, "utf8"), path);
      assert.deepEqual(readPrefetch(bytes), ranges);
      return { ...layer, prefetch: { digest: sha256(bytes), size: bytes.byteLength } };
    });
    const index = writeSociIndex({ version: 2, spanSize: span, buildTool: SOCI_BUILD_TOOL, layers });
    assert.equal(Buffer.from(index).toString(), expected(name), name);
    const warned = readFileSync(goldenPath("options", name, "output.txt"), "utf8").matchAll(
      /prefetch file (\S+) not found/g,
    );
    assert.deepEqual([...plan.notFound].sort(), [...warned].map((match) => match[1]!).sort());
  }
});

test("B24: an index that SOCI would not take, although we do, is told from one that it takes", () => {
  const good = readFileSync(goldenPath("options/prefetch/soci-index-v2.amd64.json"), "utf8");
  assert.equal(sociRefuses(Buffer.from(good)), null);
  const document = JSON.parse(good);
  const odd = [
    `${good}\n`,
    JSON.stringify(document, null, 1),
    JSON.stringify({ ...document, extra: 1 }),
    JSON.stringify({ ...document, artifactType: "x" }),
  ];
  for (const text of odd) {
    assert.equal(typeof sociRefuses(Buffer.from(text)), "string");
    assert.equal(readSociIndex(Buffer.from(text)).ztocs.size, 3);
  }
});

test("an index of an unknown type, without zTOCs, or that is no JSON is a typed error; byte order mark, blanks and unknown fields are read", () => {
  const good = readFileSync(goldenPath("gogz/span-65536/soci-index-v2.amd64.json"), "utf8");
  const change = (edit: (document: Record<string, unknown>) => void) => {
    const document = JSON.parse(good);
    edit(document);
    return Buffer.from(JSON.stringify(document));
  };
  assert.throws(() => readSociIndex(change((d) => (d.config = { mediaType: "x" }))), { code: "HS_FORMAT_UNSUPPORTED" });
  assert.throws(() => readSociIndex(change((d) => (d.layers = []))), { code: "HS_INDEX_INVALID" });
  assert.throws(() => readSociIndex(change((d) => (d.layers = null))), { code: "HS_INDEX_INVALID" });
  assert.throws(() => readSociIndex(change((d) => (d.layers = [{ digest: "x" }]))), { code: "HS_INDEX_INVALID" });
  for (const text of ["", "[]", "null", good.slice(1)]) {
    assert.throws(() => readSociIndex(Buffer.from(text)), { code: "HS_INDEX_INVALID" });
  }
  const odd = Buffer.from(`\ufeff  ${JSON.stringify({ ...JSON.parse(good), extra: [1] }, null, 2)}\n`);
  assert.equal(readSociIndex(odd).ztocs.size, 3);
});
