/**
 * Nydus images under a real containerd, from a registry in memory: the golden images of the real tools, lazily, with the tree that the real runtime shows; and what is wrong with them, as a
 * user meets it.
 */

import assert from "node:assert/strict";
import { join } from "node:path";
import { type TestContext, test } from "node:test";
import { gunzipSync } from "node:zlib";
import { compareTreeLines, type TreeLine } from "../../src/erofs/tree-lines.ts";
import { NYDUS_ANNOTATIONS } from "../../src/formats/nydus/ondisk.ts";
import type { CriPod } from "../../src/sandbox/cri-client.ts";
import { layerOf, layerOfTar } from "../../src/sandbox/image-builder.ts";
import { mountCriImage } from "../../src/sandbox/image-mount.ts";
import type { SandboxNode } from "../../src/sandbox/node.ts";
import { writeTar } from "../../src/sandbox/tar-writer.ts";
import type { FakeRegistry } from "../fakes/registry.ts";
import { expectedNydusTree, nydusBlob, nydusVariants } from "../suites/golden-nydus.ts";
import {
  type ChangeBlob,
  type NydusImageOptions,
  storeNydusImage,
  storeOciImage,
  storeOciTwin,
  tagManifest,
} from "../suites/nydus-image.ts";
import { kernelLinesApart } from "../tools/kernel-lines.ts";
import { allSealed, image as imageLine, layerMounts } from "./daemon-status.ts";
import { FakePlace, headstartStatus, runShell } from "./fake-place.ts";
import { BUSYBOX, reading, runIn } from "./nydus-place.ts";

/** Nothing in a golden tree is that new. */
const NO_CLOCK = 10n ** 18n * 4n;
/** Blobs of these are in the repository, and they have all layers. */
const VARIANTS = [
  "v6-zstd-1m",
  "v6-lz4-64k-sha256",
  "v6-zstd-1m-batch",
  "v6-chunkdict",
  "v6-zran",
  "v6-zran-multi",
] as const;

/** Blobs and original layers of a variant: what its data are in. */
function stored(variant: string): Set<string> {
  const { layers, original } = nydusVariants[variant]!;
  return new Set([...Object.values(layers), ...Object.values(original ?? {})].map((hex) => `sha256:${hex}`));
}

/** Bytes of these blobs that were fetched from the repository. */
function fetched(registry: FakeRegistry, repository: string, variant: string): number {
  return registry.log
    .filter((one) => one.method === "GET" && one.path.startsWith(`/v2/${repository}/blobs/`))
    .filter((one) => stored(variant).has(one.path.split("/").at(-1)!))
    .reduce((sum, one) => sum + one.bytes, 0);
}

async function tree(node: SandboxNode, place: FakePlace, reference: string, name: string): Promise<TreeLine[]> {
  await using _mount = await mountCriImage(node, reference, join(place.root, name));
  return await kernelLinesApart(join(place.root, name), NO_CLOCK);
}

test("images of the real tools are claimed without their data, show the real runtime's tree, and are whole in the end", async (t) => {
  await using place = await FakePlace.make();
  const node = await place.node({ policy: "bound", config: { fetch: { background: false } } });
  const expected = expectedNydusTree();
  for (const variant of VARIANTS) {
    await t.test(variant, async (sub) => {
      const repository = `golden/${variant}`;
      const reference = tagManifest(
        place.registry,
        repository,
        storeNydusImage(place.registry, { repository, variant }),
      );
      await node.cri.pull(reference);
      const { mode, reason } = await imageLine(node, reference);
      assert.deepEqual({ mode, reason }, { mode: "lazy", reason: null });
      const all = [...stored(variant)].reduce((sum, digest) => sum + nydusBlob(digest.slice(7))!.byteLength, 0);
      const before = fetched(place.registry, repository, variant);
      sub.diagnostic(`${before} of ${all} bytes of its blobs before the first read`);
      // one small read of each, and chunk arrays
      assert.ok(before < all / 10);
      const lines = await tree(node, place, reference, `tree-${variant}`);
      assert.deepEqual(compareTreeLines(expected, lines), []);
      // chunks that another image has are copied, not fetched
      if (variant === VARIANTS[0]) assert.ok(fetched(place.registry, repository, variant) > all / 2);
    });
  }
});

interface Case {
  readonly id: string;
  readonly what: string;
  readonly variant?: string;
  readonly image: Partial<NydusImageOptions>;
  readonly reason: RegExp;
}

const layerZero =
  (change: (bytes: Buffer) => Uint8Array | null, original = false): ChangeBlob =>
  (bytes, { layer, isOriginal }) =>
    layer === "layer-0" && isOriginal === original ? change(bytes) : bytes;

/** Where the extended superblock has the offset of the blob table. */
const BLOB_TABLE_OFFSET = 1152 + 8;

const CASES: readonly Case[] = [
  {
    id: "N1",
    what: "the bootstrap is truncated",
    image: { bootstrap: (bytes) => bytes.subarray(0, bytes.byteLength >> 1) },
    reason: /HS_NYDUS_INVALID|HS_TRUNCATED/,
  },
  {
    id: "N3",
    what: "the blob table lies far outside of the bootstrap",
    image: {
      bootstrap: (bytes) => {
        bytes.writeBigUInt64LE(2n ** 40n, BLOB_TABLE_OFFSET);
        return bytes;
      },
    },
    reason: /HS_NYDUS_INVALID/,
  },
  { id: "N25", what: "the bootstrap is no bootstrap", image: { bootstrap: () => Buffer.alloc(9000) }, reason: /magic/ },
  {
    id: "N26",
    what: "the bootstrap names a blob that the manifest does not bind",
    image: {
      manifest: (manifest) => {
        const [first, second, ...rest] = manifest.layers;
        return { ...manifest, layers: [{ ...first!, digest: second!.digest, size: second!.size }, second!, ...rest] };
      },
    },
    reason: /is no layer of the manifest/,
  },
  {
    id: "N26",
    what: "a second layer has the bootstrap's mark",
    image: {
      manifest: (manifest) => ({
        ...manifest,
        layers: manifest.layers.map((layer) => ({
          ...layer,
          annotations: { ...layer.annotations, [NYDUS_ANNOTATIONS.bootstrap]: "true" },
        })),
      }),
    },
    reason: /second bootstrap/,
  },
  { id: "N26", what: "a blob is not there", image: { blob: layerZero(() => null) }, reason: /HS_BLOB_NOT_FOUND/ },
  {
    id: "N29",
    what: "the original layer of a ref is gone",
    variant: "v6-zran",
    image: { blob: layerZero(() => null, true) },
    reason: /original layer sha256:\S+ cannot be read/,
  },
  {
    id: "N29",
    what: "the original layer of a ref has another length",
    variant: "v6-zran",
    image: { blob: layerZero((bytes) => bytes.subarray(0, bytes.byteLength - 7), true) },
    reason: /original layer sha256:\S+ cannot be read/,
  },
];

const NEW = reading("/opaque/new");

async function runCase(t: TestContext, at: { place: FakePlace; node: SandboxNode; pod: CriPod }, one: Case, n: number) {
  const { place, node, pod } = at;
  const { registry } = place;
  const variant = one.variant ?? "v6-zstd-1m";
  const alone = `bad/${n}`;
  // a chain of its own: what containerd knows it does not ask for
  const options = { variant, ...one.image, beside: String(n) };
  const bad = tagManifest(registry, alone, storeNydusImage(registry, { ...options, repository: alone }));
  await assert.rejects(node.cri.pull(bad), one.reason);
  const refused = await imageLine(node, bad);
  assert.equal(refused.mode, "unclaimed");
  assert.match(refused.reason ?? "", one.reason);
  // what a ref lacks its OCI form lacks too
  if (one.variant !== undefined) return;

  const repository = `${alone}-with-subject`;
  const subject = storeOciTwin(registry, repository).descriptor;
  const manifest: NydusImageOptions["manifest"] = (made) => ({ ...(one.image.manifest?.(made) ?? made), subject });
  const image = storeNydusImage(registry, { ...options, repository, manifest });
  const both = tagManifest(registry, repository, image);
  await node.cri.pull(both);
  assert.deepEqual(await runIn(node, pod, both, NEW.script), { exitCode: 0, output: NEW.printed });
  const line = await imageLine(node, both);
  t.diagnostic(line.reason ?? "");
  assert.match(line.reason ?? "", /stands in \(subject\)/);
  assert.match(line.reason ?? "", one.reason);
}

test("a Nydus image that cannot be had is refused with the reason, or its OCI form stands in", async (t) => {
  await using place = await FakePlace.make();
  const node = await place.node({ policy: "bound" });
  const pod = await node.cri.runPod("bad");
  for (const [n, one] of CASES.entries()) {
    await t.test(`${one.id}: ${one.what}`, (sub) => runCase(sub, { place, node, pod }, one, n));
  }
});

test("an image's OCI form that stands in is not given to another image of the same bootstrap", async () => {
  await using place = await FakePlace.make();
  const { registry } = place;
  const node = await place.node({ policy: "bound" });
  const pod = await node.cri.runPod("stands-in");
  const repository = "evil/image";
  const lie = layerOf([{ path: "opaque/" }, { path: "opaque/new", data: "a lie\n" }]);
  const subject = storeOciImage(registry, repository, [place.shell.layer, lie]).descriptor;
  // sound, but for a blob that its registry does not have: so that the OCI form stands in
  const evil = storeNydusImage(registry, {
    repository,
    variant: "v6-zstd-1m",
    blob: layerZero(() => null),
    manifest: (manifest) => ({ ...manifest, subject }),
  });
  const bad = tagManifest(registry, repository, evil);
  await node.cri.pull(bad);
  assert.equal((await runIn(node, pod, bad, "cat /opaque/new")).output, "a lie\n");

  const honest = storeNydusImage(registry, { repository: "honest/image", variant: "v6-zstd-1m" });
  const good = tagManifest(registry, "honest/image", honest);
  await node.cri.pull(good);
  for (const image of [good, bad])
    assert.deepEqual(await runIn(node, pod, image, NEW.script), { exitCode: 0, output: NEW.printed });
});

test("a layer whose plain tar another image has named as a Nydus blob of its own is not lost to images that have it", async () => {
  await using place = await FakePlace.make();
  const { registry } = place;
  const node = await place.node({ policy: "bound" });
  const pod = await node.cri.runPod("blobs");
  const tar = writeTar([{ path: "base/" }, { path: "base/file", data: "of the base" }]);
  const shell = gunzipSync(place.shell.layer.source as Buffer);
  // the chain of the honest image's two lowest layers, claimed as blobs: snapshots that hold nothing
  const evil = storeNydusImage(registry, { repository: "evil/named", variant: "v6-zstd-1m", further: [tar, shell] });
  await node.cri.pull(tagManifest(registry, "evil/named", evil));
  const top = layerOf([{ path: "top/" }, { path: "top/file", data: "of the top" }]);
  for (const layers of [
    [place.shell.layer, layerOfTar(tar), top],
    [place.shell.layer, layerOfTar(tar)],
    [place.shell.layer],
  ]) {
    const repository = `honest/${layers.length}`;
    const honest = tagManifest(registry, repository, storeOciImage(registry, repository, layers));
    const script = "cat /base/file; cat /top/file";
    const { output } = await runShell(node, pod, honest, `${script} 2>/dev/null`);
    assert.equal(
      output.replaceAll(/cat: .*\n/g, ""),
      ["", "of the base", "of the baseof the top"][layers.length - 1],
      repository,
    );
  }
});

test("N14: a chunk that comes with other bytes is an I/O error with a reason, never other bytes; new containers get the OCI form if there is one", async () => {
  await using place = await FakePlace.make();
  const { registry } = place;
  const node = await place.node({ policy: "bound", config: { fetch: { background: false } } });
  const pod = await node.cri.runPod("lies");
  const files = expectedNydusTree().filter(({ type, size }) => type === "reg" && size! > 0);
  const listed = files.map(({ path }) => `'${path}'`).filter((path) => /^'[\x21-\x26\x28-\x7e]+'$/.test(path));
  const script = `for f in ${listed.join(" ")}; do ${BUSYBOX} sha256sum "$f" 2>&1; done`;
  /** How many files could not be read; all others are right. */
  const failures = async (image: string) => {
    let failed = 0;
    for (const line of (await runIn(node, pod, image, script)).output.trim().split("\n")) {
      const hashed = /^([0-9a-f]{64}) {2}(\/.*)$/.exec(line);
      if (hashed === null) {
        assert.match(line, /I\/O error|Input\/output error/);
        failed++;
      } else assert.equal(hashed[1], files.find(({ path }) => path === hashed[2])?.sha256, line);
    }
    return failed;
  };
  for (const withTwin of [false, true]) {
    const repository = `bad/chunks-${withTwin}`;
    const subject = withTwin ? storeOciTwin(registry, repository).descriptor : undefined;
    const image = storeNydusImage(registry, {
      repository,
      variant: withTwin ? "v6-lz4-64k-sha256" : "v6-zstd-1m",
      // the data part begins the blob; all other parts stay as they are
      blob: layerZero((bytes) => Buffer.from(bytes).fill(0x55, 4096, 600_000)),
      manifest: (manifest) => (subject === undefined ? manifest : { ...manifest, subject }),
    });
    const reference = tagManifest(registry, repository, image);
    await node.cri.pull(reference);
    const failed = await failures(reference);
    assert.ok(failed > 0 && failed < listed.length, `${failed} of ${listed.length}`);
    assert.match((await imageLine(node, reference)).reason ?? "", /HS_UNIT_DIGEST/);
    assert.equal((await failures(reference)) === 0, withTwin);
  }
  const { layers } = await headstartStatus(node);
  const digest = `sha256:${nydusVariants["v6-zstd-1m"]!.layers["layer-0"]}`;
  assert.match(layers.find((row) => row.digest === digest)?.reason ?? "", /HS_UNIT_DIGEST/);
});

test("containers of a Nydus image share one read-only tree; removed, its data go blob by blob", async () => {
  await using place = await FakePlace.make();
  const node = await place.node({ policy: "bound" });
  const { cri } = node;
  const pod = await cri.runPod("shared");
  const references = (["v6-zstd-1m", "v6-chunkdict"] as const).map((variant) => {
    const repository = `share/${variant}`;
    return tagManifest(place.registry, repository, storeNydusImage(place.registry, { repository, variant }));
  });
  const [one, two] = references as [string, string];
  for (const reference of references) {
    await cri.pull(reference);
    const { exitCode, output } = await runIn(node, pod, reference, "echo hi > /written && cat /written");
    assert.deepEqual({ exitCode, output }, { exitCode: 0, output: "hi\n" });
  }
  const lines = await allSealed(node);
  // layers 0 and 2 are the same blobs in both
  const blob = (variant: string, layer: string) => `sha256:${nydusVariants[variant]!.layers[layer]}`;
  for (const layer of ["layer-0", "layer-2"])
    assert.equal(lines.filter((line) => line.digest === blob("v6-zstd-1m", layer)).length, 1, layer);
  // whole: new containers are the kernel's alone
  await place.eventually(async () => {
    await runIn(node, pod, one, ":");
    assert.deepEqual(layerMounts(node).overFuse, []);
  });
  await cri.removeImage(two);
  await place.eventually(async () => {
    const left = (await headstartStatus(node)).layers.map((row) => row.digest);
    assert.ok(!left.includes(blob("v6-chunkdict", "layer-1")), "the blob of the removed image alone");
    assert.ok(left.includes(blob("v6-zstd-1m", "layer-0")), "a blob that the other image needs");
  });
  assert.equal((await runIn(node, pod, one, NEW.script)).exitCode, 0);
  await cri.removePod(pod);
  await cri.removeImage(one);
  await place.eventually(async () => {
    const left = (await headstartStatus(node)).layers.map((row) => row.digest);
    for (const hex of Object.values(nydusVariants["v6-zstd-1m"]!.layers)) assert.ok(!left.includes(`sha256:${hex}`));
  });
});

test("ctr of containerd 1.6 unpacks by itself, and says that it cannot", async () => {
  await using place = await FakePlace.make();
  const node = await place.node({ policy: "bound" });
  const repository = "ctr/image";
  const image = storeNydusImage(place.registry, { repository, variant: "v6-zstd-1m" });
  const reference = tagManifest(place.registry, repository, image);
  await assert.rejects(node.ctr.pull(reference, { snapshotter: "headstart" }), /no processor for media-type/);
});
