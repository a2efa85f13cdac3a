import assert from "node:assert/strict";
import { test } from "node:test";
import { nydusLayout } from "../../test/suites/golden-nydus.ts";
import { type Digest, sha256 } from "../base/digest.ts";
import { isHeadstartError } from "../base/errors.ts";
import { readNydusManifest } from "../formats/nydus/manifest.ts";
import { NYDUS_ANNOTATIONS } from "../formats/nydus/ondisk.ts";
import { annotation, type Descriptor } from "../oci/descriptor.ts";
import { type LoadedImage, loadManifest, parseConfig, parseManifest } from "../oci/manifest.ts";
import { MEDIA_TYPES } from "../oci/media-types.ts";
import { openSource } from "../oci/open.ts";
import { parseSource } from "../oci/reference.ts";
import {
  BUILDER,
  type NydusLayerBlob,
  nydusConfig,
  nydusManifest,
  ociConfig,
  SOURCE_ANNOTATIONS,
  sourceLayerOf,
  withoutNydusAnnotations,
} from "./nydus-manifest.ts";

const DIFF_IDS = ["a", "b", "c"].map((text) => sha256(Buffer.from(text)));
const SOURCE: Descriptor = { mediaType: MEDIA_TYPES.ociManifest, digest: sha256(Buffer.from("source")), size: 714 };

async function golden(tag: string): Promise<{ image: LoadedImage; config: Uint8Array }> {
  await using reader = await openSource(parseSource(`oci:${nydusLayout}:${tag}`));
  const image = await loadManifest(reader, await reader.resolve());
  return { image, config: await reader.openBlob(image.configDescriptor).readAll() };
}

/** The parts that nydusify made, as ours would be given. */
function partsOf(image: LoadedImage) {
  const layers = image.layers.slice(0, -1).map((stored, position): NydusLayerBlob => {
    const ref = annotation(stored, NYDUS_ANNOTATIONS.ref) as Digest | undefined;
    const descriptor = {
      mediaType: MEDIA_TYPES.ociLayerGzip,
      digest: ref ?? sha256(Buffer.from(`layer ${position}`)),
      size: 100 + position,
    };
    return {
      source: { descriptor, diffID: DIFF_IDS[position]! },
      stored: { digest: stored.digest, size: stored.size },
      mode: ref === undefined ? "native" : "ref",
    };
  });
  const { digest, size } = image.layers.at(-1)!;
  return { layers, dictionary: [], bootstrap: { digest, size, diffID: image.diffIDs.at(-1)! } };
}

for (const tag of ["native", "ociref"]) {
  test(`configuration and manifest are those of nydusify, but for what each says of itself (${tag})`, async () => {
    const { image, config } = await golden(tag);
    const what = "configuration";
    const plain = parseConfig(ociConfig(image.config, DIFF_IDS, { what, merged: false }), what);
    assert.deepEqual(plain.diffIDs, DIFF_IDS);
    const parts = partsOf(image);
    assert.deepEqual(Buffer.from(nydusConfig(plain, parts, what)), Buffer.from(config));
    const bytes = nydusManifest({
      ...parts,
      config: { digest: image.configDescriptor.digest, size: image.configDescriptor.size },
      beside: false,
      source: { ...SOURCE, digest: annotation(image.manifest, NYDUS_ANNOTATIONS.sourceDigest) as Digest },
      sourceAnnotations: undefined,
      isReferrer: false,
    });
    const ours = parseManifest(bytes, "ours");
    const { [NYDUS_ANNOTATIONS.sourceReference]: _, ...annotations } = image.manifest.annotations!;
    assert.deepEqual(ours, {
      ...image.manifest,
      layers: image.manifest.layers.map((layer, position) => ({
        ...layer,
        annotations: { ...layer.annotations, ...ours.layers[position]!.annotations },
      })),
      annotations: { ...annotations, [NYDUS_ANNOTATIONS.builderVersion]: BUILDER },
    });
    assert.equal(readNydusManifest(ours, "ours").blobs.size, 3);
    assert.deepEqual(
      ours.layers.map((layer) => sourceLayerOf(layer)),
      [...parts.layers.map(({ source }) => source), null],
    );
  });
}

test("a referrer names its OCI manifest without a platform, and keeps the annotations that were there", async () => {
  const { image } = await golden("native");
  const mine = { "org.opencontainers.image.title": "x" };
  const bytes = nydusManifest({
    ...partsOf(image),
    config: SOURCE,
    beside: true,
    source: { ...SOURCE, platform: { os: "linux", architecture: "amd64" } },
    sourceAnnotations: mine,
    isReferrer: true,
  });
  const manifest = parseManifest(bytes, "ours");
  assert.deepEqual(manifest.subject, SOURCE);
  assert.equal(manifest.config.mediaType, MEDIA_TYPES.nydusConfig);
  assert.deepEqual(withoutNydusAnnotations(manifest.annotations), mine);
  assert.equal(withoutNydusAnnotations(image.manifest.annotations), undefined);
});

test("one layer for many leaves a history with one entry that is not empty", async () => {
  const { image } = await golden("native");
  const bytes = ociConfig(image.config, DIFF_IDS.slice(0, 1), { what: "configuration", merged: true });
  const { history } = JSON.parse(Buffer.from(bytes).toString()) as { history: { empty_layer?: boolean }[] };
  assert.deepEqual(
    history.map((entry) => entry.empty_layer ?? false),
    [true, true, true, false],
  );
});

test("a configuration without a history stays without one on the way back", () => {
  const what = "configuration";
  const text = '{"os":"linux","rootfs":{"type":"layers","diff_ids":[]},"architecture":"amd64"}';
  const config = parseConfig(Buffer.from(text), what);
  const bootstrap = { digest: DIFF_IDS[0]!, size: 1, diffID: DIFF_IDS[1]! };
  const there = parseConfig(nydusConfig(config, { layers: [], dictionary: [], bootstrap }, what), what);
  assert.deepEqual(there.diffIDs, [DIFF_IDS[1]]);
  assert.equal(Buffer.from(ociConfig(there, [], { what, merged: false })).toString(), text);
});

test("annotations that name no layer are refused", () => {
  const blob = { mediaType: "x", digest: DIFF_IDS[0]!, size: 1 };
  for (const annotations of [
    { [SOURCE_ANNOTATIONS.diffID]: "sha256:1" },
    { [SOURCE_ANNOTATIONS.diffID]: DIFF_IDS[0]!, [SOURCE_ANNOTATIONS.digest]: DIFF_IDS[0]! },
  ])
    assert.throws(
      () => sourceLayerOf({ ...blob, annotations }),
      (error) => isHeadstartError(error, "HS_MANIFEST"),
    );
  assert.equal(sourceLayerOf(blob), null);
});
