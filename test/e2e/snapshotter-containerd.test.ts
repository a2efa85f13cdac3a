/** A real containerd (1.6.20) over our socket, with a provider that has no layers: everything goes the ordinary way, and the tree is that of containerd's own overlayfs snapshotter. */

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { cpSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { sha256 } from "../../src/base/digest.ts";
import { readMountInfo } from "../../src/linux/mountinfo.ts";
import { compareTrees, formatDifference } from "../../src/sandbox/compare.ts";
import { Containerd } from "../../src/sandbox/containerd.ts";
import { ContainerdClient } from "../../src/snapshotter/containerd.ts";
import { ContainerdContent } from "../../src/snapshotter/content.ts";
import { mountThroughContainerd, startSnapshotter } from "../fakes/snapshots-client.ts";

const FIXTURE = join(import.meta.dirname, "../golden/fixture/oci");

/** The fixture's image of that name as an OCI archive. */
function writeArchive(directory: string, name: string): string {
  const layout = join(directory, "layout");
  cpSync(FIXTURE, layout, { recursive: true });
  const index = JSON.parse(readFileSync(join(layout, "index.json"), "utf8")) as {
    manifests: { annotations: Record<string, string> }[];
  };
  index.manifests = index.manifests.filter(
    ({ annotations }) => annotations["org.opencontainers.image.ref.name"] === name,
  );
  index.manifests[0]!.annotations["io.containerd.image.name"] = "test.local/fixture:1";
  writeFileSync(join(layout, "index.json"), JSON.stringify(index));
  const archive = join(directory, "image.tar");
  execFileSync("tar", ["-C", layout, "-cf", archive, ...readdirSync(layout)]);
  return archive;
}

test("containerd unpacks, views, commits and removes through our socket; the tree is overlayfs's own", async (t) => {
  const directory = mkdtempSync(join(tmpdir(), "hs-snap-"));
  t.after(() => rmSync(directory, { recursive: true, force: true }));
  await using ours = await startSnapshotter(join(directory, "h"), { quietMs: 0 });
  await using containerd = await Containerd.start({
    version: "1.6.20",
    directory: join(directory, "c"),
    snapshotter: "headstart",
    proxy: { name: "headstart", address: ours.address, root: ours.root },
    sandboxImage: "test.local/pause:1",
    registries: [],
  });
  const { ctr } = containerd;
  const image = "test.local/fixture:1";
  const archive = writeArchive(directory, "gogz");
  for (const snapshotter of ["headstart", "overlayfs"]) {
    await ctr.call(["images", "import", "--snapshotter", snapshotter, archive]);
  }

  await t.test("three committed snapshots stand upon each other", async () => {
    const committed = await ctr.snapshots("headstart");
    assert.deepEqual(
      committed.map(({ kind }) => kind),
      ["Committed", "Committed", "Committed"],
    );
    assert.deepEqual(
      ours.snapshotter.status().map(({ kind, layer, broken }) => ({ kind, layer, broken })),
      committed.map(() => ({ kind: "committed", layer: null, broken: null })),
    );
  });

  await t.test("a mounted image is entry by entry what overlayfs shows", async () => {
    const theirs = join(directory, "theirs");
    const ourselves = join(directory, "ours");
    const rows = await ctr.snapshots("headstart");
    const top = rows.find(({ key }) => rows.every(({ parent }) => parent !== key))!.key;
    const show = (snapshotter: string, target: string) => {
      mkdirSync(target);
      const place = { namespace: "default", snapshotter, parent: top, target };
      return mountThroughContainerd(containerd.places.socket, place);
    };
    await using _theirs = await show("overlayfs", theirs);
    await using _ours = await show("headstart", ourselves);
    const shown = readMountInfo().find(({ mountPoint }) => mountPoint === ourselves)!;
    assert.ok(shown.superOptions.some((option) => option.includes(join(ours.root, "snapshots"))));
    const { equal, entries, differences } = await compareTrees(theirs, ourselves, {
      // directories that a layer only implies have the time of their unpacking
      without: ["mtime"],
    });
    assert.ok(equal, differences.map(formatDifference).join("\n"));
    assert.ok(entries > 20);
  });

  await t.test("usage of a committed snapshot is its directory's", async () => {
    const [lowest] = ours.snapshotter.status();
    const usage = await ours.client.usage({ key: lowest!.name });
    const du = execFileSync("du", ["-sk", join(ours.root, "snapshots", String(lowest!.id), "fs")], {
      encoding: "utf8",
    });
    assert.equal(Number(usage.size), Number.parseInt(du, 10) * 1024);
  });

  await t.test("containerd's content store is read by file, and by gRPC where its root cannot be seen", async () => {
    using client = new ContainerdClient(containerd.places.socket);
    const target = await client.image(image, { namespace: "default" });
    assert.equal(await client.image("test.local/none:1", { namespace: "default" }), null);
    assert.match(await client.version(), /^v?1\.6\.20/);
    const options = { namespace: "default" };
    const byFile = new ContainerdContent({ root: containerd.places.root, client: null });
    const byService = new ContainerdContent({ root: join(directory, "none"), client });
    const bytes = await byFile.read(target!.digest, { namespace: null });
    assert.equal(sha256(bytes!), target!.digest);
    assert.deepEqual(Buffer.from((await byService.read(target!.digest, options))!), Buffer.from(bytes!));
    const unknown = sha256(Buffer.from("nothing"));
    assert.equal(await byService.read(unknown, options), null);
    assert.equal(await byService.read(target!.digest, { namespace: "another" }), null);
    assert.equal(await byService.read(target!.digest, { namespace: null }), null);
  });

  await t.test("removing the image removes every snapshot and its directory", async () => {
    await ctr.removeImage(image);
    assert.deepEqual(ours.snapshotter.status(), []);
    await ours.snapshotter.cleanup();
    assert.deepEqual(readdirSync(join(ours.root, "snapshots")), []);
  });
});
