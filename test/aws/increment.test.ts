/** Volumes that were really built: what the next version of one costs to send, and that a node gets a sound file system from the child. */

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { copyFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { systemClock } from "../../src/base/clock.ts";
import { PROJECT } from "../../src/base/project.ts";
import { connectAws } from "../../src/volume/aws/connect.ts";
import { BLOCK_BYTES } from "../../src/volume/ebs/blocks.ts";
import { pullVolume } from "../../src/volume/ebs/pull.ts";
import { pushVolume } from "../../src/volume/ebs/push.ts";
import { Scratch } from "../../src/volume/ebs/testing.ts";
import { buildImage } from "../build-image.ts";
import { makeVolume } from "../tools/volumes.ts";
import { AwsServer } from "./server.ts";
import { patternBlock } from "./world.ts";

/** 512 KiB files that do not compress. */
function layer(name: string, first: number, count: number) {
  return Array.from({ length: count }, (_, at) => ({ path: `${name}/file-${at}`, data: patternBlock(first + at) }));
}

test("of a rebuilt volume nothing is sent, and of one with a changed layer little more than that layer", async () => {
  await using server = await AwsServer.start();
  using scratch = new Scratch();
  await using aws = await connectAws({ env: server.environment(server.world.addKey()) });
  const push = (path: string, more: object = {}) =>
    pushVolume({ client: aws.client, clock: systemClock, path, wait: true, waitStepMs: 1, ...more });
  const layout = scratch.path("layout");
  const make = (name: string, previous?: string) => {
    const settings = { layout: "bottlerocket", ...(previous !== undefined && { previous }) } as const;
    return makeVolume(scratch.path(name), [`oci:${layout}:x`], settings);
  };
  const [base, top] = [layer("base", 0, 20), layer("top", 100, 12)];
  await buildImage(layout, "x", [base, layer("middle", 50, 16), top]);
  await make("one.img");
  const one = await push(scratch.path("one.img"));
  assert.ok(one.blocks.sent < 120, `${one.blocks.sent} blocks`);
  assert.equal(server.world.firstDifference(one.snapshot, scratch.path("one.img")), undefined);
  assert.match(server.world.find(one.snapshot)!.tags.get("headstart.dev/images") ?? "", /^docker\.io\/host\/\S+:1$/);

  await make("same.img", scratch.path("one.img"));
  const described = { parent: one.snapshot, parentManifest: `${scratch.path("one.img")}.json` };
  const same = await push(scratch.path("same.img"), described);
  assert.deepEqual([same.unchanged, same.blocks.sent, same.snapshot], [true, 0, one.snapshot]);

  await buildImage(layout, "x", [base, layer("middle", 200, 24), top]);
  const two = await make("two.img", scratch.path("one.img"));
  const child = await push(scratch.path("two.img"), described);
  const changed = two.images[0]!.layers[1]!;
  const own = (changed.bytes! + changed.blobBytes) / BLOCK_BYTES;
  assert.ok(child.blocks.sent <= 1.05 * own + 16, `${child.blocks.sent} blocks for ${own.toFixed(1)} of its own`);
  assert.equal(server.count("GetSnapshotBlock"), 0);

  const back = scratch.path("back.img");
  const pulled = await pullVolume({ client: aws.client, clock: systemClock, snapshot: child.snapshot, path: back });
  assert.deepEqual([pulled.verified, pulled.blocks], [true, child.blocks.total + child.blocks.freed]);
  copyFileSync(`${scratch.path("two.img")}.json`, `${back}.json`);
  const verified = spawnSync(join(PROJECT, "bin/headstart"), ["volume", "verify", back], { encoding: "utf8" });
  assert.equal(verified.status, 0, verified.stdout + verified.stderr);

  rmSync(`${scratch.path("two.img")}.snapshot.json`);
  const scrubbed = await push(scratch.path("two.img"), { ...described, scrub: true });
  assert.equal(server.world.firstDifference(scrubbed.snapshot, scratch.path("two.img")), undefined);
});
