import assert from "node:assert/strict";
import { test } from "node:test";
import { type ChainID, chainIDs, type DiffID, type Digest, sha256 } from "../base/digest.ts";
import type { Descriptor } from "../oci/descriptor.ts";
import { goIndex, goJson, goManifest } from "../oci/gojson.ts";
import { MEDIA_TYPES } from "../oci/media-types.ts";
import { PrivateChains } from "./private-chains.ts";
import type { Owner } from "./source.ts";

const NAMESPACE = "k8s.io";
const REPOSITORY = { by: "repository", reference: "registry.test/lying:1" } as const;
const diff = (name: string) => sha256(Buffer.from(name)) as DiffID;

/** containerd with images of these layers. */
class Containerd {
  readonly content = new Map<Digest, Uint8Array>();
  readonly records: { name: string; target: Descriptor }[] = [];
  lists = 0;
  readonly chains = new PrivateChains({
    names: {
      images: async ({ namespace }) => {
        assert.equal(namespace, NAMESPACE);
        this.lists++;
        return this.records;
      },
    },
    manifests: { read: async (digest) => this.content.get(digest) ?? null },
  });

  put(bytes: Uint8Array, mediaType: string): Descriptor {
    this.content.set(sha256(bytes), bytes);
    return { mediaType, digest: sha256(bytes), size: bytes.byteLength };
  }

  manifest(layers: readonly string[]): Descriptor {
    const config = { architecture: "amd64", os: "linux", rootfs: { type: "layers", diff_ids: layers.map(diff) } };
    return this.put(
      goManifest({
        mediaType: MEDIA_TYPES.ociManifest,
        config: this.put(Buffer.from(goJson(config)), MEDIA_TYPES.ociConfig),
        layers: layers.map((layer) => ({ mediaType: MEDIA_TYPES.ociLayer, digest: diff(layer), size: 1 })),
      }),
      MEDIA_TYPES.ociManifest,
    );
  }

  index(manifests: readonly Descriptor[]): Descriptor {
    return this.put(goIndex({ mediaType: MEDIA_TYPES.ociIndex, manifests }), MEDIA_TYPES.ociIndex);
  }

  async ask(layers: readonly string[], owner: Owner, namespace: string | null = NAMESPACE) {
    const chain = chainIDs(layers.map(diff)).at(-1) as ChainID;
    return (await this.chains.otherImage(chain, owner, { namespace }))?.name ?? null;
  }
}

test("an alternative that an index names is that index's alone", async () => {
  const containerd = new Containerd();
  const manifest = containerd.manifest(["base", "top"]);
  const absent = { mediaType: MEDIA_TYPES.ociManifest, digest: diff("another platform"), size: 7 };
  const index = containerd.index([manifest, absent]);
  containerd.records.push({ name: "registry.test/lying:1", target: index });
  containerd.records.push({ name: `sha256:${"0".repeat(64)}`, target: index });
  assert.equal(await containerd.ask(["base", "top"], { by: "index", digest: index.digest }), null);
  // an image with one layer in common is none of this chain's
  containerd.records.push({ name: "registry.test/other:1", target: containerd.manifest(["base", "more"]) });
  assert.equal(await containerd.ask(["base", "top"], { by: "index", digest: index.digest }), null);
  // the same manifest by another name
  containerd.records.push({ name: "registry.test/honest:1", target: manifest });
  assert.match(
    (await containerd.ask(["base", "top"], { by: "index", digest: index.digest })) ?? "",
    /registry\.test\/honest:1/,
  );
});

test("the same layers in another index withhold it too", async () => {
  const containerd = new Containerd();
  const index = containerd.index([containerd.manifest(["base"])]);
  containerd.records.push({ name: "registry.test/lying:1", target: index });
  containerd.records.push({
    name: "registry.test/honest:1",
    target: containerd.index([containerd.manifest(["base"]), containerd.manifest(["arm"])]),
  });
  assert.match((await containerd.ask(["base"], { by: "index", digest: index.digest })) ?? "", /honest/);
});

test("one that is attached in a repository is that repository's alone", async () => {
  const containerd = new Containerd();
  const manifest = containerd.manifest(["base"]);
  containerd.records.push({ name: "registry.test/lying:1", target: manifest });
  containerd.records.push({ name: `registry.test/lying@${manifest.digest}`, target: manifest });
  assert.equal(await containerd.ask(["base"], REPOSITORY), null);
  containerd.records.push({ name: "registry.test/honest:1", target: manifest });
  assert.match((await containerd.ask(["base"], REPOSITORY)) ?? "", /honest/);
});

test("one that a manifest names is that manifest's, by whatever name and index it came", async () => {
  const containerd = new Containerd();
  const manifest = containerd.manifest(["base"]);
  const owner = { by: "manifest", digest: manifest.digest } as const;
  containerd.records.push({ name: "registry.test/one:1", target: manifest });
  containerd.records.push({ name: "registry.test/two:1", target: containerd.index([manifest]) });
  assert.equal(await containerd.ask(["base"], owner), null);
  const same = containerd.manifest(["base"]);
  assert.equal(same.digest, manifest.digest);
  const config = containerd.put(
    Buffer.from(goJson({ architecture: "amd64", os: "linux", rootfs: { type: "layers", diff_ids: [diff("base")] } })),
    MEDIA_TYPES.ociConfig,
  );
  const other = goManifest({ mediaType: MEDIA_TYPES.ociManifest, config, layers: [] });
  containerd.records.push({ name: "registry.test/three:1", target: containerd.put(other, MEDIA_TYPES.ociManifest) });
  assert.equal(await containerd.ask(["base"], owner), "registry.test/three:1");
});

test("what cannot be found out withholds it", async () => {
  const containerd = new Containerd();
  await assert.rejects(containerd.ask(["base"], REPOSITORY, null), /namespace/);
  containerd.records.push({
    name: "registry.test/unreadable:1",
    target: { mediaType: MEDIA_TYPES.ociManifest, digest: diff("gone"), size: 3 },
  });
  await assert.rejects(containerd.ask(["base"], REPOSITORY), { code: "HS_NOT_FOUND" });
});
