import assert from "node:assert/strict";
import { createCipheriv } from "node:crypto";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { MiB } from "../base/limits.ts";
import { parseSource } from "../oci/reference.ts";
import { layerOf, writeImage } from "../sandbox/image-builder.ts";
import { buildVolume, openPlan } from "./build.ts";
import { readVolumeFile } from "./doctor/volume-facts.ts";
import { estimateImages, estimateVolume } from "./estimate.ts";
import { readFormer } from "./former.ts";

const directory = mkdtempSync(join(tmpdir(), "headstart-estimate-"));
after(() => rmSync(directory, { recursive: true }));

/** Half of it can be compressed away. */
function data(bytes: number, seed: number): Buffer {
  const half = createCipheriv("aes-128-ctr", Buffer.alloc(16, seed), Buffer.alloc(16)).update(Buffer.alloc(bytes / 2));
  return Buffer.concat([half, Buffer.alloc(bytes / 2)]);
}

const layer = (seed: number, files: number, bytes: number) =>
  layerOf([...Array(files).keys()].map((index) => ({ path: `d${seed}/f${index}`, data: data(bytes, seed + index) })));

const plan = (image: string, previous?: string) =>
  openPlan({
    sources: [{ source: parseSource(`oci:${image}:x`), names: ["host/app:1"], open: {} }],
    platform: { os: "linux", architecture: "amd64" },
    layout: "al2023",
    pinned: true,
    blobs: true,
    former: previous === undefined ? undefined : readFormer(previous),
    signal: new AbortController().signal,
  });

async function build(image: string, name: string, previous?: string): Promise<string> {
  const output = join(directory, name);
  await using opened = await plan(image, previous);
  await buildVolume(opened, { output, signal: new AbortController().signal });
  return output;
}

test("what is estimated of images is near to what is built of them, first and with one layer changed", async () => {
  const first = join(directory, "first");
  const second = join(directory, "second");
  const base = layer(1, 40, MiB);
  await writeImage(first, [base, layer(50, 10, MiB)], { name: "x" });
  await writeImage(second, [base, layer(70, 12, MiB)], { name: "x" });
  await using opened = await plan(first);
  const estimated = await estimateImages(opened, {});
  assert.deepEqual(
    estimated.layers.map(({ from, kept }) => [from, kept]),
    [
      ["gzip", false],
      ["gzip", false],
    ],
  );
  const disk = await build(first, "disk");
  const built = estimateVolume(readVolumeFile(disk), null);
  const near = (a: number, b: number, what: string) =>
    assert.ok(Math.abs(a - b) <= 0.15 * b + 16, `${what}: ${a} estimated, ${b} built`);
  near(estimated.push.blocks, built.push.blocks, "blocks");
  near(estimated.usedBytes / MiB, built.usedBytes / MiB, "MiB");
  assert.equal(estimated.sizeGib, built.sizeGib);
  await using next = await plan(second, disk);
  const again = await estimateImages(next, {});
  assert.deepEqual(
    again.layers.map(({ kept }) => kept),
    [true, false],
  );
  const rebuilt = readVolumeFile(await build(second, "disk-2", disk));
  const sent = estimateVolume(rebuilt, readVolumeFile(disk).disk!.blocks);
  near(again.push.blocks, sent.push.blocks, "blocks of a rebuild");
  assert.ok(sent.push.blocks < built.push.blocks / 2);
});

test("an unchanged volume sends nothing", async () => {
  const image = join(directory, "same");
  await writeImage(image, [layer(90, 3, MiB)], { name: "x" });
  const one = await build(image, "same-1");
  const two = await build(image, "same-2", one);
  assert.equal(estimateVolume(readVolumeFile(two), readVolumeFile(one).disk!.blocks).push.blocks, 0);
});
