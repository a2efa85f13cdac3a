/**
 * The remote-snapshot protocol with the containerds themselves (1.6, 1.7, 2.1): layers that the provider has are never fetched, a declined image is pulled as ever, and both
 * namespaces of one containerd can have the same image. The provider's layers are plain directories.
 */

import assert from "node:assert/strict";
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type TestContext, test } from "node:test";
import { chainIDs } from "../../src/base/digest.ts";
import { Containerd } from "../../src/sandbox/containerd.ts";
import { layerOf, writeImage } from "../../src/sandbox/image-builder.ts";
import { Meter } from "../../src/sandbox/meter.ts";
import { pushImage } from "../../src/sandbox/push.ts";
import { Registry } from "../../src/sandbox/registry.ts";
import { CONTAINERD_VERSIONS, type ContainerdVersion } from "../../src/sandbox/tools.ts";
import type { OfferRequest } from "../../src/snapshotter/provider.ts";
import { mountThroughContainerd, type ServedSnapshotter, startSnapshotter } from "../fakes/snapshots-client.ts";

const FILES = ["lower", "middle", "upper"] as const;

interface Node {
  readonly ours: ServedSnapshotter;
  readonly containerd: Containerd;
  /** Digests of the image's layers that were asked for. */
  readonly fetched: () => Set<string>;
  readonly image: string;
  readonly digests: readonly string[];
  readonly chain: readonly string[];
  /** One layer of the provider for each of the image's. */
  readonly offer: (request: OfferRequest) => { kind: "lazy"; layer: number };
}

async function withNode(
  t: TestContext,
  version: ContainerdVersion,
  work: (node: Node) => Promise<void>,
): Promise<void> {
  const directory = mkdtempSync(join(tmpdir(), "hs-claim-"));
  t.after(() => rmSync(directory, { recursive: true, force: true }));
  const layout = join(directory, "layout");
  const layers = FILES.map((name) => layerOf([{ path: `${name}.txt`, data: `${name}\n` }]));
  await writeImage(layout, layers, { name: "claim" });
  await using registry = await Registry.start(join(directory, "registry"));
  await pushImage(layout, "claim", `${registry.host}/claim:1`);
  await using meter = await Meter.start(registry.host);
  await using ours = await startSnapshotter(join(directory, "h"), { quietMs: 500 });
  await using containerd = await Containerd.start({
    version,
    directory: join(directory, "c"),
    snapshotter: "headstart",
    proxy: { name: "headstart", address: ours.address, root: ours.root },
    sandboxImage: "test.local/pause:1",
    registries: [meter.host],
  });
  const provided = FILES.map((name) =>
    ours.provider.addLayer((path) => writeFileSync(join(path, `${name}.txt`), `${name}\n`)),
  );
  const digests: string[] = layers.map(({ descriptor }) => descriptor.digest);
  const mark = meter.mark();
  await work({
    ours,
    containerd,
    image: `${meter.host}/claim:1`,
    digests,
    chain: chainIDs(layers.map(({ diffID }) => diffID)),
    fetched: () => new Set(digests).intersection(new Set(meter.since(mark).list.map(({ target }) => target))),
    offer: (request) => ({ kind: "lazy", layer: provided[request.parents.length]! }),
  });
}

/** What a container of this namespace would see: the files' contents. */
async function readMounted(node: Node, namespace: string): Promise<string[]> {
  const target = mkdtempSync(join(node.ours.root, "m-"));
  const place = { namespace, snapshotter: "headstart", parent: node.chain.at(-1)!, target };
  await using _ = await mountThroughContainerd(node.containerd.places.socket, place);
  return readdirSync(target)
    .toSorted()
    .map((name) => readFileSync(join(target, name), "utf8").trim());
}

for (const version of CONTAINERD_VERSIONS) {
  test(`containerd ${version}: CRI's pull of a claimed image fetches no layer, and the image is whole`, async (t) => {
    await withNode(t, version, async (node) => {
      const { ours, containerd, image, digests } = node;
      ours.provider.decide = node.offer;
      await containerd.cri.pull(image);
      assert.deepEqual(node.fetched(), new Set());
      assert.deepEqual(
        ours.provider.offers.map(({ layerDigest, reference, namespace, manifestDigest }) => [
          layerDigest,
          reference,
          namespace,
          manifestDigest !== null,
        ]),
        digests.map((digest) => [digest, image, "k8s.io", true]),
      );
      assert.deepEqual(await readMounted(node, "k8s.io"), [...FILES]);
      await containerd.cri.removeImage(image);
      await waitUntil(() => ours.snapshotter.status().length === 0);
      await waitUntil(() => ours.provider.layers.size === 0);
    });
  });

  test(`containerd ${version}: a declined image is pulled as ever, with the reason in the status`, async (t) => {
    await withNode(t, version, async (node) => {
      const { ours, containerd, image, digests } = node;
      await containerd.cri.pull(image);
      assert.deepEqual(node.fetched(), new Set(digests));
      assert.deepEqual(
        ours.snapshotter.status().map(({ reason, layer }) => [layer, reason]),
        digests.map(() => [null, "the fake provider has no layers"]),
      );
      assert.deepEqual(await readMounted(node, "k8s.io"), [...FILES]);
    });
  });
}

test("containerd 2.1.9: ctr claims through the transfer service, in a second namespace too, and upon another parent", async (t) => {
  await withNode(t, "2.1.9", async (node) => {
    const { ours, containerd, image } = node;
    // the lowest layer is unpacked by containerd in either namespace: two parents of different names for the same chain
    ours.provider.decide = (request) =>
      request.parents.length === 0 ? { kind: "no", reason: "no" } : node.offer(request);
    for (const namespace of ["first", "second"]) {
      await containerd.ctr.in(namespace).pull(image, { snapshotter: "headstart" });
      assert.deepEqual(await readMounted(node, namespace), [...FILES]);
    }
    // views that containerd has removed stay with us until its garbage collection
    const committed = () => ours.snapshotter.status().filter(({ kind }) => kind === "committed");
    const made = committed();
    assert.equal(made.length, 2 * FILES.length, "the parents have other names, so each namespace has its own chain");
    ours.provider.decide = node.offer;
    await containerd.ctr.in("third").pull(image, { snapshotter: "headstart" });
    await containerd.ctr.in("fourth").pull(image, { snapshotter: "headstart" });
    assert.deepEqual(committed(), made, "upon the same parent a snapshot serves any namespace");
    await containerd.ctr.in("third").removeImage(image);
    assert.deepEqual(await readMounted(node, "fourth"), [...FILES]);
  });
});

async function waitUntil(condition: () => boolean): Promise<void> {
  const deadline = Date.now() + 60_000;
  while (!condition()) {
    assert.ok(Date.now() < deadline, "not within a minute");
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}
