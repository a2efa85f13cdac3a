import assert from "node:assert/strict";
import { constants, ftruncateSync, mkdirSync, openSync } from "node:fs";
import { readdir, readFile, stat } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { Bitmap } from "../../src/base/bitmap.ts";
import { writeFully } from "../../src/base/files.ts";
import type { Range } from "../../src/base/ranges.ts";
import { type FileTree, FileTreeBuilder, FileType } from "../../src/erofs/file-tree.ts";
import { impliedLower } from "../../src/erofs/overlay.ts";
import { layoutLazy } from "../../src/erofs/write.ts";
import { mountAsync, UnmountFlag, unmount, unmountAsync } from "../../src/linux/mount.ts";
import { findMount, readMountInfo } from "../../src/linux/mountinfo.ts";
import { Chains } from "../../src/mount/chain.ts";
import { probeLadder } from "../../src/mount/ladder.ts";
import { layerOfNodeid, type MountableLayer } from "../../src/mount/layers.ts";
import { teardown } from "../../src/mount/teardown.ts";
import { MountPlace } from "./mount-place.ts";

const options = { skip: process.getuid?.() !== 0 && "needs root", timeout: 150_000 };
const TIMES = { mtimeSeconds: 1_700_000_000, mtimeNanoseconds: 0 };
const TEXT = "from the layer\n";

/** A layer whose file data are holes until `ensure`. */
function testLayer(place: MountPlace, id: number, tree: FileTree = textTree()): TestLayer {
  const directory = join(place.root, "layers", String(id));
  mkdirSync(directory, { recursive: true });
  const layout = layoutLazy(tree, { uuid: new Uint8Array(16).fill(id) });
  const fd = openSync(join(directory, "image"), constants.O_RDWR | constants.O_CREAT | constants.O_TRUNC);
  place.fds.push(fd);
  ftruncateSync(fd, layout.size);
  for (const part of layout.parts) writeFully(fd, part.bytes, part.offset);
  const fillMap = new Bitmap(layout.size / 4096);
  fillMap.setRange(0, layout.metadataRange.end / 4096);
  return {
    id,
    path: join(directory, "image"),
    isComplete: false,
    size: layout.size,
    fd,
    fillMap,
    faults: 0,
    async ensure(range: Range) {
      this.faults++;
      if (layout.placement.rowCount > 0) writeFully(fd, Buffer.from(TEXT), layout.placement.fileOffset[0]!);
      fillMap.setRange(Math.floor(range.start / 4096), Math.ceil(range.end / 4096));
    },
    tree: async () => tree,
  };
}

interface TestLayer extends MountableLayer {
  isComplete: boolean;
  faults: number;
}

function textTree(): FileTree {
  const builder = new FileTreeBuilder({ mode: 0o755, uid: 0, gid: 0, ...TIMES });
  const segments = [{ fileOffset: 0, length: TEXT.length, address: 0 }];
  const fields = { type: FileType.regular, mode: 0o644, uid: 0, gid: 0, ...TIMES, size: TEXT.length, segments };
  builder.addName(0, Buffer.from("text"), builder.addInode(fields));
  return builder.finish();
}

function directoryTree(name: string, mode: number, implied: boolean, file?: string): FileTree {
  const builder = new FileTreeBuilder({ mode: 0o755, uid: 0, gid: 0, ...TIMES });
  const owner = { uid: 0, gid: 0, ...TIMES };
  const directory = builder.addInode({ type: FileType.directory, mode, implied, ...owner });
  builder.addName(0, Buffer.from(name), directory);
  if (file)
    builder.addName(directory, Buffer.from(file), builder.addInode({ type: FileType.regular, mode: 0o644, ...owner }));
  return builder.finish();
}

test("the ladder finds a way that works here, says how, and leaves nothing mounted", options, async () => {
  await using instance = await MountPlace.make();
  const ladder = await instance.probe();
  assert.ok(ladder.overFuse !== null && ladder.native !== null, JSON.stringify(ladder));
  assert.ok(ladder.steps.some((step) => step.step.endsWith("over FUSE") && step.outcome === "works"));
  assert.equal(ladder.devices, true, JSON.stringify(ladder.steps));
  assert.deepEqual(instance.mounted(), []);
  const again = await instance.probe();
  assert.deepEqual(again, ladder);
});

test("the configuration can force loop devices, and an old kernel falls to them by itself", options, async () => {
  await using instance = await MountPlace.make();
  const forced = await instance.probe("loop");
  assert.equal(forced.overFuse, "loop");
  assert.equal(forced.native, "loop");
  const old = await probeLadder({ server: instance.server, directory: instance.root, release: "6.1.0" });
  assert.equal(old.overFuse, "loop");
  assert.equal(old.directio, false);
  const impossible = await probeLadder({
    server: instance.server,
    directory: instance.root,
    release: "6.1.0",
    backing: "file",
  });
  assert.equal(impossible.overFuse, null);
  assert.deepEqual([forced.devices, old.devices, impossible.devices], [true, true, false]);
});

for (const backing of ["auto", "loop"] as const) {
  test(
    `a layer is mounted once for all owners, and unmounted behind the last (backing ${backing})`,
    options,
    async () => {
      await using instance = await MountPlace.make();
      const mounts = await instance.mounts(await instance.probe(backing));
      const layer = testLayer(instance, 7);
      const [a, b] = await Promise.all([mounts.mount("a", layer), mounts.mount("b", layer)]);
      assert.equal(a, join(instance.root, "l", "7f"));
      assert.equal(b, a);
      assert.equal(await readFile(join(a, "text"), "utf8"), TEXT);
      assert.ok(layer.faults >= 1);
      assert.deepEqual(instance.mounted(), ["l/7f"]);
      await mounts.release("a");
      assert.deepEqual(instance.mounted(), ["l/7f"]);
      await assert.rejects(() => mounts.forget(7), /HS_LAYER_STATE/);
      await mounts.release("b");
      assert.deepEqual(instance.mounted(), []);
      await mounts.forget(7);
      await assert.rejects(() => stat(instance.server.path({ name: "7.erofs" })), /ENOENT/);
    },
  );

  test(
    `a sealed layer is mounted natively for new owners, while old ones keep their mount (backing ${backing})`,
    options,
    async () => {
      await using instance = await MountPlace.make();
      const mounts = await instance.mounts(await instance.probe(backing));
      const layer = testLayer(instance, 8);
      const old = await mounts.mount("old", layer);
      await layer.ensure({ start: 0, end: layer.size }, {});
      layer.isComplete = true;
      const fresh = await mounts.mount("new", layer);
      assert.equal(fresh, join(instance.root, "l", "8"));
      assert.equal(await mounts.mount("old", layer), old);
      const faults = layer.faults;
      const reads = instance.server.statistics.reads;
      assert.equal(await readFile(join(fresh, "text"), "utf8"), TEXT);
      assert.equal(layer.faults, faults);
      assert.equal(instance.server.statistics.reads, reads);
      await mounts.release("old");
      assert.deepEqual(instance.mounted(), ["l/8"]);
      await mounts.release("new");
      assert.deepEqual(instance.mounted(), []);
    },
  );
}

test("after a restart mounts are adopted, owners are told again, and the rest is unmounted", options, async () => {
  await using instance = await MountPlace.make();
  const ladder = await instance.probe();
  const first = await instance.mounts(ladder);
  const layers = [testLayer(instance, 1), testLayer(instance, 2), testLayer(instance, 3)];
  for (const layer of layers) await first.mount("owner", layer);
  assert.equal(await readFile(join(instance.root, "l", "1f", "text"), "utf8"), TEXT);
  await instance.server[Symbol.asyncDispose]();
  await instance.serve();
  const second = await instance.mounts(ladder);
  assert.deepEqual(second.needed.sort(), [1, 2, 3]);
  for (const layer of layers) second.serve(layer);
  // complete meanwhile: from now on without us
  layers[1]!.isComplete = true;
  assert.equal(await second.mount("owner", layers[1]!), join(instance.root, "l", "2"));
  assert.equal(await second.mount("owner", layers[2]!), join(instance.root, "l", "3f"));
  await second.reap();
  assert.deepEqual(instance.mounted().sort(), ["l/2", "l/3f"]);
  assert.equal(await readFile(join(instance.root, "l", "3f", "text"), "utf8"), TEXT);
});

test(
  "mounts over a FUSE connection that is gone are dead: they are detached at start, and the layer is mounted anew",
  options,
  async () => {
    await using instance = await MountPlace.make();
    const ladder = await instance.probe();
    const layer = testLayer(instance, 4);
    await (await instance.mounts(ladder)).mount("owner", layer);
    await instance.server[Symbol.asyncDispose]();
    unmount(join(instance.state, "fuse"), UnmountFlag.detach);
    instance.mountFuse();
    await instance.serve();
    const mounts = await instance.mounts(ladder);
    assert.deepEqual(mounts.needed, []);
    assert.deepEqual(instance.mounted(), []);
    const path = await mounts.mount("owner", layer);
    assert.equal(await readFile(join(path, "text"), "utf8"), TEXT);
    await mounts.release("owner");
  },
);

test("after a restart a read of a layer that is not open yet waits for it, and asks for it", options, async () => {
  await using instance = await MountPlace.make();
  const ladder = await instance.probe();
  const layer = testLayer(instance, 9);
  const path = await (await instance.mounts(ladder)).mount("owner", layer);
  await instance.server[Symbol.asyncDispose]();
  const asked: (number | null)[] = [];
  await instance.serve((nodeid) => asked.push(layerOfNodeid(nodeid)));
  const read = readFile(join(path, "text"), "utf8");
  while (asked.length === 0) await sleep(5);
  assert.deepEqual(new Set(asked), new Set([9]));
  assert.ok(instance.server.statistics.faultsPending > 0);
  const mounts = await instance.mounts(ladder);
  mounts.serve(layer);
  assert.equal(await read, TEXT);
  await mounts.mount("owner", layer);
  await mounts.release("owner");
});

test("a walk of a fresh mount asks us next to nothing: its metadata were pushed", options, async () => {
  await using instance = await MountPlace.make();
  const mounts = await instance.mounts(await instance.probe());
  const builder = new FileTreeBuilder({ mode: 0o755, uid: 0, gid: 0, ...TIMES });
  const owner = { uid: 0, gid: 0, ...TIMES };
  for (let index = 0; index < 3000; index++) {
    const inode = builder.addInode({ type: FileType.regular, mode: 0o644, ...owner });
    builder.addName(0, Buffer.from(`file-${index}`), inode);
  }
  const path = await mounts.mount("owner", testLayer(instance, 3, builder.finish()));
  const before = instance.server.statistics.reads;
  const names = await readdir(path);
  assert.equal(names.length, 3000);
  await Promise.all(names.map((name) => stat(join(path, name))));
  const reads = instance.server.statistics.reads - before;
  assert.ok(reads <= 40, `${reads} reads`);
  await mounts.release("owner");
});

test(
  "a chain's small lower gives a directory that a layer only implies the attributes it has below",
  options,
  async () => {
    await using instance = await MountPlace.make();
    const mounts = await instance.mounts(await instance.probe());
    let computed = 0;
    const counted = (trees: readonly FileTree[]) => {
      computed++;
      return impliedLower(trees);
    };
    const chains = new Chains({ directory: join(instance.root, "chains"), mounts, impliedLower: counted });
    const below = testLayer(instance, 1, directoryTree("tmp", 0o1777, false));
    const above = testLayer(instance, 2, directoryTree("tmp", 0o755, true, "file"));
    const elements = [
      { kind: "layer", layer: below },
      { kind: "layer", layer: above },
      { kind: "directory", path: instance.base },
    ] as const;
    const lowers = await chains.lowersFor("owner", elements);
    assert.equal(lowers.length, 4);
    assert.equal(lowers[3], instance.base);
    assert.deepEqual(await chains.lowersFor("owner", elements), lowers);
    assert.equal(computed, 1);
    const target = join(instance.base, "merged");
    mkdirSync(target);
    const lowerdir = lowers.slice(0, 3).reverse().join(":");
    await mountAsync({ source: "overlay", target, type: "overlay", flags: 1, data: `lowerdir=${lowerdir}` });
    assert.equal((await stat(join(target, "tmp"))).mode & 0o7777, 0o1777);
    assert.ok((await stat(join(target, "tmp", "file"))).isFile());
    await unmountAsync(target);
    await mounts.release("owner");
    assert.deepEqual(instance.mounted(), []);
    chains.forget(new Set([2]));
    await chains.lowersFor("owner", elements);
    assert.equal(computed, 2);
    await mounts.release("owner");
  },
);

test(
  "teardown unmounts layers and FUSE in order, and says what an overlay of somebody else still holds",
  options,
  async () => {
    await using instance = await MountPlace.make();
    const mounts = await instance.mounts(await instance.probe());
    await mounts.mount("a", testLayer(instance, 5));
    await mounts.mount("a", testLayer(instance, 6));
    await instance.server[Symbol.asyncDispose]();
    await teardown([instance.root, instance.state]);
    assert.deepEqual(instance.mounted(), []);
    assert.equal(findMount(readMountInfo(), join(instance.state, "fuse")), undefined);
  },
);
