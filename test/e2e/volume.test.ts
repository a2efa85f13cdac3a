/** A root that `volume build` made, under each real containerd: everything is there at its first start, stays over a forced collection, and starts with no registry. */

import assert from "node:assert/strict";
import { execFileSync, spawnSync } from "node:child_process";
import { chmodSync, chownSync, mkdirSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { compareTrees } from "../../src/sandbox/compare.ts";
import { containerdPlaces } from "../../src/sandbox/containerd-config.ts";
import { readCriLog } from "../../src/sandbox/cri-client.ts";
import { PAUSE_NAME } from "../../src/sandbox/pause.ts";
import { execute } from "../../src/sandbox/process.ts";
import { CONTAINERD_VERSIONS } from "../../src/sandbox/tools.ts";
import { isBucket } from "../../src/volume/bolt/ondisk.ts";
import { readBolt } from "../../src/volume/bolt/read.ts";
import { inspectRoot } from "../../src/volume/inspect.ts";
import { buildImage, shellLayer } from "../build-image.ts";
import { fsckExt4 } from "../tools/ext4-image.ts";
import { COMMAND, headstart, Place } from "./place.ts";

const CRI = "k8s.io";
const FIXTURE = join(import.meta.dirname, "../golden/fixture/oci");
const SNAPSHOTS = "io.containerd.snapshotter.v1.overlayfs/snapshots";

interface Built {
  readonly output: string;
  readonly images: readonly {
    readonly refs: readonly string[];
    readonly config: string;
    readonly layers: readonly { readonly chainID: string; readonly digest: string; readonly snapshotId: number }[];
  }[];
}

async function build(args: readonly string[]): Promise<Built> {
  return JSON.parse((await headstart(["volume", "build", ...args, "--json"])).stdout) as Built;
}

/** Images of every kind at the place's registry, as sources; and the names by which containerd shall know them. */
async function pushImages(place: Place) {
  const { layout } = place;
  const shell = await shellLayer();
  const layers = [
    [...shell, { path: "etc/motd", data: "from layer one\n" }, { path: "old/file", data: "x" }],
    [{ path: "etc/.wh.motd" }, { path: "old/.wh..wh..opq" }, { path: "usr/share/deep/file", data: "implied\n" }],
    [{ path: "etc/news", data: "from layer three\n" }],
  ];
  const command = ["/bin/sh", "-c", "cat /etc/news /usr/share/deep/file; ls /etc/motd /old 2>&1; exit 0"];
  await buildImage(layout, "shell", layers, { command });
  // shares its lowest layer with the first
  await buildImage(layout, "other", [layers[0]!, [{ path: "other", data: "other\n" }]], { command });
  const names = [
    await place.push(layout, "shell"),
    await place.push(layout, "other"),
    await place.push(FIXTURE, "gogz"),
    place.reference(PAUSE_NAME),
  ];
  const [shellImage, otherImage, fixtureImage] = names as [string, string, string, string];
  return { sources: names.map((name) => `docker://${name}`), shellImage, otherImage, fixtureImage };
}

type Images = Awaited<ReturnType<typeof pushImages>>;

/** Each layer below `root` is what the real containerd made of it. */
async function assertUnpacked(place: Place, built: Built, root: string, images: Images): Promise<void> {
  const reference = await place.node({ version: "1.7.24", name: "ref" });
  const startMs = Date.now() - 1000;
  for (const image of [images.shellImage, images.fixtureImage]) await reference.cri.pull(image);
  const unpacked = { startMs, endMs: Date.now() + 1000 };
  const { socket, root: theirRoot } = reference.containerd.places;
  const access = ["--containerd-address", socket, "--containerd-root", theirRoot];
  const source = `containerd:${images.fixtureImage}`;
  const again = await build([source, ...access, "--output", join(place.root, "x"), "--dry-run"]);
  assert.deepEqual(
    again.images[0]!.layers.map((layer) => layer.chainID),
    built.images.find((image) => image.refs.includes(images.fixtureImage))!.layers.map((layer) => layer.chainID),
  );
  const theirs = inspectRoot(theirRoot).overlayfs;
  const ours = inspectRoot(root).overlayfs;
  let compared = 0;
  for (const layer of built.images
    .filter((image) => !image.refs.includes(images.otherImage))
    .flatMap((one) => one.layers)) {
    const known = theirs.find((snapshot) => snapshot.name.endsWith(layer.chainID));
    if (known === undefined) continue; // the pause image, which no pod has asked for there
    const left = join(theirRoot, SNAPSHOTS, String(known.id), "fs");
    const right = join(root, SNAPSHOTS, String(layer.snapshotId), "fs");
    const { differences, entries } = await compareTrees(left, right, { unpacked });
    const real = differences.filter(
      ({ what, left: was }) =>
        // a whiteout has the time of its unpack; there is no SELinux here that labels
        !((what === "mtime" && BigInt(was!) >= BigInt(startMs) * 1_000_000n) || isLabel(what)),
    );
    assert.deepEqual(real, [], `${layer.chainID}, ${entries} entries`);
    assert.equal(ours.find((snapshot) => snapshot.id === layer.snapshotId)!.inodes, known.inodes, layer.chainID);
    compared++;
  }
  assert.equal(compared, 6);
  await reference[Symbol.asyncDispose]();
}

const isLabel = (what: string) => what.includes("security.selinux");

/** A fresh containerd whose root this is has everything without a registry, keeps what it should, and frees all when all is removed. */
async function assertAccepted(
  place: Place,
  version: (typeof CONTAINERD_VERSIONS)[number],
  built: Built,
  images: Images,
): Promise<void> {
  const { cri, ctr, containerd } = await place.node({ version, name: version });
  const root = built.output;
  const listed = await cri.listImages();
  for (const image of built.images) {
    const found = listed.find((each) => each.id === image.config);
    assert.ok(found, `${version}: ${image.refs[0]} is listed`);
    assert.deepEqual([...found.repoTags, ...found.repoDigests].sort(), image.refs);
    assert.equal(found.pinned, version !== "1.6.20", `${version}: pinned`);
  }
  const inCri = ctr.in(CRI);
  const snapshots = await inCri.snapshots("overlayfs");
  const chains = new Map(
    built.images.flatMap((image) =>
      image.layers.map((layer, index) => [layer.chainID, image.layers[index - 1]?.chainID ?? ""]),
    ),
  );
  assert.deepEqual(new Map(snapshots.map((each) => [each.key, each.parent])), chains);
  assert.ok(snapshots.every((each) => each.kind === "Committed"));

  const other = built.images.find((image) => image.refs.includes(images.otherImage))!;
  for (const name of [...other.refs, other.config]) await inCri.removeImage(name);
  const kept = built.images.filter((image) => image !== other).flatMap((image) => image.layers);
  assert.deepEqual(
    new Set((await inCri.snapshots("overlayfs")).map((each) => each.key)),
    new Set(kept.map((layer) => layer.chainID)),
    `${version}: the collector takes the removed image's own layer alone`,
  );
  const blobs = new Set(await inCri.content());
  assert.ok(kept.every((layer) => blobs.has(layer.digest)));
  assert.ok(!blobs.has(other.config), "the collector did run");

  const pod = await cri.runPod("warm");
  const container = await cri.createContainer(pod, { name: "c", image: images.shellImage });
  await cri.startContainer(container);
  assert.equal(await cri.waitForExit(container), 0);
  assert.equal(
    readCriLog(container.logPath),
    "from layer three\nimplied\nls: /etc/motd: No such file or directory\n/old:\n",
  );
  await cri.removePod(pod);
  // nothing was unpacked: all that is committed is what we built
  const committed = inspectRoot(root).overlayfs.filter((each) => each.kind === "committed");
  assert.deepEqual(new Set(committed.map((each) => each.id)), new Set(kept.map((layer) => layer.snapshotId)));
  assert.doesNotMatch(readFileSync(containerd.places.log, "utf8"), /is not unpacked|unpacking/i);

  for (const name of await inCri.images()) await inCri.removeImage(name);
  assert.deepEqual([await inCri.snapshots("overlayfs"), await inCri.content()], [[], []], "removing all frees all");

  await containerd.stop();
  const meta = readBolt(readFileSync(join(root, "io.containerd.metadata.v1.bolt/meta.db")), "meta.db");
  const v1 = meta.root.entries.get("v1");
  assert.ok(isBucket(v1));
  assert.deepEqual(v1.entries.get("version"), Buffer.of(version.startsWith("2.") ? 8 : 6), "migrated");
}

test("a built root is a fresh containerd's own: present before any mount, kept by the collector, started without a registry; trees are those of a real unpack", async () => {
  await using place = await Place.make();
  const images = await pushImages(place);
  const { sources } = images;
  const volumes = new Map<string, Built>();
  for (const [index, version] of CONTAINERD_VERSIONS.entries()) {
    const { root } = containerdPlaces(join(place.root, version, "c"));
    mkdirSync(join(root, ".."), { recursive: true });
    // in whatever order they are named
    const turned = [...sources.slice(index), ...sources.slice(0, index)];
    volumes.set(version, await build([...turned, "--output", root]));
  }
  const [first, ...rest] = [...volumes.values()];
  for (const path of ["io.containerd.metadata.v1.bolt/meta.db", "io.containerd.snapshotter.v1.overlayfs/metadata.db"]) {
    for (const other of rest) {
      assert.deepEqual(readFileSync(join(other.output, path)), readFileSync(join(first!.output, path)), path);
    }
  }
  await assertUnpacked(place, first!, first!.output, images);
  const before = place.meter.mark();
  await place.registry[Symbol.asyncDispose]();
  for (const version of CONTAINERD_VERSIONS) await assertAccepted(place, version, volumes.get(version)!, images);
  assert.equal(place.meter.since(before).requests, 0);
});

test("so is the root on a disk: Bottlerocket's partition, AL2023's whole disk", async () => {
  await using place = await Place.make();
  const images = await pushImages(place);
  const roots = new Map<string, Built>();
  for (const [index, version] of CONTAINERD_VERSIONS.entries()) {
    const layout = index === 1 ? "al2023" : "bottlerocket";
    const image = join(place.root, `${version}.img`);
    const built = await build([...images.sources, "--layout", layout, "--output", image]);
    const { root } = containerdPlaces(join(place.root, version, "c"));
    mkdirSync(root, { recursive: true });
    const disk = join(place.root, `${version}-disk`);
    mkdirSync(disk);
    const offset = layout === "al2023" ? 0 : 1024 * 1024;
    execFileSync("mount", ["-t", "ext4", "-o", `loop,noatime,offset=${offset}`, image, disk]);
    place.use({ [Symbol.dispose]: () => execFileSync("umount", [disk]) });
    const store = layout === "al2023" ? disk : join(disk, "var/lib/containerd");
    execFileSync("mount", ["--bind", store, root]);
    // a node that has run takes this mount away when it ends
    place.use({ [Symbol.dispose]: () => void spawnSync("umount", [root]) });
    roots.set(version, { ...built, output: store });
  }
  const [first] = [...roots.values()];
  await assertUnpacked(place, first!, first!.output, images);
  const before = place.meter.mark();
  await place.registry[Symbol.asyncDispose]();
  for (const version of CONTAINERD_VERSIONS) await assertAccepted(place, version, roots.get(version)!, images);
  assert.equal(place.meter.since(before).requests, 0);
});

test("a disk does not take root, and is the same whoever builds it", async () => {
  await using place = await Place.make();
  await buildImage(place.layout, "shell", [await shellLayer(), [{ path: "etc/shadow", data: "x", mode: 0o600 }]]);
  const image = await place.push(place.layout, "shell");
  const folder = join(place.root, "nobody");
  mkdirSync(folder);
  chownSync(folder, 65_534, 65_534);
  chmodSync(place.root, 0o755);
  const args = ["volume", "build", `docker://${image}`, "--layout", "bottlerocket", "--output"];
  const settings = { env: { ...process.env, HOME: folder } };
  const asNobody = ["--reuid=65534", "--regid=65534", "--clear-groups", COMMAND, ...args, join(folder, "disk.img")];
  await execute("setpriv", asNobody, settings);
  await headstart([...args, join(place.root, "disk.img")]);
  // with the digests of all blocks, which were read back from the disks
  assert.deepEqual(readFileSync(join(folder, "disk.img.json")), readFileSync(join(place.root, "disk.img.json")));
});

test("several platforms are a disk each, with the architecture in its name", async () => {
  await using place = await Place.make();
  const args = [`oci:${FIXTURE}:index`, "--name", "host/fixture:1", "--layout", "al2023"];
  const output = join(place.root, "data.img");
  const platforms = ["--platform", "linux/amd64,linux/arm64", "--output", output, "--json"];
  const { stdout } = await headstart(["volume", "build", ...args, ...platforms]);
  const built = stdout
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line) as { output: string; platform: string });
  const named = ["amd64", "arm64"].map((name) => [join(place.root, `data-${name}.img`), `linux/${name}`]);
  assert.deepEqual(
    built.map(({ output: path, platform }) => [path, platform.replace(/\/v8$/, "")]),
    named,
  );
  for (const [path, platform] of named) {
    fsckExt4(path!);
    const inspect = async (file: string) =>
      JSON.parse((await headstart(["inspect", file, "--json"])).stdout) as Record<string, unknown>;
    const volume = await inspect(path!);
    assert.deepEqual(
      [volume.kind, (volume.overlayfs as unknown[]).length],
      ["volume", platform === "linux/amd64" ? 3 : 2],
    );
    const manifest = await inspect(`${path}.json`);
    assert.deepEqual([manifest.kind, String(manifest.platform).replace(/\/v8$/, "")], ["volume-manifest", platform]);
  }
});

test("a root without the layers' blobs starts containers too", async () => {
  await using place = await Place.make();
  await buildImage(place.layout, "shell", [await shellLayer(), [{ path: "etc/motd", data: "warm\n" }]]);
  const image = await place.push(place.layout, "shell");
  const { root } = containerdPlaces(join(place.root, "n", "c"));
  mkdirSync(join(root, ".."), { recursive: true });
  const sources = [image, place.reference(PAUSE_NAME)];
  await build([...sources, "--output", root, "--blobs", "drop", "--no-pin"]);
  await place.registry[Symbol.asyncDispose]();
  const { cri } = await place.node({ version: "2.1.9" });
  assert.ok((await cri.listImages()).every((each) => !each.pinned || each.repoTags.includes(sources[1]!)));
  const container = await cri.createContainer(await cri.runPod("warm"), {
    name: "c",
    image,
    command: ["/bin/cat", "/etc/motd"],
  });
  await cri.startContainer(container);
  assert.equal(await cri.waitForExit(container), 0);
  assert.equal(readCriLog(container.logPath), "warm\n");
});

test("what fails leaves nothing, and what exists is not touched", async () => {
  await using place = await Place.make();
  await buildImage(place.layout, "shell", [await shellLayer()], {});
  const image = await place.push(place.layout, "shell");
  const output = join(place.root, "v", "root");
  mkdirSync(join(output, ".."), { recursive: true });
  const refused = (args: readonly string[], pattern: RegExp) =>
    assert.rejects(headstart(["volume", "build", ...args]), (error) => pattern.test(String(error)));
  await refused([`docker://${image}`, "--output", output, "--layout", "gke"], /not in this version/);
  await refused([`docker://${place.reference("nothing")}`, "--output", output], /HS_/);
  assert.deepEqual(readdirSync(join(output, "..")), []);
  await headstart(["volume", "build", `docker://${image}`, "--output", output]);
  const before = readFileSync(`${output}.json`);
  await refused([`docker://${image}`, "--output", output], /HS_OUTPUT_EXISTS/);
  assert.deepEqual(readFileSync(`${output}.json`), before);
  assert.deepEqual(readdirSync(join(output, "..")).sort(), ["root", "root.json"]);
});
