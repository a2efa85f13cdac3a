import assert from "node:assert/strict";
import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { FakeRegistry } from "../../test/fakes/registry.ts";
import { fixtureDirectory, goldenPath } from "../../test/suites/golden-soci.ts";
import { ZtocBuilders } from "../formats/soci/build.ts";
import { SOCI_BUILD_TOOL } from "../formats/soci/ondisk.ts";
import { openDestination, openSource } from "../oci/open.ts";
import { parsePlatform } from "../oci/platform.ts";
import { parseReference, parseSource } from "../oci/reference.ts";
import { Registry } from "../oci/registry/registry.ts";
import { Copier } from "./copy.ts";
import { createIndex, listIndexes, pushIndex, registryRemover, removeIndex } from "./index.ts";
import { layoutRemover } from "./layout-remove.ts";
import { convertToSoci } from "./to-soci.ts";

const root = mkdtempSync(join(tmpdir(), "index-soci-"));
after(() => rmSync(root, { recursive: true, force: true }));
const builders = new ZtocBuilders(2);
after(() => builders[Symbol.asyncDispose]());

const SOCI = { minLayerSize: 0, buildToolIdentifier: SOCI_BUILD_TOOL, builders } as const;

async function openFake(options: { referrersApi?: boolean } = {}) {
  const fake = await FakeRegistry.start(options);
  const registry = new Registry({ hostsDirs: [], env: {}, retry: { baseMs: 2, maxMs: 20 } });
  return {
    fake,
    repository: (name: string, tag = "v1") => registry.repository(parseReference(`${fake.host}/${name}:${tag}`)),
    async [Symbol.asyncDispose]() {
      await registry[Symbol.asyncDispose]();
      await fake[Symbol.asyncDispose]();
    },
  };
}

/** Pushes a fixture variant as `name:v1`. */
async function pushFixture(
  variant: string,
  to: Awaited<ReturnType<Awaited<ReturnType<typeof openFake>>["repository"]>>,
) {
  await using source = await openSource(parseSource(`oci:${fixtureDirectory}:${variant}`));
  await new Copier(source, to).tree(await source.resolve(), "v1");
}

for (const referrersApi of [true, false]) {
  test(`a v1 index is made, pushed, found, listed and removed ${referrersApi ? "through the referrers API" : "through the fallback tag"}`, async () => {
    await using env = await openFake({ referrersApi });
    const repository = await env.repository("app");
    await pushFixture("gogz", repository);
    assert.deepEqual(await listIndexes({ source: repository }), []);
    const layout = `oci:${join(root, `made-${referrersApi}`)}`;
    {
      await using destination = await openDestination(parseSource(layout));
      const created = await createIndex({ ...SOCI, source: repository, destination, spanSize: 65_536 });
      const golden = readFileSync(goldenPath("gogz/span-65536/soci-index-v1.json"), "utf8");
      const bytes = readFileSync(join(layout.slice(4), "blobs/sha256", created[0]!.index!.digest.slice(7)), "utf8");
      assert.equal(bytes, golden);
      assert.equal(created[0]!.layers.filter((layer) => layer.ztoc !== null).length, 3);
    }
    // the layout holds the index alone: the image is in the registry
    await using source = await openSource(parseSource(layout));
    const pushed = await pushIndex({
      source,
      image: repository,
      destination: repository,
      existing: { reader: repository, policy: "skip" },
    });
    assert.equal(pushed[0]!.reason, null);
    const again = await pushIndex({
      source,
      image: repository,
      destination: repository,
      existing: { reader: repository, policy: "skip" },
    });
    assert.match(again[0]!.reason!, /already/);
    const listed = await listIndexes({ source: repository });
    assert.deepEqual(
      listed.map(({ version, ztocs, buildTool, index }) => [version, ztocs, buildTool, index.digest]),
      [[1, 3, SOCI_BUILD_TOOL, pushed[0]!.pushed!.digest]],
    );
    const removed = await removeIndex({ source: repository, remover: registryRemover(repository) });
    assert.deepEqual(removed, [pushed[0]!.pushed!.digest]);
    assert.deepEqual(await listIndexes({ source: repository }), []);
    await assert.rejects(removeIndex({ source: repository, remover: registryRemover(repository) }), {
      code: "HS_NOT_FOUND",
    });
  });
}

test("from registry to registry an image is converted with one read of each layer, and again with none", async () => {
  await using env = await openFake();
  const source = await env.repository("app");
  await pushFixture("multigz", source);
  const destination = await env.repository("lazy", "soci");
  const read = () => env.fake.log.filter(({ method, path }) => method === "GET" && path.startsWith("/v2/app/blobs/"));
  const before = read().length;
  const platforms = [parsePlatform("linux/amd64")];
  const made = await convertToSoci({ ...SOCI, source, destination, tag: "soci", platforms, spanSize: 262_144 });
  const golden = readFileSync(goldenPath("multigz/span-262144/oci-index.json"), "utf8");
  assert.equal(Buffer.from(await destination.readManifest(made.root)).toString(), golden);
  // three layers and the configuration, which is read once to know the diffIDs and once to copy it
  assert.ok(read().length - before <= 5, `${read().length - before}`);
  const listed = await listIndexes({ source: destination });
  assert.deepEqual(
    listed.map(({ version, ztocs }) => [version, ztocs]),
    [[2, 3]],
  );

  const lazy = env.fake.log.length;
  const again = await convertToSoci({
    ...SOCI,
    source: destination,
    destination,
    tag: "soci",
    platforms,
    spanSize: 262_144,
  });
  assert.equal(again.root.digest, made.root.digest);
  const layers = made.images[0]!.layers.map(({ layer }) => layer as string);
  const reads = env.fake.log
    .slice(lazy)
    .filter(({ method, path }) => method === "GET" && layers.some((layer) => path.endsWith(layer)));
  assert.deepEqual(reads, []);
});

test("in a layout an index is made beside its image, and removed with the blobs that nothing else names", async () => {
  const directory = join(root, "beside");
  const layout = parseSource(`oci:${directory}:app`);
  {
    await using source = await openSource(parseSource(`oci:${fixtureDirectory}:gogz`));
    await using destination = await openDestination(layout);
    await new Copier(source, destination).tree(await source.resolve(), "app");
    await destination.finish();
  }
  const blobs = () => readdirSync(join(directory, "blobs/sha256")).sort();
  const before = blobs();
  {
    await using source = await openSource(layout);
    await using destination = await openDestination(layout);
    await createIndex({ ...SOCI, source, destination, spanSize: 65_536 });
    await createIndex({ ...SOCI, source, destination, spanSize: 262_144 });
  }
  await using source = await openSource(layout);
  const listed = await listIndexes({ source });
  assert.deepEqual(
    listed.map(({ version, ztocs }) => [version, ztocs]),
    [
      [1, 3],
      [1, 3],
    ],
  );
  const remover = layoutRemover(directory);
  await removeIndex({ source, remover, index: listed[0]!.index.digest });
  await using between = await openSource(layout);
  const [left] = await listIndexes({ source: between });
  assert.equal(left!.index.digest, listed[1]!.index.digest);
  for (const ztoc of left!.content!.ztocs.values()) await between.openBlob(ztoc).readAll();
  await removeIndex({ source: between, remover });
  assert.deepEqual(blobs(), before);
});

test("an index that cannot be read is listed with the reason", async () => {
  await using env = await openFake();
  const repository = await env.repository("app");
  await pushFixture("gogz", repository);
  const config = Buffer.from("{}");
  const { sha256 } = await import("../base/digest.ts");
  const digest = sha256(config);
  await repository.pushBlob({ mediaType: "application/octet-stream", digest, size: 2 }, config);
  const image = await repository.resolve();
  const bad = {
    schemaVersion: 2,
    mediaType: "application/vnd.oci.image.manifest.v1+json",
    config: { mediaType: "application/vnd.amazon.soci.index.v1+json", digest, size: 2 },
    layers: [],
    subject: image,
  };
  await repository.pushManifest(Buffer.from(JSON.stringify(bad)), bad.mediaType);
  const listed = await listIndexes({ source: repository });
  assert.equal(listed.length, 1);
  assert.match(listed[0]!.reason!, /HS_INDEX_INVALID/);
});
