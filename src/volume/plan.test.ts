import assert from "node:assert/strict";
import { test } from "node:test";
import { chainIDs, type DiffID, type Digest, sha256 } from "../base/digest.ts";
import type { Descriptor } from "../oci/descriptor.ts";
import { makePlan, type PlanOptions, planSizes, type ResolvedImage, type VolumePlan } from "./plan.ts";

const OPTIONS: PlanOptions = {
  platform: { os: "linux", architecture: "amd64" },
  snapshotter: "overlayfs",
  pinned: true,
  blobs: true,
};
const digest = (text: string): Digest => sha256(Buffer.from(text));
const descriptor = (text: string, size = 10): Descriptor => ({ mediaType: "x", digest: digest(text), size });

/** Layers by name: equal names are equal layers. */
function image(name: string, layers: readonly string[], changes: Partial<ResolvedImage> = {}): ResolvedImage {
  const manifest = descriptor(`manifest ${name}`);
  return {
    source: `docker://host/${name}:1`,
    names: [`host/${name}:1`],
    target: manifest,
    indexes: [],
    manifest,
    config: descriptor(`config ${name}`),
    layers: layers.map((layer) => ({ descriptor: descriptor(layer, 100), diffID: digest(`diff ${layer}`) as DiffID })),
    created: 1000,
    repository: { host: "host", repository: name },
    ...changes,
  };
}

const labelsOf = (plan: VolumePlan, of: Digest) =>
  Object.fromEntries(plan.blobs.find((blob) => blob.descriptor.digest === of)!.labels);

test("layers that images share are planned once, a parent before its children", () => {
  const plan = makePlan([image("b", ["base", "b"]), image("a", ["base", "mid", "a"])], OPTIONS);
  assert.equal(plan.snapshots.length, 4);
  assert.deepEqual(
    plan.snapshots.map((snapshot) => snapshot.id),
    [1, 2, 3, 4],
  );
  const ids = new Map(plan.snapshots.map((snapshot) => [snapshot.chainID, snapshot.id]));
  for (const { id, parent, role } of plan.snapshots) {
    assert.equal(role, parent === null ? "lowest" : "upper");
    if (parent !== null) assert.ok(ids.get(parent)! < id);
  }
  assert.deepEqual(planSizes(plan), { images: 2, snapshots: 4, fetchBytes: 440, blobBytes: 440, layerBytes: 400 });
});

test("the order in which images are named changes nothing", () => {
  const images = [image("a", ["base", "a"]), image("b", ["base", "b"]), image("c", ["c", "base"], { created: 2000 })];
  const plan = makePlan(images, OPTIONS);
  assert.deepEqual(makePlan(images.toReversed(), OPTIONS), plan);
  assert.equal(plan.time, 2000);
});

test("one layer over different layers is a snapshot of each chain, and one blob", () => {
  const plan = makePlan([image("a", ["one", "top"]), image("b", ["two", "top"])], OPTIONS);
  assert.equal(plan.snapshots.length, 4);
  assert.equal(plan.blobs.filter((blob) => blob.kind === "layer").length, 3);
});

test("references keep everything alive: index to manifest, manifest to configuration and layers, configuration to the topmost snapshot", () => {
  const index = descriptor("index");
  const plain = image("a", ["base", "a"]);
  const plan = makePlan(
    [{ ...plain, target: index, indexes: [{ descriptor: index, child: plain.manifest.digest }] }],
    OPTIONS,
  );
  const source = { "containerd.io/distribution.source.host": "a" };
  assert.deepEqual(labelsOf(plan, index.digest), {
    "containerd.io/gc.ref.content.m.0": plain.manifest.digest,
    ...source,
  });
  assert.deepEqual(labelsOf(plan, plain.manifest.digest), {
    "containerd.io/gc.ref.content.config": plain.config.digest,
    "containerd.io/gc.ref.content.l.0": digest("base"),
    "containerd.io/gc.ref.content.l.1": digest("a"),
    ...source,
  });
  assert.deepEqual(labelsOf(plan, plain.config.digest), {
    "containerd.io/gc.ref.snapshot.overlayfs": chainIDs([digest("diff base"), digest("diff a")])[1],
    ...source,
  });
  assert.equal(labelsOf(plan, digest("a"))["containerd.io/uncompressed"], digest("diff a"));
});

test("blobs of layers may be left out; the manifest still names them", () => {
  const plan = makePlan([image("a", ["base"])], { ...OPTIONS, blobs: false });
  assert.deepEqual(
    plan.blobs.filter((blob) => blob.kept).map((blob) => blob.kind),
    plan.blobs.filter((blob) => blob.kind !== "layer").map((blob) => blob.kind),
  );
  assert.equal(planSizes(plan).blobBytes, 20);
  assert.equal(labelsOf(plan, digest("manifest a"))["containerd.io/gc.ref.content.l.0"], digest("base"));
});

test("a name for two images is refused, two names of one image are one image", () => {
  const a = image("a", ["base"]);
  assert.throws(() => makePlan([a, image("b", ["base"], { names: a.names })], OPTIONS), { code: "HS_USAGE" });
  const plan = makePlan([a, { ...a, source: "oci:x:1", names: ["host/else:2"], repository: null }], OPTIONS);
  assert.deepEqual(
    plan.images.map((one) => one.names),
    [["host/a:1", "host/else:2"]],
  );
  assert.throws(() => makePlan([], OPTIONS), { code: "HS_USAGE" });
});

test("a digest that is a layer here and a configuration there is refused", () => {
  const a = image("a", ["base"]);
  assert.throws(() => makePlan([{ ...a, config: descriptor("base", 100) }], OPTIONS), { code: "HS_MANIFEST" });
});
