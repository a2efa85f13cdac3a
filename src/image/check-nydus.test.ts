import assert from "node:assert/strict";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { nydusBlobs, nydusBootstrap, nydusLayout } from "../../test/suites/golden-nydus.ts";
import { sha256 } from "../base/digest.ts";
import { NYDUS_ANNOTATIONS } from "../formats/nydus/ondisk.ts";
import type { Descriptor } from "../oci/descriptor.ts";
import { goJson, goManifest } from "../oci/gojson.ts";
import { type LoadedImage, loadImage, loadManifest, type Manifest } from "../oci/manifest.ts";
import { MEDIA_TYPES } from "../oci/media-types.ts";
import { openDestination, openSource } from "../oci/open.ts";
import { parseSource } from "../oci/reference.ts";
import type { BlobHandle, ImageReader } from "../oci/store.ts";
import { checkNydus, checkNydusForm, checkRafs, type NydusCheck } from "./check-nydus.ts";

const directory = mkdtempSync(join(tmpdir(), "headstart-check-"));
after(() => rmSync(directory, { recursive: true }));

const golden = (tag: string) => openSource(parseSource(`oci:${nydusLayout}:${tag}`));
const findingsOf = ({ findings }: NydusCheck) => findings.map(({ rule, code }) => `${rule} ${code ?? "-"}`);

/** The golden OCI-ref image with another manifest or configuration. */
async function changed(
  name: string,
  change: (manifest: Manifest, config: Record<string, unknown>) => [Manifest, Record<string, unknown>],
): Promise<{ reader: ImageReader; image: LoadedImage }> {
  const from = await golden("ociref");
  const image = await loadImage(from);
  const [manifest, config] = change(image.manifest, structuredClone(image.config.document) as Record<string, unknown>);
  const place = parseSource(`oci:${join(directory, name)}:v1`);
  await using to = await openDestination(place);
  const refs = image.layers.flatMap((layer): Descriptor[] => {
    const digest = layer.annotations?.[NYDUS_ANNOTATIONS.ref] as Descriptor["digest"] | undefined;
    return digest === undefined ? [] : [{ mediaType: MEDIA_TYPES.ociLayerGzip, digest, size: 0 }];
  });
  for (const ref of refs) {
    const known = { ...ref, size: (await from.blobSize(ref.digest))! };
    await to.pushBlob(known, () => from.openBlob(known).stream(0));
  }
  for (const layer of image.layers) await to.pushBlob(layer, () => from.openBlob(layer).stream(0));
  const bytes = Buffer.from(goJson(config));
  const stored = { mediaType: MEDIA_TYPES.ociConfig, digest: sha256(bytes), size: bytes.byteLength };
  await to.pushBlob(stored, bytes);
  await to.pushManifest(goManifest({ ...manifest, config: stored }), MEDIA_TYPES.ociManifest, "v1");
  await to.finish();
  const reader = await openSource(place);
  return { reader, image: await loadManifest(reader, await reader.resolve()) };
}

test("an image of nydusify passes every rule against the OCI image that it was made of", async () => {
  const reader = await golden("ociref");
  // the same image, in the index with both forms
  const source = await golden("native-merge");
  const check = await checkNydus(reader, await loadImage(reader), {
    against: { reader: source, image: await loadImage(source) },
  });
  assert.deepEqual(check.findings, []);
  assert.deepEqual(check.checked, ["manifest", "config", "bootstrap", "data", "tree"]);
  assert.ok(check.entries > 300 && check.bytes > 4_000_000);
});

test("the form that stands beside an OCI image is checked against that", async () => {
  const reader = await golden("native-merge");
  const image = await loadImage(reader);
  const check = (await checkNydusForm(reader, image))!;
  assert.equal(check.against, image.manifestDescriptor.digest);
  assert.notEqual(check.manifest, check.against);
  // its lowest blob is not in the repository
  assert.deepEqual(findingsOf(check), ["data HS_BLOB_NOT_FOUND"]);
  const plain = await openSource(parseSource(`oci:${join(nydusLayout, "../../fixture/oci")}:gogz`));
  assert.equal(await checkNydusForm(plain, await loadImage(plain)), null);
});

const BAD: readonly [name: string, change: Parameters<typeof changed>[1], findings: readonly string[]][] = [
  [
    "a bootstrap layer of another type than tar.gz",
    (manifest, config) => [
      {
        ...manifest,
        layers: manifest.layers.map((layer, position) =>
          position === 3 ? { ...layer, mediaType: MEDIA_TYPES.ociLayerZstd } : layer,
        ),
      },
      config,
    ],
    ["manifest -"],
  ],
  [
    "a data layer without its mark",
    (manifest, config) => [
      { ...manifest, layers: manifest.layers.map((layer, position) => (position === 1 ? bare(layer) : layer)) },
      config,
    ],
    ["manifest HS_NYDUS_INVALID", "bootstrap HS_NYDUS_INVALID"],
  ],
  [
    "a blob that the manifest does not have",
    (manifest, config) => {
      const rootfs = config.rootfs as { diff_ids: string[] };
      return [
        { ...manifest, layers: manifest.layers.toSpliced(0, 1) },
        { ...config, rootfs: { ...rootfs, diff_ids: rootfs.diff_ids.toSpliced(0, 1) } },
      ];
    },
    ["bootstrap HS_NYDUS_INVALID"],
  ],
  [
    "another command",
    (manifest, config) => [manifest, { ...config, config: { ...(config.config as object), Cmd: ["/bin/false"] } }],
    ["config -"],
  ],
];

function bare({ annotations: _, ...layer }: Descriptor): Descriptor {
  return layer;
}

for (const [index, [name, change, findings]] of BAD.entries()) {
  test(`found: ${name}`, async () => {
    const source = await golden("native-merge");
    const { reader, image } = await changed(`bad-${index}`, change);
    const against = { reader: source, image: await loadImage(source) };
    assert.deepEqual(findingsOf(await checkNydus(reader, image, { against })), findings);
  });
}

test("a bootstrap beside its blobs is checked by the rules that need no manifest", async () => {
  const bootstrap = join(directory, "image.boot");
  writeFileSync(bootstrap, nydusBootstrap("v6-zran-multi"));
  const source = await golden("native-merge");
  const against = { reader: source, image: await loadImage(source) };
  const check = await checkRafs({ bootstrap, blobs: nydusBlobs }, { against });
  assert.deepEqual([check.findings, check.checked], [[], ["bootstrap", "data", "tree"]]);
  assert.equal(check.manifest, null);
  const nowhere = await checkRafs({ bootstrap, blobs: directory });
  assert.deepEqual(findingsOf(nowhere), ["data HS_BLOB_NOT_FOUND"]);
});

test("found: a flipped bit in the data, and a tree that is another", async () => {
  const reader = await golden("ociref");
  const image = await loadImage(reader);
  const data = image.layers[0]!.annotations![NYDUS_ANNOTATIONS.ref];
  const damaged: Pick<ImageReader, "openBlob"> = {
    openBlob(descriptor): BlobHandle {
      const blob = reader.openBlob(descriptor);
      if (descriptor.digest !== data) return blob;
      const readRange: BlobHandle["readRange"] = async (start, end, options) => {
        const bytes = await blob.readRange(start, end, options);
        bytes[bytes.byteLength >> 1]! ^= 1;
        return bytes;
      };
      return {
        descriptor,
        what: blob.what,
        sourceCount: 1,
        stream: blob.stream.bind(blob),
        readRange,
        readAll: blob.readAll,
      };
    },
  };
  const broken = Object.assign(Object.create(reader) as ImageReader, damaged);
  const [finding, ...more] = (await checkNydus(broken, image)).findings;
  assert.deepEqual(more, []);
  assert.equal(finding!.rule, "data");
  assert.match(finding!.code!, /^HS_UNIT_D/);
  const other = await openSource(parseSource(`oci:${join(nydusLayout, "../../fixture/oci")}:gogz`));
  const against = { reader: other, image: await loadImage(other) };
  const different = await checkNydus(reader, image, { against, limit: 3 });
  // another command there, and one xattr value, as test/golden/nydus/README.md says
  assert.deepEqual(
    different.findings.map(({ rule, message }) => `${rule} ${message.split(":")[0]}`),
    ['config its "config" is not that of the OCI image', "tree /etc/xattr-user"],
  );
  const ignoring = await checkNydus(reader, image, { against, ignore: ["/etc"] });
  assert.deepEqual(findingsOf(ignoring), ["config -"]);
});
