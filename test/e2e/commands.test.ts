/** `run` and `check` as a user calls them, on an image in a layout: everything real, and they fail if something is left behind. */

import assert from "node:assert/strict";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import type { Figures } from "../../src/sandbox/figures.ts";
import { buildImage, shellLayer } from "../build-image.ts";
import { headstart } from "./place.ts";

const work = mkdtempSync(join(tmpdir(), "headstart-cli-"));
const layout = join(work, "layout");

before(async () => {
  const data = Buffer.alloc(3 * 1024 * 1024, "never read by the program\n");
  await buildImage(layout, "plain", [
    await shellLayer(),
    [
      { path: "data/", mode: 0o750 },
      { path: "data/big", data },
      { path: "data/small", data: "hello from the image\n" },
    ],
  ]);
  await headstart([
    "convert",
    `oci:${layout}:plain`,
    `oci:${layout}:soci`,
    "--to",
    "soci",
    "--min-layer-size",
    "0",
    "--span-size",
    "65536",
  ]);
});
after(() => rmSync(work, { recursive: true }));

test("run starts the command lazily and by a plain pull, and reports both", async () => {
  const { stdout } = await headstart(["run", `oci:${layout}:soci`, "--json", "--", "/bin/cat", "/data/small"]);
  const figures = JSON.parse(stdout) as Figures;
  assert.deepEqual(
    figures.runs.map((run) => run.mode),
    ["lazy", "overlayfs"],
  );
  const [lazy, plain] = figures.runs;
  assert.ok(plain!.bytes >= figures.image.bytes);
  assert.ok(lazy!.requests > 0 && lazy!.readyMs > 0);
  assert.equal(figures.image.layers, 2);
});

test("run prints what the program prints", async () => {
  const { stdout } = await headstart(["run", `oci:${layout}:plain`, "--no-compare", "--", "/bin/cat", "/data/small"]);
  assert.match(stdout, /^hello from the image$/m);
  assert.match(stdout, /^lazy /m);
});

test("check finds an image equal to its plain unpack, and a planted difference", async () => {
  const equal = await headstart(["check", `oci:${layout}:soci`, "--json"]);
  assert.equal((JSON.parse(equal.stdout) as { equal: boolean }).equal, true);
  await buildImage(layout, "planted", [
    await shellLayer(),
    [
      { path: "data/", mode: 0o750 },
      { path: "data/big", data: Buffer.alloc(3 * 1024 * 1024, "never read by the program\n") },
      { path: "data/small", data: "hello from the image!" },
    ],
  ]);
  const different = await headstart(["check", `oci:${layout}:soci`, "--against", `oci:${layout}:planted`, "--json"], {
    accept: [1],
  });
  assert.equal(different.code, 1);
  const { differences } = JSON.parse(different.stdout) as { differences: { path: string; what: string }[] };
  assert.ok(differences.some(({ path }) => path === "/data/small"));
  assert.ok(!differences.some(({ path }) => path === "/data/big"));
});
