import assert from "node:assert/strict";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import fc from "fast-check";
import { FIXTURE_SOURCE, makeVolume, TINY_SOURCE } from "../../test/tools/volumes.ts";
import { isHeadstartError } from "../base/errors.ts";
import type { Provenance, VolumeManifest } from "./manifest.ts";
import { parseVolumeDocument, provenanceBeside, readVolumeDocument } from "./provenance.ts";

const directory = mkdtempSync(join(tmpdir(), "headstart-provenance-"));
after(() => rmSync(directory, { recursive: true }));
const disk = join(directory, "disk.img");
let manifest: VolumeManifest;
let statement: Provenance;

before(async () => {
  manifest = await makeVolume(disk, [FIXTURE_SOURCE, TINY_SOURCE], { layout: "al2023" });
  statement = JSON.parse(readFileSync(`${disk}.json`, "utf8")) as Provenance;
});

test("the statement names what was built, from what, by whom and how", () => {
  const { buildDefinition, runDetails } = statement.predicate;
  assert.deepEqual(
    statement.subject.map(({ name }) => name),
    ["disk", "io.containerd.metadata.v1.bolt/meta.db", "io.containerd.snapshotter.v1.overlayfs/metadata.db"],
  );
  const materials = buildDefinition.resolvedDependencies.map(
    ({ name, digest }) => `${name} ${Object.values(digest)[0]}`,
  );
  for (const image of manifest.images) {
    assert.ok(materials.includes(`image ${image.digest.slice(7)}`));
    assert.ok(materials.includes(`manifest ${image.manifest.slice(7)}`));
    assert.ok(materials.includes(`config ${image.config.slice(7)}`));
    for (const layer of image.layers) assert.ok(materials.includes(`layer ${layer.digest.slice(7)}`));
  }
  const { externalParameters } = buildDefinition;
  assert.deepEqual(Object.keys(externalParameters.names), [FIXTURE_SOURCE, TINY_SOURCE]);
  assert.deepEqual(
    [externalParameters.layout, externalParameters.blobs, externalParameters.pin],
    ["al2023", "keep", true],
  );
  assert.equal(externalParameters.time, manifest.options.time);
  assert.equal(runDetails.builder.version.headstart, manifest.tool.version);
});

test("a volume that follows another names it, and one that is the same again names what that followed", async () => {
  const previousOf = (path: string) => {
    const { predicate } = JSON.parse(readFileSync(`${path}.json`, "utf8")) as Provenance;
    const found = predicate.buildDefinition.resolvedDependencies.find(({ name }) => name === "previous volume");
    assert.equal(predicate.headstart_volume.previous, found === undefined ? undefined : Object.values(found.digest)[0]);
    return predicate.headstart_volume.previous;
  };
  const [next, again] = [join(directory, "next.img"), join(directory, "again.img")];
  await makeVolume(next, [FIXTURE_SOURCE], { layout: "al2023", previous: disk });
  await makeVolume(again, [FIXTURE_SOURCE], { layout: "al2023", previous: next });
  const own = statement.subject[0]!.digest.sha256Blocks512KiB;
  assert.deepEqual([previousOf(disk), previousOf(next), previousOf(again)], [undefined, own, own]);
});

test("what a build wrote is read as it was meant, as a statement and as the manifest alone", () => {
  assert.equal(provenanceBeside(disk), `${disk}.json`);
  assert.equal(provenanceBeside(directory), null);
  const read = readVolumeDocument(`${disk}.json`);
  const alone = parseVolumeDocument(Buffer.from(JSON.stringify(manifest)), `${disk}.json`);
  assert.deepEqual({ ...read, statement: null }, alone);
  assert.deepEqual(read.options, { blobs: true, pinned: true, selinux: false, time: manifest.options.time });
  assert.deepEqual(
    read.images.map(({ refs, layers }) => [refs, layers.map(({ region }) => region?.startBlock)]),
    manifest.images.map(({ refs, layers }) => [refs, layers.map(({ region }) => region?.[0])]),
  );
  assert.equal(read.blocks!.sha256.size, Object.keys(manifest.blocks!.sha256).length);
  assert.deepEqual(read.regions.get("stores")?.blockCount, manifest.regions!.stores.region[1]);
});

test("a document with any value replaced is read or refused, and nothing else", () => {
  const paths: (string | number)[][] = [];
  const collect = (value: unknown, path: (string | number)[]) => {
    if (path.length > 0) paths.push(path);
    if (typeof value !== "object" || value === null) return;
    for (const [key, inner] of Object.entries(value).slice(0, 12)) collect(inner, [...path, key]);
  };
  collect(statement, []);
  fc.assert(
    fc.property(fc.constantFrom(...paths), fc.jsonValue(), (path, value) => {
      const copy = structuredClone(statement) as unknown as Record<string | number, unknown>;
      let at = copy;
      for (const key of path.slice(0, -1)) at = at[key] as Record<string | number, unknown>;
      at[path.at(-1)!] = value;
      try {
        parseVolumeDocument(Buffer.from(JSON.stringify(copy)), "x");
      } catch (error) {
        if (!isHeadstartError(error, "HS_MALFORMED", "HS_LIMIT")) throw error;
      }
    }),
    { numRuns: 500 },
  );
});

test("bytes that are no JSON, another schema and another kind of statement are refused", () => {
  const refused = (text: string) =>
    assert.throws(() => parseVolumeDocument(Buffer.from(text), "x"), { code: "HS_MALFORMED" });
  refused("");
  refused("[]");
  refused('{"schema": "headstart.volume/2"}');
  refused(JSON.stringify({ ...statement, predicateType: "https://slsa.dev/provenance/v0.2" }));
  refused(JSON.stringify({ ...manifest, blocks: { size: 524_288, sha256: { "-1": "00" } } }));
});
