/** One layer, many users: whatever images and containers want it, and however many at once, each of its bytes comes once; and once it is whole it costs the daemon nothing. */

import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { test } from "node:test";
import { MiB } from "../../src/base/limits.ts";
import { readCriLog } from "../../src/sandbox/cri-client.ts";
import { layerOf } from "../../src/sandbox/image-builder.ts";
import type { SandboxNode } from "../../src/sandbox/node.ts";
import type { FakeRegistry } from "../fakes/registry.ts";
import { indexed } from "../suites/soci-image.ts";
import { noise } from "../suites/soci-sample.ts";
import { allSealed, layerMounts } from "./daemon-status.ts";
import { FakePlace, runShell } from "./fake-place.ts";

const READ = "sha256sum /data/big";
/** SOCI's spans meet inside of a byte. */
const OVERLAP_BYTES_MAX = 1;
/** The read before a claim. */
const PROBE_BYTES = 512;

function makeLayer(seed: number) {
  const data = noise(6 * MiB, seed);
  const part = indexed(layerOf([{ path: "data/big", data }]), 131_072);
  return { part, printed: `${createHash("sha256").update(data).digest("hex")}  /data/big\n` };
}

function assertOnce(registry: FakeRegistry, digest: string): void {
  const ranges = registry.log
    .filter((one) => one.method === "GET" && one.path.endsWith(`/blobs/${digest}`))
    .map((one) => /^bytes=(\d+)-(\d+)$/.exec(one.headers.range ?? ""))
    .map((match) => {
      assert.ok(match, "a lazy layer was fetched whole");
      return { start: Number(match[1]), end: Number(match[2]) + 1 };
    })
    .filter(({ start, end }) => end - start > PROBE_BYTES)
    .sort((a, b) => a.start - b.start);
  assert.ok(ranges.length > 0);
  for (const [index, range] of ranges.entries()) {
    const before = ranges[index - 1]?.end ?? 0;
    assert.ok(before - range.start <= OVERLAP_BYTES_MAX, `bytes ${range.start}-${before} came twice`);
  }
}

async function fuseReads(node: SandboxNode): Promise<number> {
  const { fuse } = (await node.headstart.status("/v1/mounts")) as { fuse: { reads: number; faults: number } };
  return fuse.reads + fuse.faults;
}

test("two images with one layer, ten containers of one at once: every byte comes once; whole, it is the kernel's alone", async () => {
  await using place = await FakePlace.make({ bytesPerSecond: 8 * MiB });
  const node = await place.node({ policy: "bound" });
  const { cri } = node;
  const pod = await cri.runPod("many");
  const { part, printed } = makeLayer(1);
  const between = { layer: layerOf([{ path: "between" }]), ztoc: null };
  // in another chain, so that containerd asks for it anew
  const references = [place.image("share/one", [part]), place.image("share/two", [between, part])].map(
    (image) => image.reference,
  );
  await Promise.all(references.map((reference) => cri.pull(reference)));
  const containers = await Promise.all(
    references.flatMap((image, number) =>
      Array.from({ length: number === 0 ? 10 : 2 }, async (_, index) => {
        const name = `c${number}-${index}`;
        const container = await cri.createContainer(pod, { name, image, command: ["/bin/sh", "-c", READ] });
        await cri.startContainer(container);
        assert.equal(await cri.waitForExit(container), 0);
        return container;
      }),
    ),
  );
  for (const container of containers) assert.equal(readCriLog(container.logPath), printed);
  const lines = await allSealed(node);
  assert.equal(lines.filter((line) => line.digest === part.layer.descriptor.digest).length, 1);
  assertOnce(place.registry, part.layer.descriptor.digest);

  for (const container of containers) await cri.removeContainer(container);
  // containerd takes the snapshot of the container that was removed last with its next collection: one more removal brings that
  await place.eventually(async () => {
    await runShell(node, pod, references[0]!, ":");
    assert.deepEqual(layerMounts(node).overFuse, []);
  });
  const before = await fuseReads(node);
  assert.equal((await runShell(node, pod, references[1]!, READ)).output, printed);
  assert.deepEqual(layerMounts(node).overFuse, []);
  assert.equal(await fuseReads(node), before);
});
