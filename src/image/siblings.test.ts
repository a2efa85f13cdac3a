import assert from "node:assert/strict";
import { test } from "node:test";
import { FakeRegistry } from "../../test/fakes/registry.ts";
import {
  type StoredManifest,
  storeIndex,
  storeNydusImage,
  storeOciTwin,
  tagManifest,
} from "../../test/suites/nydus-image.ts";
import { type Digest, sha256 } from "../base/digest.ts";
import { NYDUS_MEDIA_TYPES } from "../formats/nydus/ondisk.ts";
import type { Descriptor } from "../oci/descriptor.ts";
import { loadManifest } from "../oci/manifest.ts";
import { MEDIA_TYPES } from "../oci/media-types.ts";
import { openSource } from "../oci/open.ts";
import { parseSource } from "../oci/reference.ts";
import type { ImageReader } from "../oci/store.ts";
import { findNydus, findOci, isNydusEntry } from "./siblings.ts";

const REPOSITORY = "some/image";

async function setUp(stack: AsyncDisposableStack) {
  const registry = stack.use(await FakeRegistry.start());
  const oci = storeOciTwin(registry, REPOSITORY);
  const nydus = storeNydusImage(registry, {
    repository: REPOSITORY,
    variant: "v6-zran",
    configType: MEDIA_TYPES.nydusConfig,
  });
  const open = async (reference: string, image: StoredManifest) => {
    const reader = stack.use(await openSource(parseSource(`docker://${reference}`)));
    return { reader, image: await loadManifest(reader as ImageReader, image.descriptor) };
  };
  return { registry, oci, nydus, open };
}

/** BuildKit's attestation, a signature, and an entry of nobody knows what platform. */
function strangers(registry: FakeRegistry): Descriptor[] {
  const put = (document: object) => {
    const stored = registry.putManifest(REPOSITORY, document, MEDIA_TYPES.ociManifest);
    return { ...stored, digest: stored.digest as Digest };
  };
  const config = registry.putBlob(REPOSITORY, Buffer.from("{}"), "application/vnd.oci.empty.v1+json");
  const document = { schemaVersion: 2, mediaType: MEDIA_TYPES.ociManifest, config, layers: [] };
  return [
    {
      ...put({ ...document, annotations: { is: "attestation" } }),
      platform: { os: "unknown", architecture: "unknown" },
      annotations: { "vnd.docker.reference.type": "attestation-manifest" },
    },
    { ...put({ ...document, annotations: { is: "signature" } }), artifactType: "application/vnd.example.signature" },
    put({ ...document, annotations: { is: "unknown" } }),
  ];
}

test("both forms find each other in the index that the reference names, attestations and strangers beside them", async () => {
  for (const mark of ["artifactType", "os.features"] as const) {
    await using stack = new AsyncDisposableStack();
    const { registry, oci, nydus, open } = await setUp(stack);
    const reference = storeIndex(registry, REPOSITORY, { oci, nydus, others: strangers(registry) }, { mark });
    const one = await open(reference, oci);
    const found = await findNydus(one.reader, one.image, { referrers: false });
    assert.equal(found?.loaded.manifestDescriptor.digest, nydus.descriptor.digest, mark);
    assert.equal(found.found.how, "index");
    const other = await open(reference, nydus);
    const back = await findOci(other.reader, other.image);
    assert.equal(back?.loaded.manifestDescriptor.digest, oci.descriptor.digest, mark);
  }
});

test("an index that has moved on and does not hold the manifest is not believed", async () => {
  await using stack = new AsyncDisposableStack();
  const { registry, oci, nydus, open } = await setUp(stack);
  const reference = storeIndex(registry, REPOSITORY, { nydus });
  const { reader, image } = await open(reference, oci);
  assert.equal(await findNydus(reader, image, { referrers: false }), null);
});

test("another platform's Nydus image is not taken", async () => {
  await using stack = new AsyncDisposableStack();
  const { registry, oci, nydus, open } = await setUp(stack);
  const foreign = {
    ...nydus.descriptor,
    artifactType: NYDUS_MEDIA_TYPES.manifest,
    platform: { os: "linux", architecture: "riscv64" },
  };
  const reference = storeIndex(registry, REPOSITORY, { oci, others: [foreign] });
  const { reader, image } = await open(reference, oci);
  assert.equal(await findNydus(reader, image, { referrers: false }), null);
});

test("a Nydus image that refers to the manifest is found where referrers count, behind referrers that are none", async () => {
  await using stack = new AsyncDisposableStack();
  const { registry, oci, open } = await setUp(stack);
  const subject = oci.descriptor;
  const empty = registry.putBlob(REPOSITORY, Buffer.from("{}"), "application/vnd.example.sbom");
  registry.putManifest(
    REPOSITORY,
    { schemaVersion: 2, mediaType: MEDIA_TYPES.ociManifest, config: empty, layers: [], subject },
    MEDIA_TYPES.ociManifest,
  );
  const attached = storeNydusImage(registry, {
    repository: REPOSITORY,
    variant: "v6-zran",
    manifest: (manifest) => ({ ...manifest, subject }),
  });
  const { reader, image } = await open(tagManifest(registry, REPOSITORY, oci), oci);
  assert.equal(await findNydus(reader, image, { referrers: false }), null);
  const found = await findNydus(reader, image, { referrers: true });
  assert.equal(found?.loaded.manifestDescriptor.digest, attached.descriptor.digest);
  assert.equal(found.found.how, "referrer");
  const back = await open(tagManifest(registry, REPOSITORY, attached), attached);
  assert.equal((await findOci(back.reader, back.image))?.found.how, "subject");
});

test("an entry is one of Nydus by its artifact type or its platform's feature", () => {
  const entry = { mediaType: MEDIA_TYPES.ociManifest, digest: sha256(Buffer.from("x")), size: 1 };
  const platform = { os: "linux", architecture: "amd64" };
  assert.equal(isNydusEntry(entry), false);
  assert.equal(isNydusEntry({ ...entry, artifactType: NYDUS_MEDIA_TYPES.manifest }), true);
  assert.equal(isNydusEntry({ ...entry, platform: { ...platform, "os.features": ["nydus.remoteimage.v1"] } }), true);
  assert.equal(isNydusEntry({ ...entry, platform: { ...platform, "os.features": ["sse4"] } }), false);
});
