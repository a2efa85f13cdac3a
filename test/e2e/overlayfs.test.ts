/** The ground that everything stands on: an ordinary pull and start by each containerd with its own overlayfs snapshotter, and nothing left behind. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { readCriLog } from "../../src/sandbox/cri-client.ts";
import { startWorkload } from "../../src/sandbox/ready.ts";
import { CONTAINERD_VERSIONS } from "../../src/sandbox/tools.ts";
import { buildImage, shellLayer } from "../build-image.ts";
import { Place } from "./place.ts";
import { pythonImage, pythonWorkload, redisImage, redisWorkload } from "./workloads.ts";

for (const version of CONTAINERD_VERSIONS) {
  test(`containerd ${version} pulls and starts an image of three layers by CRI and by ctr, and leaves nothing`, async () => {
    await using place = await Place.make();
    const layers = [
      await shellLayer(),
      [{ path: "etc/motd", data: "from layer one\n" }],
      [{ path: "etc/motd", data: "from layer two\n" }],
    ];
    await buildImage(place.layout, "shell", layers, { command: ["/bin/sh", "-c", "cat /etc/motd"] });
    const image = await place.push(place.layout, "shell");
    const { cri, ctr } = await place.node({ version });

    const pod = await cri.runPod("shell");
    const mark = place.meter.mark();
    await cri.pull(image);
    const pulled = place.meter.since(mark);
    assert.equal(pulled.blobRequests, 4, "configuration and three layers, once each");
    assert.ok(pulled.blobBytes > 500_000);

    const container = await cri.createContainer(pod, { name: "c", image });
    await cri.startContainer(container);
    assert.equal(await cri.waitForExit(container), 0);
    assert.equal(readCriLog(container.logPath), "from layer two\n");
    await cri.removePod(pod);
    await cri.removeImage(image);

    await ctr.pull(image);
    assert.equal(await ctr.run({ id: "r", image, command: ["/bin/cat", "/etc/motd"] }), "from layer two\n");
    assert.equal((await ctr.snapshots("overlayfs")).length, 3);
    await ctr.removeImage(image);
    assert.deepEqual(await ctr.snapshots("overlayfs"), []);
  });
}

test("a containerd that is stopped while containers run takes them along", async () => {
  await using place = await Place.make();
  await buildImage(place.layout, "shell", [await shellLayer()], { command: ["/bin/sleep", "1000"] });
  const image = await place.push(place.layout, "shell");
  const { cri, ctr } = await place.node({ version: "1.7.24" });
  await cri.pull(image);
  const pod = await cri.runPod("shell");
  await cri.startContainer(await cri.createContainer(pod, { name: "c", image }));
  await ctr.pull(image);
  await ctr.run({ id: "r", image, command: ["/bin/sleep", "1000"], detach: true });
});

test("python3 prints and a redis server answers after a plain pull", async () => {
  await using place = await Place.make();
  const python = pythonWorkload(await place.push(await pythonImage(), "python"));
  const redis = await redisWorkload(await place.push(await redisImage(), "redis"));
  const { cri } = await place.node({ version: "2.1.9" });
  const pod = await cri.runPod("workloads");
  const started = await startWorkload(cri, pod, python);
  assert.ok(started.pullMs < started.readyMs);
  await startWorkload(cri, pod, redis);
});
