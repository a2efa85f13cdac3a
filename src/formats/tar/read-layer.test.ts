import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { gzipSync, zstdCompressSync } from "node:zlib";
import { file, wholeTar } from "../../../test/tar-bytes.ts";
import type { Digest } from "../../base/digest.ts";
import { isHeadstartError } from "../../base/errors.ts";
import type { FileTree } from "../../erofs/file-tree.ts";
import { mergeTrees, treeInChain } from "../../erofs/overlay.ts";
import { compareTreeLines, type TreeLine, treeLines } from "../../erofs/tree-lines.ts";
import { openLayerStream } from "./decompress.ts";
import { type ReadLayer, readLayerTree } from "./read-layer.ts";

const FIXTURE = join(import.meta.dirname, "../../../test/golden/fixture");
const OCI_TAR = "application/vnd.oci.image.layer.v1.tar";

interface LayerDescriptor {
  readonly mediaType: string;
  readonly digest: Digest;
  readonly size: number;
}

const json = (path: string) => JSON.parse(readFileSync(path, "utf8"));
const blobPath = (digest: string) => join(FIXTURE, "oci/blobs", digest.replace(":", "/"));

/** Every image of the layout, one a platform. */
function images(): { name: string; layers: LayerDescriptor[]; diffIDs: Digest[] }[] {
  const found: { name: string; layers: LayerDescriptor[]; diffIDs: Digest[] }[] = [];
  const visit = (descriptor: { digest: string; platform?: { architecture: string } }, name: string) => {
    const manifest = json(blobPath(descriptor.digest));
    if (manifest.manifests !== undefined) {
      for (const inner of manifest.manifests) visit(inner, `${name} ${inner.platform.architecture}`);
      return;
    }
    found.push({ name, layers: manifest.layers, diffIDs: json(blobPath(manifest.config.digest)).rootfs.diff_ids });
  };
  for (const descriptor of json(join(FIXTURE, "oci/index.json")).manifests) {
    visit(descriptor, descriptor.annotations["org.opencontainers.image.ref.name"]);
  }
  return found;
}

async function* chunks(bytes: Uint8Array, size = 10_000): AsyncGenerator<Uint8Array> {
  for (let at = 0; at < bytes.byteLength; at += size) yield bytes.subarray(at, at + size);
}

async function collect<T>(items: AsyncIterable<T>): Promise<T[]> {
  const all: T[] = [];
  for await (const item of items) all.push(item);
  return all;
}

function readAll(image: { layers: LayerDescriptor[]; diffIDs: Digest[] }): Promise<ReadLayer[]> {
  return Promise.all(
    image.layers.map(({ mediaType, digest, size }, index) =>
      readLayerTree(chunks(readFileSync(blobPath(digest))), {
        mediaType,
        role: index === 0 ? "lowest" : "upper",
        digest,
        size,
        diffID: image.diffIDs[index],
        hashContents: true,
      }),
    ),
  );
}

async function linesOf(tree: FileTree, sha256: (inode: number) => string): Promise<TreeLine[]> {
  return collect(treeLines(tree, { sha256 }));
}

async function mergedLines(layers: ReadLayer[]): Promise<TreeLine[]> {
  const merged = mergeTrees(layers.map(({ tree }) => tree));
  return linesOf(merged.tree, (inode) => layers[merged.layer[inode]!]!.contentSha256(merged.inode[inode]!));
}

function expectedLines(name: string): TreeLine[] {
  return readFileSync(join(FIXTURE, "tree", `${name}.jsonl`), "utf8")
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line) as TreeLine);
}

for (const image of images()) {
  const { name } = image;
  const refused = existsSync(join(FIXTURE, "tree", `${name}.error.txt`));
  if (refused) {
    test(`golden: ${name} is refused as containerd refuses it`, async () => {
      await assert.rejects(readAll(image), (error) => isHeadstartError(error, "HS_LAYER_REFUSED"));
    });
    continue;
  }
  if (name === "index arm64") continue;
  test(`golden: ${name} gives the merged tree that containerd's overlayfs shows`, async () => {
    const expected = name === "dotgz" ? "merged-dot" : name.startsWith("odd-") ? name : "merged";
    assert.deepEqual(compareTreeLines(expectedLines(expected), await mergedLines(await readAll(image))), []);
  });
  if (name.startsWith("odd-") || name === "dotgz") continue;
  test(`golden: ${name} gives the trees of its layers`, async () => {
    const layers = await readAll(image);
    for (const [index, layer] of layers.entries()) {
      const trees = layers.map(({ tree }) => tree);
      const tree = treeInChain(trees, index);
      assert.equal(tree.inodeCount, layer.tree.inodeCount);
      const lines = await linesOf(tree, (inode) => hashOf(layer, tree, inode));
      assert.deepEqual(compareTreeLines(expectedLines(`layer-${index}`), lines), [], `layer ${index}`);
    }
  });
}

/** Inode numbers differ between a tree and the same in its chain, addresses do not. */
function hashOf(layer: ReadLayer, tree: FileTree, inode: number): string {
  const first = tree.segmentStart[inode]!;
  if (first === tree.segmentStart[inode + 1]!) return createHash("sha256").digest("hex");
  const address = tree.segmentAddress[first]!;
  for (let own = 0; own < layer.tree.inodeCount; own++) {
    const start = layer.tree.segmentStart[own]!;
    if (start < layer.tree.segmentStart[own + 1]! && layer.tree.segmentAddress[start] === address) {
      return layer.contentSha256(own);
    }
  }
  return assert.fail();
}

test("golden: the arm64 image of the index has layers 0 and 2 and no marks of layer 1", async () => {
  const image = images().find(({ name }) => name === "index arm64")!;
  const lines = await mergedLines(await readAll(image));
  const paths = new Set(lines.map(({ path }) => path));
  assert.equal(paths.has("/etc/remove-me"), true);
  assert.equal(paths.has("/mid/hard-2"), false);
  assert.equal(lines.find(({ path }) => path === "/etc/comes-back")!.mode, "0640");
});

test("keys of tree lines stand in the order of the golden ones", async () => {
  const image = images().find(({ name }) => name === "gogz")!;
  const got = new Map((await mergedLines(await readAll(image))).map((line) => [line.path, line]));
  for (const want of expectedLines("merged")) {
    assert.deepEqual(Object.keys(got.get(want.path)!), Object.keys(want), want.path);
  }
});

const TAR = wholeTar(file("a", "some content"), file("b", "x".repeat(5000)));

async function readBytes(
  bytes: Uint8Array,
  options: { mediaType?: string; digest?: Digest; size?: number; diffID?: Digest } = {},
) {
  return readLayerTree(chunks(bytes, 777), { mediaType: OCI_TAR, role: "lowest", ...options });
}

const refuses = (code: string, work: Promise<unknown>) =>
  assert.rejects(work, (error) => isHeadstartError(error, "HS_LAYER_REFUSED") && error.details.refusal === code);
const sha = (bytes: Uint8Array) => `sha256:${createHash("sha256").update(bytes).digest("hex")}` as Digest;

test("1.1: the bytes decide whatever the media type says, gzip under OCI's plain tar type too (C21)", async () => {
  const types = [
    OCI_TAR,
    `${OCI_TAR}+gzip`,
    `${OCI_TAR}+zstd`,
    `${OCI_TAR}+unknown`,
    "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.zstd",
    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
  ];
  for (const mediaType of types) {
    for (const bytes of [TAR, gzipSync(TAR), zstdCompressSync(TAR)]) {
      const { tree, diffID } = await readBytes(bytes, { mediaType });
      assert.deepEqual([tree.inodeCount, diffID], [3, sha(TAR)]);
    }
  }
});

test("1.1: encrypted layers and other types are refused", async () => {
  for (const mediaType of [
    `${OCI_TAR}+gzip+encrypted`,
    "application/json",
    "application/vnd.oci.image.config.v1+json",
  ]) {
    await refuses("media-type", readBytes(TAR, { mediaType }));
  }
});

test("1.1: one wrapping only; other compressions are refused as bad tars", async () => {
  for (const bytes of [
    gzipSync(gzipSync(TAR)),
    gzipSync(zstdCompressSync(TAR)),
    zstdCompressSync(zstdCompressSync(TAR)),
    Buffer.concat([Buffer.from("fd377a585a00", "hex"), new Uint8Array(600)]),
    Buffer.concat([Buffer.from("BZh9"), new Uint8Array(600)]),
    Buffer.concat([Buffer.from([0x1f, 0x8b, 7]), new Uint8Array(600)]),
  ]) {
    await assert.rejects(
      readBytes(bytes),
      (error) => isHeadstartError(error, "HS_LAYER_REFUSED") && String(error.details.refusal).startsWith("tar-"),
    );
  }
  await refuses("gzip", readBytes(Buffer.concat([gzipSync(TAR), zstdCompressSync(TAR)])));
});

test("1.1: nothing, an empty member or frame, a skippable frame alone are an empty layer", async () => {
  const skippable = Buffer.from("532a4d1804000000deadbeef", "hex");
  for (const bytes of [new Uint8Array(0), gzipSync(""), zstdCompressSync(""), skippable]) {
    assert.equal((await readBytes(bytes)).tree.inodeCount, 1);
  }
  const { tree } = await readBytes(Buffer.concat([skippable, zstdCompressSync(TAR)]));
  assert.equal(tree.inodeCount, 3);
});

test("1.2: gzip members of any number and size; zeros behind the last are padding, other bytes are refused", async () => {
  const members = Buffer.concat([gzipSync(TAR.subarray(0, 1)), gzipSync(""), gzipSync(TAR.subarray(1))]);
  assert.equal((await readBytes(members)).diffID, sha(TAR));
  assert.equal((await readBytes(Buffer.concat([members, new Uint8Array(3000)]))).diffID, sha(TAR));
  await refuses("gzip", readBytes(Buffer.concat([members, Buffer.from("x")])));
  await refuses("gzip", readBytes(Buffer.concat([members, new Uint8Array(30), Buffer.from("x")])));
});

test("1.2: members are checked whole: cut ones, a wrong CRC or length, also behind the end of the tar", async () => {
  const zipped = gzipSync(TAR);
  for (const cut of [5, 100, zipped.byteLength - 9, zipped.byteLength - 1]) {
    await refuses("gzip", readBytes(zipped.subarray(0, cut)));
  }
  for (const at of [zipped.byteLength - 8, zipped.byteLength - 1]) {
    const bad = Buffer.from(zipped);
    bad[at]! ^= 1;
    await refuses("gzip", readBytes(bad));
  }
  const behind = Buffer.from(gzipSync("behind"));
  behind[behind.byteLength - 1]! ^= 1;
  await refuses("gzip", readBytes(Buffer.concat([zipped, behind])));
});

test("1.2: headers with extra field, long name, comment and checksum are read; reserved flags are refused", async () => {
  const plain = gzipSync(TAR);
  const withFlags = (flags: number, extra: Uint8Array) => {
    const head = Buffer.from(plain.subarray(0, 10));
    head[3] = flags;
    return Buffer.concat([head, extra, plain.subarray(10)]);
  };
  const extra = Buffer.concat([Buffer.from([0xff, 0xff]), Buffer.alloc(65_535, 1)]);
  const name = Buffer.from(`${"n".repeat(700)}\0`);
  for (const bytes of [withFlags(4, extra), withFlags(8, name), withFlags(16, name), withFlags(1, new Uint8Array(0))]) {
    assert.equal((await readBytes(bytes)).tree.inodeCount, 3);
  }
  await refuses("gzip", readBytes(withFlags(2, Buffer.from([1, 2]))));
  for (const reserved of [0x20, 0x40, 0x80]) await refuses("gzip", readBytes(withFlags(reserved, new Uint8Array(0))));
});

test("1.3: zstd frames in any number; nothing may stand behind the last one, none may be cut", async () => {
  const frames = Buffer.concat([
    zstdCompressSync(TAR.subarray(0, 100)),
    zstdCompressSync(""),
    zstdCompressSync(TAR.subarray(100)),
  ]);
  assert.equal((await readBytes(frames)).diffID, sha(TAR));
  await refuses("zstd", readBytes(Buffer.concat([frames, new Uint8Array(8)])));
  await refuses("zstd", readBytes(frames.subarray(0, frames.byteLength - 1)));
  await refuses("zstd", readBytes(Buffer.concat([frames, Buffer.from("28b5", "hex")])));
  await refuses("zstd", readBytes(Buffer.concat([frames, Buffer.from("502a4d18", "hex")])));
});

/** A zstd frame by hand (RFC 8878 3.1.1): magic, descriptor, rest of the header, blocks. */
const frame = (...parts: (string | Uint8Array)[]) =>
  Buffer.concat([
    Buffer.from("28b52ffd", "hex"),
    ...parts.map((part) => (typeof part === "string" ? Buffer.from(part, "hex") : part)),
  ]);
const rawBlock = (bytes: Uint8Array, last = true) => {
  const head = Buffer.alloc(3);
  head.writeUIntLE((bytes.byteLength << 3) | (last ? 1 : 0), 0, 3);
  return Buffer.concat([head, bytes]);
};

test("1.3: windows up to 512 MiB are read, larger ones refused (C23); so are dictionaries and reserved bits", async () => {
  // window descriptor: exponent (log - 10) << 3
  const window = (log: number) => ((log - 10) << 3).toString(16).padStart(2, "0");
  assert.equal((await readBytes(frame("00", window(29), rawBlock(TAR)))).diffID, sha(TAR));
  await refuses("zstd", readBytes(frame("00", window(30), rawBlock(TAR))));
  assert.equal((await readBytes(frame("01", window(20), "00", rawBlock(TAR)))).diffID, sha(TAR), "dictionary id 0");
  await refuses("zstd", readBytes(frame("01", window(20), "07", rawBlock(TAR))));
  await refuses("zstd", readBytes(frame("08", window(20), rawBlock(TAR))));
  assert.equal((await readBytes(frame("10", window(20), rawBlock(TAR)))).diffID, sha(TAR), "unused bit");
  await refuses("zstd", readBytes(frame("00", window(20), "070000")));
});

test("1.3: single segments, raw and RLE blocks are read; too large blocks and wrong content sizes refused", async () => {
  const size = Buffer.alloc(2);
  size.writeUInt16LE(TAR.byteLength - 256);
  assert.equal((await readBytes(frame("60", size, rawBlock(TAR)))).diffID, sha(TAR));
  size.writeUInt16LE(TAR.byteLength - 255);
  await refuses("zstd", readBytes(frame("60", size, rawBlock(TAR))));
  const rle = Buffer.alloc(4);
  rle.writeUIntLE((1024 << 3) | 3, 0, 3);
  assert.equal((await readBytes(frame("00", "50", rawBlock(TAR, false), rle))).tarSize, TAR.byteLength + 1024);
  await refuses("zstd", readBytes(frame("00", "50", rawBlock(new Uint8Array(128 * 1024 + 1)))));
  await refuses("zstd", readBytes(frame("00", "00", rawBlock(new Uint8Array(1025)))));
});

test("1.4: the diffID counts everything behind the end of the archive, and must be the configuration's", async () => {
  const longer = Buffer.concat([TAR, Buffer.from("behind the end")]);
  assert.equal((await readBytes(gzipSync(longer), { diffID: sha(longer) })).diffID, sha(longer));
  await refuses("diff-id", readBytes(gzipSync(longer), { diffID: sha(TAR) }));
});

test("1.4: a blob without the descriptor's digest or size is refused, whatever is wrong with its bytes", async () => {
  const zipped = gzipSync(TAR);
  const digest = sha(zipped);
  assert.equal((await readBytes(zipped, { digest, size: zipped.byteLength })).digest, digest);
  const bad = Buffer.from(zipped);
  bad[30]! ^= 0xff;
  await assert.rejects(readBytes(bad, { digest }), (error) => isHeadstartError(error, "HS_DIGEST_MISMATCH"));
  await assert.rejects(readBytes(TAR, { digest }), (error) => isHeadstartError(error, "HS_DIGEST_MISMATCH"));
  for (const size of [zipped.byteLength - 1, zipped.byteLength + 1]) {
    await assert.rejects(readBytes(zipped, { digest, size }), (error) => isHeadstartError(error, "HS_SIZE_MISMATCH"));
  }
});

test("a layer stream yields the tar, piece by piece", async () => {
  for (const bytes of [TAR, gzipSync(TAR), zstdCompressSync(TAR)]) {
    const pieces = await collect(openLayerStream(OCI_TAR, chunks(bytes, 50)));
    assert.deepEqual(Buffer.concat(pieces), TAR);
  }
});
