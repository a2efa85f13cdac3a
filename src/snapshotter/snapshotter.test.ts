import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import {
  chownSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type TestContext, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { FakeLayerProvider } from "../../test/fakes/layer-provider.ts";
import { systemClock } from "../base/clock.ts";
import { chainIDs, sha256 } from "../base/digest.ts";
import { type ErrorCode, HeadstartError, isHeadstartError } from "../base/errors.ts";
import type { Mount } from "./mounts.ts";
import { openSnapshotter, type Snapshotter, type SnapshotterOptions } from "./snapshotter.ts";

interface Place {
  readonly root: string;
  readonly provider: FakeLayerProvider;
  open(options?: Partial<SnapshotterOptions>): Promise<Snapshotter>;
}

function place(t: TestContext): Place {
  const root = mkdtempSync(join(tmpdir(), "snapshotter-"));
  const provider = new FakeLayerProvider(join(root, "layers"));
  const opened: Snapshotter[] = [];
  t.after(async () => {
    for (const snapshotter of opened) await snapshotter[Symbol.asyncDispose]();
    rmSync(root, { recursive: true, force: true });
  });
  return {
    root,
    provider,
    async open(options = {}) {
      const snapshotter = await openSnapshotter({ root, provider, quietMs: 0, ...options });
      opened.push(snapshotter);
      return snapshotter;
    },
  };
}

async function until(condition: () => boolean): Promise<void> {
  const deadline = Date.now() + 60_000;
  while (!condition()) {
    assert.ok(Date.now() < deadline, "not within a minute");
    await sleep(5);
  }
}

const digest = (text: string) => sha256(Buffer.from(text));
const [C0, C1, C2] = chainIDs([digest("0"), digest("1"), digest("2")]) as readonly string[] as readonly [
  string,
  string,
  string,
];
const REF = "containerd.io/snapshot.ref";
const labels = (target: string) => ({
  [REF]: target,
  "containerd.io/snapshot/cri.manifest-digest": digest("manifest"),
});
const rejects = (code: ErrorCode, work: Promise<unknown>) =>
  assert.rejects(work, (error) => {
    assert.ok(isHeadstartError(error, code), String(error));
    return true;
  });

/** As containerd's metadata layer does it: Prepare, and when the target exists, look for it. Returns the backend's name. */
async function claim(snapshotter: Snapshotter, target: string, parent: string, namespace = "k8s.io"): Promise<string> {
  const key = `${namespace}/1/extract-${Math.random()} ${target}`;
  await rejects("HS_SNAPSHOT_EXISTS", snapshotter.prepare({ key, parent, labels: labels(target) }, { namespace }));
  const filter = `labels."${REF}"==${target},parent==${JSON.stringify(parent)}`;
  const [found] = [...snapshotter.list([filter])].flat();
  assert.equal(found?.kind, "committed");
  assert.equal(found.labels[REF], target);
  assert.equal(found.parent, parent);
  return found.name;
}

/** As the unpacker does it when it got mounts. */
async function unpack(snapshotter: Snapshotter, target: string, parent: string): Promise<readonly Mount[]> {
  const key = `k8s.io/1/extract-${Math.random()} ${target}`;
  const mounts = await snapshotter.prepare({ key, parent, labels: labels(target) });
  snapshotter.commit({ name: `k8s.io/2/${target}`, key, labels: labels(target), parent: "" });
  return mounts;
}

const lowerdir = (mounts: readonly Mount[]) =>
  mounts[0]!.options
    .find((option) => option.startsWith("lowerdir="))
    ?.slice("lowerdir=".length)
    .split(":");

test("a claimed image: every layer exists at once, and a container stands upon the provider's directories", async (t) => {
  const { provider, root, open } = place(t);
  const snapshotter = await open();
  const layers = [provider.addLayer((d) => chownSync(d, 7, 8)), provider.addLayer((d) => chownSync(d, 5, 6))];
  provider.decide = (request) => ({ kind: "lazy", layer: layers[request.parents.length]! });
  const first = await claim(snapshotter, C0, "");
  const second = await claim(snapshotter, C1, first);
  assert.deepEqual(
    provider.offers.map(({ parents, target, namespace }) => ({ parents, target, namespace })),
    [
      { parents: [], target: C0, namespace: "k8s.io" },
      { parents: [layers[0]], target: C1, namespace: "k8s.io" },
    ],
  );
  assert.deepEqual(readdirSync(join(root, "snapshots")), []);
  const mounts = await snapshotter.prepare({ key: "k8s.io/3/container", parent: second, labels: {} });
  assert.deepEqual(lowerdir(mounts), [join(root, "layers/2"), join(root, "layers/1")]);
  const { id } = snapshotter.stat("k8s.io/3/container");
  assert.deepEqual([...provider.owners.keys()], [String(id)]);
  const upper = statSync(join(root, "snapshots", String(id), "fs"));
  assert.deepEqual([upper.uid, upper.gid, upper.mode & 0o7777], [5, 6, 0o755]);
  assert.deepEqual(await snapshotter.mounts("k8s.io/3/container"), mounts);
  snapshotter.remove("k8s.io/3/container");
  await snapshotter.cleanup();
  assert.deepEqual(provider.released, [String(id)]);
  assert.deepEqual([...provider.layers.keys()], layers, "layers of committed snapshots are in use");
  for (const name of [second, first]) snapshotter.remove(name);
  await snapshotter.cleanup();
  assert.deepEqual([...provider.layers.keys()], []);
});

test("a declined layer is an ordinary directory, with the reason in the status", async (t) => {
  const { root, open } = place(t);
  const snapshotter = await open();
  assert.deepEqual(await unpack(snapshotter, C0, ""), [
    { type: "bind", source: join(root, "snapshots/1/fs"), options: ["rw", "rbind"] },
  ]);
  const [status] = snapshotter.status();
  assert.match(status!.reason!, /^the fake provider has no layers; .*cri\.image-ref/);
  assert.equal(status!.layer, null);
});

test("a provider that throws, hangs or ignores its signal is a no, never a failed pull", async (t) => {
  const { provider, open } = place(t);
  const snapshotter = await open({ offerTimeoutMs: 50 });
  provider.decide = () => {
    throw new HeadstartError("HS_MANIFEST", { what: "the manifest is odd" });
  };
  await unpack(snapshotter, C0, "");
  provider.decide = () => new Promise(() => undefined);
  await unpack(snapshotter, C1, `k8s.io/2/${C0}`);
  const reasons = snapshotter.status().map(({ reason }) => reason);
  assert.match(reasons[0]!, /the manifest is odd/);
  assert.match(reasons[1]!, /no answer within 50 ms/);
});

test("labels that cannot be true are not even offered", async (t) => {
  const { provider, open } = place(t);
  const snapshotter = await open();
  await snapshotter.prepare({ key: "k", parent: "", labels: { [REF]: "not a digest" } });
  assert.deepEqual(provider.offers, []);
  assert.match(snapshotter.status()[0]!.reason!, /not a digest/);
});

test("plain layers below and ours above are mixed in one chain", async (t) => {
  const { provider, root, open } = place(t);
  const snapshotter = await open();
  await unpack(snapshotter, C0, "");
  const layer = provider.addLayer();
  provider.decide = () => ({ kind: "eager", layer });
  const second = await claim(snapshotter, C1, `k8s.io/2/${C0}`);
  provider.decide = () => ({ kind: "no", reason: "no" });
  assert.deepEqual(lowerdir(await unpack(snapshotter, C2, second)), [
    join(root, "layers/1"),
    join(root, "snapshots/1/fs"),
  ]);
  const mounts = await snapshotter.view({ key: "v", parent: `k8s.io/2/${C2}`, labels: {} });
  assert.equal(lowerdir(mounts)?.length, 3);
  assert.deepEqual(provider.offers.at(-1)!.parents, [null, layer]);
  assert.deepEqual(
    [...provider.owners.keys()],
    [String(snapshotter.stat("v").id)],
    "an unpacking lets go at its commit",
  );
});

test("the provider is told whether a layer is unpacked upon a chain or a container runs on it", async (t) => {
  const { provider, open } = place(t);
  const snapshotter = await open();
  const layer = provider.addLayer();
  provider.decide = (request) =>
    request.target === C0 ? { kind: "lazy", layer } : { kind: "no", reason: "the registry is away" };
  const told: (boolean | undefined)[] = [];
  const { lowers } = provider;
  provider.lowers = async (owner, chain, options) => {
    told.push(options.isExtraction);
    return lowers.call(provider, owner, chain, options);
  };
  const first = await claim(snapshotter, C0, "");
  const key = "k8s.io/1/extract";
  await snapshotter.prepare({ key, parent: first, labels: labels(C1) });
  await snapshotter.mounts(key);
  await snapshotter.prepare({ key: "k8s.io/3/container", parent: first, labels: {} });
  await snapshotter.view({ key: "k8s.io/4/view", parent: first, labels: {} });
  assert.deepEqual(told, [true, true, false, false]);
});

test("what nobody can unpack is not left to containerd: the pull fails with the reason, and leaves nothing", async (t) => {
  const { provider, open } = place(t);
  const snapshotter = await open();
  const prepare = (more: Readonly<Record<string, string>>) =>
    snapshotter.prepare({ key: "k8s.io/1/extract-1 x", parent: "", labels: { ...labels(C0), ...more } });
  provider.decide = () => ({ kind: "impossible", reason: "its blob is gone" });
  await assert.rejects(prepare({}), { code: "HS_SNAPSHOT_NOT_UNPACKED", message: /its blob is gone/ });
  // a "no" for part of a Nydus image, as its annotations say, is the same
  provider.decide = () => ({ kind: "no", reason: "no image labels" });
  for (const name of ["nydus-blob", "nydus-bootstrap"]) {
    await assert.rejects(prepare({ [`containerd.io/snapshot/${name}`]: "true" }), {
      code: "HS_SNAPSHOT_NOT_UNPACKED",
      message: /no image labels/,
    });
  }
  assert.deepEqual([...snapshotter.list([])].flat(), []);
});

test("two namespaces share a claim with the same parent, and have their own upon other parents", async (t) => {
  const { provider, open } = place(t);
  const snapshotter = await open();
  const layer = provider.addLayer();
  for (const namespace of ["a", "b"]) {
    await snapshotter.prepare({ key: `${namespace}/1/x`, parent: "", labels: {} });
    snapshotter.commit({ name: `${namespace}/2/${C0}`, key: `${namespace}/1/x`, labels: {}, parent: "" });
  }
  provider.decide = () => ({ kind: "lazy", layer });
  const inA = await claim(snapshotter, C1, `a/2/${C0}`, "a");
  const inB = await claim(snapshotter, C1, `b/2/${C0}`, "b");
  assert.notEqual(inA, inB);
  assert.equal(await claim(snapshotter, C1, `b/2/${C0}`, "c"), inB);
  const alone = await claim(snapshotter, C0, "", "a");
  assert.equal(await claim(snapshotter, C0, "", "b"), alone);
});

test("many Prepares of one target at once make one snapshot", async (t) => {
  const { provider, open } = place(t);
  const snapshotter = await open();
  let running = 0;
  let most = 0;
  provider.decide = async () => {
    most = Math.max(most, ++running);
    await sleep(2);
    running--;
    return { kind: "lazy", layer: provider.layers.size === 0 ? provider.addLayer() : 1 };
  };
  const names = await Promise.all(Array.from({ length: 20 }, (_, i) => claim(snapshotter, C0, "", `ns${i % 2}`)));
  assert.equal(new Set(names).size, 1);
  assert.equal(snapshotter.status().length, 1);
  assert.equal(most, 1, "offers of one image come one after the other");
});

test("many Prepares of one key at once: one wins, the others are told that it exists", async (t) => {
  const { open } = place(t);
  const snapshotter = await open();
  const results = await Promise.allSettled(
    Array.from({ length: 10 }, () => snapshotter.prepare({ key: "k", parent: "", labels: {} })),
  );
  assert.equal(results.filter(({ status }) => status === "fulfilled").length, 1);
});

test("when layers cannot be mounted the snapshot is as if it had not been, and its key is free", async (t) => {
  const { provider, root, open } = place(t);
  const snapshotter = await open();
  const layer = provider.addLayer();
  provider.decide = () => ({ kind: "lazy", layer });
  const name = await claim(snapshotter, C0, "");
  provider.beforeLowers = () => Promise.reject(new HeadstartError("HS_REGISTRY_UNAVAILABLE", { what: "down" }));
  await rejects("HS_REGISTRY_UNAVAILABLE", snapshotter.prepare({ key: "k", parent: name, labels: {} }));
  await rejects("HS_SNAPSHOT_NOT_FOUND", snapshotter.mounts("k"));
  await snapshotter.cleanup();
  assert.deepEqual(readdirSync(join(root, "snapshots")), []);
  provider.beforeLowers = async () => undefined;
  await snapshotter.prepare({ key: "k", parent: name, labels: {} });
});

test("a caller that gives up ends the wait, and what arrives later is let go", async (t) => {
  const { provider, open } = place(t);
  const snapshotter = await open();
  const layer = provider.addLayer();
  provider.decide = () => ({ kind: "lazy", layer });
  const name = await claim(snapshotter, C0, "");
  const asked = Promise.withResolvers<void>();
  const arrival = Promise.withResolvers<void>();
  // this provider does not heed its signal
  provider.lowers = async (owner, chain) => {
    asked.resolve();
    await arrival.promise;
    provider.owners.set(owner, chain);
    return ["/nowhere"];
  };
  const caller = new AbortController();
  const prepared = snapshotter.prepare({ key: "k", parent: name, labels: {} }, { signal: caller.signal });
  await asked.promise;
  caller.abort(new HeadstartError("HS_CANCELED", { what: "gone" }));
  await rejects("HS_CANCELED", prepared);
  assert.equal(snapshotter.status().length, 1);
  arrival.resolve();
  await until(() => provider.released.length > 1);
  assert.deepEqual([...provider.owners.keys()], []);
});

test("a snapshot that is removed while its mounts are made is let go", async (t) => {
  const { provider, open } = place(t);
  const snapshotter = await open();
  const layer = provider.addLayer();
  provider.decide = () => ({ kind: "lazy", layer });
  const name = await claim(snapshotter, C0, "");
  await snapshotter.prepare({ key: "k", parent: name, labels: {} });
  provider.beforeLowers = () => sleep(10);
  const mounts = snapshotter.mounts("k");
  snapshotter.remove("k");
  await rejects("HS_SNAPSHOT_NOT_FOUND", mounts);
  assert.deepEqual([...provider.owners.keys()], []);
});

test("an offer is not disturbed by a collection of layers", async (t) => {
  const { provider, open } = place(t);
  let nowMs = 0;
  const snapshotter = await open({ quietMs: 300, clock: { ...systemClock, monotonic: () => nowMs } });
  const layer = provider.addLayer();
  const asked = Promise.withResolvers<void>();
  const decision = Promise.withResolvers<void>();
  provider.decide = async () => {
    asked.resolve();
    await decision.promise;
    return { kind: "lazy", layer };
  };
  const collected = provider.collections.length;
  const claimed = claim(snapshotter, C0, "");
  await asked.promise;
  nowMs += 1000;
  await snapshotter.cleanup();
  assert.equal(provider.collections.length, collected);
  decision.resolve();
  await claimed;
  nowMs += 299;
  await snapshotter.cleanup();
  assert.equal(provider.collections.length, collected, "the image's other layers may be on their way");
  // it is made up for later
  nowMs += 1;
  await until(() => provider.collections.length > collected);
  assert.ok(provider.layers.has(layer));
});

test("removing never fails because something is mounted or busy: it is parked and tried again", async (t) => {
  const { provider, root, open } = place(t);
  const snapshotter = await open();
  await snapshotter.prepare({ key: "k", parent: "", labels: {} });
  const inside = join(root, "snapshots/1/fs/mnt");
  mkdirSync(inside);
  writeFileSync(join(root, "layers-precious"), "kept");
  execFileSync("mount", ["--bind", root, inside]);
  try {
    snapshotter.remove("k");
    await snapshotter.cleanup();
    assert.ok(existsSync(inside));
    assert.ok(existsSync(join(root, "layers-precious")));
  } finally {
    execFileSync("umount", [inside]);
  }
  await snapshotter.cleanup();
  assert.deepEqual(readdirSync(join(root, "snapshots")), []);
  const layer = provider.addLayer();
  provider.decide = () => ({ kind: "lazy", layer });
  const name = await claim(snapshotter, C0, "");
  await snapshotter.prepare({ key: "k", parent: name, labels: {} });
  let refused = 0;
  provider.beforeRelease = () => {
    refused++;
    throw new HeadstartError("HS_MOUNT", { what: "EBUSY" });
  };
  snapshotter.remove("k");
  await until(() => refused > 0);
  // the refusal has come to whoever asked
  await new Promise((resolve) => setImmediate(resolve));
  provider.beforeRelease = () => undefined;
  await snapshotter.cleanup();
  assert.deepEqual([...provider.owners.keys()], []);
});

test("usage: a layer's from the provider, a view's nothing, a directory's measured and then remembered", async (t) => {
  const { provider, root, open } = place(t);
  const snapshotter = await open();
  const layer = provider.addLayer();
  provider.decide = () => ({ kind: "lazy", layer });
  const name = await claim(snapshotter, C0, "");
  assert.deepEqual(await snapshotter.usage(name), await provider.usage(layer));
  await snapshotter.view({ key: "v", parent: name, labels: {} });
  assert.deepEqual(await snapshotter.usage("v"), { bytes: 0, inodes: 0 });
  await snapshotter.prepare({ key: "a", parent: "", labels: {} });
  const upper = join(root, "snapshots", String(snapshotter.stat("a").id), "fs");
  const empty = await snapshotter.usage("a");
  mkdirSync(join(upper, "d"));
  writeFileSync(join(upper, "d/f"), Buffer.alloc(100_000, 1));
  // a measure is kept for longer the more it cost, and on a busy machine it cost more
  let grown = empty;
  for (let round = 0; round < 600 && grown.inodes === empty.inodes; round++) {
    await sleep(100);
    grown = await snapshotter.usage("a");
  }
  assert.equal(grown.inodes, empty.inodes + 2);
  assert.ok(grown.bytes >= empty.bytes + 100_000);
  snapshotter.commit({ name: "c", key: "a", labels: {}, parent: "" });
  assert.deepEqual(await snapshotter.usage("c"), grown);
  rmSync(join(upper, "d/f"));
  assert.deepEqual(await snapshotter.usage("c"), grown);
  await rejects("HS_SNAPSHOT_NOT_FOUND", snapshotter.usage("a"));
});

test("a user-namespace container gets its own root's ids; upon layers only from a containerd that can map them", async (t) => {
  const { provider, root, open } = place(t);
  let version = "2.1.9";
  const snapshotter = await open({ containerdVersion: async () => version });
  const mapped = {
    "containerd.io/snapshot/uidmapping": "0:65536:65536",
    "containerd.io/snapshot/gidmapping": "0:131072:65536",
  };
  const mounts = await snapshotter.prepare({ key: "a", parent: "", labels: mapped });
  assert.ok(mounts[0]!.options.includes("uidmap=0:65536:65536"));
  const { uid, gid } = statSync(join(root, "snapshots/1/fs"));
  assert.deepEqual([uid, gid], [65536, 131072]);
  const layer = provider.addLayer();
  provider.decide = () => ({ kind: "lazy", layer });
  const name = await claim(snapshotter, C0, "");
  await rejects("HS_KERNEL_UNSUPPORTED", snapshotter.prepare({ key: "b", parent: name, labels: mapped }));
  version = "v2.3.4";
  assert.ok(
    (await snapshotter.prepare({ key: "b", parent: name, labels: mapped }))[0]!.options.includes(
      mounts[0]!.options[2]!,
    ),
  );
});

test("everything survives a restart; owners of mounts are taken up again", async (t) => {
  const { provider, open } = place(t);
  const layer = provider.addLayer();
  provider.decide = () => ({ kind: "lazy", layer });
  const before = await open();
  const name = await claim(before, C0, "");
  const mounts = await before.prepare({ key: "k", parent: name, labels: { a: "b" } });
  const rows = before.status();
  await before[Symbol.asyncDispose]();
  await rejects("HS_CANCELED", before.prepare({ key: "x", parent: "", labels: {} }));
  provider.owners.clear();
  const after = await open();
  assert.deepEqual(after.status(), rows);
  await until(() => provider.owners.size > 0);
  assert.deepEqual([...provider.owners.keys()], [String(after.stat("k").id)]);
  assert.deepEqual(await after.mounts("k"), mounts);
  assert.equal(await claim(after, C0, ""), name);
});

test("a missing directory breaks its snapshot and those above, nothing else; when it is back all is well", async (t) => {
  const { root, open } = place(t);
  const before = await open();
  await unpack(before, C0, "");
  await unpack(before, C1, `k8s.io/2/${C0}`);
  await before.prepare({ key: "sound", parent: "", labels: {} });
  await before[Symbol.asyncDispose]();
  renameSync(join(root, "snapshots/1"), join(root, "away"));
  mkdirSync(join(root, "snapshots/77/fs"), { recursive: true });
  const after = await open();
  assert.match(after.status()[0]!.broken!, /missing/);
  await rejects("HS_SNAPSHOT_BROKEN", after.view({ key: "v", parent: `k8s.io/2/${C1}`, labels: {} }));
  await after.mounts("sound");
  await after.cleanup();
  assert.deepEqual(readdirSync(join(root, "snapshots")).toSorted(), ["2", "3"]);
  // a broken snapshot is no target any more: the layer can be had again
  assert.equal((await unpackAs(after, "again")).length, 1);
  await after[Symbol.asyncDispose]();
  renameSync(join(root, "away"), join(root, "snapshots/1"));
  const restored = await open();
  assert.equal(restored.status()[0]!.broken, null);
  await restored.view({ key: "v", parent: `k8s.io/2/${C1}`, labels: {} });
});

async function unpackAs(snapshotter: Snapshotter, key: string): Promise<readonly Mount[]> {
  return snapshotter.prepare({ key, parent: "", labels: labels(C0) });
}

test("a layer that the provider has lost breaks its snapshot, and a new pull makes a new one", async (t) => {
  const { provider, open } = place(t);
  const lost = provider.addLayer();
  provider.decide = () => ({ kind: "lazy", layer: lost });
  const before = await open();
  const name = await claim(before, C0, "");
  await before[Symbol.asyncDispose]();
  provider.layers.delete(lost);
  const after = await open();
  await until(() => after.stat(name).broken !== null);
  assert.match(after.stat(name).broken!, /layer 1 is gone/);
  await rejects("HS_SNAPSHOT_BROKEN", after.prepare({ key: "k", parent: name, labels: {} }));
  const found = provider.addLayer();
  provider.decide = () => ({ kind: "lazy", layer: found });
  await rejects("HS_SNAPSHOT_EXISTS", after.prepare({ key: "e", parent: "", labels: labels(C0) }));
  const [, again] = after.status();
  assert.equal(again!.layer, found);
});

test("a root that cannot stand in mount options is refused", async (t) => {
  const { provider } = place(t);
  for (const root of ["relative", "/tmp/a:b", "/tmp/a,b", "/tmp/a b"]) {
    await rejects("HS_CONFIG", openSnapshotter({ root, provider }));
  }
});
