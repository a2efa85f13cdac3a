/**
 * The main job, with everything real: each containerd starts containers from layers that have not been pulled. Laziness is proven by counting at the
 * registry, whose rate is capped: over loopback the background fill would have fetched everything before the container is ready.
 */

import assert from "node:assert/strict";
import { statSync } from "node:fs";
import { join } from "node:path";
import { type TestContext, test } from "node:test";
import { checkImage } from "../../src/sandbox/check.ts";
import { formatDifference } from "../../src/sandbox/compare.ts";
import { readCriLog } from "../../src/sandbox/cri-client.ts";
import type { Metered } from "../../src/sandbox/meter.ts";
import { startWorkload } from "../../src/sandbox/ready.ts";
import { CONTAINERD_VERSIONS } from "../../src/sandbox/tools.ts";
import { buildImage, shellLayer } from "../build-image.ts";
import { allSealed, image as imageLine, layerMounts } from "./daemon-status.ts";
import { Place } from "./place.ts";
import { pythonImage, pythonWorkload, redisImage, redisWorkload } from "./workloads.ts";

/** Slow enough that a start is over long before the image has come. */
const CAP = { bytesPerSecond: 10_000_000 };
const LAZY = { policy: "bound" } as const;
/** What was fetched before ready is then what the start asked for, also on a machine that takes several times as long for it. */
const SLOW_BACKGROUND = { ...LAZY, config: { fetch: { bandwidth_bytes_per_second: 1_000_000 } } } as const;
/** What a lazy start may have fetched when it is ready. */
const SHARE_MAX = 0.6;
/** The same where the background takes what the cap leaves. */
const SHARE_MAX_WITH_BACKGROUND = 0.9;

/** A place whose registry has these images with an index that their manifest binds; references by name. */
async function lazyPlace(names: readonly ("python" | "redis")[]) {
  await using stack = new AsyncDisposableStack();
  const place = stack.use(await Place.make());
  const references: Record<string, string> = {};
  for (const name of names) {
    await place.push(await { python: pythonImage, redis: redisImage }[name](), name);
    references[name] = await place.convertToSoci(name);
  }
  place.meter.limit(CAP);
  stack.move();
  return { place, references };
}

function assertLazy(t: TestContext, fetched: Metered, imageBytes: number, shareMax = SHARE_MAX): void {
  const share = fetched.bytes / imageBytes;
  t.diagnostic(`${fetched.bytes} of ${imageBytes} bytes before ready (${Math.round(share * 100)} %)`);
  assert.ok(share < shareMax, `${Math.round(share * 100)} % of the image was fetched before ready`);
}

for (const version of CONTAINERD_VERSIONS) {
  test(`containerd ${version} starts python3 lazily by CRI, and its tree is that of a plain unpack`, async (t) => {
    const { place, references } = await lazyPlace(["python"]);
    await using _place = place;
    const image = references.python!;
    const imageBytes = await place.imageBytes("python", "soci");
    const node = await place.node({ version, headstart: SLOW_BACKGROUND });
    const pod = await node.cri.runPod("python");
    const mark = place.meter.mark();
    const started = await startWorkload(node.cri, pod, pythonWorkload(image));
    assertLazy(t, place.meter.since(mark), imageBytes);
    t.diagnostic(`ready in ${Math.round(started.readyMs)} ms, of which the pull ${Math.round(started.pullMs)} ms`);
    assert.match(readCriLog(started.container.logPath), /^python 3/);

    place.meter.limit({});
    const result = await checkImage(node, { image, directory: join(place.root, "check") });
    assert.ok(result.equal, result.differences.map(formatDifference).join("\n"));
    assert.ok(result.entries > 10_000);
  });
}

test("ctr of containerd 2.1 starts python3 lazily, through the transfer service", async (t) => {
  const { place, references } = await lazyPlace(["python"]);
  await using _place = place;
  const image = references.python!;
  const imageBytes = await place.imageBytes("python", "soci");
  const { ctr } = await place.node({ version: "2.1.9", headstart: SLOW_BACKGROUND });
  const mark = place.meter.mark();
  await ctr.pull(image, { snapshotter: "headstart" });
  const command = ["/usr/bin/python3", "/app/main.py"];
  const printed = await ctr.run({ id: "p", image, command, snapshotter: "headstart" });
  assertLazy(t, place.meter.since(mark), imageBytes);
  assert.match(printed, /^python 3\S* ready 42$/m);
});

for (const version of ["1.6.20", "1.7.24"] as const) {
  test(`ctr of containerd ${version} downloads first, and starts correctly`, async () => {
    await using place = await Place.make();
    const image = await place.push(await pythonImage(), "python");
    const { ctr } = await place.node({ version, headstart: LAZY });
    await ctr.pull(image, { snapshotter: "headstart" });
    const command = ["/usr/bin/python3", "/app/main.py"];
    assert.match(await ctr.run({ id: "p", image, command, snapshotter: "headstart" }), /^python 3\S* ready 42$/m);
  });
}

test("a redis server answers lazily, and a layer that it shares with python is fetched once", async (t) => {
  const { place, references } = await lazyPlace(["python", "redis"]);
  await using _place = place;
  const { python, redis } = references;
  const node = await place.node({ version: "1.7.24", headstart: LAZY });
  const pod = await node.cri.runPod("both");
  const mark = place.meter.mark();
  await startWorkload(node.cri, pod, await redisWorkload(redis!));
  const fetched = place.meter.since(mark);
  assertLazy(t, fetched, await place.imageBytes("redis", "soci"), SHARE_MAX_WITH_BACKGROUND);
  await startWorkload(node.cri, pod, pythonWorkload(python!));
  place.meter.limit({});
  await allSealed(node);
  assertFetchedOnce(place.meter.since(mark));
  const { overFuse } = layerMounts(node);
  t.diagnostic(`${overFuse.length} layers mounted over FUSE`);
});

test("ten containers started at once from one image fetch each unit once", async () => {
  const { place, references } = await lazyPlace(["python"]);
  await using _place = place;
  const image = references.python!;
  const node = await place.node({ version: "2.1.9", headstart: LAZY });
  const mark = place.meter.mark();
  const pods = await Promise.all(Array.from({ length: 10 }, (_, index) => node.cri.runPod(`p${index}`)));
  await Promise.all(pods.map((pod) => startWorkload(node.cri, pod, pythonWorkload(image))));
  place.meter.limit({});
  await allSealed(node);
  assertFetchedOnce(place.meter.since(mark));
});

/** No byte of a layer came twice: units have whole bytes in common with a neighbour (soci's spans meet inside of a byte), nothing more. */
function assertFetchedOnce(fetched: Metered): void {
  const OVERLAP_BYTES_MAX = 1;
  for (const digest of fetched.blobs.keys()) {
    const ranges = fetched.list
      .filter((entry) => entry.target === digest && entry.method === "GET" && entry.range !== undefined)
      .map((entry) => /bytes=(\d+)-(\d+)/.exec(entry.range!)!)
      .map(([, start, end]) => ({ start: Number(start), end: Number(end) }))
      .filter(({ start, end }) => end - start >= 512) // the one authenticated read before a claim
      .sort((a, b) => a.start - b.start);
    for (const [index, range] of ranges.entries()) {
      const before = ranges[index - 1];
      if (before === undefined) continue;
      const overlap = before.end + 1 - range.start;
      assert.ok(
        overlap <= OVERLAP_BYTES_MAX,
        `${digest}: bytes ${range.start}-${range.end} follow ${before.start}-${before.end}`,
      );
    }
  }
}

test("a filled layer is complete and verified; new containers mount it natively", async () => {
  const { place, references } = await lazyPlace(["python"]);
  await using _place = place;
  const image = references.python!;
  const node = await place.node({ version: "1.6.20", headstart: LAZY });
  const pod = await node.cri.runPod("python");
  await startWorkload(node.cri, pod, pythonWorkload(image));
  assert.equal((await imageLine(node, image)).mode, "lazy");
  place.meter.limit({});
  const lines = await allSealed(node);
  assert.ok(lines.some((line) => line.format === "soci"));
  await node.cri.removePod(pod);
  const again = await node.cri.runPod("again");
  const mark = place.meter.mark();
  await startWorkload(node.cri, again, pythonWorkload(image));
  assert.equal(place.meter.since(mark).blobBytes, 0);
  const { overFuse, native } = layerMounts(node);
  assert.deepEqual(overFuse, []);
  assert.ok(native.length >= 3);
});

test("removing an image unmounts its layers and frees the disk", async () => {
  const { place, references } = await lazyPlace(["python"]);
  await using _place = place;
  place.meter.limit({});
  const image = references.python!;
  const node = await place.node({ version: "2.1.9", headstart: LAZY });
  const { cri } = node;
  const pod = await cri.runPod("python");
  await startWorkload(cri, pod, pythonWorkload(image));
  await allSealed(node);
  await cri.removePod(pod);
  await cri.removeImage(image);
  await place.eventually(async () => {
    const left = (await node.headstart.status("/v1/layers")) as { diskBytes: number }[];
    const bytes = left.reduce((sum, line) => sum + line.diskBytes, 0);
    assert.ok(bytes < 5_000_000, `${left.length} layers of ${bytes} bytes are left`); // the pause image
    assert.ok(layerMounts(node).overFuse.length + layerMounts(node).native.length <= 1);
  });
});

test("kill -9 of the server while containers read: the reads complete", async () => {
  const { place, references } = await lazyPlace(["python"]);
  await using _place = place;
  const image = references.python!;
  const node = await place.node({ version: "2.1.9", headstart: LAZY });
  const pod = await node.cri.runPod("python");
  await node.cri.pull(image);
  const command = ["/bin/sh", "-c", "cat /usr/lib/python3.11/*.py /usr/lib/x86_64-linux-gnu/*.so* | sha256sum"];
  const reader = await node.cri.createContainer(pod, { name: "reader", image, command });
  await node.cri.startContainer(reader);
  await new Promise((resolve) => setTimeout(resolve, 300));
  process.kill(node.headstart.serverPid, "SIGKILL");
  assert.equal(await node.cri.waitForExit(reader, 120_000), 0);
  place.meter.limit({});
  const again = await node.cri.createContainer(pod, { name: "again", image, command });
  await node.cri.startContainer(again);
  assert.equal(await node.cri.waitForExit(again), 0);
  assert.equal(readCriLog(again.logPath), readCriLog(reader.logPath));
});

/** Directories of the lowest layer whose attributes a layer above must not change by having files in them. */
function baseWith(tmpMode: number) {
  const srv = { path: "srv/", mode: 0o2750, uid: 7, gid: 8, mtime: 1_500_000_000.5, xattrs: { "user.of": "base" } };
  return [{ path: "tmp/", mode: tmpMode, mtime: 1_400_000_000 }, srv, { path: "srv/base", data: "base" }];
}

const IMPLYING = [
  { path: "tmp/made/file", data: "x".repeat(5000) },
  { path: "srv/deep/er/file", data: "y" },
  { path: "only/here/file", data: "z" },
];

for (const mode of ["eager", "lazy"] as const) {
  test(`${mode}: a directory that a layer only implies keeps what it has below, in both chains that share the layer`, async () => {
    await using place = await Place.make();
    const shell = await shellLayer();
    const references: string[] = [];
    for (const [name, tmpMode] of [
      ["sticky", 0o1777],
      ["closed", 0o750],
    ] as const) {
      await buildImage(place.layout, name, [
        [...shell, ...baseWith(tmpMode)],
        IMPLYING,
        [{ path: "tmp/more", data: "" }],
      ]);
      const plain = await place.push(place.layout, name);
      references.push(mode === "eager" ? plain : await place.convertToSoci(name, ["--min-layer-size", "0"]));
    }
    const config = { lazy: { min_layer_size: 0 } };
    const node = await place.node({ version: "1.7.24", headstart: { ...LAZY, config } });
    for (const [index, image] of references.entries()) {
      const result = await checkImage(node, {
        image,
        directory: join(place.root, `check-${index}`),
        mounted: async (tree) => {
          const { mode: tmp } = statSync(join(tree, "tmp"));
          assert.equal(tmp & 0o7777, index === 0 ? 0o1777 : 0o750);
        },
      });
      assert.deepEqual(result.differences.map(formatDifference), []);
      assert.equal((await imageLine(node, image)).mode, mode);
    }
  });
}

test("check reports a planted difference", async () => {
  await using place = await Place.make();
  const shell = await shellLayer();
  await buildImage(place.layout, "one", [shell, [{ path: "etc/motd", data: "one" }]]);
  await buildImage(place.layout, "two", [shell, [{ path: "etc/motd", data: "two" }]]);
  const image = await place.push(place.layout, "one");
  const against = await place.push(place.layout, "two");
  const node = await place.node({ version: "2.1.9", headstart: LAZY });
  const result = await checkImage(node, { image, against, directory: join(place.root, "check") });
  assert.deepEqual(
    result.differences.map(({ path, what }) => `${path} ${what}`),
    ["/etc/motd content"],
  );
});
