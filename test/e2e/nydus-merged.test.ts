/**
 * Indexes that hold an image in both forms: containerd resolves the OCI form; where policy trusts the index, containers upon all its layers get the Nydus form, and nobody else does.
 */

import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { join } from "node:path";
import { test } from "node:test";
import type { Digest } from "../../src/base/digest.ts";
import { compareTreeLines } from "../../src/erofs/tree-lines.ts";
import type { Descriptor } from "../../src/oci/descriptor.ts";
import { MEDIA_TYPES } from "../../src/oci/media-types.ts";
import { layerOf } from "../../src/sandbox/image-builder.ts";
import { mountCriImage } from "../../src/sandbox/image-mount.ts";
import type { FakeRegistry } from "../fakes/registry.ts";
import { expectedNydusTree } from "../suites/golden-nydus.ts";
import {
  type StoredManifest,
  storeIndex,
  storeNydusImage,
  storeOciImage,
  storeOciTwin,
  tagManifest,
} from "../suites/nydus-image.ts";
import { kernelLinesApart } from "../tools/kernel-lines.ts";
import { image as imageLine } from "./daemon-status.ts";
import { FakePlace, runShell } from "./fake-place.ts";
import { reading, runIn } from "./nydus-place.ts";

const NO_CLOCK = 10n ** 18n * 4n;
const VARIANT = "v6-zstd-1m";
const WITHOUT_BACKGROUND = { fetch: { background: false } };

function nydusForm(registry: FakeRegistry, repository: string): StoredManifest {
  return storeNydusImage(registry, { repository, variant: VARIANT, configType: MEDIA_TYPES.nydusConfig });
}

/** An attestation as BuildKit writes it, and an entry that has no platform at all. */
function others(registry: FakeRegistry, repository: string): Descriptor[] {
  const config = registry.putBlob(repository, Buffer.from("{}"), "application/vnd.oci.empty.v1+json");
  return ["attestation", "unknown"].map((name) => {
    const document = {
      schemaVersion: 2,
      mediaType: MEDIA_TYPES.ociManifest,
      config,
      layers: [],
      annotations: { name },
    };
    const stored = registry.putManifest(repository, document, MEDIA_TYPES.ociManifest);
    const entry = { mediaType: stored.mediaType, size: stored.size, digest: stored.digest as Digest };
    const attests = {
      platform: { os: "unknown", architecture: "unknown" },
      annotations: { "vnd.docker.reference.type": "attestation-manifest" },
    };
    return name === "attestation" ? { ...entry, ...attests } : entry;
  });
}

/** Whole reads of these blobs: more than the one small range before a claim. */
function downloaded(registry: FakeRegistry, layers: readonly Descriptor[]): string[] {
  const digests = new Set<string>(layers.map(({ digest }) => digest));
  return registry.log
    .filter((one) => one.method === "GET" && one.bytes > 512 && digests.has(one.path.split("/").at(-1)!))
    .map((one) => one.path);
}

for (const [mark, withEmptyLayer] of [
  ["artifactType", true],
  ["os.features", false],
] as const) {
  test(`an index with both forms (${mark}) starts from its Nydus form where policy trusts it`, async () => {
    await using place = await FakePlace.make();
    const { registry } = place;
    const repository = "merged/image";
    const oci = storeOciTwin(registry, repository, { withEmptyLayer });
    const nydus = nydusForm(registry, repository);
    const reference = storeIndex(registry, repository, { oci, nydus, others: others(registry, repository) }, { mark });
    const node = await place.node({ policy: "referrers", config: WITHOUT_BACKGROUND });
    await node.cri.pull(reference);
    const line = await imageLine(node, reference);
    assert.deepEqual([line.mode, line.reason], ["lazy", null]);
    // containerd knows the OCI manifest, and its layers
    assert.deepEqual(
      line.layers.map((layer) => layer.digest),
      oci.manifest.layers.map((layer) => layer.digest),
    );
    {
      await using _mount = await mountCriImage(node, reference, join(place.root, "tree"));
      const lines = await kernelLinesApart(join(place.root, "tree"), NO_CLOCK);
      assert.deepEqual(compareTreeLines(expectedNydusTree(), lines), []);
    }
    assert.deepEqual(
      downloaded(
        registry,
        oci.manifest.layers.filter((layer) => layer.size > 1000),
      ),
      [],
    );
  });
}

test("an index with both forms under policy bound: the OCI form, and the status says why", async () => {
  await using place = await FakePlace.make();
  const { registry } = place;
  const repository = "merged/bound";
  const parts = { oci: storeOciTwin(registry, repository), nydus: nydusForm(registry, repository) };
  const reference = storeIndex(registry, repository, parts);
  const node = await place.node({ policy: "bound" });
  await node.cri.pull(reference);
  await place.eventually(async () => {
    const line = await imageLine(node, reference);
    assert.deepEqual([line.mode, line.reason], ["eager", "index has a Nydus alternative, policy is bound"]);
  });
});

test("a Nydus form that is not sound costs the lazy start and nothing else", async () => {
  await using place = await FakePlace.make();
  const { registry } = place;
  const repository = "merged/unsound";
  const nydus = storeNydusImage(registry, {
    repository,
    variant: VARIANT,
    configType: MEDIA_TYPES.nydusConfig,
    bootstrap: (bytes) => bytes.subarray(0, 8192),
  });
  const reference = storeIndex(registry, repository, { oci: storeOciTwin(registry, repository), nydus });
  const node = await place.node({ policy: "referrers" });
  await node.cri.pull(reference);
  const line = await imageLine(node, reference);
  assert.equal(line.mode, "eager");
  assert.match(line.reason ?? "", /its Nydus form sha256:\S+ cannot be used: .*HS_/);
});

test("a chunk of the Nydus form that no source has right: an I/O error once, then the layers", async () => {
  await using place = await FakePlace.make();
  const { registry } = place;
  const repository = "merged/chunks";
  const nydus = storeNydusImage(registry, {
    repository,
    variant: VARIANT,
    configType: MEDIA_TYPES.nydusConfig,
    blob: (bytes, { layer }) => (layer === "layer-0" ? Buffer.from(bytes).fill(0x55, 4096, 600_000) : bytes),
  });
  const reference = storeIndex(registry, repository, { oci: storeOciTwin(registry, repository), nydus });
  const node = await place.node({ policy: "referrers", config: WITHOUT_BACKGROUND });
  const pod = await node.cri.runPod("chunks");
  await node.cri.pull(reference);
  const { script, printed } = reading("/data/mixed-3m");
  assert.match((await runIn(node, pod, reference, `${script} 2>&1`)).output, /Input\/output error/);
  assert.equal((await runIn(node, pod, reference, script)).output, printed);
  assert.match((await imageLine(node, reference)).reason ?? "", /its Nydus form is not used: \[HS_UNIT_DIGEST\]/);
});

test("what a lying index says of shared layers is seen by nobody but containers of its own image", async () => {
  await using place = await FakePlace.make();
  const { registry } = place;
  const node = await place.node({ policy: "referrers" });
  const { cri } = node;
  const pod = await cri.runPod("shared");
  const truth = "what the base layer really holds\n";
  const sha = `${createHash("sha256").update(truth).digest("hex")}  /opaque/new\n`;
  const base = layerOf([{ path: "opaque/" }, { path: "opaque/new", data: truth }]);
  const shell = { ...place.shell.layer };
  const top = layerOf([{ path: "etc/" }, { path: "etc/top", data: "lying\n" }]);
  // the liar's index pairs true OCI layers with a Nydus image of something else
  const lying = storeOciImage(registry, "liar/image", [shell, base, top]);
  const liar = storeIndex(registry, "liar/image", { oci: lying, nydus: nydusForm(registry, "liar/image") });
  await cri.pull(liar);
  assert.equal((await imageLine(node, liar)).mode, "lazy");
  {
    await using _mount = await mountCriImage(node, liar, join(place.root, "lie"));
    assert.deepEqual(
      compareTreeLines(expectedNydusTree(), await kernelLinesApart(join(place.root, "lie"), NO_CLOCK)),
      [],
    );
  }

  // another image upon the same base: containerd has its snapshots already
  const other = layerOf([{ path: "etc/" }, { path: "etc/top", data: "honest\n" }]);
  const honest = tagManifest(registry, "honest/other", storeOciImage(registry, "honest/other", [shell, base, other]));
  const script = "sha256sum /opaque/new; cat /etc/top";
  assert.deepEqual(await runShell(node, pod, honest, script), { exitCode: 0, output: `${sha}honest\n` });
  // an image that is the shared part alone
  const part = tagManifest(registry, "honest/part", storeOciImage(registry, "honest/part", [shell, base]));
  assert.deepEqual(await runShell(node, pod, part, "sha256sum /opaque/new"), { exitCode: 0, output: sha });
  // the very same manifest by another name: nothing of the liar's is given out any more
  const same = tagManifest(registry, "honest/same", storeOciImage(registry, "honest/same", [shell, base, top]));
  assert.deepEqual(await runShell(node, pod, same, script), { exitCode: 0, output: `${sha}lying\n` });
  assert.deepEqual(await runShell(node, pod, liar, script), { exitCode: 0, output: `${sha}lying\n` });
  assert.match((await imageLine(node, liar)).reason ?? "", /the image \S*honest\/same:1 has the same layers/);
});
