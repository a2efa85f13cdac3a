/** `headstart image` on the golden fixture image, as a user calls it: every variant shows what containerd's own unpack shows. */

import assert from "node:assert/strict";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { after, test } from "node:test";
import { compareTreeLines, type TreeLine } from "../../src/erofs/tree-lines.ts";
import { headstart } from "./place.ts";

const fixture = join(dirname(import.meta.dirname), "golden/fixture");
const work = mkdtempSync(join(tmpdir(), "headstart-tree-"));
after(() => rmSync(work, { recursive: true }));

const lines = (text: string) =>
  text
    .split("\n")
    .filter((line) => line !== "")
    .map((line) => JSON.parse(line) as TreeLine);
const expected = (name: string) => lines(readFileSync(join(fixture, `tree/${name}.jsonl`), "utf8"));
const source = (variant: string) => `oci:${join(fixture, "oci")}:${variant}`;

async function tree(variant: string, options: readonly string[] = []): Promise<TreeLine[]> {
  return lines((await headstart(["image", "tree", source(variant), "--json", ...options])).stdout);
}

for (const variant of ["tar", "gogz", "pigz", "multigz", "fnamegz", "zstd", "multizstd", "dockergz"]) {
  test(`image tree of the ${variant} variant is what containerd unpacks`, async () => {
    assert.deepEqual(compareTreeLines(expected("merged"), await tree(variant)), []);
  });
}

test("image tree shows each layer as overlayfs has it, whiteouts and opaque marks included", async () => {
  for (const layer of [0, 1, 2]) {
    assert.deepEqual(
      compareTreeLines(expected(`layer-${layer}`), await tree("zstd", ["--layer", String(layer)])),
      [],
      `layer ${layer}`,
    );
  }
});

test("image tree shows odd archives as containerd unpacks them, and refuses what it refuses", async () => {
  for (const variant of ["odd-dup-link", "odd-gnu", "odd-pax-global", "odd-no-end", "odd-trailing", "odd-names"]) {
    assert.deepEqual(compareTreeLines(expected(variant), await tree(variant)), [], variant);
  }
  await assert.rejects(tree("odd-contiguous"), /HS_LAYER_REFUSED/);
});

test("image tree chooses the platform that is asked for", async () => {
  assert.deepEqual(compareTreeLines(expected("merged"), await tree("index", ["--platform", "linux/amd64"])), []);
  assert.ok((await tree("index", ["--platform", "linux/arm64/v8"])).length > 0);
  await assert.rejects(tree("index", ["--platform", "linux/riscv64"]), /HS_PLATFORM/);
});

test("cat, ls and stat give the same answers with an index as without one", async () => {
  const indexed = `oci:${join(work, "indexed")}:x`;
  await headstart([
    "convert",
    source("multigz"),
    indexed,
    "--to",
    "soci",
    "--min-layer-size",
    "0",
    "--span-size",
    "65536",
  ]);
  for (const call of [
    ["cat", "/data/many-spans"],
    ["cat", "/etc/absolute"],
    ["ls", "/etc", "--json"],
    ["ls", "/", "--json"],
    ["stat", "/etc/keep", "--json"],
  ]) {
    const [command, path, ...options] = call as [string, string, ...string[]];
    const run = async (image: string) => (await headstart(["image", command, image, path, ...options])).stdout;
    assert.equal(await run(indexed), await run(source("multigz")), call.join(" "));
  }
});
