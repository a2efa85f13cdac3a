import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { createCipheriv, createHash } from "node:crypto";
import {
  closeSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  readSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { buildImage } from "../../test/build-image.ts";
import { FakeRegistry } from "../../test/fakes/registry.ts";
import { file, wholeTar } from "../../test/tar-bytes.ts";
import { fsckExt4 } from "../../test/tools/ext4-image.ts";
import { kernelLines } from "../../test/tools/kernel-lines.ts";
import { imageName } from "../../test/tools/volumes.ts";
import { digestHex } from "../base/digest.ts";
import { GiB, MiB } from "../base/limits.ts";
import { PROJECT } from "../base/project.ts";
import { compareTreeLines, type TreeLine } from "../erofs/tree-lines.ts";
import { mount, unmount } from "../linux/mount.ts";
import { MEDIA_TYPES } from "../oci/media-types.ts";
import { parseSource } from "../oci/reference.ts";
import { layerOf, layerOfTar, writeImage } from "../sandbox/image-builder.ts";
import type { TarEntry } from "../sandbox/tar-writer.ts";
import { buildVolume, type DiskSettings, openPlan, type VolumeLayout } from "./build.ts";
import { SNAPSHOT_BLOCK } from "./fill.ts";
import { readFormer } from "./former.ts";
import { readHotList } from "./hot.ts";
import { inspectRoot, inspectVolume } from "./inspect.ts";
import type { Provenance } from "./manifest.ts";

const GOLDEN = join(PROJECT, "test/golden");
const directory = mkdtempSync(join(tmpdir(), "headstart-disk-"));
after(() => rmSync(directory, { recursive: true }));
let counter = 0;

interface Settings extends DiskSettings {
  readonly layout?: VolumeLayout;
  readonly output?: string;
  readonly previous?: string;
  readonly blobs?: boolean;
  readonly signal?: AbortSignal;
  readonly onProgress?: () => void;
}

async function build(sources: readonly string[], settings: Settings = {}) {
  const { layout = "bottlerocket", previous, onProgress, blobs = true, ...disk } = settings;
  const output = settings.output ?? join(directory, `disk-${++counter}.img`);
  const signal = settings.signal ?? new AbortController().signal;
  await using opened = await openPlan({
    sources: sources.map((source) => ({ source: parseSource(source), names: [imageName(source)], open: {} })),
    platform: { os: "linux", architecture: "amd64" },
    layout,
    pinned: true,
    blobs,
    former: previous === undefined ? undefined : readFormer(previous),
    signal,
  });
  const { record, followed } = await buildVolume(opened, { output, disk, signal, onProgress });
  return { output, record, followed, manifest: record.predicate.headstart_volume };
}

const fixture = (name: string) => `oci:${GOLDEN}/fixture/oci:${name}`;

/** The disk's file system, read-only, under the root that a node has there. */
function mounted(output: string, offset: number): Disposable & { readonly path: string } {
  const path = join(directory, `mount-${++counter}`);
  mkdirSync(path);
  execFileSync("mount", ["-t", "ext4", "-o", `loop,ro,noload,offset=${offset}`, output, path]);
  return { path, [Symbol.dispose]: () => unmount(path) };
}

function fsck(output: string, offset: number): void {
  // e2fsprogs take the place of a file system in a file behind its name
  fsckExt4(offset === 0 ? output : `${output}?offset=${offset}`);
}

const OFFSET = { bottlerocket: MiB, al2023: 0 } as const;
const ROOT = { bottlerocket: "var/lib/containerd", al2023: "" } as const;
const LABEL = Buffer.from("system_u:object_r:cache_t:s0\0").toString("hex");

for (const layout of ["bottlerocket", "al2023"] as const) {
  test(`a ${layout} disk is what tools and kernel expect, and its layers are those that containerd unpacks`, async () => {
    const { output, manifest } = await build([fixture("gogz"), fixture("zstd")], { layout });
    assert.equal(statSync(output).size, GiB);
    assert.ok(statSync(output).blocks * 512 < 32 * MiB, "holes stay holes");
    fsck(output, OFFSET[layout]);
    if (layout === "bottlerocket") {
      const checked = execFileSync("sgdisk", ["-v", output], { encoding: "utf8" });
      assert.match(checked, /No problems found/);
      const printed = execFileSync("sgdisk", ["-i", "1", output], { encoding: "utf8" });
      assert.match(printed, /5B94E8DF-28B8-485C-9D19-362263B5944C/);
      assert.match(printed, /'BOTTLEROCKET-DATA'/);
    }
    const probed = execFileSync("blkid", ["-p", "-O", String(OFFSET[layout]), "-o", "export", output], {
      encoding: "utf8",
    });
    assert.match(probed, new RegExp(`^UUID=${manifest.fs!.uuid}$`, "m"));
    assert.match(probed, /^TYPE=ext4$/m);

    using seen = mounted(output, OFFSET[layout]);
    const root = join(seen.path, ROOT[layout]);
    const labelled = layout === "bottlerocket";
    const { xattrs: _, ...top } = kernelLines(root, 1n << 62n)[0]!;
    assert.deepEqual([top.mode, top.uid, top.gid], ["0700", 0, 0]);
    for (const line of kernelLines(root, 1n << 62n)) {
      const label = line.path.startsWith("/io.containerd.") && labelled ? LABEL : undefined;
      assert.equal(line.xattrs?.["security.selinux"], label, line.path);
    }
    for (const image of manifest.images) {
      for (const [index, layer] of image.layers.entries()) {
        const files = join(root, "io.containerd.snapshotter.v1.overlayfs/snapshots", String(layer.snapshotId), "fs");
        const got = kernelLines(files, BigInt(Date.now()) * 1_000_000n).map(withoutLabel);
        assert.deepEqual(compareTreeLines(expected(`layer-${index}`), got), [], `layer ${index}`);
      }
    }
    const golden = JSON.parse(readFileSync(join(GOLDEN, "volume/containerd-1.6.20/tree.json"), "utf8")) as {
      readonly path: string;
      readonly mode: string;
    }[];
    for (const { path, mode } of golden.filter((entry) => !/snapshots\/\d|blobs\/sha256\//.test(entry.path))) {
      assert.equal(`0o${statSync(join(root, path)).mode.toString(8)}`, mode, path);
    }
    const inspected = inspectRoot(root);
    const { disk, ...stores } = inspectVolume(output);
    assert.deepEqual({ ...stores, disk: null }, inspected, "read without a mount");
    assert.deepEqual(
      { ...disk, freeBytes: 0 },
      {
        size: GiB,
        partition: layout === "bottlerocket" ? "BOTTLEROCKET-DATA" : null,
        uuid: manifest.fs!.uuid,
        bytes: manifest.fs!.blocks * 4096,
        freeBytes: 0,
        root: `/${ROOT[layout]}`,
      },
    );
    assert.equal(disk!.freeBytes, manifest.fs!.free * 4096);
    for (const blob of inspected.namespaces[0]!.blobs) {
      const path = join(root, "io.containerd.content.v1.content/blobs/sha256", blob.digest.slice(7));
      assert.equal(createHash("sha256").update(readFileSync(path)).digest("hex"), blob.digest.slice(7));
    }
    const active = join(seen.path, "var/cache/containerd/active-snapshotter");
    if (labelled) assert.equal(readFileSync(active, "utf8"), "ACTIVE_SNAPSHOTTER=overlayfs\n");
    const tops = readdirSync(seen.path).filter((name) => name !== "lost+found");
    assert.deepEqual(
      tops.sort(),
      labelled
        ? ["mnt", "opt", "var"]
        : inspected &&
            readdirSync(root)
              .filter((name) => name !== "lost+found")
              .sort(),
    );
  });
}

function withoutLabel(line: TreeLine): TreeLine {
  if (line.xattrs?.["security.selinux"] === undefined) return line;
  const { "security.selinux": _, ...xattrs } = line.xattrs;
  const { xattrs: __, ...rest } = line;
  return Object.keys(xattrs).length === 0 ? rest : { ...rest, xattrs };
}

function expected(name: string): TreeLine[] {
  const lines = readFileSync(join(GOLDEN, "fixture/tree", `${name}.jsonl`), "utf8")
    .trimEnd()
    .split("\n");
  return lines.map((line) => JSON.parse(line) as TreeLine);
}

test("the manifest tells the digest of every block of 512 KiB, and which ones nothing lies in", async () => {
  const { output, manifest, record } = await build([fixture("gogz")]);
  const { blocks } = manifest;
  const found = hashes(output);
  assert.deepEqual(blocks!.sha256, Object.fromEntries(found));
  const linear = createHash("sha256");
  for (const digest of found.values()) linear.update(digest, "hex");
  assert.equal(blocks!.linear, linear.copy().digest("base64"));
  assert.equal(record.subject[0]!.digest.sha256Blocks512KiB, linear.digest("hex"));
  for (const [first, count] of blocks!.unused) {
    for (let index = first; index < first + count; index++) assert.ok(!found.has(index), `block ${index}`);
  }
  assert.ok(blocks!.unused.some(([, count]) => count > 200));
  assert.deepEqual(JSON.parse(readFileSync(`${output}.json`, "utf8")), JSON.parse(JSON.stringify(record)));
});

/** Of blocks that are not all zeros, by index. */
function hashes(path: string): Map<number, string> {
  const found = new Map<number, string>();
  const buffer = Buffer.alloc(SNAPSHOT_BLOCK);
  const zeros = Buffer.alloc(SNAPSHOT_BLOCK);
  const fd = openSync(path, "r");
  const { size } = statSync(path);
  for (let index = 0; index * SNAPSHOT_BLOCK < size; index++) {
    readSync(fd, buffer, 0, SNAPSHOT_BLOCK, index * SNAPSHOT_BLOCK);
    if (!buffer.equals(zeros)) found.set(index, createHash("sha256").update(buffer).digest("hex"));
  }
  closeSync(fd);
  return found;
}

/** Indices of blocks that differ between two disks of one size, by their manifests. */
function changed(a: string, b: string): number[] {
  const [left, right] = [a, b].map((path) => {
    const { predicate } = JSON.parse(readFileSync(`${path}.json`, "utf8")) as Provenance;
    return predicate.headstart_volume.blocks!.sha256;
  }) as [Record<string, string>, Record<string, string>];
  const indices = [...new Set([...Object.keys(left), ...Object.keys(right)])];
  return indices.filter((index) => left[index] !== right[index]).map(Number);
}

test("whatever the order of the sources, the umask, the hour and the zone: the same bytes", async () => {
  const sources = [fixture("gogz"), fixture("index"), `oci:${GOLDEN}/volume/oci-layout`];
  const one = await build(sources);
  const { umask, env } = { umask: process.umask(0o077), env: process.env.TZ };
  process.env.TZ = "Pacific/Kiritimati";
  try {
    const two = await build(sources.toReversed());
    assert.deepEqual(changed(one.output, two.output), []);
    assert.deepEqual(readFileSync(`${one.output}.json`), readFileSync(`${two.output}.json`));
  } finally {
    process.umask(umask);
    if (env === undefined) delete process.env.TZ;
    else process.env.TZ = env;
  }
});

/** Bytes that do not compress, the same for the same name. */
function noise(name: string, length: number): Buffer {
  const key = createHash("sha256").update(name).digest();
  return createCipheriv("aes-256-ctr", key, Buffer.alloc(16)).update(Buffer.alloc(length));
}

/** One layer of `megabytes`, in a few directories. */
function layerEntries(name: string, megabytes: number): TarEntry[] {
  return [
    { path: `${name}/deep/`, mode: 0o755 },
    ...Array.from({ length: megabytes * 4 }, (_, index) => ({
      path: `${name}/deep/file-${index}`,
      data: noise(`${name} ${index}`, 256 * 1024 - (index % 7)),
    })),
  ];
}

test("an unchanged rebuild changes no block; a changed, grown or removed layer in the middle changes its own and a few of metadata", async () => {
  const layout = join(directory, "stable");
  const middle = layerEntries("middle", 8);
  const above = [layerEntries("top", 6), layerEntries("last", 4)];
  const base = layerEntries("base", 10);
  await buildImage(layout, "x", [base, middle, ...above]);
  const source = `oci:${layout}:x`;
  const first = await build([source], { output: join(directory, "stable-1.img") });

  const same = await build([source], { previous: first.output });
  assert.deepEqual(same.followed, { kept: true, moved: 0 });
  assert.deepEqual(changed(first.output, same.output), []);
  assert.deepEqual(same.manifest, first.manifest);

  // front, rest of the skeleton, stores, records, inode tables
  const METADATA_BLOCKS = 12;
  const ownBlocks = (built: typeof first, index: number) => {
    const layer = built.manifest.images[0]!.layers[index]!;
    return (layer.region![1] + layer.blob!.region[1]) / 128;
  };
  const ids = (built: typeof first) => built.manifest.images[0]!.layers.map((layer) => layer.snapshotId);
  const places = (built: typeof first, index: number) => {
    const { region, inodes, blob } = built.manifest.images[0]!.layers[index]!;
    return { region, inodes, blob };
  };

  const edited = middle.map((entry, index) => (index === 5 ? { ...entry, data: noise("edited", 256 * 1024) } : entry));
  await buildImage(layout, "x", [base, edited, ...above]);
  const second = await build([source], { previous: `${first.output}.json` });
  assert.deepEqual([ids(second)[0], ids(second)[2], ids(second)[3]], [1, 3, 4]);
  assert.equal(ids(second)[1], 5, "a new layer gets a number that was never used");
  for (const index of [0, 2, 3]) assert.deepEqual(places(second, index), places(first, index), `layer ${index}`);
  assert.ok(changed(first.output, second.output).length <= ownBlocks(second, 1) + METADATA_BLOCKS);

  await buildImage(layout, "x", [base, [...edited, ...layerEntries("more", 5)], ...above]);
  const third = await build([source], { previous: second.output });
  for (const index of [0, 2, 3]) assert.deepEqual(places(third, index), places(first, index), `layer ${index}`);
  const unused = new Set(
    third.manifest.blocks!.unused.flatMap(([start, count]) => Array.from({ length: count }, (_, at) => start + at)),
  );
  const differ = changed(second.output, third.output);
  assert.ok(differ.filter((index) => !unused.has(index)).length <= ownBlocks(third, 1) + METADATA_BLOCKS);

  await buildImage(layout, "x", [base, ...above]);
  const fourth = await build([source], { previous: third.output });
  assert.deepEqual(ids(fourth), [1, 3, 4]);
  const gone = new Set(
    fourth.manifest.blocks!.unused.flatMap(([start, count]) => Array.from({ length: count }, (_, at) => start + at)),
  );
  assert.ok(changed(third.output, fourth.output).filter((index) => !gone.has(index)).length <= METADATA_BLOCKS);
  for (const built of [second, third, fourth]) fsck(built.output, MiB);
  using seen = mounted(fourth.output, MiB);
  const store = join(seen.path, "var/lib/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots");
  assert.deepEqual(readFileSync(join(store, "4/fs/last/deep/file-3")), noise("last 3", 256 * 1024 - 3));
  assert.deepEqual(
    inspectRoot(join(seen.path, "var/lib/containerd")).overlayfs.map(({ id }) => id),
    [1, 3, 4],
  );
});

test("what no longer fits its size is placed anew, and says so", async () => {
  const layout = join(directory, "outgrown");
  await buildImage(layout, "x", [layerEntries("one", 2)]);
  const first = await build([`oci:${layout}:x`], { sizeGib: 1 });
  const second = await build([`oci:${layout}:x`], { previous: first.output, sizeGib: 2 });
  assert.deepEqual(second.followed, { kept: false, reason: "it has 1 GiB, asked for are 2" });
  assert.equal(statSync(second.output).size, 2 * GiB);
  fsck(second.output, MiB);
});

test("a former volume of another kind, a manifest that lies and none at all are refused", async () => {
  const first = await build([fixture("gogz")]);
  await assert.rejects(build([fixture("gogz")], { previous: first.output, layout: "al2023" }), { code: "HS_USAGE" });
  const statement = JSON.parse(readFileSync(`${first.output}.json`, "utf8")) as {
    predicate: { headstart_volume: { snapshotSequence: number; regions: Record<string, { region: unknown }> } };
  };
  const refused = (change: (manifest: typeof statement.predicate.headstart_volume) => void) => {
    const copy = structuredClone(statement);
    change(copy.predicate.headstart_volume);
    const path = join(directory, "lie.json");
    writeFileSync(path, JSON.stringify(copy));
    assert.throws(() => readFormer(path), { code: "HS_MALFORMED" });
  };
  refused((manifest) => Object.assign(manifest.regions.stores!, manifest.regions.records));
  refused((manifest) => Object.assign(manifest.regions.rest!, { region: [-1, 2] }));
  refused((manifest) => Object.assign(manifest.regions.rest!, { region: "all" }));
  refused((manifest) => Object.assign(manifest, { snapshotSequence: 1 }));
  writeFileSync(join(directory, "no.json"), "[1");
  assert.throws(() => readFormer(join(directory, "no.json")), { code: "HS_MALFORMED" });
  assert.throws(() => readFormer(join(directory, "nothing.img")), { code: "HS_NOT_FOUND" });
});

test("contents come back: empty, sparse, replaced and linked files, many small ones, one over a superblock copy", async () => {
  const layout = join(directory, "contents");
  const large = noise("large", 20 * MiB + 17);
  await buildImage(layout, "x", [
    [
      { path: "empty" },
      { path: "twice", data: "first" },
      { path: "twice", data: "second" },
      { path: "linked", data: "linked" },
      { path: "other", type: "hardlink", target: "linked" },
      { path: "device", type: "char", major: 259, minor: 300 },
      {
        path: "capable",
        data: "x",
        xattrs: { "security.capability": Buffer.from("0100000200200000000000000000000000000000", "hex") },
      },
      ...Array.from({ length: 30 }, (_, index) => ({
        path: `large/${index}`,
        data: index === 0 ? large : `file ${index}`,
      })),
      ...Array.from({ length: 700 }, (_, index) => ({ path: `many/${index}`, data: `file ${index}` })),
    ],
  ]);
  const map = { "GNU.sparse.map": "4096,3,1000000,3", "GNU.sparse.numblocks": "2", "GNU.sparse.size": "5000000" };
  const pax = { "GNU.sparse.major": "0", "GNU.sparse.minor": "1", ...map };
  await writeImage(layout, [layerOfTar(Buffer.from(wholeTar(file("sparse", "abcdef", { pax }))))], { name: "sparse" });
  const { output, manifest } = await build([`oci:${layout}:x`, `oci:${layout}:sparse`], { layout: "al2023" });
  fsck(output, 0);
  using seen = mounted(output, 0);
  const root = (name: string) => {
    const image = manifest.images.find((each) => each.refs.some((ref) => ref.endsWith(`${name}:1`)))!;
    return join(
      seen.path,
      "io.containerd.snapshotter.v1.overlayfs/snapshots",
      String(image.layers[0]!.snapshotId),
      "fs",
    );
  };
  const read = (path: string) => readFileSync(join(root("x"), path));
  assert.ok(read("large/0").equals(large));
  assert.equal(read("empty").byteLength, 0);
  assert.deepEqual(
    [String(read("twice")), String(read("linked")), String(read("other"))],
    ["second", "linked", "linked"],
  );
  assert.equal(statSync(join(root("x"), "linked")).ino, statSync(join(root("x"), "other")).ino);
  for (let index = 0; index < 700; index++) assert.equal(String(read(`many/${index}`)), `file ${index}`);
  const want = Buffer.alloc(5_000_000);
  want.write("abc", 4096);
  want.write("def", 1_000_000);
  assert.ok(readFileSync(join(root("sparse"), "sparse")).equals(want));
  assert.equal(statSync(join(root("sparse"), "sparse")).blocks, 16);
});

test("the files of a hot list lie in one region in the order of the list, whatever layer they are from; the volume says where", async () => {
  const layout = join(directory, "hot");
  const shown = noise("shown", 300_000);
  await buildImage(layout, "x", [
    [
      { path: "usr/lib/" },
      { path: "lib", type: "symlink", target: "usr/lib" },
      { path: "usr/lib/a.so", data: noise("a", 100_000) },
      { path: "usr/lib/b.so", data: "hidden by the next layer" },
      ...layerEntries("cold", 2),
      { path: "usr/lib/z.so", data: noise("z", 50_000) },
    ],
    [{ path: "usr/lib/b.so", data: shown }, { path: "opt/.wh.x" }],
  ]);
  const list = join(directory, "hot.txt");
  writeFileSync(list, "# the order of a start\n/lib/z.so\nusr/lib/*.so  # and these\n/no/such\n");
  const { output, manifest } = await build([`oci:${layout}:x`], { hot: readHotList(list) });
  fsck(output, MiB);
  const { hot } = manifest;
  assert.deepEqual([hot!.files, hot!.missing], [3, ["/no/such"]]);
  const [offset, length] = hot!.region;
  const bytes = Buffer.alloc(length);
  const fd = openSync(output, "r");
  readSync(fd, bytes, 0, length, offset);
  closeSync(fd);
  const padded = (data: Buffer) =>
    Buffer.concat([data, Buffer.alloc(4096)]).subarray(0, Math.ceil(data.length / 4096) * 4096);
  const inOrder = Buffer.concat([noise("z", 50_000), noise("a", 100_000), shown].map(padded));
  assert.ok(bytes.subarray(0, inOrder.length).equals(inOrder));
  using seen = mounted(output, MiB);
  const warm = JSON.parse(readFileSync(join(seen.path, "var/lib/headstart/warm.json"), "utf8")) as object;
  assert.deepEqual(warm, { schema: "headstart.warm/1", region: [offset - MiB, length], source: hot!.source });
  const again = await build([`oci:${layout}:x`], { hot: readHotList(list), previous: output });
  assert.deepEqual(changed(output, again.output), []);
});

test("without blobs and without labels, when that is asked for", async () => {
  const { output, manifest } = await build([fixture("gogz")], { blobs: false, selinux: false });
  fsck(output, MiB);
  using seen = mounted(output, MiB);
  const root = join(seen.path, "var/lib/containerd");
  const blobs = readdirSync(join(root, "io.containerd.content.v1.content/blobs/sha256"));
  assert.deepEqual(blobs.sort(), [manifest.images[0]!.manifest, manifest.images[0]!.config].map(digestHex).sort());
  assert.ok(kernelLines(root, 1n << 62n).every((line) => line.xattrs?.["security.selinux"] === undefined));
  assert.deepEqual(manifest.options, { ...manifest.options, blobs: false, selinux: false });
});

test("a registry that fails in the middle of a layer leaves nothing behind", async () => {
  await using registry = await FakeRegistry.start();
  const layer = layerOf([{ path: "noise", data: noise("layer", MiB) }]);
  const rootfs = { type: "layers", diff_ids: [layer.diffID] };
  const config = { architecture: "amd64", os: "linux", rootfs, config: {} };
  const types = MEDIA_TYPES;
  const manifest = {
    schemaVersion: 2,
    mediaType: types.ociManifest,
    config: registry.putBlob("app", Buffer.from(JSON.stringify(config)), types.ociConfig),
    layers: [registry.putBlob("app", layer.source as Buffer, layer.descriptor.mediaType)],
  };
  registry.putManifest("app", manifest, types.ociManifest, "1");
  const place = join(directory, "registry");
  mkdirSync(place);
  const match = layer.descriptor.digest;
  registry.inject({ match, times: 1000, fault: { kind: "status", status: 404 } });
  const output = join(place, "disk.img");
  await assert.rejects(build([`docker://${registry.host}/app:1`], { output }), { code: "HS_BLOB_NOT_FOUND" });
  assert.deepEqual(readdirSync(place), []);
});

test("what ext4 or containerd cannot take, a wrong blob, an interrupt and a full disk leave nothing behind; what exists is not touched", async () => {
  const place = join(directory, "failing");
  mkdirSync(place);
  const output = join(place, "disk.img");
  const layout = join(directory, "bad");
  await buildImage(layout, "xattr", [[{ path: "dir/much", data: "x", xattrs: { "user.much": "x".repeat(5000) } }]]);
  await assert.rejects(build([`oci:${layout}:xattr`], { output }), { code: "HS_EXT4_LIMIT", message: /dir\/much/ });
  await assert.rejects(build([fixture("odd-contiguous")], { output }), { code: "HS_LAYER_REFUSED" });
  await buildImage(layout, "long", [[{ path: `${"n".repeat(256)}`, data: "x" }]]);
  await assert.rejects(build([`oci:${layout}:long`], { output }), { code: "HS_LAYER_REFUSED" });

  await buildImage(layout, "x", [[{ path: "a", data: "aaaa" }]]);
  const { manifest } = await build([`oci:${layout}:x`]);
  const blob = join(layout, "blobs/sha256", digestHex(manifest.images[0]!.layers[0]!.digest));
  const bytes = readFileSync(blob);
  bytes[20]! ^= 1;
  writeFileSync(blob, bytes);
  await assert.rejects(build([`oci:${layout}:x`], { output }), { code: "HS_DIGEST_MISMATCH" });

  const stop = new AbortController();
  const onProgress = () => stop.abort(new Error("enough"));
  await assert.rejects(build([fixture("gogz")], { output, signal: stop.signal, onProgress }), /enough/);
  assert.deepEqual(readdirSync(place), []);

  writeFileSync(output, "mine");
  await assert.rejects(build([fixture("gogz")], { output }), { code: "HS_OUTPUT_EXISTS" });
  assert.equal(readFileSync(output, "utf8"), "mine");

  const small = join(directory, "small");
  mkdirSync(small);
  await buildImage(layout, "large", [layerEntries("large", 6)]);
  mount({ source: "tmpfs", target: small, type: "tmpfs", flags: 0, data: "size=10m" });
  try {
    await assert.rejects(build([`oci:${layout}:large`], { output: join(small, "disk.img") }), { code: "HS_DISK_FULL" });
    assert.deepEqual(readdirSync(small), []);
  } finally {
    unmount(small);
  }
});
