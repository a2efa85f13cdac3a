/** `image` and `inspect` on Nydus images, as users call them. */

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { after, test } from "node:test";
import { compareTreeLines, type TreeLine } from "../src/erofs/tree-lines.ts";
import { expectedNydusTree, nydusBlobs, nydusBootstrap, nydusLayout, nydusVariants } from "./suites/golden-nydus.ts";

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
