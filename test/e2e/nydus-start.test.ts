/**
 * The main job with Nydus images that we converted: each containerd starts containers from blobs that have not been pulled. Counted at the registry, whose rate is capped, as in lazy.test.ts.
 */

import assert from "node:assert/strict";
import { join } from "node:path";
import { type TestContext, test } from "node:test";
import { checkImage } from "../../src/sandbox/check.ts";
import { formatDifference } from "../../src/sandbox/compare.ts";
import { type CriPod, readCriLog } from "../../src/sandbox/cri-client.ts";
import type { Metered } from "../../src/sandbox/meter.ts";
import type { SandboxNode } from "../../src/sandbox/node.ts";
import { startWorkload } from "../../src/sandbox/ready.ts";
import { CONTAINERD_VERSIONS } from "../../src/sandbox/tools.ts";
import { allSealed, image as imageLine, layerMounts } from "./daemon-status.ts";
import { headstart, Place } from "./place.ts";
import { pythonImage, pythonWorkload } from "./workloads.ts";

const CAP = { bytesPerSecond: 10_000_000 };
/** What was fetched before ready is then what the start asked for, also on a machine that takes several times as long for it. */
const SLOW_BACKGROUND = { fetch: { bandwidth_bytes_per_second: 1_000_000 } };
const SHARE_MAX = 0.6;

/** A registry that has the python image and a Nydus form of it; references at the meter. */
async function nydusPlace(options: readonly string[]) {
  await using stack = new AsyncDisposableStack();
  const place = stack.use(await Place.make());
  const plain = await place.push(await pythonImage(), "python");
  const repository = `${place.registry.host}/e2e/python`;
  await headstart(["convert", `docker://${repository}:1`, `docker://${repository}:n`, ...options]);
  place.meter.limit(CAP);
  stack.move();
  return { place, plain, image: `${place.meter.host}/e2e/python:n`, imageBytes: await place.imageBytes("python") };
}

function assertLazy(t: TestContext, fetched: Metered, imageBytes: number): void {
  const share = fetched.bytes / imageBytes;
  t.diagnostic(`${fetched.bytes} of ${imageBytes} bytes before ready (${Math.round(share * 100)} %)`);
  assert.ok(share < SHARE_MAX, `${Math.round(share * 100)} % of the image was fetched before ready`);
}

type Started = { readonly place: Place; readonly node: SandboxNode; readonly image: string; readonly plain: string };

/** Everything of it equals a plain unpack of the source. */
async function assertSameTree({ place, node, image, plain }: Started): Promise<void> {
  place.meter.limit({});
  const result = await checkImage(node, { image, against: plain, directory: join(place.root, "check") });
  assert.deepEqual(result.differences.map(formatDifference), []);
  assert.ok(result.entries > 10_000);
}

async function assertNativeWhenWhole({ place, node, image }: Started, pod: CriPod): Promise<void> {
  await allSealed(node);
  await node.cri.removePod(pod);
  const again = await node.cri.runPod("again");
  const mark = place.meter.mark();
  await startWorkload(node.cri, again, pythonWorkload(image));
  assert.equal(place.meter.since(mark).blobBytes, 0);
  // the first container's mount goes when containerd collects its snapshot, which may be after its next removal only
  const { native } = layerMounts(node);
  assert.ok(
    native.some((path) => /\/\d+$/.test(path)),
    native.join(),
  );
}

async function assertKillIsNotNoticed({ place, node, image }: Started, pod: CriPod): Promise<void> {
  const command = ["/bin/sh", "-c", "cat /usr/lib/python3.11/*.py /usr/lib/x86_64-linux-gnu/*.so* | sha256sum"];
  const reader = await node.cri.createContainer(pod, { name: "reader", image, command });
  await node.cri.startContainer(reader);
  await new Promise((resolve) => setTimeout(resolve, 300));
  process.kill(node.headstart.serverPid, "SIGKILL");
  place.meter.limit({});
  assert.equal(await node.cri.waitForExit(reader, 120_000), 0);
  const again = await node.cri.createContainer(pod, { name: "again", image, command });
  await node.cri.startContainer(again);
  assert.equal(await node.cri.waitForExit(again), 0);
  assert.equal(readCriLog(again.logPath), readCriLog(reader.logPath));
}

test("each containerd starts python3 lazily from a native Nydus image by CRI; ctr of 2.1 through the transfer service", async (t) => {
  const { place, image, plain, imageBytes } = await nydusPlace(["--to", "nydus"]);
  await using _place = place;
  for (const version of CONTAINERD_VERSIONS) {
    await t.test(version, async (sub) => {
      place.meter.limit(CAP);
      await using node = await place.node({
        version,
        headstart: { policy: "bound", config: SLOW_BACKGROUND },
        name: version,
      });
      const started = { place, node, image, plain };
      const pod = await node.cri.runPod("python");
      const mark = place.meter.mark();
      const { container } = await startWorkload(node.cri, pod, pythonWorkload(image));
      assertLazy(sub, place.meter.since(mark), imageBytes);
      assert.match(readCriLog(container.logPath), /^python 3/);
      assert.equal((await imageLine(node, image)).mode, "lazy");
      if (version === "1.7.24") {
        await assertSameTree(started);
        await assertNativeWhenWhole(started, pod);
      }
      if (version === "2.1.9") await assertKillIsNotNoticed(started, pod);
    });
  }
  await t.test("ctr of 2.1.9", async (sub) => {
    place.meter.limit(CAP);
    await using node = await place.node({
      version: "2.1.9",
      headstart: { policy: "bound", config: SLOW_BACKGROUND },
      name: "ctr",
    });
    const mark = place.meter.mark();
    await node.ctr.pull(image, { snapshotter: "headstart" });
    const command = ["/usr/bin/python3", "/app/main.py"];
    const printed = await node.ctr.run({ id: "p", image, command, snapshotter: "headstart" });
    assertLazy(sub, place.meter.since(mark), imageBytes);
    assert.match(printed, /^python 3\S* ready 42$/m);
  });
});

test("an index with the unmodified image and its Nydus form over the same layers starts lazily where policy trusts it", async (t) => {
  const { place, image, plain, imageBytes } = await nydusPlace(["--to", "nydus-ref", "--merge-index"]);
  await using _place = place;
  const node = await place.node({ version: "1.7.24", headstart: { policy: "referrers", config: SLOW_BACKGROUND } });
  const pod = await node.cri.runPod("python");
  const mark = place.meter.mark();
  await startWorkload(node.cri, pod, pythonWorkload(image));
  assertLazy(t, place.meter.since(mark), imageBytes);
  assert.equal((await imageLine(node, image)).mode, "lazy");
  await assertSameTree({ place, node, image, plain });
});
