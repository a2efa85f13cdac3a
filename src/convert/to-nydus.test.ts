import assert from "node:assert/strict";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { after, test } from "node:test";
import { buildImage } from "../../test/build-image.ts";
import { writeAttested } from "../../test/suites/attested-layout.ts";
import { AMD64, load, open, Places, toNydus, treeOf, withStreams } from "../../test/suites/converted.ts";
import { fixtureDirectory } from "../../test/suites/golden-soci.ts";
import type { Digest } from "../base/digest.ts";
import { type ErrorCode, isHeadstartError } from "../base/errors.ts";
import { compareTreeLines, type TreeLine } from "../erofs/tree-lines.ts";
import { NYDUS_ANNOTATIONS, NYDUS_MEDIA_TYPES } from "../formats/nydus/ondisk.ts";
import { NYDUS_DEFAULTS, type NydusOptions } from "../formats/nydus/write/options.ts";
import { checkNydusForm } from "../image/check-nydus.ts";
import { openNydusImage } from "../image/look-nydus.ts";
import type { Descriptor } from "../oci/descriptor.ts";
import { parseIndex } from "../oci/manifest.ts";
import { isIndexType, MEDIA_TYPES } from "../oci/media-types.ts";
import { dictionaryOfBootstrap, dictionaryOfImage } from "./nydus-dictionary.ts";

const places = new Places();
after(() => places[Symbol.dispose]());

const fixture = (variant: string) => `oci:${fixtureDirectory}:${variant}`;
const code = (wanted: ErrorCode) => (error: unknown) => isHeadstartError(error, wanted);
const expected = readFileSync(join(fixtureDirectory, "../tree/merged.jsonl"), "utf8")
  .trim()
  .split("\n")
  .map((line) => JSON.parse(line) as TreeLine);
const withOptions = (options: Partial<NydusOptions>) => ({ build: { ...NYDUS_DEFAULTS, ...options } });

/** Sound by every rule, and the same tree as the source. */
async function assertSound(place: string, source: string): Promise<void> {
  await using reader = await open(place);
  const image = await load(reader);
  await using from = await open(source);
  const against = { reader: from, image: await load(from) };
  assert.deepEqual((await checkNydusForm(reader, image, { against }))!.findings, []);
}

for (const [name, options] of [
  ["by default", {}],
  ["with every small file on its own", { batchSize: 0 }],
  ["with LZ4 and small chunks", { compressor: "lz4_block", chunkSize: 65_536, batchSize: 0 }],
  ["uncompressed with blake3", { compressor: "none", digester: "blake3", batchSize: 65_536 }],
] as const) {
  test(`a native image ${name} shows the source's tree, and is the same whenever it is made`, async () => {
    const [one, other] = [places.place(), places.place()];
    const made = await toNydus(fixture("gogz"), one, withOptions(options));
    const again = await toNydus(fixture("gogz"), other, withOptions(options));
    assert.equal(again.root.digest, made.root.digest);
    await using reader = await open(one);
    const image = await load(reader);
    assert.deepEqual(compareTreeLines(expected, await treeOf(reader, image)), []);
    await assertSound(one, fixture("gogz"));
    assert.deepEqual(
      made.images[0]!.layers.map(({ blob }) => blob),
      image.layers.slice(0, -1).map(({ digest }) => digest),
    );
  });
}

for (const variant of ["tar", "pigz", "multigz", "zstd", "multizstd", "dockergz"]) {
  test(`layers as they come become the same chunks (${variant})`, async () => {
    const place = places.place();
    await toNydus(fixture(variant), place);
    await assertSound(place, fixture(variant));
  });
}

for (const variant of ["gogz", "pigz", "multigz", "tar"]) {
  test(`an image over the unmodified layers has them beside it, and shows the source's tree (${variant})`, async () => {
    const [one, other] = [places.place(), places.place()];
    const made = await toNydus(fixture(variant), one, { mode: "ref" });
    assert.equal((await toNydus(fixture(variant), other, { mode: "ref" })).root.digest, made.root.digest);
    await using reader = await open(one);
    const image = await load(reader);
    assert.deepEqual(compareTreeLines(expected, await treeOf(reader, image)), []);
    // compared with its subject
    const check = (await checkNydusForm(reader, image))!;
    assert.deepEqual([check.findings, check.against], [[], made.images[0]!.before]);
    for (const { size, blobSize } of made.images[0]!.layers)
      assert.ok(blobSize < size / 2 || size < 50_000, `${blobSize} bytes over a layer of ${size}`);
  });
}

test("under --merge-index the original layers are kept by the OCI image of the index, in an archive too", async () => {
  const place = places.place("oci-archive");
  await toNydus(fixture("gogz"), place, { mode: "ref", mergeIndex: true });
  await using reader = await open(place);
  const index = parseIndex(await reader.readManifest(await reader.resolve()), "index");
  const image = await load(reader, index.manifests[1]!.digest);
  assert.equal(image.manifest.subject, undefined);
  const check = (await checkNydusForm(reader, image))!;
  assert.deepEqual([check.findings, check.against], [[], index.manifests[0]!.digest]);
});

test("zstd layers are refused by name under nydus-ref, before anything is copied", async () => {
  const target = places.place();
  await using reader = await open(fixture("zstd"));
  const layer = (await load(reader)).layers[0]!;
  await assert.rejects(toNydus(fixture("zstd"), target, { mode: "ref" }), (error: unknown) => {
    assert.ok(isHeadstartError(error, "HS_FORMAT_UNSUPPORTED"));
    assert.match(error.message, new RegExp(layer.digest));
    return true;
  });
  assert.equal(existsSync(target.slice("oci:".length).replace(/:out$/, "")), false);
});

test("an archive holds what a layout does", async () => {
  const [layout, archive] = [places.place(), places.place("oci-archive")];
  const made = await toNydus(fixture("gogz"), layout);
  assert.equal((await toNydus(fixture("gogz"), archive)).root.digest, made.root.digest);
  await assertSound(archive, fixture("gogz"));
});

test("a merged index keeps every entry of the source's and adds the Nydus images behind them, once", async () => {
  await using source = await open(fixture("index"));
  const root = await source.resolve();
  const layout = join(places.root, "attested");
  const attestation = await writeAttested(fixtureDirectory, root.digest, layout);
  const place = places.place();
  const made = await toNydus(`oci:${layout}`, place, { platforms: "all", mergeIndex: true });
  await using reader = await open(place);
  const index = parseIndex(await reader.readManifest(made.root), "index");
  const before = parseIndex(await source.readManifest(root), "index");
  const [nydus, kept] = [true, false].map((is) =>
    index.manifests.filter(({ artifactType }) => (artifactType === NYDUS_MEDIA_TYPES.manifest) === is),
  );
  assert.deepEqual(
    kept!.map(({ digest }) => digest),
    [...before.manifests.map(({ digest }) => digest), attestation],
  );
  assert.deepEqual(
    nydus!.map(({ platform }) => platform!.architecture),
    before.manifests.map(({ platform }) => platform!.architecture),
  );
  for (const [position, { digest }] of nydus!.entries()) {
    const image = await load(reader, digest);
    assert.equal(image.manifest.config.mediaType, NYDUS_MEDIA_TYPES.config);
    // the OCI image beside it is found and compared with
    const check = (await checkNydusForm(reader, image))!;
    assert.equal(check.against, before.manifests[position]!.digest);
    assert.deepEqual(check.findings, []);
  }
  const again = places.place();
  assert.equal(
    (await toNydus(place, again, { platforms: "all", mergeIndex: true })).root.digest,
    made.root.digest,
    "converting it again changes nothing",
  );
});

test("a single image becomes a manifest, or with --merge-index an index of two; several become an index of Nydus images", async () => {
  const [plain, merged, all] = [places.place(), places.place(), places.place()];
  assert.equal((await toNydus(fixture("gogz"), plain)).root.mediaType, MEDIA_TYPES.ociManifest);
  const two = await toNydus(fixture("gogz"), merged, { mergeIndex: true });
  const both = await toNydus(fixture("index"), all, { platforms: "all" });
  for (const [place, { root }, types] of [
    [merged, two, [undefined, NYDUS_MEDIA_TYPES.manifest]],
    [all, both, [undefined, undefined]],
  ] as const) {
    await using reader = await open(place);
    assert.ok(isIndexType(root.mediaType));
    const { manifests } = parseIndex(await reader.readManifest(root), "index");
    assert.deepEqual(
      manifests.map(({ artifactType }) => artifactType),
      types,
    );
    assert.ok(manifests.every(({ platform, annotations }) => platform !== undefined && annotations === undefined));
  }
});

test("a referrer has the OCI image beside it", async () => {
  const place = places.place();
  const { images } = await toNydus(fixture("gogz"), place, { withReferrer: true });
  await using reader = await open(place);
  const image = await load(reader);
  assert.equal(image.manifest.subject?.digest, images[0]!.before);
  const original = await load(reader, images[0]!.before);
  for (const layer of original.layers) await reader.openBlob(layer).readAll();
  assert.ok((await reader.referrers(images[0]!.before)).some(({ digest }) => digest === images[0]!.manifest));
});

for (const options of [{ mode: "ref" }, { withReferrer: true }, { mergeIndex: true }] as const) {
  test(`layers that the destination gets too are read once (${JSON.stringify(options)})`, async () => {
    for (const kind of ["oci", "oci-archive"] as const) {
      const place = places.place(kind);
      await using reader = await open(fixture("gogz"));
      const reads = new Map<string, number>();
      const counting = {
        ...withStreams(reader, () => null),
        openBlob(descriptor: Descriptor) {
          const blob = reader.openBlob(descriptor);
          const stream: typeof blob.stream = (offset, how) => {
            reads.set(descriptor.digest, (reads.get(descriptor.digest) ?? 0) + 1);
            return blob.stream(offset, how);
          };
          return { ...blob, descriptor, what: blob.what, sourceCount: 1, stream, readAll: blob.readAll.bind(blob) };
        },
      };
      await toNydus(fixture("gogz"), place, { ...options, source: counting });
      const { layers } = await load(reader);
      // one push at a time cannot take a layer and what is made of it
      const most = kind === "oci-archive" && !("mode" in options) ? 2 : 1;
      for (const { digest } of layers) assert.equal(reads.get(digest), most, kind);
    }
  });
}

test("a prefetch list is the order of the table; paths that nothing has are told", async () => {
  const place = places.place();
  const prefetch = ["/etc/keep", "/no/such/file", "/data/many-spans"];
  const { images } = await toNydus(fixture("gogz"), place, { prefetch });
  assert.deepEqual(images[0]!.prefetchNotFound, ["/no/such/file"]);
  await using reader = await open(place);
  const { bootstrap } = await openNydusImage(reader, await load(reader));
  const lines = await treeOf(reader, await load(reader));
  assert.deepEqual(
    bootstrap.prefetch.map((inode) => bootstrap.tree.size[inode]),
    ["/etc/keep", "/data/many-spans"].map((path) => lines.find((line) => line.path === path)!.size),
  );
});

/** Two images of which the second has most of the first's data. */
async function similarImages() {
  const layout = join(places.root, "similar");
  const data = (seed: number) =>
    Buffer.from(Array.from({ length: 300_000 }, (_, index) => (index * seed * 7919) % 251));
  const common = [3, 5, 7].map((seed) => ({ path: `lib/${seed}`, data: data(seed) }));
  await buildImage(layout, "one", [[{ path: "lib/" }, ...common]]);
  await buildImage(layout, "two", [[{ path: "lib/" }, ...common, { path: "lib/own", data: data(11) }]]);
  return [`oci:${layout}:one`, `oci:${layout}:two`] as const;
}

test("chunks of a dictionary are not stored again, and its blobs come along", async () => {
  const [one, two] = await similarImages();
  const [base, without, withDict] = [places.place(), places.place(), places.place()];
  const build = withOptions({ compressor: "none" });
  await toNydus(one, base, build);
  await using reader = await open(base);
  const image = await load(reader);
  const dictionary = await dictionaryOfImage(reader, image);
  const plain = (await toNydus(two, without, build)).images[0]!.layers[0]!;
  const made = (await toNydus(two, withDict, { ...build, dictionary })).images[0]!;
  assert.ok(made.layers[0]!.blobSize < plain.blobSize / 2, `${made.layers[0]!.blobSize} of ${plain.blobSize} bytes`);
  assert.deepEqual(made.dictionary, [image.layers[0]!.digest]);
  await assertSound(withDict, two);
  // a bootstrap alone: its blobs must be where the image goes
  const same = places.place();
  await using there = await open(base);
  const bootstrap = dictionary.bootstrap;
  const again = await toNydus(two, same, { ...build, dictionary: dictionaryOfBootstrap(bootstrap, there, "dict") });
  assert.equal(again.images[0]!.manifest, made.manifest);
  const empty = { what: "x", blobSize: async () => undefined, openBlob: there.openBlob };
  const nowhere = dictionaryOfBootstrap(bootstrap, empty, "dict");
  await assert.rejects(toNydus(two, places.place(), { ...build, dictionary: nowhere }), code("HS_BLOB_NOT_FOUND"));
});

test("an image whose chunks are all in the dictionary has blobs without data, and no place for them in its table", async () => {
  const [base, place] = [places.place(), places.place()];
  await toNydus(fixture("gogz"), base);
  await using reader = await open(base);
  const dictionary = await dictionaryOfImage(reader, await load(reader));
  const { images } = await toNydus(fixture("gogz"), place, { dictionary });
  assert.deepEqual(
    images[0]!.layers.map(({ chunks }) => chunks > 0),
    // two files of the lowest layer are replaced above: the dictionary's tree does not have their chunks
    [true, false, false],
  );
  await assertSound(place, fixture("gogz"));
});

test("small layers are not larger than they were when they are compressed thoroughly", async () => {
  const place = places.place();
  const { images } = await toNydus(fixture("gogz"), place, { thorough: true });
  await assertSound(place, fixture("gogz"));
  const [image] = images;
  const before = image!.layers.reduce((sum, { size }) => sum + size, 0);
  const after = image!.layers.reduce((sum, { blobSize }) => sum + blobSize, image!.bootstrap.size);
  assert.ok(after < before, `${after} bytes of ${before}`);
});

test("a dictionary with chunks of another size is refused before anything is read", async () => {
  const base = places.place();
  await toNydus(fixture("gogz"), base);
  await using reader = await open(base);
  const dictionary = await dictionaryOfImage(reader, await load(reader));
  const other = { ...withOptions({ chunkSize: 65_536, batchSize: 0 }), dictionary };
  await assert.rejects(toNydus(fixture("gogz"), places.place(), other), code("HS_NYDUS_LIMIT"));
});

test("a Nydus image, and a layer that is not what its digest says, are refused and leave no image", async () => {
  const done = places.place();
  await toNydus(fixture("gogz"), done);
  await assert.rejects(toNydus(done, places.place()), code("HS_USAGE"));
  await using reader = await open(fixture("gogz"));
  const broken = withStreams(reader, ({ size }) => (size === 740 ? Buffer.alloc(740) : null));
  const target = places.place();
  await assert.rejects(toNydus(done, target, { source: broken }), code("HS_DIGEST_MISMATCH"));
  const files = readdirSync(places.root);
  const directory = target.split(":")[1]!.split("/").at(-1)!;
  if (files.includes(directory)) assert.ok(!readdirSync(join(places.root, directory)).includes("index.json"));
});

test("a source layer's facts and the bootstrap's mark are in the manifest", async () => {
  const place = places.place();
  const { images } = await toNydus(fixture("gogz"), place, { platforms: AMD64 });
  await using reader = await open(place);
  const { manifest, diffIDs, config } = await load(reader);
  assert.equal(manifest.annotations![NYDUS_ANNOTATIONS.sourceDigest], images[0]!.before satisfies Digest);
  assert.equal(manifest.annotations![NYDUS_ANNOTATIONS.sourceReference], undefined);
  assert.deepEqual(
    diffIDs.slice(0, -1),
    manifest.layers.slice(0, -1).map(({ digest }) => digest),
  );
  assert.equal((config.document.history as unknown[]).length, manifest.layers.length);
});
