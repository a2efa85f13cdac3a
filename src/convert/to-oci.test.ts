import assert from "node:assert/strict";
import { join } from "node:path";
import { after, test } from "node:test";
import { gunzipSync } from "node:zlib";
import fc from "fast-check";
import { buildImage } from "../../test/build-image.ts";
import { randomImage } from "../../test/interop/random-layers.ts";
import { load, open, Places, toNydus, toOci, treeOf, withStreams } from "../../test/suites/converted.ts";
import { nydusLayout } from "../../test/suites/golden-nydus.ts";
import { fixtureDirectory } from "../../test/suites/golden-soci.ts";
import { sha256 } from "../base/digest.ts";
import { type ErrorCode, isHeadstartError } from "../base/errors.ts";
import { compareTreeLines } from "../erofs/tree-lines.ts";
import { NYDUS_DEFAULTS } from "../formats/nydus/write/options.ts";
import { checkNydusForm } from "../image/check-nydus.ts";
import { goManifest } from "../oci/gojson.ts";
import { parseIndex } from "../oci/manifest.ts";
import { MEDIA_TYPES } from "../oci/media-types.ts";
import { openDestination } from "../oci/open.ts";
import { parsePlatform } from "../oci/platform.ts";
import { parseSource } from "../oci/reference.ts";
import { layerOfTar, writeImage } from "../sandbox/image-builder.ts";
import { Copier } from "./copy.ts";
import { dictionaryOfImage } from "./nydus-dictionary.ts";

const places = new Places();
after(() => places[Symbol.dispose]());

const fixture = (variant: string) => `oci:${fixtureDirectory}:${variant}`;
const golden = (tag: string) => `oci:${nydusLayout}:${tag}`;
const code = (wanted: ErrorCode) => (error: unknown) => isHeadstartError(error, wanted);

test("of an OCI-ref image the layers that it reads from come back, with the diffIDs that they have", async () => {
  const place = places.place();
  const { images } = await toOci(golden("ociref"), place);
  await using merged = await open(golden("native-merge"));
  // the same source, but for the empty layer that nydusify put in front
  const source = await load(merged, (await merged.resolve()).digest).catch(() => null);
  assert.equal(source, null, "an index");
  await using reader = await open(place);
  const image = await load(reader);
  assert.equal(images[0]!.how, "original");
  const refs = (await load(await open(golden("ociref")))).layers.flatMap(({ annotations }) =>
    Object.entries(annotations!).flatMap(([name, value]) => (name.endsWith("/nydus-ref") ? [value] : [])),
  );
  assert.deepEqual(
    image.layers.map(({ digest }) => digest as string),
    refs,
  );
  for (const [position, layer] of image.layers.entries())
    assert.equal(sha256(gunzipSync(await reader.openBlob(layer).readAll())), image.diffIDs[position]);
  assert.equal((image.config.document.history as unknown[]).length, 3);
});

test("of an index with both forms the OCI image comes back, without the empty layer that nydusify put in front", async () => {
  const [place, other] = [places.place(), places.place()];
  const { root, images } = await toOci(golden("native-merge"), place);
  assert.deepEqual([images[0]!.how, images[0]!.layers.length], ["original", 3]);
  assert.equal(root.digest, (await toOci(golden("ociref"), other)).root.digest, "the same image");
});

test("of an index that headstart merged, and of a referrer's subject, the manifest itself comes back", async () => {
  for (const options of [{ mergeIndex: true }, { mode: "ref" }] as const) {
    const [nydus, plain] = [places.place(), places.place()];
    const { images } = await toNydus(fixture("gogz"), nydus, options);
    const back = await toOci(nydus, plain);
    assert.deepEqual([back.images[0]!.how, back.root.digest], ["original", images[0]!.before]);
  }
});

test("of a native image its own blobs are read, though its subject is there", async () => {
  const [nydus, plain] = [places.place(), places.place()];
  await toNydus(fixture("gogz"), nydus, { withReferrer: true });
  assert.equal((await toOci(nydus, plain)).images[0]!.how, "exact");
});

for (const variant of ["gogz", "multigz", "zstd", "tar", "odd-gnu", "odd-names", "odd-no-end", "odd-trailing"]) {
  test(`native images give the tars of before, with the configuration of before (${variant})`, async () => {
    const [nydus, plain, again] = [places.place(), places.place(), places.place()];
    await toNydus(fixture(variant), nydus);
    const { images, root } = await toOci(nydus, plain);
    assert.equal(images[0]!.how, "exact");
    await using source = await open(fixture(variant));
    await using reader = await open(plain);
    const [before, image] = [await load(source), await load(reader)];
    assert.deepEqual(image.diffIDs, before.diffIDs);
    assert.equal(image.configDescriptor.digest, before.configDescriptor.digest);
    for (const [position, layer] of image.layers.entries()) {
      assert.equal(layer.mediaType, MEDIA_TYPES.ociLayerGzip);
      assert.equal(sha256(gunzipSync(await reader.openBlob(layer).readAll())), before.diffIDs[position]);
    }
    assert.equal((await toOci(nydus, again)).root.digest, root.digest);
    // and once more there: nothing is lost on the way
    const round = places.place();
    const [first] = (await toNydus(plain, round)).images;
    assert.deepEqual(
      first!.layers.map(({ blob }) => blob),
      (await load(await open(nydus))).layers.slice(0, -1).map(({ digest }) => digest),
    );
  });
}

test("several platforms come back as an index: of merged ones the OCI images, of others the exact tars", async () => {
  await using source = await open(fixture("index"));
  const before = parseIndex(await source.readManifest(await source.resolve()), "index").manifests;
  for (const mergeIndex of [true, false]) {
    const [nydus, plain] = [places.place(), places.place()];
    await toNydus(fixture("index"), nydus, { platforms: "all", mergeIndex });
    const { root, images } = await toOci(nydus, plain, { platforms: "all" });
    await using reader = await open(plain);
    const after = parseIndex(await reader.readManifest(root), "index").manifests;
    assert.deepEqual(
      after.map(({ platform }) => platform!.architecture),
      before.map(({ platform }) => platform!.architecture),
    );
    for (const [position, { how, layers, manifest }] of images.entries()) {
      assert.equal(how, mergeIndex ? "original" : "exact");
      if (mergeIndex) assert.equal(manifest, before[position]!.digest);
      assert.deepEqual(
        layers.map(({ diffID }) => diffID),
        (await load(source, before[position]!.digest)).diffIDs,
      );
    }
  }
  await assert.rejects(
    toOci(fixture("index"), places.place(), { platforms: [parsePlatform("linux/riscv64")] }),
    code("HS_PLATFORM"),
  );
});

test("an image can take the place of its source", async () => {
  const place = places.place();
  await toOci(fixture("gogz"), place);
  const { images } = await toNydus(place, place, { mode: "ref", mergeIndex: true });
  const other = places.place();
  assert.equal((await toOci(place, other)).root.digest, images[0]!.before);
  assert.equal((await toOci(place, place)).root.digest, images[0]!.before);
  await using reader = await open(place);
  assert.equal((await reader.resolve()).digest, images[0]!.before);
});

test("tars whose chunks lie in a dictionary's blobs come back too", async () => {
  const layout = join(places.root, "similar");
  const data = Buffer.alloc(200_000, "0123456789abcde");
  await buildImage(layout, "one", [[{ path: "a", data }]]);
  await buildImage(layout, "two", [
    [
      { path: "b", data },
      { path: "c", data: "own" },
    ],
    [{ path: ".wh.b" }],
  ]);
  const [base, nydus, plain] = [places.place(), places.place(), places.place()];
  await toNydus(`oci:${layout}:one`, base);
  await using dict = await open(base);
  const dictionary = await dictionaryOfImage(dict, await load(dict));
  const made = await toNydus(`oci:${layout}:two`, nydus, { dictionary });
  // no file of the merged tree is left that needs it
  assert.equal(made.images[0]!.dictionary.length, 1);
  const { images } = await toOci(nydus, plain);
  assert.equal(images[0]!.how, "exact");
  await using source = await open(`oci:${layout}:two`);
  assert.deepEqual(
    images[0]!.layers.map(({ diffID }) => diffID),
    (await load(source)).diffIDs,
  );
});

test("layers that stand twice, empty layers and layers of marks alone come back as they were", async () => {
  const layout = join(places.root, "odd");
  const twice = [
    { path: "etc/", mode: 0o755 },
    { path: "etc/motd", data: "hello\n" },
  ];
  const marks = [{ path: "etc/.wh.motd" }, { path: "etc/.wh..wh..opq" }];
  await buildImage(layout, "image", [twice, twice, [], marks, twice, [], [{ path: "etc/late", data: "x" }]]);
  for (const mode of ["native", "ref"] as const) {
    const [nydus, plain] = [places.place(), places.place()];
    await toNydus(`oci:${layout}:image`, nydus, { mode });
    await using source = await open(`oci:${layout}:image`);
    await using reader = await open(nydus);
    const before = await load(source);
    const against = { reader: source, image: before };
    assert.deepEqual((await checkNydusForm(reader, await load(reader), { against }))!.findings, []);
    const { images } = await toOci(nydus, plain);
    assert.deepEqual(
      images[0]!.layers.map(({ diffID }) => diffID),
      before.diffIDs,
    );
  }
});

test("images of odd layers are the same tree as Nydus images, and the same tars on the way back", async () => {
  let converted = 0;
  await fc.assert(
    fc.asyncProperty(fc.nat(1_000_000), fc.constantFrom("native", "ref"), async (seed, mode) => {
      const layout = join(places.root, `random-${seed}-${mode}`);
      await writeImage(
        layout,
        randomImage(seed).map((tar) => layerOfTar(Buffer.from(tar))),
        { name: "image" },
      );
      await using source = await open(`oci:${layout}:image`);
      const before = await load(source);
      const [nydus, plain] = [places.place(), places.place()];
      try {
        await treeOf(source, before);
        await toNydus(`oci:${layout}:image`, nydus, { mode });
      } catch (error) {
        // what containerd refuses, and what no Nydus image can hold
        if (isHeadstartError(error, "HS_LAYER_REFUSED", "HS_NYDUS_LIMIT", "HS_EROFS_LIMIT")) return;
        throw error;
      }
      converted++;
      await using reader = await open(nydus);
      const against = { reader: source, image: before };
      assert.deepEqual((await checkNydusForm(reader, await load(reader), { against }))!.findings, []);
      const { images } = await toOci(nydus, plain);
      assert.deepEqual(
        images[0]!.layers.map(({ diffID }) => diffID),
        before.diffIDs,
      );
    }),
    { numRuns: 40 },
  );
  assert.ok(converted > 5, `${converted} of 40 images are such that containerd takes them`);
});

test("an image without layers is refused by name", async () => {
  const layout = join(places.root, "none");
  await buildImage(layout, "image", []);
  await assert.rejects(toNydus(`oci:${layout}:image`, places.place()), code("HS_NYDUS_LIMIT"));
});

/** The image as other tools would have written it: nothing tells what its layers were. */
async function asOfOtherTools(from: string): Promise<string> {
  const to = places.place();
  await using source = await open(from);
  const image = await load(source);
  await using destination = await openDestination(parseSource(to));
  const copier = new Copier(source, destination);
  for (const blob of [image.configDescriptor, ...image.layers]) await copier.blob(blob);
  const layers = image.manifest.layers.map((layer) => ({
    ...layer,
    annotations: Object.fromEntries(
      Object.entries(layer.annotations ?? {}).filter(([name]) => !name.startsWith("dev.headstart.")),
    ),
  }));
  await copier.manifest(goManifest({ ...image.manifest, layers }), MEDIA_TYPES.ociManifest, destination.tag);
  await destination.finish();
  return to;
}

test("of native images of other tools one layer with an equal tree is made, the same each time", async () => {
  const nydus = places.place();
  await toNydus(fixture("gogz"), nydus);
  const other = await asOfOtherTools(nydus);
  const [plain, again] = [places.place(), places.place()];
  const { images, root } = await toOci(other, plain);
  assert.deepEqual([images[0]!.how, images[0]!.layers.length, images[0]!.leftOut], ["equal", 1, []]);
  assert.equal((await toOci(other, again)).root.digest, root.digest);
  await using source = await open(fixture("gogz"));
  await using reader = await open(plain);
  const [before, after] = [await treeOf(source, await load(source)), await treeOf(reader, await load(reader))];
  // directories without an entry of their own get one, with time 0; a link count that counts names below whiteouts is lost
  const differences = compareTreeLines(before, after).filter(({ key }) => key !== "nlink" && key !== "linked_with");
  assert.deepEqual(differences, []);
});

test("a blob whose tar is another than the manifest says leaves no image", async () => {
  const nydus = places.place();
  await toNydus(fixture("gogz"), nydus, { build: { ...NYDUS_DEFAULTS, compressor: "none", batchSize: 0 } });
  await using reader = await open(nydus);
  const image = await load(reader);
  const [first] = image.layers;
  const bytes = Buffer.from(await reader.openBlob(first!).readAll());
  bytes[5000]! ^= 1;
  const broken = withStreams(reader, ({ digest }) => (digest === first!.digest ? bytes : null));
  await assert.rejects(toOci(nydus, places.place(), { source: broken }), code("HS_NYDUS_INVALID"));
});

test("an original layer that is not there is named", async () => {
  const place = places.place();
  await using source = await open(golden("ociref"));
  const image = await load(source);
  await using destination = await openDestination(parseSource(place));
  const copier = new Copier(source, destination);
  await copier.tree(image.manifestDescriptor, destination.tag);
  await destination.finish();
  await assert.rejects(toOci(place, places.place()), code("HS_BLOB_NOT_FOUND"));
});
