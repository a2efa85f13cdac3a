import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { buildImage } from "../../../test/build-image.ts";
import { Ext4Patcher } from "../../../test/tools/ext4-patcher.ts";
import { makeVolume, TINY_SOURCE } from "../../../test/tools/volumes.ts";
import { BLOCK_BYTES } from "../ebs/blocks.ts";
import type { VolumeManifest } from "../manifest.ts";
import { diffVolumes } from "./diff.ts";

const directory = mkdtempSync(join(tmpdir(), "headstart-diff-"));
after(() => rmSync(directory, { recursive: true }));

const diff = (a: string, b: string) => diffVolumes({ a, b, signal: new AbortController().signal });
const layout = join(directory, "layout");
const app = (tag: string) => `oci:${layout}:${tag}`;
const noise = (seed: number) => Buffer.from(Array.from({ length: 3 << 20 }, (_, index) => (index * seed) % 251));
const a = join(directory, "a.img");
const b = join(directory, "b.img");
let first: VolumeManifest;
let second: VolumeManifest;

/** Of `b` after `a`: one layer of an image changed, one image gone. */
before(async () => {
  const base = [{ path: "base", data: noise(7) }];
  const top = [{ path: "etc/top", data: "top" }];
  await buildImage(layout, "one", [base, [{ path: "app", data: noise(11) }], top]);
  await buildImage(layout, "two", [base, [{ path: "app", data: noise(13) }], top]);
  first = await makeVolume(a, [app("one"), TINY_SOURCE], { layout: "al2023" });
  second = await makeVolume(b, [app("two")], { layout: "al2023", previous: a });
});

test("a volume does not differ from itself, nor from its manifest", async () => {
  for (const other of [a, `${a}.json`]) {
    const { names, layers, blocks } = await diff(a, other);
    assert.deepEqual(names, { added: [], removed: [], changed: [] });
    assert.deepEqual(layers, { added: [], removed: [], moved: [], kept: 5 });
    assert.deepEqual([blocks?.changed, blocks?.causes], [0, []]);
  }
});

for (const [kind, from, to] of [
  ["disks", a, b],
  ["manifests", `${a}.json`, `${b}.json`],
] as const) {
  test(`of two ${kind} names, layers and blocks are told apart, each changed block by what lies in it`, async () => {
    const { names, layers, blocks } = await diff(from, to);
    assert.equal(names.removed.length, 4);
    assert.equal(names.added.length, 1);
    const [, changedLayer] = second.images[0]!.layers;
    const formerLayer = first.images.find((image) => image.layers.length === 3)!.layers[1]!;
    assert.deepEqual(
      layers.added.map(({ diffID }) => diffID),
      [changedLayer!.diffID],
    );
    assert.ok(layers.removed.some(({ diffID }) => diffID === formerLayer.diffID));
    assert.deepEqual([layers.removed.length, layers.moved, layers.kept], [3, [], 2]);
    assert.ok(blocks);
    const causes = new Map(
      blocks.causes.map(({ cause, digest, blocks: count }) => [`${cause} ${digest ?? ""}`, count]),
    );
    // 3 MiB of data begin on a block of their own, the directories before them
    const own = causes.get(`layer ${changedLayer!.diffID}`);
    assert.equal(own, 7);
    assert.equal(causes.get("databases "), 1);
    assert.equal(
      [...causes.values()].reduce((sum, count) => sum + count, 0),
      blocks.changed,
    );
    const kept = second.images[0]!.layers[0]!;
    assert.ok(!causes.has(`layer ${kept.diffID}`) && !causes.has(`blob ${kept.digest}`));
    assert.ok(Math.abs(blocks.put.dollars - blocks.changed * 0.000006) < 1e-9);
  });
}

test("a layer on other blocks has moved", async () => {
  const alone = join(directory, "alone.img");
  await makeVolume(alone, [app("two")], { layout: "al2023" });
  const { layers } = await diff(b, alone);
  assert.ok(layers.moved.length > 0);
  assert.equal(layers.kept + layers.moved.length, 3);
});

test("directories have names and layers, and no blocks", async () => {
  const root = join(directory, "root");
  await makeVolume(root, [app("one")]);
  const { names, layers, blocks } = await diff(root, a);
  assert.equal(blocks, null);
  assert.deepEqual([names.removed, layers.added.length, layers.kept], [[], 2, 3]);
});

test("changes of the file system's own are named: inode tables, bitmaps, descriptors, journal, the partition table", async () => {
  const plain = join(directory, "plain.img");
  await makeVolume(plain, [TINY_SOURCE], { layout: "bottlerocket" });
  const harmed = join(directory, "harmed.img");
  execFileSync("cp", ["--sparse=always", plain, harmed]);
  using patcher = new Ext4Patcher(harmed, 1 << 20);
  const { reader } = patcher;
  const [group] = reader.groups;
  const journal = reader.extents(reader.inode(reader.superblock.journalInode)).extents[0]!;
  const cases: readonly (readonly [cause: string, offset: number])[] = [
    // mkfs time in a superblock copy, unused bytes elsewhere: nothing that a reader minds
    ["descriptors", 32_768 * 4096 + 0x108],
    ["inode tables", group!.inodeTable * 4096 + 200],
    ["bitmaps", group!.inodeBitmap * 4096 + 4000],
    ["journal", (journal.physical + 200) * 4096],
    ["partition table", 64 * 512 - (1 << 20)],
    ["unused", (reader.superblock.blocks - 1000) * 4096],
  ];
  for (const [cause, offset] of cases) {
    patcher.write(offset, Uint8Array.of(patcher.read(offset, 1)[0]! ^ 1));
    const { blocks } = await diff(plain, harmed);
    assert.deepEqual(blocks!.causes, [{ cause, digest: null, blocks: 1 }], cause);
    patcher.undo();
  }
  assert.equal(BLOCK_BYTES, (await diff(plain, harmed)).blocks!.blockSize);
});

test("what is no volume is an error", async () => {
  await assert.rejects(diff(a, join(directory, "nothing")), { code: "HS_NOT_FOUND" });
  const document = join(directory, "document.json");
  writeFileSync(document, '{"schema": "headstart.volume/9"}');
  await assert.rejects(diff(document, a), { code: "HS_MALFORMED" });
  await assert.rejects(diff(directory, a), { code: "HS_NOT_FOUND" });
});
