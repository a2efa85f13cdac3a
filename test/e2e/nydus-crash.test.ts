/** Nydus images over ends that nobody ordered: the server killed under running containers, the machine going down; and removal, which gives the disk back. */

import assert from "node:assert/strict";
import { join } from "node:path";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { MEDIA_TYPES } from "../../src/oci/media-types.ts";
import { mountsUnder } from "../../src/sandbox/inventory.ts";
import { killAndWait, unmountAll } from "../../src/sandbox/sweep.ts";
import { storeIndex, storeNydusImage, storeOciTwin, tagManifest } from "../suites/nydus-image.ts";
import { killServer, layerMounts, layers } from "./daemon-status.ts";
import { FakePlace } from "./fake-place.ts";
import { reading, runIn, startIn } from "./nydus-place.ts";

const EARLY = reading("/data/noise-64k");
const LATE = reading("/data/mixed-3m");
const SLEEP = "/busybox-of-the-node sleep 1000";

/** containerd's connection to a daemon that was away is mended with a back-off of up to three seconds. */
async function patiently<T>(work: () => Promise<T>): Promise<T> {
  for (const deadline = Date.now() + 60_000; ; await sleep(200)) {
    try {
      return await work();
    } catch (error) {
      if (Date.now() > deadline) throw error;
    }
  }
}

test("a Nydus image, and an image in both forms, outlive the server and the machine, and go when they are removed", async () => {
  await using place = await FakePlace.make();
  const { registry } = place;
  const env: Record<string, string> = { HEADSTART_BOOT_ID: "00000000-0000-4000-8000-000000000001" };
  const config = { fetch: { background: false } };
  const node = await place.node({ policy: "referrers", config, env });
  const { cri, headstart } = node;
  const nydus = tagManifest(
    registry,
    "crash/nydus",
    storeNydusImage(registry, { repository: "crash/nydus", variant: "v6-zran" }),
  );
  const merged = storeIndex(registry, "crash/merged", {
    oci: storeOciTwin(registry, "crash/merged"),
    nydus: storeNydusImage(registry, {
      repository: "crash/merged",
      variant: "v6-zstd-1m-batch",
      configType: MEDIA_TYPES.nydusConfig,
    }),
  });
  const images = [nydus, merged];
  let pod = await cri.runPod("first");
  const containers = [];
  for (const image of images) {
    await cri.pull(image);
    assert.equal((await runIn(node, pod, image, EARLY.script)).output, EARLY.printed);
    containers.push(await startIn(node, pod, image, SLEEP));
  }
  const before = layerMounts(node).overFuse.toSorted();
  assert.equal(before.length, 2);

  await killServer(node);
  for (const container of containers) {
    const { stdout } = await cri.exec(container, ["/busybox-of-the-node", "sh", "-c", LATE.script]);
    assert.equal(stdout, LATE.printed);
  }
  // each has kept what it had
  await place.eventually(async () => {
    const mounts = (await headstart.status("/v1/mounts")) as { mounts: { path: string; owners: string[] }[] };
    const owned = mounts.mounts.filter((one) => one.owners.length > 0 && one.path.endsWith("f"));
    assert.deepEqual(owned.map((one) => one.path).toSorted(), before);
  });

  await cri.removePod(pod);
  process.kill(headstart.pid, "SIGKILL");
  await killAndWait(headstart.processes());
  unmountAll(headstart.settings.directory);
  env.HEADSTART_BOOT_ID = "00000000-0000-4000-8000-000000000002";
  await headstart.restart();
  assert.deepEqual(mountsUnder(join(headstart.places.root, "l")), []);
  const mark = registry.log.length;
  pod = await patiently(() => cri.runPod("second"));
  for (const image of images) {
    const ran = await patiently(() => runIn(node, pod, image, `${EARLY.script}; ${LATE.script}`));
    assert.equal(ran.output, EARLY.printed + LATE.printed);
  }
  const manifests = registry.log.slice(mark).filter((one) => one.path.includes("/manifests/"));
  assert.deepEqual(
    manifests.map((one) => one.path),
    [],
  );

  await cri.removePod(pod);
  for (const image of images) await cri.removeImage(image);
  await place.eventually(async () => {
    const left = (await layers(node)).filter((line) => ["nydus", "data"].includes(line.format));
    assert.deepEqual(left, []);
    assert.deepEqual(layerMounts(node).overFuse, []);
  });
});
