import assert from "node:assert/strict";
import { copyFileSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { test } from "node:test";
import { onSync } from "../../test/tools/syncs.ts";
import type { Clock } from "../base/clock.ts";
import { type Digest, sha256 } from "../base/digest.ts";
import { HeadstartError } from "../base/errors.ts";
import { FetchScheduler } from "../fetch/scheduler.ts";
import { SOCI_MEDIA_TYPES } from "../formats/soci/ondisk.ts";
import { LayerRows } from "../layer/rows.ts";
import { LayerStore } from "../layer/store.ts";
import type { Descriptor } from "../oci/descriptor.ts";
import { openLayout } from "../oci/layout.ts";
import type { BlobHandle, ImageReader } from "../oci/store.ts";
import { openImage } from "./open.ts";
import { type ImageOffer, ImageProvider, type ImageProviderOptions } from "./provider.ts";

const root = dirname(dirname(import.meta.dirname));
const FIXTURE = join(root, "test/golden/fixture/oci");
const REFERENCE = "registry.test/repo:1";

/** A layout as a registry: every read is counted, blobs can be replaced, and reading can be forbidden. */
class Repository implements ImageReader {
  readonly what = REFERENCE;
  readonly reads: string[] = [];
  readonly blobs = new Map<Digest, Uint8Array>();
  readonly manifests = new Map<Digest, Uint8Array>();
  found: Descriptor[] = [];
  denied = false;
  readonly #reader: ImageReader;

  constructor(reader: ImageReader) {
    this.#reader = reader;
  }

  resolve(signal?: AbortSignal) {
    return this.#reader.resolve(signal);
  }

  async readManifest(manifest: Descriptor | Digest, signal?: AbortSignal) {
    const digest = typeof manifest === "string" ? manifest : manifest.digest;
    this.reads.push(`manifest ${digest}`);
    return this.manifests.get(digest) ?? (await this.#reader.readManifest(manifest, signal));
  }

  openBlob(descriptor: Descriptor): BlobHandle {
    const replaced = this.blobs.get(descriptor.digest);
    const blob = this.#reader.openBlob(descriptor);
    const check = () => {
      if (this.denied) throw new HeadstartError("HS_REGISTRY_DENIED", { what: "403" });
    };
    return {
      ...blob,
      descriptor,
      what: blob.what,
      sourceCount: 1,
      stream: (offset, options) => {
        check();
        this.reads.push(`stream ${descriptor.digest}`);
        return blob.stream(offset, options);
      },
      readRange: async (start, end, options) => {
        check();
        this.reads.push(`range ${descriptor.digest}`);
        return await blob.readRange(start, end, options);
      },
      readAll: async (options) => {
        check();
        this.reads.push(`blob ${descriptor.digest}`);
        return replaced ?? (await blob.readAll(options));
      },
    };
  }

  async referrers() {
    return this.found;
  }
}

async function setUp(parts: AsyncDisposableStack, options: Partial<ImageProviderOptions> = {}, tag = "gogz") {
  const directory = await mkdtemp(join(tmpdir(), "headstart-image-"));
  parts.defer(() => rm(directory, { recursive: true, force: true }));
  const layout = await openLayout(FIXTURE, { tag }, "fixture");
  const repository = new Repository(layout);
  const scheduler = new FetchScheduler();
  const store = parts.use(
    await LayerStore.open(directory, {
      fetcher: scheduler,
      bootId: "00000000-0000-4000-8000-000000000000",
    }),
  );
  const provider = new ImageProvider({
    store,
    scheduler,
    repository: async () => repository,
    manifests: { read: async () => null },
    names: { images: async () => [] },
    policy: "bound",
    minLayerSize: 0,
    dataFiles: true,
    eagerParallel: 2,
    background: false,
    ...options,
  });
  const manifest = await layout.resolve();
  const image = await openImage(layout, manifest);
  const ask = (position: number, change: Partial<Parameters<ImageProvider["offer"]>[0]> = {}): Promise<ImageOffer> =>
    provider.offer({
      namespace: "k8s.io",
      target: image.chain[position]!,
      reference: REFERENCE,
      manifestDigest: manifest.digest,
      layerDigest: image.layers[position]!.digest,
      ...change,
    });
  return { repository, store, provider, image, manifest, ask };
}

/** A SOCI index over golden zTOCs of the fixture's layers, attached as a referrer of `manifest`. */
async function attachIndex(
  repository: Repository,
  image: Awaited<ReturnType<typeof openImage>>,
  manifest: Descriptor,
  ztocs: readonly Uint8Array[],
): Promise<void> {
  const layers = ztocs.map((bytes, position) => {
    repository.blobs.set(sha256(bytes), bytes);
    return {
      mediaType: "application/octet-stream",
      digest: sha256(bytes),
      size: bytes.byteLength,
      annotations: { "com.amazon.soci.image-layer-digest": image.layers[position]!.digest },
    };
  });
  const empty = Buffer.from("{}");
  const bytes = Buffer.from(
    JSON.stringify({
      schemaVersion: 2,
      mediaType: "application/vnd.oci.image.manifest.v1+json",
      config: { mediaType: SOCI_MEDIA_TYPES.indexV1, digest: sha256(empty), size: 2 },
      layers,
      subject: { mediaType: manifest.mediaType, digest: manifest.digest, size: manifest.size },
    }),
  );
  repository.manifests.set(sha256(bytes), bytes);
  repository.found = [
    {
      mediaType: "application/vnd.oci.image.manifest.v1+json",
      digest: sha256(bytes),
      size: bytes.byteLength,
      artifactType: SOCI_MEDIA_TYPES.indexV1,
    },
  ];
}

async function goldenZtocs(): Promise<Uint8Array[]> {
  const { readFileSync } = await import("node:fs");
  const { gunzipSync } = await import("node:zlib");
  return [0, 1, 2].map((layer) =>
    gunzipSync(readFileSync(join(root, `test/golden/soci/gogz/span-65536/layer-${layer}.ztoc.gz`))),
  );
}

test("an image without an index is claimed whole, and its layers are pulled eagerly", async () => {
  await using parts = new AsyncDisposableStack();
  const { ask, provider, store } = await setUp(parts);
  for (const position of [0, 1, 2]) {
    const offer = await ask(position);
    assert.equal(offer.kind, "eager");
    const layer = await provider.ready((offer as { layer: number }).layer);
    assert.equal(layer.isComplete, true);
  }
  assert.equal(provider.images()[0]!.reason, "the manifest names no index");
  assert.equal(store.list().length, 3);
});

test("a referring index is used under the policy that allows it, and only reported under the other", async () => {
  for (const policy of ["referrers", "bound"] as const) {
    await using parts = new AsyncDisposableStack();
    const { ask, provider, repository, image, manifest } = await setUp(parts, { policy });
    await attachIndex(repository, image, manifest, await goldenZtocs());
    const offer = await ask(0);
    assert.equal(offer.kind, policy === "referrers" ? "lazy" : "eager");
    const layer = await provider.ready((offer as { layer: number }).layer);
    assert.equal(layer.isComplete, policy === "bound");
    await new Promise((resolve) => setImmediate(resolve));
    assert.equal(provider.images()[0]!.reason, policy === "referrers" ? null : "soci index found, policy is bound");
  }
});

test("a lazy layer serves the bytes that the tar has", async () => {
  await using parts = new AsyncDisposableStack();
  const { ask, provider, repository, image, manifest } = await setUp(parts, { policy: "referrers" });
  await attachIndex(repository, image, manifest, await goldenZtocs());
  const offer = await ask(0);
  const layer = await provider.ready((offer as { layer: number }).layer);
  await layer.ensure({ start: 0, end: layer.size });
  assert.equal(layer.fillMap.hasAll(0, layer.fillMap.length), true);
  layer.startBackground();
  // completing it compares the whole stream with the diffID
  await layer.whenComplete();
});

test("a zTOC that is damaged or belongs to another layer gives an eager layer with the reason", async () => {
  await using parts = new AsyncDisposableStack();
  const { ask, provider, repository, image, manifest } = await setUp(parts, { policy: "referrers" });
  const [first, second] = await goldenZtocs();
  await attachIndex(repository, image, manifest, [second!, first!.subarray(0, first!.byteLength >> 1)]);
  for (const [position, reason] of [
    [0, /HS_INDEX_MISMATCH/],
    [1, /HS_INDEX_INVALID|HS_TRUNCATED/],
  ] as const) {
    const offer = await ask(position);
    assert.equal(offer.kind, "lazy");
    const claimed = (offer as { layer: number }).layer;
    const layer = await provider.ready(claimed);
    assert.equal(layer.isComplete, true);
    assert.notEqual(layer.id, claimed);
    assert.equal(provider.maker.standIn(claimed), layer.id);
    // the stand-in lives as long as the claim
    assert.equal(provider.unused(new Set([claimed])).includes(layer.id), false);
    const status = provider.images()[0]!.layers[position]!;
    assert.match(status.reason ?? "", reason);
  }
});

test("labels that the manifest does not confirm are declined with the reason", async () => {
  await using parts = new AsyncDisposableStack();
  const { ask, image } = await setUp(parts);
  const reason = async (change: Parameters<typeof ask>[1]) => {
    const offer = await ask(0, change);
    assert.equal(offer.kind, "no");
    return (offer as { reason: string }).reason;
  };
  assert.match(await reason({ layerDigest: image.layers[1]!.digest }), /where containerd says/);
  assert.match(await reason({ target: sha256(Buffer.from("x")) as never }), /has no layer with chainID/);
  assert.match(await reason({ reference: null }), /no image labels/);
  assert.match(await reason({ manifestDigest: sha256(Buffer.from("other")) }), /HS_NOT_FOUND|HS_BLOB_NOT_FOUND/);
});

test("an image that this node may not read is not claimed, and is asked for again after a while", async () => {
  await using parts = new AsyncDisposableStack();
  let now = 0;
  const clock: Clock = { now: () => now, monotonic: () => now, sleep: () => Promise.resolve() };
  const { ask, repository, provider } = await setUp(parts, { clock });
  repository.denied = true;
  // the configuration is a blob too: it comes from containerd in real life
  const first = await ask(0);
  assert.equal(first.kind, "no");
  assert.equal(provider.images()[0]!.mode, "unclaimed");
  repository.denied = false;
  assert.equal((await ask(0)).kind, "no");
  now += 6000;
  assert.equal((await ask(0)).kind, "eager");
});

test("manifest and configuration that are here already are not fetched", async () => {
  await using parts = new AsyncDisposableStack();
  const layout = await openLayout(FIXTURE, { tag: "gogz" }, "fixture");
  const local = {
    read: async (digest: Digest) => {
      const blob = layout.openBlob({ mediaType: "", digest, size: 0 });
      return await layout.readManifest(digest).catch(() => blob.readAll().catch(() => null));
    },
  };
  const { ask, repository, manifest, image } = await setUp(parts, { manifests: local });
  await ask(0);
  assert.deepEqual(
    repository.reads.filter((read) => read === `manifest ${manifest.digest}`),
    [],
  );
  assert.deepEqual(
    repository.reads.filter((read) => read === `blob ${image.loaded.configDescriptor.digest}`),
    [],
  );
});

test("layers that nothing refers to are removed, but not those that are offered meanwhile", async () => {
  await using parts = new AsyncDisposableStack();
  const { ask, provider, store } = await setUp(parts);
  const ids: number[] = [];
  for (const position of [0, 1, 2]) ids.push(((await ask(position)) as { layer: number }).layer);
  await Promise.all(ids.map((id) => provider.ready(id)));
  const unmounted: number[] = [];
  await provider.collect(new Set([ids[0]!]), async (layer) => {
    unmounted.push(layer);
    // a pull comes while the first is being removed: it must not get a layer that goes away
    if (unmounted.length === 1) void ask(2);
  });
  assert.equal(store.row(ids[0]!) !== null, true);
  assert.equal(store.row(ids[1]!), null);
  const again = (await ask(1)) as { layer: number };
  assert.notEqual(again.layer, ids[1]);
  assert.equal((await provider.ready(again.layer)).isComplete, true);
  const third = (await ask(2)) as { layer: number };
  assert.equal((await provider.ready(third.layer)).isComplete, true);
});

test("a whole layer whose file is lost is pulled anew under another id, which lives as long as the claim", async () => {
  await using parts = new AsyncDisposableStack();
  const { ask, provider, store } = await setUp(parts);
  const { layer } = (await ask(0)) as { layer: number };
  const lost = await provider.ready(layer);
  lost.become({ t: "broken", code: "HS_LAYER_BROKEN", reason: "its file is gone" });
  await lost.close();
  const again = await provider.ready(layer);
  assert.notEqual(again.id, layer);
  await provider.collect(new Set([layer]), async () => {});
  assert.deepEqual(
    store.list().map(({ id }) => id),
    [layer, again.id],
  );
  assert.equal((await provider.ready(layer)).id, again.id);
});

test("what a claim names survives a power loss from the claim on, so that no id ever comes to mean another layer", async (t) => {
  await using parts = new AsyncDisposableStack();
  const { ask, store } = await setUp(parts);
  // what the disk has: the files as they were when they were last synced
  const disk = await mkdtemp(join(tmpdir(), "headstart-disk-"));
  parts.defer(() => rm(disk, { recursive: true, force: true }));
  await onSync(t, async (path, sync) => {
    await sync();
    if (!path.endsWith("-wal")) return;
    for (const name of ["layers.db", "layers.db-wal"]) copyFileSync(join(store.root, name), join(disk, name));
  });
  const { layer } = (await ask(0)) as { layer: number };
  using rows = new LayerRows(join(disk, "layers.db"));
  assert.deepEqual(rows.get(layer)?.identity, store.row(layer)!.identity);
});

test("two images that hold the same layer get the same layer", async () => {
  await using parts = new AsyncDisposableStack();
  const { ask, repository, image } = await setUp(parts);
  const first = (await ask(0)) as { layer: number };
  const second = (await ask(0, { reference: "registry.test/other:1" })) as { layer: number };
  assert.equal(first.layer, second.layer);
  await new Promise((resolve) => setTimeout(resolve, 50));
  assert.equal(repository.reads.filter((read) => read === `stream ${image.layers[0]!.digest}`).length, 1);
});
