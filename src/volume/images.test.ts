import assert from "node:assert/strict";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { buildImage } from "../../test/build-image.ts";
import { goIndex } from "../oci/gojson.ts";
import { LayoutWriter } from "../oci/layout.ts";
import { MEDIA_TYPES } from "../oci/media-types.ts";
import { hostPlatform } from "../oci/platform.ts";
import { parseSource } from "../oci/reference.ts";
import { normalizeName, openImage } from "./images.ts";
import type { ResolvedImage } from "./plan.ts";

const directory = mkdtempSync(join(tmpdir(), "headstart-images-"));
after(() => rmSync(directory, { recursive: true }));

async function resolve(source: string, names: readonly string[] = []): Promise<ResolvedImage> {
  await using opened = await openImage({ source: parseSource(source), names }, hostPlatform(), {});
  return opened.image;
}

test("an image of a layout has the whole name that stands there, by tag and by digest, and those that are given", async () => {
  const layout = join(directory, "named");
  const { digest } = await buildImage(layout, "ghcr.io/a/b:1", [[{ path: "a" }]]);
  const image = await resolve(`oci:${layout}:ghcr.io/a/b:1`, ["b:2", `b@${digest}`]);
  assert.deepEqual(image.names, [
    "docker.io/library/b:2",
    `docker.io/library/b@${digest}`,
    "ghcr.io/a/b:1",
    `ghcr.io/a/b@${digest}`,
  ]);
  assert.deepEqual(image.indexes, []);
  assert.equal(image.created, Date.parse("2024-01-01T00:00:00Z") / 1000);
});

test("an image that is called by a bare tag needs a name", async () => {
  const layout = join(directory, "bare");
  await buildImage(layout, "latest", [[{ path: "a" }]]);
  await assert.rejects(resolve(`oci:${layout}:latest`), { code: "HS_USAGE" });
  assert.deepEqual((await resolve(`oci:${layout}:latest`, ["host.example/x"])).names, ["host.example/x:latest"]);
  await assert.rejects(resolve(`oci:${layout}:latest`, ["Not A Name"]), { code: "HS_REFERENCE" });
});

test("an index in an index is kept with the way through both", async () => {
  const layout = join(directory, "nested");
  const manifest = await buildImage(layout, "plain", [[{ path: "a" }]]);
  await using writer = new LayoutWriter(layout, "nested", layout);
  const platform = hostPlatform();
  const index = (entry: object) =>
    Buffer.from(goIndex({ mediaType: MEDIA_TYPES.ociIndex, manifests: [entry as typeof manifest] }));
  const inner = await writer.pushManifest(index({ ...manifest, platform }), MEDIA_TYPES.ociIndex);
  const outer = await writer.pushManifest(index(inner), MEDIA_TYPES.ociIndex, "nested");
  await writer.finish();
  const image = await resolve(`oci:${layout}:nested`, ["x:1"]);
  assert.equal(image.target.digest, outer.digest);
  assert.deepEqual(
    image.indexes.map(({ descriptor, child }) => [descriptor.digest, child]),
    [
      [outer.digest, inner.digest],
      [inner.digest, manifest.digest],
    ],
  );
});

test("a name with a digest loses its tag, as containerd writes it", () => {
  const digest = `sha256:${"a".repeat(64)}`;
  assert.equal(normalizeName(`host/x:1@${digest}`), `docker.io/host/x@${digest}`);
  assert.equal(normalizeName("localhost:5000/x"), "localhost:5000/x:latest");
});
