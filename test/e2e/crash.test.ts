/**
 * Ends that nobody ordered, with everything real: the server killed in the middle of each kind of work, its supervisor killed, and the whole machine going down. What was read is right, what was
 * claimed stays good without another pull, and removing it gives the disk back.
 */

import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { readdirSync, readFileSync, statSync } from "node:fs";
import { dirname, join } from "node:path";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { sha256 } from "../../src/base/digest.ts";
import { MiB } from "../../src/base/limits.ts";
import { readCriLog } from "../../src/sandbox/cri-client.ts";
import { layerOf } from "../../src/sandbox/image-builder.ts";
import { mountsUnder } from "../../src/sandbox/inventory.ts";
import { Child } from "../../src/sandbox/process.ts";
import { killAndWait, unmountAll } from "../../src/sandbox/sweep.ts";
import { indexed } from "../suites/soci-image.ts";
import { noise } from "../suites/soci-sample.ts";
import { allSealed, image as imageLine, killServer, layerMounts, layers, newServer } from "./daemon-status.ts";
import { FakePlace, runShell } from "./fake-place.ts";

/** Slow enough that there is a middle of everything. */
const BYTES_PER_SECOND = 6 * MiB;
const FILE_BYTES = 5 * MiB;
const COMMAND = join(dirname(dirname(import.meta.dirname)), "bin/headstart");
const READ = "sha256sum /data/big";

let seed = 9000;

function makeImage(place: FakePlace, lazy: boolean, bytes = FILE_BYTES) {
  seed++;
  const data = noise(bytes, seed);
  const layer = layerOf([{ path: "data/big", data }]);
  const part = lazy ? indexed(layer, 131_072) : { layer, ztoc: null };
  const { reference } = place.image(`crash/${seed}`, [part]);
  const printed = `${createHash("sha256").update(data).digest("hex")}  /data/big\n`;
  return { reference, printed, part, blob: layer.descriptor.digest, size: layer.descriptor.size };
}

/** Allocated bytes of all files below. */
function diskBytes(directory: string): number {
  let bytes = 0;
  for (const entry of readdirSync(directory, { recursive: true, withFileTypes: true })) {
    if (entry.isFile()) bytes += statSync(join(entry.parentPath, entry.name)).blocks * 512;
  }
  return bytes;
}

test("crashes and reboots", async (t) => {
  await using place = await FakePlace.make({ bytesPerSecond: BYTES_PER_SECOND });
  const env: Record<string, string> = { HEADSTART_BOOT_ID: "00000000-0000-4000-8000-000000000001" };
  const node = await place.node({ policy: "bound", env });
  const { cri, headstart } = node;
  let pod = await cri.runPod("first");
  const layerLine = async (digest: string) => (await layers(node)).find((line) => line.digest === digest);
  // containerd dials a socket that was gone again after a pause of its own; kubelet asks again too
  const patiently = async <T>(ask: () => Promise<T>): Promise<T> => {
    for (const deadline = Date.now() + 60_000; ; await sleep(200)) {
      try {
        return await ask();
      } catch (error) {
        if (Date.now() > deadline) throw error;
      }
    }
  };
  const run = (reference: string) => patiently(() => runShell(node, pod, reference, READ, { timeoutMs: 40_000 }));
  const open = async (reference: string) => {
    await patiently(() => cri.pull(reference));
    const name = `open${++seed}`;
    const container = await cri.createContainer(pod, { name, image: reference, command: ["/bin/sleep", "9999"] });
    await cri.startContainer(container);
    return container;
  };

  await t.test("the server is killed three times while a container reads: the read completes", async () => {
    const { reference, printed } = makeImage(place, true, 2 * FILE_BYTES);
    const container = await open(reference);
    const reading = cri.exec(container, ["/bin/sh", "-c", READ], 60);
    for (let kill = 0; kill < 3; kill++) {
      await sleep(200);
      await killServer(node);
    }
    assert.equal((await reading).stdout, printed, (await reading).stderr);
  });

  await t.test("killed between a claim and its table: the container starts, lazily", async () => {
    const { reference, printed, part, blob } = makeImage(place, true);
    place.registry.inject({ match: sha256(part.ztoc!), fault: { kind: "stall", after: 100 } });
    await patiently(() => cri.pull(reference));
    assert.equal((await layerLine(blob))?.state, "opening");
    await killServer(node);
    assert.equal((await run(reference)).output, printed);
    assert.equal((await layerLine(blob))?.format, "soci");
  });

  await t.test("killed during an eager pull: nothing half-made is believed, the next start pulls again", async () => {
    const { reference, printed, blob } = makeImage(place, false);
    // in the middle until it is killed, however slow the machine is
    place.registry.inject({ match: `GET /v2/crash/${seed}/blobs/${blob}`, fault: { kind: "stall", after: MiB } });
    await patiently(() => cri.pull(reference));
    await place.eventually(async () => assert.equal((await layerLine(blob))?.state, "pulling"));
    const name = `waits${seed}`;
    const waiting = cri
      .createContainer(pod, { name, image: reference, command: ["/bin/sleep", "1"] })
      .catch((error: unknown) => error);
    await sleep(300);
    await killServer(node);
    await waiting;
    assert.equal((await run(reference)).output, printed);
  });

  await t.test("killed during the background fill: it goes on by itself, from where it was", async () => {
    const { reference, printed, blob, size } = makeImage(place, true);
    const container = await open(reference);
    await place.eventually(async () =>
      assert.ok(((await layerLine(blob)) as { unitsFilled?: number }).unitsFilled! > 10),
    );
    await killServer(node);
    await place.eventually(async () => assert.equal((await layerLine(blob))?.state, "sealed"));
    const asked = place.registry.log.filter((one) => one.path.endsWith(blob) && one.headers.range !== undefined);
    const fetched = asked.reduce((sum, one) => sum + one.bytes, 0);
    assert.ok(fetched < size * 1.6, `${fetched} of ${size} bytes`);
    assert.equal((await cri.exec(container, ["/bin/sh", "-c", READ])).stdout, printed);
  });

  await t.test("the server is replaced, and ends in order, while a container reads: the read completes", async () => {
    const { reference, printed } = makeImage(place, true, 2 * FILE_BYTES);
    const container = await open(reference);
    const reading = cri.exec(container, ["/bin/sh", "-c", READ], 60);
    await sleep(200);
    await newServer(node, () => process.kill(headstart.pid, "SIGHUP"));
    await sleep(200);
    await newServer(node, () => process.kill(headstart.serverPid, "SIGTERM"));
    assert.equal((await reading).stdout, printed, (await reading).stderr);
  });

  await t.test(
    "the supervisor is killed: the server serves on, and the next supervisor takes over from it",
    async () => {
      const { reference, printed } = makeImage(place, true);
      const container = await open(reference);
      const reading = cri.exec(container, ["/bin/sh", "-c", READ], 60);
      process.kill(headstart.pid, "SIGKILL");
      await sleep(500);
      const before = headstart.serverPid;
      await using _ = await Child.start(COMMAND, ["daemon", "--config", headstart.places.config], {
        env,
        logFile: headstart.places.log,
      });
      await place.eventually(async () => assert.notEqual(headstart.serverPid, before));
      assert.equal((await reading).stdout, printed, (await reading).stderr);
      await place.eventually(async () => assert.ok(await headstart.status("/v1/layers")));
      assert.match(readFileSync(headstart.places.log, "utf8"), /took the FUSE descriptor over/);
      await cri.removeContainer(container);
    },
  );
  await headstart.restart();

  await t.test(
    "the machine goes down: all that was claimed starts again without a pull, and removal frees the disk",
    async () => {
      const half = makeImage(place, true);
      const whole = makeImage(place, false);
      const claimed = makeImage(place, true);
      assert.equal((await run(whole.reference)).output, whole.printed);
      await place.eventually(async () => assert.equal((await layerLine(whole.blob))?.state, "sealed"));
      await patiently(() => cri.pull(claimed.reference));
      await open(half.reference);
      await place.eventually(async () => assert.notEqual((await layerLine(half.blob))?.diskBytes ?? 0, 0));

      await cri.removePod(pod);
      process.kill(headstart.pid, "SIGKILL");
      await killAndWait(headstart.processes());
      unmountAll(headstart.settings.directory);
      env.HEADSTART_BOOT_ID = "00000000-0000-4000-8000-000000000002";
      await headstart.restart();
      assert.deepEqual(mountsUnder(join(headstart.places.root, "l")), []);

      const mark = place.registry.log.length;
      pod = await patiently(() => cri.runPod("second"));
      for (const { reference, printed } of [half, whole, claimed]) {
        const name = `again${++seed}`;
        const command = ["/bin/sh", "-c", READ];
        const container = await patiently(() => cri.createContainer(pod, { name, image: reference, command }));
        await cri.startContainer(container);
        assert.equal(await cri.waitForExit(container), 0);
        assert.equal(readCriLog(container.logPath), printed);
      }
      const since = place.registry.log.slice(mark);
      assert.deepEqual(
        since.filter((one) => one.path.includes("/manifests/")).map((one) => one.path),
        [],
      );
      assert.ok(!since.some((one) => one.path.endsWith(whole.blob)), "a sealed layer was fetched again");

      await cri.removePod(pod);
      for (const image of await cri.listImages()) {
        if (!image.repoTags.some((tag) => tag.includes("/pause"))) await cri.removeImage(image.id);
      }
      await place.eventually(async () => {
        assert.ok(diskBytes(join(headstart.places.root, "layers")) < 3 * MiB);
        const { overFuse, native } = layerMounts(node);
        assert.ok(overFuse.length + native.length <= 1, [...overFuse, ...native].join());
      });
      await allSealed(node);
      await imageLine(node, half.reference).then(
        () => assert.fail("the image is still known"),
        () => undefined,
      );
    },
  );
});
