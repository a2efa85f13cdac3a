import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { cpSync, existsSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";
import fc from "fast-check";
import { type Digest, sha256 } from "../base/digest.ts";
import { type ErrorCode, HeadstartError, isHeadstartError } from "../base/errors.ts";
import { tarHeader } from "./archive-write.ts";
import { openContentStore } from "./content-store.ts";
import { goManifest } from "./gojson.ts";
import { loadImage } from "./manifest.ts";
import { MEDIA_TYPES } from "./media-types.ts";
import { openDestination, openSource } from "./open.ts";
import { parsePlatform } from "./platform.ts";
import { parseSource } from "./reference.ts";
import { collect, scratch } from "./registry/testing.ts";
import type { ImageReader, ImageWriter } from "./store.ts";
import { TarIndex } from "./tar-index.ts";

const FIXTURE = fileURLToPath(new URL("../../test/golden/fixture/oci", import.meta.url));
const code = (wanted: ErrorCode) => (error: unknown) => isHeadstartError(error, wanted);
const open = (text: string) => openSource(parseSource(text));

/** Copies an image as `convert` would: blobs, manifest, index. */
async function copy(from: ImageReader, to: ImageWriter & { tag: string | undefined }): Promise<void> {
  const image = await loadImage(from, parsePlatform("linux/amd64"));
  for (const blob of [image.configDescriptor, ...image.layers]) {
    await to.pushBlob(blob, () => from.openBlob(blob).stream(0));
  }
  await to.pushManifest(image.manifestBytes, image.manifestDescriptor.mediaType, to.tag);
  await to.finish();
}

test("every variant of the golden layout is found by its name, and its blobs by range and whole", async () => {
  for (const name of ["gogz", "dockergz", "index", "zstd", "odd-gnu"]) {
    const reader = await open(`oci:${FIXTURE}:${name}`);
    const image = await loadImage(reader, parsePlatform("linux/amd64"));
    assert.equal(image.layers.length, image.diffIDs.length);
    const blob = reader.openBlob(image.layers[0]!);
    const whole = await blob.readAll();
    assert.deepEqual(await collect(blob.stream(0)), Buffer.from(whole));
    assert.deepEqual(await collect(blob.stream(100)), Buffer.from(whole.subarray(100)));
    const into = new Uint8Array(new SharedArrayBuffer(50));
    assert.deepEqual(Buffer.from(await blob.readRange(7, 57, { into })), Buffer.from(whole.subarray(7, 57)));
  }
});

test("passing chunks are the blob's bytes, all in one piece of memory; others can be kept", async () => {
  using folder = await scratch();
  const layout = `oci:${folder.path}/layout:x`;
  const blob = Buffer.alloc((5 << 20) / 2, "not the same in every megabyte ");
  const writer = await openDestination(parseSource(layout));
  const descriptor = { mediaType: "x", digest: sha256(blob), size: blob.byteLength };
  await writer.pushBlob(descriptor, blob);
  await copy(await open(`oci:${FIXTURE}:gogz`), writer);
  const reader = await open(layout);
  for (const passing of [true, false]) {
    const kept: Uint8Array[] = [];
    const copied: Uint8Array[] = [];
    for await (const chunk of reader.openBlob(descriptor).stream(0, { passing })) {
      kept.push(chunk);
      copied.push(Uint8Array.from(chunk));
    }
    assert.ok(blob.equals(Buffer.concat(copied)));
    assert.equal(new Set(kept.map((chunk) => chunk.buffer)).size, passing ? 1 : kept.length);
  }
});

test("arm64 gets its own image of an index", async () => {
  const reader = await open(`oci:${FIXTURE}:index`);
  assert.equal((await loadImage(reader, parsePlatform("linux/arm64"))).layers.length, 2);
  await assert.rejects(loadImage(reader, parsePlatform("linux/riscv64")), code("HS_PLATFORM"));
});

test("an unknown name, or none among several, says which there are", async () => {
  const unknown = await open(`oci:${FIXTURE}:nothing`);
  await assert.rejects(unknown.resolve(), /there are: gogz, pigz/);
  const several = await open(`oci:${FIXTURE}`);
  await assert.rejects(several.resolve(), code("HS_NOT_FOUND"));
  await assert.rejects(open("oci:/nowhere/at/all:x"), code("HS_NOT_FOUND"));
});

test("an image is found by its digest", async () => {
  const { digest } = await (await open(`oci:${FIXTURE}:gogz`)).resolve();
  const reader = await open(`oci:${FIXTURE}@${digest}`);
  assert.equal((await loadImage(reader)).manifestDescriptor.digest, digest);
});

for (const transport of ["oci", "oci-archive"]) {
  test(`an image copied to ${transport}: is the same image`, async () => {
    using folder = await scratch();
    const place = `${transport}:${join(folder.path, "image")}`;
    const from = await open(`oci:${FIXTURE}:gogz`);
    await using to = await openDestination(parseSource(`${place}:v1`));
    await copy(from, to);
    for (const text of [`${place}:v1`, place]) {
      await using back = await open(text);
      const image = await loadImage(back);
      assert.deepEqual(image.manifestDescriptor.digest, (await from.resolve()).digest);
      for (const layer of image.layers) await back.openBlob(layer).readAll();
    }
    // nothing left over beside it
    assert.deepEqual(
      readdirSync(folder.path).filter((name) => name.startsWith(".")),
      [],
    );
  });
}

for (const transport of ["oci", "oci-archive"]) {
  test(`streams of unknown length are stored in ${transport}: once each, and one that fails leaves nothing`, async () => {
    using folder = await scratch();
    const place = `${transport}:${join(folder.path, "image")}:v1`;
    const from = await open(`oci:${FIXTURE}:gogz`);
    const image = await loadImage(from, parsePlatform("linux/amd64"));
    async function* broken() {
      yield new Uint8Array(70_000);
      throw new Error("the source broke");
    }
    await using to = await openDestination(parseSource(place));
    const pushes = image.layers.flatMap((layer) => [
      to.pushStream(from.openBlob(layer).stream(0)).then((stored) => {
        assert.deepEqual(stored, { digest: layer.digest, size: layer.size });
      }),
      assert.rejects(to.pushStream(broken()), /the source broke/),
      to.pushStream(from.openBlob(layer).stream(0)),
    ]);
    await Promise.all(pushes);
    await copy(from, to);
    await using back = await open(place);
    const again = await loadImage(back);
    for (const layer of again.layers) await back.openBlob(layer).readAll();
    if (transport === "oci") assert.equal(readdirSync(join(folder.path, "image/blobs/sha256")).length, 5);
    else {
      // what broke off left no gap: the same pushes without it give the same file
      const other = join(folder.path, "other");
      await using plain = await openDestination(parseSource(`oci-archive:${other}:v1`));
      await copy(from, plain);
      assert.deepEqual(readFileSync(join(folder.path, "image")).byteLength, readFileSync(other).byteLength);
    }
  });
}

test("skopeo reads the layout and the archive that we write", async (context) => {
  if (!existsSync("/usr/bin/skopeo")) return context.skip("no skopeo here");
  using folder = await scratch();
  for (const transport of ["oci", "oci-archive"]) {
    const place = `${transport}:${join(folder.path, transport)}:v1`;
    await using to = await openDestination(parseSource(place));
    await copy(await open(`oci:${FIXTURE}:gogz`), to);
    const raw = execFileSync("skopeo", ["inspect", "--raw", place]);
    assert.equal(sha256(raw), (await (await open(`oci:${FIXTURE}:gogz`)).resolve()).digest);
    execFileSync("skopeo", ["copy", "--insecure-policy", "-q", place, `dir:${join(folder.path, `${transport}-dir`)}`]);
  }
});

test("a push into a layout that has images keeps the others and replaces its own name", async () => {
  using folder = await scratch();
  const place = `oci:${folder.path}/l`;
  for (const [variant, tag] of [
    ["gogz", "a"],
    ["pigz", "b"],
    ["tar", "a"],
  ]) {
    await using to = await openDestination(parseSource(`${place}:${tag}`));
    await copy(await open(`oci:${FIXTURE}:${variant}`), to);
  }
  const digestOf = async (text: string) => (await (await open(text)).resolve()).digest;
  assert.equal(await digestOf(`${place}:a`), await digestOf(`oci:${FIXTURE}:tar`));
  assert.equal(await digestOf(`${place}:b`), await digestOf(`oci:${FIXTURE}:pigz`));
});

for (const transport of ["oci", "oci-archive"]) {
  test(`a pushed artifact with a subject is a referrer in ${transport}:, and never taken for the image`, async () => {
    using folder = await scratch();
    const place = `${transport}:${join(folder.path, "image")}`;
    const from = await open(`oci:${FIXTURE}:gogz`);
    const image = await loadImage(from);
    await using to = await openDestination(parseSource(place));
    const empty = Buffer.from("{}");
    const config = { mediaType: MEDIA_TYPES.sociIndexV1, digest: sha256(empty), size: 2 };
    const artifact = goManifest({
      mediaType: MEDIA_TYPES.ociManifest,
      config,
      layers: [],
      subject: image.manifestDescriptor,
    });
    await to.pushBlob(config, empty);
    await to.pushManifest(artifact, MEDIA_TYPES.ociManifest);
    await copy(from, to);
    await using back = await open(place);
    assert.equal((await back.resolve()).digest, image.manifestDescriptor.digest);
    const found = await back.referrers(image.manifestDescriptor.digest, { artifactType: MEDIA_TYPES.sociIndexV1 });
    assert.deepEqual(
      found.map((one) => one.digest),
      [sha256(artifact)],
    );
    assert.deepEqual(await back.referrers(image.manifestDescriptor.digest, { artifactType: "other/type" }), []);
  });
}

for (const transport of ["oci", "oci-archive"]) {
  test(`wrong bytes pushed to ${transport}: leave nothing behind`, async () => {
    using folder = await scratch();
    const to = await openDestination(parseSource(`${transport}:${join(folder.path, "image")}:v1`));
    const bytes = Buffer.from("hello");
    const descriptor = { mediaType: MEDIA_TYPES.octetStream, digest: sha256(bytes), size: 5 };
    await assert.rejects(to.pushBlob(descriptor, Buffer.from("hallo")), code("HS_DIGEST_MISMATCH"));
    await assert.rejects(to.pushBlob(descriptor, Buffer.from("hell")), code("HS_SIZE_MISMATCH"));
    await assert.rejects(to.pushBlob(descriptor, Buffer.from("hello!")), code("HS_SIZE_MISMATCH"));
    assert.equal(await to.hasBlob(descriptor), false);
    await to.pushBlob(descriptor, bytes);
    assert.equal(await to.hasBlob(descriptor), true);
    await to[Symbol.asyncDispose]();
    if (transport === "oci-archive") assert.deepEqual(readdirSync(folder.path), []);
  });
}

test("a damaged blob of a layout is found out", async () => {
  using folder = await scratch();
  cpSync(FIXTURE, folder.path, { recursive: true });
  const reader = await open(`oci:${folder.path}:gogz`);
  const image = await loadImage(reader);
  const layer = image.layers[0]!;
  const path = join(folder.path, "blobs/sha256", layer.digest.slice(7));
  const bytes = readFileSync(path);
  bytes[1000]! ^= 1;
  writeFileSync(path, bytes);
  await assert.rejects(reader.openBlob(layer).readAll(), code("HS_DIGEST_MISMATCH"));
  await assert.rejects(collect(reader.openBlob(layer).stream(0)), code("HS_DIGEST_MISMATCH"));
  writeFileSync(path, bytes.subarray(1));
  await assert.rejects(reader.openBlob(layer).readRange(0, 1), code("HS_SIZE_MISMATCH"));
});

test("containerd's content directory is read by digest", async () => {
  using folder = await scratch();
  cpSync(join(FIXTURE, "blobs"), join(folder.path, "io.containerd.content.v1.content/blobs"), { recursive: true });
  const target = await (await open(`oci:${FIXTURE}:index`)).resolve();
  const reader = openContentStore(folder.path, target, "containerd:x");
  const image = await loadImage(reader, parsePlatform("linux/amd64"));
  assert.equal(image.layers.length, 3);
  await reader.openBlob(image.layers[2]!).readAll();
  const missing = `sha256:${"0".repeat(64)}` as Digest;
  await assert.rejects(reader.readManifest(missing), code("HS_NOT_FOUND"));
  await assert.rejects(reader.openBlob({ ...target, digest: missing }).readAll(), code("HS_BLOB_NOT_FOUND"));
});

/** What docker before 25 wrote: layers as <id>/layer.tar, one of them a symlink, no layout. */
async function dockerSave(folder: string): Promise<string> {
  const reader = await open(`oci:${FIXTURE}:tar`);
  const image = await loadImage(reader);
  const config = await reader.openBlob(image.configDescriptor).readAll();
  const layers = await Promise.all(image.layers.map((layer) => reader.openBlob(layer).readAll()));
  const parts: Uint8Array[] = [];
  const add = (name: string, bytes: Uint8Array) =>
    parts.push(tarHeader(name, bytes.byteLength), bytes, new Uint8Array((512 - (bytes.byteLength % 512)) % 512));
  add("aaa.json", config);
  layers.forEach((layer, position) => {
    add(position === 2 ? "real.tar" : `l${position}/layer.tar`, layer);
  });
  const link = tarHeader("l2/layer.tar", 0);
  link[156] = "2".charCodeAt(0);
  link.set(Buffer.from("../real.tar"), 157);
  link.fill(0x20, 148, 156);
  const sum = link.reduce((total, byte) => total + byte, 0);
  link.set(Buffer.from(`${sum.toString(8).padStart(6, "0")}\0 `), 148);
  parts.push(link);
  const list = [{ Config: "aaa.json", RepoTags: ["app:v1"], Layers: ["l0/layer.tar", "l1/layer.tar", "l2/layer.tar"] }];
  add("manifest.json", Buffer.from(JSON.stringify(list)));
  parts.push(new Uint8Array(1024));
  const path = join(folder, "save.tar");
  writeFileSync(path, Buffer.concat(parts));
  return path;
}

test("a docker save archive is read as an image of plain tar layers", async () => {
  using folder = await scratch();
  const path = await dockerSave(folder.path);
  for (const text of [`docker-archive:${path}`, `oci-archive:${path}:app:v1`, `oci-archive:${path}:v1`]) {
    await using reader = await open(text);
    const image = await loadImage(reader);
    assert.deepEqual(
      image.layers.map((layer) => layer.digest),
      [...image.diffIDs],
    );
    for (const layer of image.layers) await reader.openBlob(layer).readAll();
  }
  await assert.rejects(open(`docker-archive:${path}:other`), /there are: app:v1/);
});

test("a compressed archive is refused with advice", async () => {
  using folder = await scratch();
  const path = await dockerSave(folder.path);
  writeFileSync(`${path}.gz`, gzipSync(readFileSync(path)));
  await assert.rejects(open(`oci-archive:${path}.gz`), /decompress it first/);
});

test("tar archives by tar(1) in every format are indexed: long names, pax, links", async () => {
  using folder = await scratch({ [`in/${"d".repeat(90)}/${"n".repeat(95)}`]: "long", "in/a": "short" });
  execFileSync("ln", ["-s", "a", join(folder.path, "in/link")]);
  execFileSync("ln", [join(folder.path, "in/a"), join(folder.path, "in/hard")]);
  for (const format of ["gnu", "pax", "ustar"]) {
    const path = join(folder.path, `${format}.tar`);
    execFileSync("tar", [`--format=${format}`, "-C", join(folder.path, "in"), "-cf", path, "."]);
    const index = await TarIndex.open(path, path);
    assert.equal(index.find(`${"d".repeat(90)}/${"n".repeat(95)}`)?.size, 4, format);
    assert.equal(index.find("link")?.size, 5, format);
    assert.equal(index.find("hard")?.size, 5, format);
    const piece = index.find("./a")!;
    assert.equal(
      readFileSync(path)
        .subarray(piece.offset, piece.offset + piece.size)
        .toString(),
      "short",
    );
  }
});

test("property: a mutated archive gives an index or a typed error", async () => {
  using folder = await scratch({ "in/a": "short", [`in/${"n".repeat(150)}`]: "long" });
  const path = join(folder.path, "a.tar");
  execFileSync("tar", ["--format=pax", "-C", join(folder.path, "in"), "-cf", path, "."]);
  const good = readFileSync(path);
  const mutation = fc.record({
    at: fc.nat({ max: 4096 }),
    byte: fc.nat({ max: 255 }),
    end: fc.nat({ max: good.length }),
  });
  await fc.assert(
    fc.asyncProperty(mutation, async ({ at, byte, end }) => {
      const bytes = Buffer.from(good.subarray(0, byte % 3 === 0 ? end : good.length));
      if (at < bytes.length) bytes[at] = byte;
      writeFileSync(path, bytes);
      await TarIndex.open(path, "mutated").catch((error) => assert.ok(error instanceof HeadstartError, String(error)));
    }),
    { numRuns: 300 },
  );
});

test("destinations that cannot be written to are wrong usage", async () => {
  const digest = `sha256:${"0".repeat(64)}`;
  for (const text of ["containerd:a", "rafs:a:b", `ghcr.io/a@${digest}`, `oci:dir@${digest}`]) {
    await assert.rejects(openDestination(parseSource(text)), code("HS_USAGE"), text);
  }
});
