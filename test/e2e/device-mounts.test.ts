/** Images over data files as the kernel sees them: golden Nydus images, mounted from files and through loop devices, lazily and complete. */

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { isHeadstartError } from "../../src/base/errors.ts";
import { compareTreeLines } from "../../src/erofs/tree-lines.ts";
import type { LayerImage } from "../../src/layer/layer-image.ts";
import { LayerStore } from "../../src/layer/store.ts";
import { UnmountFlag, unmount } from "../../src/linux/mount.ts";
import { type LayerMounts, layerOfNodeid } from "../../src/mount/layers.ts";
import { expectedNydusTree } from "../suites/golden-nydus.ts";
import {
  filesOf,
  GoldenFetcher,
  hexOf,
  imageKey,
  MANY_CONTENT,
  manyBlobs,
  mergedGolden,
  partOf,
} from "../suites/nydus-merged.ts";
import { kernelLinesApart } from "../tools/kernel-lines.ts";
import { MountPlace } from "./mount-place.ts";

const options = { skip: process.getuid?.() !== 0 && "needs root", timeout: 150_000 };
const BOOT = "11111111-2222-3333-4444-555555555555";
const VARIANTS = ["v6-zstd-1m", "v6-lz4-64k-sha256", "v6-zstd-1m-batch", "v6-zran-multi", "v6-chunkdict"];

async function openStore(place: MountPlace, fetcher: GoldenFetcher): Promise<LayerStore> {
  return await LayerStore.open(place.root, { fetcher, bootId: BOOT });
}

function create(store: LayerStore, variant: string): Promise<LayerImage> {
  const merged = mergedGolden(variant);
  return store.createImage({ key: imageKey(variant), merged, source: {}, dataSource: () => ({}) });
}

async function assertGolden(path: string): Promise<void> {
  assert.deepEqual(compareTreeLines(expectedNydusTree(), await kernelLinesApart(path, 2n ** 62n)), []);
}

async function removeAll(store: LayerStore, mounts: LayerMounts, image: LayerImage): Promise<void> {
  await mounts.forget(image.id);
  await store.remove(image.id);
  for (const id of store.unreferenced()) {
    await mounts.forget(id);
    await store.remove(id);
  }
  assert.deepEqual(store.list(), []);
}

for (const backing of ["file", "loop"] as const) {
  test(
    `golden images show the expected tree, chunk by chunk and then from local files (${backing})`,
    options,
    async () => {
      await using place = await MountPlace.make();
      const mounts = await place.mounts(await place.probe(backing));
      for (const variant of backing === "file" ? VARIANTS : VARIANTS.slice(-2)) {
        const fetcher = new GoldenFetcher();
        const store = await openStore(place, fetcher);
        const image = await create(store, variant);
        const lazy = await mounts.mount("a", image);
        assert.equal(lazy, join(place.root, "l", `${image.id}f`));
        assert.deepEqual(fetcher.calls, [], "a mount fetches nothing");
        await assertGolden(lazy);
        assert.equal(image.isComplete, true, variant);
        const fetched = fetcher.calls.length;
        const { reads, faults } = place.server.statistics;
        const native = await mounts.mount("b", image);
        assert.equal(native, join(place.root, "l", String(image.id)));
        await assertGolden(native);
        assert.deepEqual(
          [fetcher.calls.length, place.server.statistics.reads, place.server.statistics.faults],
          [fetched, reads, faults],
        );
        await assert.rejects(() => mounts.forget(image.devices[0]!.layer.id), /HS_LAYER_STATE/);
        await assert.rejects(() => store.remove(image.devices[0]!.layer.id), /HS_LAYER_STATE/);
        await mounts.release("a");
        await mounts.release("b");
        assert.deepEqual(place.mounted(), []);
        await removeAll(store, mounts, image);
        await store[Symbol.asyncDispose]();
      }
    },
  );

  test(
    `a mount goes on after a restart, and so does one whose devices nobody has opened yet (${backing})`,
    options,
    async () => {
      await using place = await MountPlace.make();
      const ladder = await place.probe(backing);
      const first = await openStore(place, new GoldenFetcher());
      const { id } = await create(first, "v6-zstd-1m");
      const path = await (await place.mounts(ladder)).mount("a", await first.get(id));
      await place.server[Symbol.asyncDispose]();
      await first[Symbol.asyncDispose]();

      const fetcher = new GoldenFetcher();
      const asked: (number | null)[] = [];
      await place.serve((nodeid) => asked.push(layerOfNodeid(nodeid)));
      const file = filesOf(mergedGolden("v6-zstd-1m").tree).at(-1)!;
      const reading = readFile(Buffer.concat([Buffer.from(path), Buffer.from(file.path, "latin1")]));
      while (asked.length === 0) await sleep(5);
      await using store = await openStore(place, fetcher);
      const image = await store.get(id);
      assert.ok(image.devices.some(({ layer }) => asked.includes(layer.id)));
      const mounts = await place.mounts(ladder);
      assert.deepEqual(mounts.needed, [id]);
      mounts.serve(image);
      await reading;
      assert.equal(await mounts.mount("a", image), path);
      await assertGolden(path);
      await mounts.release("a");
      await removeAll(store, mounts, image);
    },
  );
}

test(
  "an image that shares a complete data file and wants more of it does not disturb those that are mounted from it",
  options,
  async () => {
    await using place = await MountPlace.make();
    const mounts = await place.mounts(await place.probe());
    const fetcher = new GoldenFetcher();
    await using store = await openStore(place, fetcher);
    const whole = mergedGolden("v6-zstd-1m");
    const files = filesOf(whole.tree);
    const part = partOf(
      whole,
      files.slice(0, 40).map(({ inode }) => inode),
    );
    const small = await store.createImage({ key: imageKey("small"), merged: part, source: {}, dataSource: () => ({}) });
    small.startBackground();
    await small.whenComplete();
    await Promise.all(small.devices.map(({ layer }) => layer.whenIdle()));
    assert.ok(small.devices.every(({ layer }) => layer.state.t === "sealed"));
    const native = await mounts.mount("small", small);
    const before = await readFile(join(native, "f7"));

    const large = await create(store, "v6-zstd-1m");
    const shared = small.devices.map(({ layer }) => layer.id);
    assert.ok(
      shared.every((id) => large.devices.some(({ layer }) => layer.id === id)),
      "data files are shared",
    );
    assert.ok(small.isComplete && !large.isComplete);
    const lazy = await mounts.mount("large", large);
    await assertGolden(lazy);
    assert.deepEqual(await readFile(join(native, "f7")), before);
    assert.equal(await mounts.mount("another", small), native);
    for (const owner of ["small", "large", "another"]) await mounts.release(owner);
    await mounts.forget(small.id);
    await store.remove(small.id);
    assert.deepEqual(store.unreferenced(), [], "the other image still needs them");
    await removeAll(store, mounts, large);
  },
);

test("mounts over a FUSE connection that is gone are dead for images too", options, async () => {
  await using place = await MountPlace.make();
  const ladder = await place.probe();
  await using store = await openStore(place, new GoldenFetcher());
  const image = await create(store, "v6-zstd-1m");
  await (await place.mounts(ladder)).mount("a", image);
  await place.server[Symbol.asyncDispose]();
  unmount(join(place.state, "fuse"), UnmountFlag.detach);
  place.mountFuse();
  await place.serve();
  const mounts = await place.mounts(ladder);
  assert.deepEqual(mounts.needed, []);
  assert.deepEqual(place.mounted(), []);
  await assertGolden(await mounts.mount("a", image));
  await mounts.release("a");
  await mounts.forget(image.id);
  for (const { layer } of image.devices) await mounts.forget(layer.id);
});

test(
  "read-ahead that runs into chunks of other images costs nothing but itself: what is mounted reads right in buffered mode",
  options,
  async () => {
    await using place = await MountPlace.make();
    const mounts = await place.mounts({ ...(await place.probe("file")), directio: false });
    await using store = await openStore(place, new GoldenFetcher());
    const whole = mergedGolden("v6-zstd-1m");
    // every third file: its neighbours in the data file are bound by no image
    const files = filesOf(whole.tree).filter((_, index) => index % 3 === 0);
    const merged = partOf(
      whole,
      files.map(({ inode }) => inode),
    );
    const image = await store.createImage({ key: imageKey("third"), merged, source: {}, dataSource: () => ({}) });
    const path = await mounts.mount("a", image);
    const lines = await kernelLinesApart(path, 2n ** 62n);
    const expected = new Set(expectedNydusTree().map(({ sha256 }) => sha256));
    const read = lines.filter(({ type }) => type === "reg");
    assert.equal(read.length, files.length);
    for (const line of read) assert.ok(expected.has(line.sha256), line.path);
    assert.equal(image.isComplete, true);
    assert.ok(place.server.statistics.faultsFailed > 0, "no read-ahead was refused: the test proves nothing");
    await mounts.release("a");
    await removeAll(store, mounts, image);
  },
);

test("an image over more data files than mount(2) has room for is mounted, and 255 are refused", options, async () => {
  await using place = await MountPlace.make();
  const mounts = await place.mounts(await place.probe("file"));
  await using store = await openStore(place, new GoldenFetcher());
  const image = await store.createImage({
    key: imageKey("many"),
    merged: manyBlobs(254),
    source: {},
    dataSource: () => ({}),
  });
  assert.equal(image.devices.length, 254);
  const path = await mounts.mount("a", image);
  const lines = await kernelLinesApart(path, 2n ** 62n);
  assert.equal(lines.filter(({ sha256 }) => sha256 === hexOf(MANY_CONTENT)).length, 254);
  await mounts.release("a");
  await removeAll(store, mounts, image);
  const tooMany = { key: imageKey("more"), merged: manyBlobs(255), source: {}, dataSource: () => ({}) };
  await assert.rejects(
    () => store.createImage(tooMany),
    (error) => isHeadstartError(error, "HS_EROFS_LIMIT"),
  );
});
