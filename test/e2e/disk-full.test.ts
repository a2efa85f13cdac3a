/**
 * A full disk under the daemon's root, with everything real: what needs room fails with an error that says so, nothing stays of it, what is there goes on being served, and all works again as soon as there
 * is room.
 */

import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import {
  closeSync,
  existsSync,
  fsyncSync,
  mkdirSync,
  openSync,
  readFileSync,
  rmSync,
  statfsSync,
  truncateSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { dirname, join } from "node:path";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { MiB } from "../../src/base/limits.ts";
import { layerOf } from "../../src/sandbox/image-builder.ts";
import { takeInventory } from "../../src/sandbox/inventory.ts";
import { execute } from "../../src/sandbox/process.ts";
import type { FakeRegistryOptions } from "../fakes/registry.ts";
import { indexed } from "../suites/soci-image.ts";
import { noise } from "../suites/soci-sample.ts";
import { allSealed, image as imageLine, layers } from "./daemon-status.ts";
import { FakePlace, headstartStatus, runShell } from "./fake-place.ts";

const DISK_BYTES = 96 * MiB;
const FILE_BYTES = 12 * MiB;
const READ = "sha256sum /data/big";

/** A small file system of its own for the daemon's root. */
class SmallDisk implements AsyncDisposable {
  readonly #mountPoint: string;
  readonly #ballast: string;

  static async make(place: FakePlace): Promise<SmallDisk> {
    const file = join(place.root, "disk.img");
    const mountPoint = join(place.root, "n/h/root");
    writeFileSync(file, "");
    truncateSync(file, DISK_BYTES);
    mkdirSync(mountPoint, { recursive: true });
    await execute("mkfs.ext4", ["-q", "-F", "-m", "0", file]);
    await execute("mount", ["-o", "loop", file, mountPoint]);
    return new SmallDisk(mountPoint);
  }

  private constructor(mountPoint: string) {
    this.#mountPoint = mountPoint;
    this.#ballast = join(mountPoint, "ballast");
  }

  get root(): string {
    return this.#mountPoint;
  }

  get freeBytes(): number {
    const { bavail, bsize } = statfsSync(this.#mountPoint);
    return bavail * bsize;
  }

  /** Leaves that much room, or a little less. */
  async fill(leaving: number): Promise<void> {
    const fd = openSync(this.#ballast, "w", 0o600);
    try {
      // large pieces, then smaller ones: extents need room too
      for (const piece of [MiB, 64 * 1024, 4096]) {
        const bytes = new Uint8Array(piece).fill(1);
        while (this.freeBytes - piece >= leaving && tryWrite(fd, bytes)) fsyncSync(fd);
      }
    } finally {
      closeSync(fd);
    }
  }

  empty(): void {
    rmSync(this.#ballast, { force: true });
  }

  /** The end of the node unmounts all below its folder; the loop device goes with the last user of the mount. */
  async [Symbol.asyncDispose](): Promise<void> {
    await execute("umount", [this.#mountPoint], { accept: [32] });
    const deadline = Date.now() + 5000;
    while (takeInventory([dirname(this.#mountPoint)]).size > 0 && Date.now() < deadline) await sleep(20);
  }
}

/** False when there is no room. */
function tryWrite(fd: number, bytes: Uint8Array): boolean {
  try {
    return writeSync(fd, bytes) === bytes.byteLength;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOSPC") return false;
    throw error;
  }
}

function bigLayer(seed: number) {
  const data = noise(FILE_BYTES, seed);
  const hash = createHash("sha256").update(data).digest("hex");
  return { layer: layerOf([{ path: "data/big", data }]), printed: `${hash}  /data/big\n` };
}

async function start(options: FakeRegistryOptions = {}) {
  const place = await FakePlace.make(options);
  const disk = place.use(await SmallDisk.make(place));
  const node = await place.node({ policy: "bound" });
  const pod = await node.cri.runPod("full");
  await allSealed(node);
  return { place, disk, node, pod, [Symbol.asyncDispose]: () => place[Symbol.asyncDispose]() };
}

test("full during an eager pull: a clear error, nothing left of the layer, and the next start works", async () => {
  await using at = await start();
  const { place, disk, node, pod } = at;
  const { layer, printed } = bigLayer(1);
  const { reference } = place.image("full/eager", [{ layer, ztoc: null }]);
  await disk.fill(5 * MiB);
  await assert.rejects(runShell(node, pod, reference, READ), /HS_DISK_FULL/);
  const mine = async () => (await layers(node)).find((line) => line.digest === layer.descriptor.digest)!;
  const line = await mine();
  assert.equal(line.state, "opening");
  assert.equal(line.diskBytes, 0);
  assert.match(line.reason ?? "", /HS_DISK_FULL/);
  assert.ok(!existsSync(join(disk.root, "layers", String(line.id))));
  const shown = (await headstartStatus(node)).images.find((one) => one.reference === reference)!;
  assert.match(shown.layers.map((one) => one.reason).join(), /HS_DISK_FULL/);
  disk.empty();
  assert.deepEqual(await runShell(node, pod, reference, READ), { exitCode: 0, output: printed });
  await place.eventually(async () => assert.equal((await mine()).state, "sealed"));
});

test("full during a fill: EIO and never wrong bytes; with room the same container reads on, and the layer is completed", async () => {
  await using at = await start({ bytesPerSecond: 16 * MiB });
  const { place, disk, node, pod } = at;
  const { layer, printed } = bigLayer(2);
  const { reference } = place.image("full/lazy", [indexed(layer, 1_048_576)]);
  // the background fill shall not be done before the disk is full, however slow the machine is
  place.registry.limit(MiB);
  await node.cri.pull(reference);
  const container = await node.cri.createContainer(pod, {
    name: "c",
    image: reference,
    command: ["/bin/sleep", "999"],
  });
  await node.cri.startContainer(container);
  place.registry.limit(MiB / 16);
  await disk.fill(3 * MiB);
  place.registry.limit(4 * MiB);
  const failed = await node.cri.exec(container, ["/bin/sh", "-c", READ]);
  assert.match(failed.stderr, /I\/O error|Input\/output error|No space/);
  assert.match(readFileSync(node.headstart.places.log, "utf8"), /fuse:fault-failed.*HS_DISK_FULL/);
  await place.eventually(async () => {
    const shown = (await headstartStatus(node)).layers.map((line) => line.reason).join();
    assert.match(shown, /HS_DISK_FULL/);
  });
  // what is there is served
  assert.equal((await node.cri.exec(container, ["/bin/echo", "alive"])).stdout, "alive\n");
  disk.empty();
  assert.equal((await node.cri.exec(container, ["/bin/sh", "-c", READ])).stdout, printed);
  await allSealed(node);
  assert.equal((await imageLine(node, reference)).mode, "mixed");
  assert.equal((await runShell(node, pod, reference, READ)).output, printed);
});

test("not one byte left: pulls fail with the reason, the daemon can even be started again, and works once there is room", async () => {
  await using at = await start();
  const { place, disk, node, pod } = at;
  const { layer, printed } = bigLayer(3);
  const { reference } = place.image("full/zero", [indexed(layer, 262_144)]);
  await disk.fill(0);
  await assert.rejects(runShell(node, pod, reference, READ), /HS_DISK_FULL/);
  await node.headstart.restart();
  // containerd's dial backs off for a second or so after it met nobody: kubelet would ask again, too
  await place.eventually(() => assert.rejects(runShell(node, pod, reference, READ), /HS_DISK_FULL/));
  disk.empty();
  await place.eventually(async () => {
    assert.equal((await runShell(node, pod, reference, READ)).output, printed);
  });
});
