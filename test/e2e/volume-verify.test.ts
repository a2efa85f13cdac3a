/** `volume verify` as users call it: on what we built, on what a real containerd pulled, on a disk that was grown, and on 200 that were harmed. */

import assert from "node:assert/strict";
import { rmSync, truncateSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { MiB } from "../../src/base/limits.ts";
import { PAUSE_NAME } from "../../src/sandbox/pause.ts";
import { execute } from "../../src/sandbox/process.ts";
import type { Verification } from "../../src/volume/verify/verify.ts";
import { buildImage, shellLayer } from "../build-image.ts";
import { dropDigests, harmCases, runHarm } from "../suites/volume-harm.ts";
import { fsckExt4 } from "../tools/ext4-image.ts";
import { FIXTURE_SOURCE, makeVolume, TINY_SOURCE } from "../tools/volumes.ts";
import { COMMAND, headstart, Place } from "./place.ts";

const FIXTURE = join(import.meta.dirname, "../golden/fixture/oci");

/** Whatever the answer is: 0 and 1 are both one. */
async function verify(args: readonly string[]): Promise<Verification & { readonly code: number }> {
  const { stdout, code } = await execute(COMMAND, ["volume", "verify", ...args, "--json"], { accept: [1] });
  return { ...(JSON.parse(stdout) as Verification), code };
}

test("each of 200 harms is found, half of them clean to e2fsck, and the disk is right before and after", async () => {
  await using place = await Place.make();
  const disk = join(place.root, "disk.img");
  await makeVolume(disk, [FIXTURE_SOURCE, TINY_SOURCE], { layout: "bottlerocket" });
  assert.equal((await verify([disk])).code, 0);
  dropDigests(disk);
  const missed: string[] = [];
  let count = 0;
  for await (const { kind, repaired, seed, done, found } of runHarm(disk, harmCases(), MiB)) {
    count++;
    if (!found) missed.push(`${kind}, ${repaired ? "repaired" : "raw"}, seed ${seed}: ${done}`);
  }
  assert.deepEqual([count, missed], [200, []]);
});

test("roots that real containerds filled by pulling are right, and wrong once a file is changed", async () => {
  await using place = await Place.make();
  await buildImage(place.layout, "shell", [
    [...(await shellLayer()), { path: "etc/motd", data: "one\n" }, { path: "old/x", data: "x" }],
    [{ path: "etc/.wh.motd" }, { path: "old/.wh..wh..opq" }, { path: "usr/share/deep/file", data: "implied\n" }],
  ]);
  const images = [await place.push(place.layout, "shell"), await place.push(FIXTURE, "index")];
  for (const version of ["1.7.24", "2.1.9"] as const) {
    const { cri, containerd } = await place.node({ version, name: version });
    for (const image of images) await cri.pull(image);
    await containerd.stop();
    const { root } = containerd.places;
    const right = await verify([root, ...images.flatMap((image) => ["--source", `docker://${image}`])]);
    assert.deepEqual([right.code, right.differences], [0, []], version);
    assert.equal(right.checked.provenSnapshots, 5);
    const path = join(root, "io.containerd.snapshotter.v1.overlayfs/snapshots");
    await execute("sh", ["-c", `find ${path} -name deep -type d -exec chmod 700 {} +`]);
    const wrong = await verify([root]);
    assert.deepEqual(
      [wrong.code, wrong.differences.map(({ rule, message }) => [rule, message])],
      [1, [["layer", "the mode is 0700, should be 0755"]]],
    );
  }
});

test("layers whose blobs were left out are proven by their registry; people get lines, programs one object", async () => {
  await using place = await Place.make();
  await buildImage(place.layout, "shell", [await shellLayer(), [{ path: "etc/motd", data: "warm\n" }]]);
  const image = await place.push(place.layout, "shell");
  const output = join(place.root, "root");
  await headstart(["volume", "build", image, place.reference(PAUSE_NAME), "--output", output, "--blobs", "drop"]);
  const alone = await verify([output]);
  assert.deepEqual([alone.code, alone.checked.provenSnapshots], [0, 0]);
  const sources = ["--source", `docker://${image}`, "--source", `docker://${place.reference(PAUSE_NAME)}`];
  const proven = await verify([output, ...sources]);
  assert.deepEqual([proven.code, proven.checked.provenSnapshots], [0, proven.checked.snapshots]);

  const told = await headstart(["volume", "verify", output]);
  assert.match(told.stdout, /^not proven: 3 layers: their blobs are not on the volume/m);
  assert.match(told.stdout, /: right: 2 images, 0 of 3 snapshots compared/);
  rmSync(join(output, "io.containerd.snapshotter.v1.overlayfs/snapshots/1/work"), { recursive: true });
  const { stdout, code } = await execute(COMMAND, ["volume", "verify", output], { accept: [1] });
  assert.equal(code, 1);
  assert.match(stdout, /^\/io\.containerd\.snapshotter\.v1\.overlayfs\/snapshots\/1\/work: store: missing$/m);
});

test("a disk that resize2fs has grown is clean and holds the same", async () => {
  await using place = await Place.make();
  const disk = join(place.root, "disk.img");
  await makeVolume(disk, [FIXTURE_SOURCE], { layout: "al2023" });
  // it says how large the disk was
  rmSync(`${disk}.json`);
  for (const gib of [2, 40, 300]) {
    truncateSync(disk, gib * 1024 * MiB);
    await execute("e2fsck", ["-fp", disk]);
    await execute("resize2fs", [disk]);
    fsckExt4(disk);
    const grown = await verify([disk]);
    assert.deepEqual([grown.code, grown.differences, grown.checked.provenSnapshots], [0, [], 3], `${gib} GiB`);
  }
  const device = (await execute("losetup", ["--find", "--show", "--read-only", disk])).stdout.trim();
  try {
    const { code, differences, kind } = await verify([device]);
    assert.deepEqual([code, differences, kind], [0, [], "ext4"], "a block device, which says no size");
  } finally {
    await execute("losetup", ["--detach", device]);
  }
});
