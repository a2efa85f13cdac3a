/** Looking into Nydus images: layouts made by nydusify, and bootstraps beside a folder of blobs. */

import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import {
  cpSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  symlinkSync,
  truncateSync,
  unlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { gzipSync } from "node:zlib";
import {
  expectedNydusTree,
  nydusBlob,
  nydusBlobs,
  nydusBootstrap,
  nydusLayout,
  nydusVariants,
} from "../../test/suites/golden-nydus.ts";
import { file, wholeTar } from "../../test/tar-bytes.ts";
import { type Digest, sha256 } from "../base/digest.ts";
import { isHeadstartError } from "../base/errors.ts";
import { compareTreeLines, type TreeLine, treeLines } from "../erofs/tree-lines.ts";
import { readBootstrapLayer } from "../formats/nydus/bootstrap-layer.ts";
import { isNydusManifest, readNydusManifest } from "../formats/nydus/manifest.ts";
import { NYDUS_ANNOTATIONS, NYDUS_MEDIA_TYPES } from "../formats/nydus/ondisk.ts";
import { parseManifest } from "../oci/manifest.ts";
import { openSource } from "../oci/open.ts";
import { parseSource } from "../oci/reference.ts";
import type { ImageReader } from "../oci/store.ts";
import { findPath, type LookedImage, lookInto, readContent } from "./look.ts";
import { inspectNydusImage, inspectRafs, lookIntoRafs } from "./look-nydus.ts";

const AMD64 = { os: "linux", architecture: "amd64" };
let directory: string;

before(() => {
  directory = mkdtempSync(join(tmpdir(), "headstart-nydus-"));
});
after(() => rmSync(directory, { recursive: true, force: true }));

async function look(tag: string, hashContents = false): Promise<LookedImage> {
  await using reader = await openSource(parseSource(`oci:${nydusLayout}:${tag}`));
  return await lookInto(reader, { platform: AMD64, hashContents });
}

async function lines(looked: LookedImage): Promise<TreeLine[]> {
  const hash = looked.layers[0]!.contentSha256;
  const found: TreeLine[] = [];
  for await (const line of treeLines(looked.merged.tree, hash === null ? {} : { sha256: hash })) found.push(line);
  return found;
}

async function content(looked: LookedImage, path: string): Promise<Buffer> {
  const parts: Uint8Array[] = [];
  for await (const part of readContent(looked, findPath(looked.merged.tree, path, true))) parts.push(part);
  return Buffer.concat(parts);
}

/** A bootstrap file and a folder of blobs, as `rafs:` names them. */
function rafs(variant: string) {
  const bootstrap = join(directory, `${variant}.boot`);
  writeFileSync(bootstrap, nydusBootstrap(variant));
  return { bootstrap, blobs: nydusBlobs };
}

test("an image that refers to its original layers shows the whole tree, contents included", async () => {
  const looked = await look("ociref", true);
  assert.equal(looked.kind, "nydus");
  assert.deepEqual(compareTreeLines(expectedNydusTree(), await lines(looked)), []);
});

test("a native image, LZ4 or zstd, shows its tree from the bootstrap layer alone", async () => {
  const expected = expectedNydusTree().map(({ sha256: _, ...line }) => line);
  for (const tag of ["native", "native-docker"])
    assert.deepEqual(compareTreeLines(expected, await lines(await look(tag))), [], tag);
});

test("a file costs its own blob: others may be missing", async () => {
  // the chunk arrays of all blobs lie beside the bootstrap; the largest blob is not in the repository
  const looked = await look("native");
  const inode = findPath(looked.merged.tree, "/opaque/new", true);
  const { blobs } = looked.origin(inode) as { blobs: string[] };
  assert.equal(blobs.length, 1);
  const want = expectedNydusTree().find((line) => line.path === "/opaque/new")!;
  assert.equal(
    createHash("sha256")
      .update(await content(looked, "/opaque/new"))
      .digest("hex"),
    want.sha256,
  );
  await assert.rejects(content(looked, "/bin/cap"), { code: "HS_BLOB_NOT_FOUND" });
});

/** Ranges and whole blobs that are read, by the first 8 digits of their digest. */
function counting(reader: ImageReader): { reader: ImageReader; reads: string[] } {
  const reads: string[] = [];
  return {
    reads,
    reader: {
      what: reader.what,
      resolve: (signal) => reader.resolve(signal),
      readManifest: (manifest, signal) => reader.readManifest(manifest, signal),
      referrers: (subject, options) => reader.referrers(subject, options),
      openBlob(descriptor) {
        const blob = reader.openBlob(descriptor);
        const noted = <T>(result: T): T => {
          reads.push(descriptor.digest.slice(7, 15));
          return result;
        };
        return {
          descriptor,
          what: blob.what,
          sourceCount: 1,
          stream: (offset, options) => noted(blob.stream(offset, options)),
          readRange: (start, end, options) => noted(blob.readRange(start, end, options)),
          readAll: (options) => noted(blob.readAll(options)),
        };
      },
    },
  };
}

test("a listing reads configuration and bootstrap layer, a file its chunks, a hashed tree a few long ranges", async () => {
  await using layout = await openSource(parseSource(`oci:${nydusLayout}:ociref`));
  const { reader, reads } = counting(layout);
  const looked = await lookInto(reader, { platform: AMD64 });
  assert.deepEqual(reads, ["de27dd09", "f7ff2546"]);
  await content(looked, "/opaque/new");
  // the original layer that holds it; its chunk array lies beside the bootstrap
  assert.deepEqual(reads.splice(2), ["b0f3e0fa"]);
  reads.length = 0;
  await lookInto(reader, { platform: AMD64, hashContents: true });
  assert.deepEqual(reads.toSorted(), ["20f7db13", "48b9506f", "b0f3e0fa", "de27dd09", "f7ff2546"]);
});

test("in an index that holds both, the OCI image is meant; the Nydus one by its digest", async () => {
  const nydus = "sha256:1bc4fe9e8cfd9324a115882306985a4161a8bad5861390603343a702b393ef3a";
  await using reader = await openSource(parseSource(`oci:${nydusLayout}@${nydus}`));
  const looked = await lookInto(reader, { platform: AMD64 });
  assert.equal(looked.kind, "nydus");
  assert.equal(looked.merged.tree.inodeCount, 388);
  const facts = await inspectNydusImage(reader, await reader.resolve());
  assert.deepEqual([facts?.version, facts?.inodes, facts?.blobs.length], [6, 388, 3]);
  await using index = await openSource(parseSource(`oci:${nydusLayout}:native-merge`));
  assert.equal(await inspectNydusImage(index, await index.resolve()), null);
});

test("a bootstrap beside a folder of blobs shows tree and contents", async () => {
  for (const variant of ["v6-zstd-1m-batch", "v6-zran-multi", "v6-lz4-64k-sha256"]) {
    const looked = await lookIntoRafs(rafs(variant), { hashContents: true });
    assert.deepEqual(compareTreeLines(expectedNydusTree(), await lines(looked)), [], variant);
  }
});

test("contents of RAFS v5 are read by the records of its files", async () => {
  const looked = await lookIntoRafs(rafs("v5-zstd-1m"));
  const expected = expectedNydusTree();
  const { tree } = looked.merged;
  const present = new Set(Object.values(nydusVariants["v5-zstd-1m"]!.layers).filter((id) => nydusBlob(id) !== null));
  let read = 0;
  for (const line of expected.filter((one) => one.type === "reg" && one.sha256 !== undefined && one.size! > 0)) {
    const { blobs } = looked.origin(findPath(tree, line.path, false)) as { blobs: string[] };
    if (!blobs.every((blob) => present.has(blob.slice(7)))) continue;
    assert.equal(
      createHash("sha256")
        .update(await content(looked, line.path))
        .digest("hex"),
      line.sha256,
      line.path,
    );
    read++;
  }
  assert.equal(read, 9);
});

test("a flipped byte in a blob is an error of the files that it holds, never wrong bytes", async () => {
  const source = rafs("v6-none-1m-upper-layers");
  const blobs = join(directory, "flipped");
  cpSync(nydusBlobs, blobs, { recursive: true });
  const id = nydusVariants["v6-none-1m-upper-layers"]!.layers["layer-1"]!;
  const bytes = Buffer.from(nydusBlob(id)!);
  bytes[0]! ^= 1;
  writeFileSync(join(blobs, id), bytes);
  const looked = await lookIntoRafs({ ...source, blobs });
  const errors: unknown[] = [];
  for await (const line of treeLines(looked.merged.tree)) {
    if (line.type !== "reg") continue;
    try {
      await content(looked, line.path);
    } catch (error) {
      errors.push(error);
    }
  }
  assert.equal(errors.length, 1);
  assert.ok(isHeadstartError(errors[0], "HS_UNIT_DIGEST"), String(errors[0]));
});

test("blobs that are missing or shorter are named", async () => {
  const source = rafs("v6-none-1m-upper-layers");
  const blobs = join(directory, "short");
  cpSync(nydusBlobs, blobs, { recursive: true });
  const [first, second] = Object.values(nydusVariants["v6-none-1m-upper-layers"]!.layers);
  unlinkSync(join(blobs, first!));
  const facts = await inspectRafs({ ...source, blobs });
  assert.deepEqual(facts.missingBlobs, [first]);
  await assert.rejects(lookIntoRafs({ ...source, blobs }, { hashContents: true }), { code: "HS_BLOB_NOT_FOUND" });
  symlinkSync(join(nydusBlobs, first!), join(blobs, first!));
  truncateSync(join(blobs, second!), 1000);
  await assert.rejects(lookIntoRafs({ ...source, blobs }, { hashContents: true }), (error) => isHeadstartError(error));
});

test("an original layer of another length than the bootstrap says is refused", async () => {
  const blobs = join(directory, "other-layer");
  cpSync(nydusBlobs, blobs, { recursive: true });
  const original = nydusVariants["v6-zran"]!.original!["layer-1"]!;
  writeFileSync(join(blobs, original), Buffer.concat([nydusBlob(original)!, Buffer.alloc(1)]));
  await assert.rejects(lookIntoRafs({ ...rafs("v6-zran"), blobs }, { hashContents: true }), {
    code: "HS_SIZE_MISMATCH",
  });
});

test("a bootstrap that is not there is not found", async () => {
  await assert.rejects(lookIntoRafs({ bootstrap: join(directory, "no-such"), blobs: nydusBlobs }), {
    code: "HS_NOT_FOUND",
  });
});

const blobLayer = (digest: string, more: Readonly<Record<string, string>> = {}) => ({
  mediaType: NYDUS_MEDIA_TYPES.blob,
  digest,
  size: 1,
  annotations: { [NYDUS_ANNOTATIONS.blob]: "true", ...more },
});
const bootLayer = (more: Readonly<Record<string, string>> = {}) => ({
  mediaType: "application/vnd.oci.image.layer.v1.tar+gzip",
  digest: sha256(Buffer.from("boot")),
  size: 1,
  annotations: { [NYDUS_ANNOTATIONS.bootstrap]: "true", ...more },
});

function manifestOf(layers: readonly object[]) {
  const config = { mediaType: NYDUS_MEDIA_TYPES.config, digest: sha256(Buffer.from("{}")), size: 2 };
  return parseManifest(Buffer.from(JSON.stringify({ schemaVersion: 2, config, layers })), "manifest");
}

test("manifests that are no sound Nydus image are refused, others are none", () => {
  const a = sha256(Buffer.from("a"));
  const good = readNydusManifest(
    manifestOf([blobLayer(a, { [NYDUS_ANNOTATIONS.ref]: sha256(Buffer.from("b")) }), bootLayer()]),
    "m",
  );
  assert.deepEqual([good.version, good.blobs.size, good.refs.size], [6, 1, 1]);
  assert.equal(readNydusManifest(manifestOf([bootLayer({ [NYDUS_ANNOTATIONS.fsVersion]: "5" })]), "m").version, 5);
  assert.equal(isNydusManifest(manifestOf([blobLayer(a)])), false);
  for (const layers of [
    [bootLayer(), blobLayer(a)],
    [bootLayer(), bootLayer()],
    [{ ...blobLayer(a), mediaType: "application/vnd.oci.image.layer.v1.tar" }, bootLayer()],
    [{ ...blobLayer(a), annotations: {} }, bootLayer()],
    [blobLayer(a, { [NYDUS_ANNOTATIONS.ref]: "../../etc" }), bootLayer()],
    [bootLayer({ [NYDUS_ANNOTATIONS.fsVersion]: "7" })],
  ])
    assert.throws(() => readNydusManifest(manifestOf(layers), "m"), { code: "HS_NYDUS_INVALID" });
});

async function* once(bytes: Uint8Array): AsyncGenerator<Uint8Array> {
  yield bytes;
}

async function bootstrapLayer(files: readonly (readonly [name: string, content: string])[]) {
  const tar = wholeTar(...files.map(([name, data]) => file(name, data)));
  const blob = gzipSync(tar);
  return await readBootstrapLayer(once(blob), {
    digest: sha256(blob),
    size: blob.length,
    mediaType: "application/vnd.oci.image.layer.v1.tar+gzip",
    diffID: sha256(tar) as Digest,
  });
}

test("of a bootstrap layer only the known names are read", async () => {
  const id = "a".repeat(64);
  const layer = await bootstrapLayer([
    ["image/image.boot", "boot"],
    [`image/${id}.blob.meta`, "meta"],
    ["image/../image.boot", "no"],
    ["image/notes.txt", "no"],
    ["etc/passwd", "no"],
  ]);
  assert.equal(Buffer.from(layer.bootstrap).toString(), "boot");
  assert.deepEqual([...layer.blobMeta.keys()], [id]);
  await assert.rejects(bootstrapLayer([["image/other", "x"]]), { code: "HS_NYDUS_INVALID" });
  await assert.rejects(
    bootstrapLayer([
      ["image/image.boot", "one"],
      ["image/image.boot", "two"],
    ]),
    { code: "HS_NYDUS_INVALID" },
  );
});

test("a manifest whose layers are not the blobs of its bootstrap is refused", async () => {
  const layout = join(directory, "unbound");
  cpSync(nydusLayout, layout, { recursive: true, dereference: true });
  const index = JSON.parse(readFileSync(join(layout, "index.json"), "utf8")) as {
    manifests: { digest: string; size: number; annotations: Record<string, string> }[];
  };
  const entry = index.manifests.find((one) => one.annotations["org.opencontainers.image.ref.name"] === "ociref")!;
  const path = (digest: string) => join(layout, "blobs/sha256", digest.slice(7));
  const manifest = JSON.parse(readFileSync(path(entry.digest), "utf8")) as {
    layers: { annotations: Record<string, string> }[];
  };
  delete manifest.layers[1]!.annotations[NYDUS_ANNOTATIONS.ref];
  const bytes = Buffer.from(JSON.stringify(manifest));
  entry.digest = sha256(bytes);
  entry.size = bytes.length;
  writeFileSync(path(entry.digest), bytes);
  writeFileSync(join(layout, "index.json"), JSON.stringify(index));
  await using reader = await openSource(parseSource(`oci:${layout}:ociref`));
  await assert.rejects(lookInto(reader, { platform: AMD64 }), { code: "HS_NYDUS_INVALID" });
});
