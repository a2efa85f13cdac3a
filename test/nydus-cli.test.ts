/** `image` and `inspect` on Nydus images, as users call them. */

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { after, test } from "node:test";
import { gunzipSync } from "node:zlib";
import { type Digest, sha256 } from "../src/base/digest.ts";
import { bytesSource } from "../src/erofs/source.ts";
import { compareTreeLines, type TreeLine } from "../src/erofs/tree-lines.ts";
import { readBlobTail } from "../src/formats/nydus/blob-tail.ts";
import { blobPath } from "../src/oci/layout.ts";
import { MEDIA_TYPES } from "../src/oci/media-types.ts";
import { type BuiltLayer, writeImage } from "../src/sandbox/image-builder.ts";
import {
  expectedNydusTree,
  nydusBlob,
  nydusBlobs,
  nydusBootstrap,
  nydusLayout,
  nydusVariants,
} from "./suites/golden-nydus.ts";

const root = dirname(import.meta.dirname);
const directory = mkdtempSync(join(tmpdir(), "headstart-nydus-cli-"));
after(() => rmSync(directory, { recursive: true }));
const bootstrap = join(directory, "image.boot");
writeFileSync(bootstrap, nydusBootstrap("v6-zran-multi"));
const rafs = `rafs:${bootstrap}:${nydusBlobs}`;

function headstart(...args: string[]): Promise<{ code: number | null; stdout: string; stderr: string }> {
  return new Promise((resolve, reject) => {
    const child = spawn(join(root, "bin/headstart"), args, { stdio: ["ignore", "pipe", "pipe"] });
    let stdout = "";
    let stderr = "";
    child.stdout.setEncoding("utf8").on("data", (text: string) => {
      stdout += text;
    });
    child.stderr.setEncoding("utf8").on("data", (text: string) => {
      stderr += text;
    });
    child.once("error", reject);
    child.once("close", (code) => resolve({ code, stdout, stderr }));
  });
}

async function json(...args: string[]): Promise<Record<string, unknown>[]> {
  const { code, stdout, stderr } = await headstart(...args, "--json");
  assert.equal(code, 0, stderr);
  const lines = stdout.trimEnd().split("\n");
  return lines.map((line) => JSON.parse(line) as Record<string, unknown>);
}

test("image tree --json of a bootstrap beside its blobs, and of a layout, is the golden tree", async () => {
  const expected = expectedNydusTree();
  for (const source of [rafs, `oci:${nydusLayout}:ociref`]) {
    const got = (await json("image", "tree", source)) as unknown as TreeLine[];
    assert.deepEqual(compareTreeLines(expected, got), [], source);
  }
});

test("image ls, stat and cat look into a bootstrap", async () => {
  const listed = await json("image", "ls", rafs, "/bin");
  assert.ok(listed.some((line) => line.name === "cap" && line.size === 12));
  const [line] = await json("image", "stat", rafs, "/bin/cap");
  assert.deepEqual(line!.blobs, [`sha256:${nydusVariants["v6-zran-multi"]!.original!["layer-0"]}`]);
  assert.equal(Object.hasOwn(line!, "layer"), false);
  const { stdout } = await headstart("image", "cat", rafs, "/opaque/new");
  assert.equal(stdout.length, 8);
});

test("--layer of a Nydus image is wrong usage", async () => {
  const { code, stderr } = await headstart("image", "tree", rafs, "--layer", "0");
  assert.equal(code, 2);
  assert.match(stderr, /one tree/);
});

test("inspect tells bootstraps, blobs and images apart", async () => {
  const [boot] = await json("inspect", bootstrap);
  assert.deepEqual([boot!.kind, boot!.version, boot!.inodes, boot!.chunks], ["rafs-bootstrap", 6, 388, 341]);
  const [image] = await json("inspect", rafs);
  assert.deepEqual([image!.kind, image!.missingBlobs], ["rafs-image", []]);
  // its first bytes are a zstd frame: the end says what it is
  const [blob] = await json("inspect", join(nydusBlobs, nydusVariants["v6-zstd-1m"]!.layers["layer-0"]!));
  assert.deepEqual([blob!.kind, (blob!.toc as unknown[]).length], ["nydus-blob", 5]);
  const [manifest] = await json("inspect", `oci:${nydusLayout}:native`);
  assert.equal(manifest!.kind, "oci-manifest");
  assert.equal((manifest!.nydus as { blobs: unknown[] }).blobs.length, 3);
  const [index] = await json("inspect", `oci:${nydusLayout}:native-merge`);
  assert.equal(index!.kind, "oci-index");
  const [form, ...more] = index!.nydusForms as { platform: string; bootstrap: { chunks: number }; problem: null }[];
  assert.deepEqual([form!.platform, form!.bootstrap.chunks, form!.problem, more], ["linux/amd64", 341, null, []]);
});

test("convert makes the real tool's data, chunk arrays and digests of the golden layers", async () => {
  const layout = join(directory, "golden");
  const ids = Object.values(nydusVariants["v6-none-1m-upper-layers"]!.layers);
  const layers = ["layer-1", "layer-2"].map((name): BuiltLayer => {
    const bytes = nydusBlob(nydusVariants["v6-zran"]!.original![name]!)!;
    const descriptor = { mediaType: MEDIA_TYPES.ociLayerGzip, digest: sha256(bytes), size: bytes.byteLength };
    return { descriptor, diffID: sha256(gunzipSync(bytes)), size: 0, source: bytes, createdBy: name };
  });
  await writeImage(layout, layers, { name: "src" });
  const options = ["--to", "nydus", "--compressor", "none", "--chunk-size", "0x100000", "--digester", "blake3"];
  const [made] = await json("convert", `oci:${layout}:src`, `oci:${layout}:nydus`, ...options);
  const [image] = made!.images as { layers: { blob: Digest }[] }[];
  for (const [position, { blob }] of image!.layers.entries()) {
    const ours = readFileSync(blobPath(join(layout, "blobs"), blob));
    const theirs = nydusBlob(ids[position]!)!;
    const part = (bytes: Buffer, name: string) => {
      const { start, size } = readBlobTail(bytesSource(bytes)).parts.find((one) => one.name === name)!;
      return bytes.subarray(start, start + size);
    };
    for (const name of ["image.blob", "blob.meta", "blob.digest"])
      assert.deepEqual(part(ours, name), part(theirs, name), `${name} of layer ${position}`);
  }
});
