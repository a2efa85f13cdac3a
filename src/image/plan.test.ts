/** What becomes of Nydus images and of images in both forms, against a registry in memory. */

import assert from "node:assert/strict";
import { mkdtempSync, rmSync, truncateSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { FakeRegistry } from "../../test/fakes/registry.ts";
import { nydusVariants } from "../../test/suites/golden-nydus.ts";
import {
  type StoredManifest,
  storeIndex,
  storeNydusImage,
  storeOciTwin,
  tagManifest,
} from "../../test/suites/nydus-image.ts";
import { chainIDs, type DiffID, type Digest } from "../base/digest.ts";
import { FetchScheduler } from "../fetch/scheduler.ts";
import type { LayerImage } from "../layer/layer-image.ts";
import { LayerStore } from "../layer/store.ts";
import type { Descriptor } from "../oci/descriptor.ts";
import { parseConfig } from "../oci/manifest.ts";
import { Registry } from "../oci/registry/registry.ts";
import { FAST } from "../oci/registry/testing.ts";
import { ImageProvider } from "./provider.ts";
import { EMPTY_LAYER } from "./substitutes.ts";
import type { TrustPolicy } from "./trust.ts";

const REPOSITORY = "some/image";
const VARIANT = "v6-zstd-1m";

async function setUp(stack: AsyncDisposableStack, policy: TrustPolicy = "bound", dataFiles = true) {
  const directory = mkdtempSync(join(tmpdir(), "headstart-plan-"));
  stack.defer(() => rmSync(directory, { recursive: true, force: true }));
  const registry = stack.use(await FakeRegistry.start());
  const client = stack.use(new Registry(FAST));
  const scheduler = new FetchScheduler();
  const names: { name: string; target: Descriptor }[] = [];
  const open = async () => {
    const store = await LayerStore.open(directory, {
      fetcher: scheduler,
      bootId: "00000000-0000-4000-8000-000000000000",
    });
    const provider = new ImageProvider({
      store,
      scheduler,
      repository: (reference) => client.repository(reference),
      // containerd has what it resolved
      manifests: {
        read: async (digest) =>
          registry.stored(REPOSITORY).manifests.get(digest)?.bytes ??
          registry.stored(REPOSITORY).blobs.get(digest) ??
          null,
      },
      names: { images: async () => names },
      policy,
      minLayerSize: 0,
      dataFiles: dataFiles,
      eagerParallel: 2,
      background: false,
    });
    return { store, provider };
  };
  const { store, provider } = await open();
  stack.defer(() => store[Symbol.asyncDispose]());
  /** Offers of all layers, lowest first, as containerd asks for them. */
  const offers = async (reference: string, image: StoredManifest) => {
    const config = registry.stored(REPOSITORY).blobs.get(image.manifest.config.digest)!;
    const chain = chainIDs(parseConfig(config, "configuration").diffIDs as DiffID[]);
    const found = [];
    for (const [position, layer] of image.manifest.layers.entries())
      found.push(
        await provider.offer({
          namespace: "k8s.io",
          target: chain[position]!,
          reference,
          manifestDigest: image.descriptor.digest,
          layerDigest: layer.digest,
        }),
      );
    return found;
  };
  const ids = (all: Awaited<ReturnType<typeof offers>>) =>
    all.map((offer) => ("layer" in offer ? offer.layer : assert.fail(offer.reason)));
  const container = (layers: readonly number[]) => provider.chains.layersFor(layers, { namespace: "k8s.io" });
  return { registry, store, provider, names, offers, ids, container };
}

test("a Nydus image: snapshots of blobs hold nothing, the bootstrap's is the whole image, and no data are fetched", async () => {
  await using stack = new AsyncDisposableStack();
  const { registry, store, provider, offers, ids, container } = await setUp(stack);
  const image = storeNydusImage(registry, { repository: REPOSITORY, variant: VARIANT });
  const all = await offers(tagManifest(registry, REPOSITORY, image), image);
  assert.deepEqual(new Set(all.map(({ kind }) => kind)), new Set(["lazy"]));
  const layers = ids(all);
  const whole = layers.at(-1)!;
  assert.deepEqual(layers.slice(0, -1), [EMPTY_LAYER, EMPTY_LAYER, EMPTY_LAYER]);
  assert.deepEqual(await container(layers), [whole]);
  // a container that was committed: what containerd unpacked lies above
  assert.deepEqual(await provider.chains.layersFor([...layers, null], { namespace: "k8s.io" }), [whole, null]);
  // blobs without their bootstrap are another image's layers, and nobody knows of that image
  await assert.rejects(container(layers.slice(0, 2)), { code: "HS_NYDUS_UNUSABLE" });
  const made = await provider.ready(whole);
  assert.equal(made.kind, "image");
  assert.equal(made.isComplete, false);
  assert.equal(made.devices.length, 3);
  const { layer } = made.devices[0]!;
  await layer.ensure({ start: 0, end: 4096 });
  made.startBackground();
  await made.whenComplete();
  assert.equal(made.isComplete, true);
  assert.deepEqual(provider.usage(EMPTY_LAYER), { bytes: 0, inodes: 0 });
  assert.ok(provider.usage(whole).bytes > 1_000_000);
  // snapshots gone: the image, then its data files
  await provider.collect(new Set(), async () => {});
  assert.deepEqual(store.list(), []);
});

test("a Nydus image whose files are damaged is made anew under another id, which lives as long as the claim", async () => {
  await using stack = new AsyncDisposableStack();
  const { registry, store, provider, offers, ids } = await setUp(stack);
  const image = storeNydusImage(registry, { repository: REPOSITORY, variant: VARIANT });
  const claimed = ids(await offers(tagManifest(registry, REPOSITORY, image), image)).at(-1)!;
  await (await provider.ready(claimed)).close();
  truncateSync(join(store.root, "layers", String(claimed), "uses"), 100);
  const again = await provider.ready(claimed);
  assert.notEqual(again.id, claimed);
  assert.equal(store.row(claimed)?.state.t, "broken");
  await again.devices[0]!.layer.ensure({ start: 0, end: 4096 });
  assert.equal((await provider.ready(claimed)).id, again.id);
  await provider.collect(new Set([claimed]), async () => {});
  assert.notEqual(store.row(again.id), null);
});

test("a Nydus image of which a data file breaks is made anew over another one", async () => {
  await using stack = new AsyncDisposableStack();
  const { registry, store, provider, offers, ids } = await setUp(stack);
  const image = storeNydusImage(registry, { repository: REPOSITORY, variant: VARIANT });
  const claimed = ids(await offers(tagManifest(registry, REPOSITORY, image), image)).at(-1)!;
  const [broken, ...sound] = (await provider.ready(claimed)).devices.map(({ layer }) => layer);
  broken!.become({ t: "broken", code: "HS_LAYER_BROKEN", reason: "a test" });
  const again = await provider.ready(claimed);
  assert.notEqual(again.id, claimed);
  const [other, ...same] = again.devices.map(({ layer }) => layer);
  assert.deepEqual(same, sound);
  await other!.ensure({ start: 0, end: 4096 });
  await provider.collect(new Set([claimed]), async () => {});
  assert.equal((await provider.ready(claimed)).id, again.id);
  assert.equal(store.row(again.id)?.state.t, "sealed");
});

test("two images over one blob have one data file, which goes with the last of them", async () => {
  await using stack = new AsyncDisposableStack();
  const { registry, store, provider, offers, ids } = await setUp(stack);
  const wholes: number[] = [];
  for (const variant of [VARIANT, "v6-chunkdict"]) {
    const image = storeNydusImage(registry, { repository: REPOSITORY, variant });
    const whole = ids(await offers(tagManifest(registry, REPOSITORY, image, variant), image)).at(-1)!;
    await provider.ready(whole);
    wholes.push(whole);
  }
  const dataFiles = () => store.list().filter((row) => row.kind === "data");
  const shared = `sha256:${nydusVariants[VARIANT]!.layers["layer-0"]}`;
  assert.equal(dataFiles().filter((row) => row.identity.digest === shared).length, 1);
  assert.equal(dataFiles().length, 4);
  await provider.collect(new Set([wholes[1]!]), async () => {});
  assert.equal(dataFiles().length, 3);
  await provider.collect(new Set(), async () => {});
  assert.deepEqual(store.list(), []);
});

test("a data file that an image is given while it is being collected keeps its source", async () => {
  await using stack = new AsyncDisposableStack();
  const { registry, store, provider, offers, ids } = await setUp(stack);
  const image = storeNydusImage(registry, { repository: REPOSITORY, variant: VARIANT });
  const row = store.row(ids(await offers(tagManifest(registry, REPOSITORY, image), image)).at(-1)!)!;
  const made: LayerImage[] = [];
  await provider.collect(new Set(), async (layer) => {
    if (made.length > 0 || store.row(layer)?.kind !== "data") return;
    made.push(await provider.ready(store.declare(row, row.source).id));
  });
  assert.equal(made[0]!.devices.length, 3);
  for (const { layer } of made[0]!.devices) {
    assert.ok(layer.id < made[0]!.id);
    await layer.ensure({ start: 0, end: 4096 });
  }
});

test("a Nydus image that is not sound is impossible, or its OCI form stands in for it", async () => {
  await using stack = new AsyncDisposableStack();
  const { registry, store, provider, offers, ids, container } = await setUp(stack);
  const broken = { repository: REPOSITORY, variant: VARIANT, bootstrap: (bytes: Buffer) => bytes.subarray(0, 9000) };
  const alone = storeNydusImage(registry, broken);
  const [first] = await offers(tagManifest(registry, REPOSITORY, alone), alone);
  assert.equal(first?.kind, "impossible");
  assert.match("reason" in first ? first.reason : "", /no OCI form beside it.*HS_NYDUS_INVALID/);

  const twin = storeOciTwin(registry, REPOSITORY);
  const both = storeNydusImage(registry, {
    ...broken,
    manifest: (manifest) => ({ ...manifest, subject: twin.descriptor }),
  });
  const layers = ids(await offers(tagManifest(registry, REPOSITORY, both, "both"), both));
  const parts = (await container(layers)) as number[];
  assert.deepEqual(
    parts.map((id) => store.row(id)?.identity.digest),
    twin.manifest.layers.map(({ digest }) => digest),
  );
  for (const id of parts) assert.equal((await provider.ready(id)).isComplete, true);
  const status = provider.images().find((line) => line.manifest === both.descriptor.digest);
  assert.equal(status?.mode, "eager");
  assert.match(status.reason ?? "", /stands in \(subject\).*HS_NYDUS_INVALID/);
  // the row that lists them keeps them
  await provider.collect(new Set([layers.at(-1)!]), async () => {});
  assert.deepEqual(
    parts.filter((id) => store.row(id) === null),
    [],
  );
});

test("an image in both forms: its own containers get the Nydus form, those upon a part of it the layers", async () => {
  await using stack = new AsyncDisposableStack();
  const { registry, store, provider, names, offers, ids, container } = await setUp(stack, "referrers");
  const oci = storeOciTwin(registry, REPOSITORY);
  const nydus = storeNydusImage(registry, { repository: REPOSITORY, variant: VARIANT });
  const reference = storeIndex(registry, REPOSITORY, { oci, nydus });
  const layers = ids(await offers(reference, oci));
  assert.equal(new Set(layers).size, 3);
  const index = registry.stored(REPOSITORY).tags.get("1") as Digest;
  const { bytes, mediaType } = registry.stored(REPOSITORY).manifests.get(index)!;
  names.push({ name: reference, target: { mediaType, digest: index, size: bytes.byteLength } });
  const [whole, ...more] = await container(layers);
  assert.deepEqual(more, []);
  assert.equal(store.row(whole!)?.kind, "image");
  assert.deepEqual(await container(layers.slice(0, 2)), layers.slice(0, 2));
  // what containerd unpacks upon the whole chain is shared by images that know nothing of this index
  const unpacking = { namespace: "k8s.io", isExtraction: true };
  assert.deepEqual(await provider.chains.layersFor(layers, unpacking), layers);
  const adopted = () => true;
  assert.deepEqual(await provider.chains.layersFor(layers, { ...unpacking, adopted }), layers);
  // nothing of the layers was fetched for the image itself
  for (const id of layers) assert.equal(store.row(id)?.state.t, "opening");
  provider.resume(new Set(layers));
  await new Promise((resolve) => setImmediate(resolve));
  for (const id of layers) assert.equal(store.row(id)?.state.t, "opening");

  // the same manifest by another name
  names.push({ name: "registry.test/other:1", target: oci.descriptor });
  assert.deepEqual(await container(layers), layers);
  assert.match(provider.images()[0]?.reason ?? "", /registry\.test\/other:1 has the same layers/);
  await provider.collect(new Set(layers.slice(0, 1)), async () => {});
  assert.deepEqual(
    store.list().map((row) => row.id),
    layers.slice(0, 1),
  );
});

test("under policy bound a Nydus form is reported and not used", async () => {
  await using stack = new AsyncDisposableStack();
  const { registry, provider, offers } = await setUp(stack, "bound");
  const oci = storeOciTwin(registry, REPOSITORY);
  const nydus = storeNydusImage(registry, { repository: REPOSITORY, variant: VARIANT });
  const reference = storeIndex(registry, REPOSITORY, { oci, nydus });
  for (const offer of await offers(reference, oci)) assert.equal(offer.kind, "eager");
  const deadline = Date.now() + 60_000;
  while (provider.images()[0]?.reason !== "index has a Nydus alternative, policy is bound") {
    assert.ok(Date.now() < deadline, provider.images()[0]?.reason ?? "");
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
});

test("where images over data files cannot be mounted, a Nydus image is its OCI form, and an OCI image stays one", async () => {
  await using stack = new AsyncDisposableStack();
  const { registry, store, provider, offers, ids, container } = await setUp(stack, "referrers", false);
  const oci = storeOciTwin(registry, REPOSITORY);
  const nydus = storeNydusImage(registry, { repository: REPOSITORY, variant: VARIANT });
  const reference = storeIndex(registry, REPOSITORY, { oci, nydus });
  const parts = (await container(ids(await offers(reference, nydus)))) as number[];
  assert.deepEqual(
    parts.map((id) => store.row(id)?.identity.digest),
    oci.manifest.layers.map(({ digest }) => digest),
  );
  assert.match(provider.images()[0]?.reason ?? "", /stands in \(index\).*HS_KERNEL_UNSUPPORTED/);
  for (const offer of await offers(reference, oci)) assert.equal(offer.kind, "eager");
  assert.deepEqual(new Set(store.list().map((row) => row.kind)), new Set(["layer"]));
});
