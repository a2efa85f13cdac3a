import assert from "node:assert/strict";
import {
  chmodSync,
  chownSync,
  existsSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { buildImage } from "../../test/build-image.ts";
import { file, wholeTar } from "../../test/tar-bytes.ts";
import { kernelLines } from "../../test/tools/kernel-lines.ts";
import { type Digest, digestHex, sha256 } from "../base/digest.ts";
import { PROJECT } from "../base/project.ts";
import { ACL_DEFAULT, serializeAcl } from "../erofs/acl.ts";
import { compareTreeLines, type TreeLine } from "../erofs/tree-lines.ts";
import { mount, unmount } from "../linux/mount.ts";
import { setXattr } from "../linux/xattr.ts";
import { parseSource } from "../oci/reference.ts";
import { layerOf, layerOfTar, writeImage } from "../sandbox/image-builder.ts";
import { buildVolume, openPlan } from "./build.ts";
import { inspectRoot } from "./inspect.ts";

const GOLDEN = join(PROJECT, "test/golden");
const FIXTURE = join(GOLDEN, "fixture");
const directory = mkdtempSync(join(tmpdir(), "headstart-volume-"));
after(() => rmSync(directory, { recursive: true }));

let counter = 0;

interface Settings {
  readonly blobs?: boolean;
  readonly output?: string;
  readonly signal?: AbortSignal;
  readonly onProgress?: () => void;
  readonly architecture?: string;
}

/** Builds from sources; each gets a name. */
async function build(sources: readonly string[], settings: Settings = {}) {
  const output = settings.output ?? join(directory, `root-${++counter}`);
  const signal = settings.signal ?? new AbortController().signal;
  await using opened = await openPlan({
    sources: sources.map((source, index) => ({
      source: parseSource(source),
      names: [`host/image-${index}:1`],
      open: {},
    })),
    platform: { os: "linux", architecture: settings.architecture ?? "amd64" },
    layout: "containerd",
    pinned: true,
    blobs: settings.blobs ?? true,
    signal,
  });
  const { record } = await buildVolume(opened, { output, signal, onProgress: settings.onProgress });
  return { output, images: record.predicate.headstart_volume.images };
}

const fixture = (name: string) => `oci:${FIXTURE}/oci:${name}`;
const files = (output: string, id: number) =>
  join(output, "io.containerd.snapshotter.v1.overlayfs/snapshots", String(id), "fs");
const databases = (output: string) =>
  ["io.containerd.metadata.v1.bolt/meta.db", "io.containerd.snapshotter.v1.overlayfs/metadata.db"].map((path) =>
    readFileSync(join(output, path)),
  );

function expected(name: string): TreeLine[] {
  const lines = readFileSync(join(FIXTURE, "tree", `${name}.jsonl`), "utf8")
    .trimEnd()
    .split("\n");
  return lines.map((line) => JSON.parse(line) as TreeLine);
}

for (const name of ["gogz", "tar", "zstd", "dockergz", "index"]) {
  test(`the layers of the fixture's ${name} image stand on the disk as containerd unpacks them`, async () => {
    const { output, images } = await build([fixture(name)]);
    for (const [index, layer] of images[0]!.layers.entries()) {
      const got = kernelLines(files(output, layer.snapshotId), BigInt(Date.now()) * 1_000_000n);
      assert.deepEqual(compareTreeLines(expected(`layer-${index}`), got), [], `layer ${index}`);
    }
    const [namespace] = inspectRoot(output).namespaces;
    const blobs = readdirSync(join(output, "io.containerd.content.v1.content/blobs/sha256"));
    assert.deepEqual(blobs.sort(), namespace!.blobs.map((blob) => digestHex(blob.digest as Digest)).sort());
    assert.equal(blobs.length, images[0]!.layers.length + (name === "index" ? 3 : 2));
  });
}

test("the store around the layers has the modes of a real one", async () => {
  const { output } = await build([`oci:${GOLDEN}/volume/oci-layout`]);
  const tree = JSON.parse(readFileSync(join(GOLDEN, "volume/containerd-1.6.20/tree.json"), "utf8")) as {
    readonly path: string;
    readonly mode: string;
    readonly uid: number;
    readonly gid: number;
    readonly nlink: number;
  }[];
  for (const { path, mode, uid, gid, nlink } of tree) {
    const got = lstatSync(join(output, path));
    assert.deepEqual([path, `0o${got.mode.toString(8)}`, got.uid, got.gid], [path, mode, uid, gid]);
    if (!got.isDirectory()) assert.equal(got.nlink, nlink, path);
  }
  assert.equal(statSync(output).mode & 0o7777, 0o700);
  const paths = readdirSync(output, { recursive: true }) as string[];
  assert.deepEqual(
    paths.filter((path) => !tree.some((entry) => entry.path === path)),
    [],
  );
});

test("sources in another order, and another build, give the same databases; the umask changes nothing", async () => {
  const sources = [fixture("gogz"), `oci:${GOLDEN}/volume/oci-layout`];
  const before = process.umask(0o077);
  const one = await build(sources);
  process.umask(before);
  const two = await build(sources);
  assert.deepEqual(databases(one.output), databases(two.output));
  const modes = (output: string) =>
    readdirSync(output, { recursive: true }).map((path) => [path, lstatSync(join(output, String(path))).mode]);
  assert.deepEqual(modes(one.output), modes(two.output));
});

test("a setgid folder with a default ACL around it changes nothing", async () => {
  const place = join(directory, "setgid");
  mkdirSync(place);
  chownSync(place, 3, 4);
  // owner, user 9, group, mask, others
  const acl = [1, 2, 4, 0x10, 0x20].map((tag) => ({ tag, permissions: 7, id: 9 }));
  setXattr(place, ACL_DEFAULT, serializeAcl(acl));
  chmodSync(place, 0o2777);
  const source = `oci:${GOLDEN}/volume/oci-layout`;
  const lines = (output: string) => kernelLines(output, 1n << 62n).filter((line) => !line.path.endsWith(".db"));
  const { output } = await build([source], { output: join(place, "root") });
  assert.deepEqual(lines(output), lines((await build([source])).output));
});

test("directories that an upper layer only implies have the attributes of the layers below, also two layers down", async () => {
  const layout = join(directory, "implied");
  const below = { path: "srv/data/", mode: 0o2750, uid: 7, gid: 8, mtime: 1_600_000_000, xattrs: { "user.a": "b" } };
  await buildImage(layout, "x", [
    [{ path: "srv/", mode: 0o711, uid: 5 }, below],
    [{ path: "srv/data/one", data: "1" }],
    [{ path: "srv/data/new/two", data: "2" }, { path: "etc/.wh.gone" }],
  ]);
  const { output, images } = await build([`oci:${layout}:x`]);
  const lines = images[0]!.layers.map((layer) => kernelLines(files(output, layer.snapshotId), 1n << 62n));
  const [first, second, third] = lines.map((each) => new Map(each.map((line) => [line.path, line])));
  for (const layer of [second!, third!]) {
    const { mode, uid, gid, xattrs } = layer.get("/srv/data")!;
    assert.deepEqual({ mode, uid, gid, xattrs }, { mode: "2750", uid: 7, gid: 8, xattrs: { "user.a": "62" } });
    assert.deepEqual([layer.get("/srv")!.mode, layer.get("/srv")!.uid], ["0711", 5]);
  }
  assert.equal(third!.get("/srv/data/new")!.gid, 8, "made in a setgid directory");
  assert.deepEqual(third!.get("/etc/gone")!.rdev, [0, 0]);
  assert.equal(first!.get("/srv/data")!.mtime_ns, "1600000000000000000");
});

test("contents come back: empty files, many of them, one of 3 MiB, replaced and removed ones, hard links across names", async () => {
  const layout = join(directory, "contents");
  const large = Buffer.alloc(3 << 20, "large file ");
  await buildImage(layout, "x", [
    [
      { path: "large", data: large },
      { path: "empty" },
      { path: "twice", data: "first" },
      { path: "twice", data: "second" },
      { path: "linked", data: "linked" },
      { path: "other", type: "hardlink", target: "linked" },
      { path: "linked", data: "new" },
      ...Array.from({ length: 300 }, (_, index) => ({ path: `many/${index}`, data: `file ${index}` })),
    ],
  ]);
  const { output, images } = await build([`oci:${layout}:x`]);
  const root = files(output, images[0]!.layers[0]!.snapshotId);
  const read = (path: string) => readFileSync(join(root, path));
  assert.deepEqual(read("large"), large);
  assert.equal(read("empty").byteLength, 0);
  assert.deepEqual([String(read("twice")), String(read("linked")), String(read("other"))], ["second", "new", "linked"]);
  for (let index = 0; index < 300; index++) assert.equal(String(read(`many/${index}`)), `file ${index}`);
  assert.ok(!existsSync(join(output, ".work")));
});

test("a sparse file has its pieces where they belong, zeros between, a hole at its end, and little on the disk", async () => {
  const map = { "GNU.sparse.map": "4096,3,1000000,3", "GNU.sparse.numblocks": "2", "GNU.sparse.size": "5000000" };
  const pax = { "GNU.sparse.major": "0", "GNU.sparse.minor": "1", ...map };
  const layout = join(directory, "sparse");
  await writeImage(layout, [layerOfTar(Buffer.from(wholeTar(file("sparse", "abcdef", { pax }))))], { name: "x" });
  const { output, images } = await build([`oci:${layout}:x`]);
  const path = join(files(output, images[0]!.layers[0]!.snapshotId), "sparse");
  const want = Buffer.alloc(5_000_000);
  want.write("abc", 4096);
  want.write("def", 1_000_000);
  assert.ok(readFileSync(path).equals(want));
  assert.ok(lstatSync(path).blocks <= 32);
  assert.equal(images[0]!.layers[0]!.bytes, 3 * 4096, "two blocks of data, one of the directory");
});

test("an image for another platform is refused, whether an index says so or only its configuration", async () => {
  const place = join(directory, "platform");
  mkdirSync(place);
  for (const name of ["gogz", "index"]) {
    const settings = { output: join(place, "root"), architecture: "s390x" };
    await assert.rejects(build([fixture(name)], settings), { code: "HS_PLATFORM" });
  }
  assert.deepEqual(readdirSync(place), []);
});

test("without blobs the layers are unpacked all the same, and only manifest and configuration are kept", async () => {
  const { output, images } = await build([fixture("gogz")], { blobs: false });
  const blobs = readdirSync(join(output, "io.containerd.content.v1.content/blobs/sha256"));
  assert.deepEqual(blobs.sort(), [images[0]!.manifest, images[0]!.config].map(digestHex).sort());
  assert.equal(images[0]!.layers.length, inspectRoot(output).overlayfs.length);
});

test("a layer that containerd refuses, a wrong blob, a wrong diffID and an interrupt leave nothing behind", async () => {
  const place = join(directory, "failing");
  mkdirSync(place);
  const output = join(place, "root");
  await assert.rejects(build([fixture("odd-contiguous")], { output }), { code: "HS_LAYER_REFUSED" });

  const layout = join(directory, "bad");
  await buildImage(layout, "x", [[{ path: "a", data: "aaaa" }], [{ path: "b", data: "bbbb" }]]);
  const { images } = await build([`oci:${layout}:x`]);
  const { digest } = images[0]!.layers[1]!;
  const blob = join(layout, "blobs/sha256", digestHex(digest));
  const bytes = readFileSync(blob);
  bytes[20]! ^= 1;
  writeFileSync(blob, bytes);
  await assert.rejects(build([`oci:${layout}:x`], { output }), { code: "HS_DIGEST_MISMATCH" });

  const lying = { ...layerOf([{ path: "a", data: "a" }]), diffID: sha256(Buffer.from("another")) };
  await writeImage(layout, [lying], { name: "lying" });
  await assert.rejects(build([`oci:${layout}:lying`], { output }), { code: "HS_DIFFID_MISMATCH" });

  const stop = new AbortController();
  const onProgress = () => stop.abort(new Error("enough"));
  await assert.rejects(build([fixture("gogz")], { output, signal: stop.signal, onProgress }), /enough/);
  assert.deepEqual(readdirSync(place), []);
});

test("a disk that gets full is an error, and leaves nothing", async () => {
  const place = join(directory, "small");
  mkdirSync(place);
  const layout = join(directory, "too-large");
  await buildImage(layout, "x", [
    [
      { path: "large", data: Buffer.alloc(3 << 20) },
      { path: "more", data: "x" },
    ],
  ]);
  mount({ source: "tmpfs", target: place, type: "tmpfs", flags: 0, data: "size=1m" });
  try {
    // its blob fits: it is the thread that fails
    await assert.rejects(build([`oci:${layout}:x`], { output: join(place, "root") }), { code: "HS_DISK_FULL" });
    assert.deepEqual(readdirSync(place), []);
  } finally {
    unmount(place);
  }
});

test("what exists is never touched: a directory, a file, a dangling link, PATH.json", async () => {
  const place = join(directory, "existing");
  mkdirSync(join(place, "directory"), { recursive: true });
  writeFileSync(join(place, "file"), "mine");
  writeFileSync(join(place, "beside.json"), "mine");
  symlinkSync("nowhere", join(place, "link"));
  for (const name of ["directory", "file", "link", "beside"]) {
    await assert.rejects(build([fixture("gogz")], { output: join(place, name) }), { code: "HS_OUTPUT_EXISTS" });
  }
  await assert.rejects(build([fixture("gogz")], { output: join(place, "no/parent") }), { code: "HS_NOT_FOUND" });
  assert.deepEqual(readdirSync(place).sort(), ["beside.json", "directory", "file", "link"]);
  assert.equal(readFileSync(join(place, "file"), "utf8"), "mine");
});
