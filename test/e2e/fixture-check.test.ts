/**
 * The fixture image in all its spellings (every kind of entry, whiteouts, hard links, xattrs; gzip of several kinds, plain tar, zstd, docker's types), pulled by a real containerd
 * through headstart, eagerly and lazily, against the same containerd's own unpack.
 */

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { checkImage } from "../../src/sandbox/check.ts";
import { formatDifference } from "../../src/sandbox/compare.ts";
import { image as imageLine } from "./daemon-status.ts";
import { Place } from "./place.ts";

const FIXTURE = join(import.meta.dirname, "../golden/fixture/oci");
/** SOCI has no table for zstd: those are pulled whole. */
const INDEXABLE = new Set(["gogz", "pigz", "multigz", "fnamegz", "tar", "dotgz", "dockergz"]);

/** An entry type that containerd does not unpack either. */
const REFUSED = "odd-contiguous";

function tags(): string[] {
  const index = JSON.parse(readFileSync(join(FIXTURE, "index.json"), "utf8")) as {
    manifests: { annotations: Record<string, string> }[];
  };
  return index.manifests.map((entry) => entry.annotations["org.opencontainers.image.ref.name"]!);
}

for (const mode of ["eager", "lazy"] as const) {
  test(`${mode}: every variant of the fixture image is entry by entry what containerd unpacks`, async (t) => {
    await using place = await Place.make();
    // without a background fill every byte that is compared came by a fault
    const config = { lazy: { min_layer_size: 0 }, fetch: { background: false } };
    const node = await place.node({ version: "2.1.9", headstart: { policy: "bound", config } });
    for (const tag of tags()) {
      if (tag === "index" || tag === REFUSED || (mode === "lazy" && !INDEXABLE.has(tag))) continue;
      await t.test(tag, async () => {
        const plain = await place.push(FIXTURE, tag);
        const options = ["--min-layer-size", "0", "--span-size", "65536"];
        const image = mode === "eager" ? plain : await place.convertToSoci(tag, options);
        const result = await checkImage(node, { image, against: plain, directory: join(place.root, tag) });
        assert.deepEqual(result.differences.map(formatDifference), []);
        assert.equal((await imageLine(node, image)).mode, mode);
        // the variants have the same chainIDs: containerd asks again only for snapshots that are gone
        await node.cri.removeImage(image);
        await place.eventually(async () => assert.deepEqual(await node.ctr.in("k8s.io").snapshots("headstart"), []));
      });
    }
  });
}

test("an entry that containerd refuses is refused by us too, when the layer is used", async () => {
  await using place = await Place.make();
  const image = await place.push(FIXTURE, REFUSED);
  const node = await place.node({ version: "2.1.9", headstart: { policy: "bound" } });
  await assert.rejects(
    node.ctr.pull(image, { snapshotter: "overlayfs" }),
    /unhandled tar header type|failed to extract layer/,
  );
  await node.cri.pull(image);
  const pod = await node.cri.runPod("refused");
  await assert.rejects(node.cri.createContainer(pod, { name: "c", image, command: ["/bin/x"] }), /HS_LAYER_REFUSED/);
});
