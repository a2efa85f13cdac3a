/** Images over several blobs and their data files, with golden Nydus images. Mounts of them: test/e2e/device-mounts.test.ts. */

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { existsSync, mkdirSync, readdirSync, rmSync, statSync } from "node:fs";
import { join } from "node:path";
import { after, test } from "node:test";
import { setTimeout } from "node:timers/promises";
import { chunkInfos, decodedBootstrap, nydusBlob, nydusBootstrap } from "../../test/suites/golden-nydus.ts";
import {
  contentOf,
  filesOf,
  GoldenFetcher,
  hexOf,
  imageKey,
  lyingAbout,
  manyBlobs,
  mergedGolden,
  partOf,
} from "../../test/suites/nydus-merged.ts";
import { BOOT, LayerStores, OTHER_BOOT } from "../../test/tools/layer-stores.ts";
import { onSync } from "../../test/tools/syncs.ts";
import { isHeadstartError } from "../base/errors.ts";
import { ADDRESS_SPACE } from "../erofs/file-tree.ts";
import type { MergedImage } from "../formats/format.ts";
import { readBootstrap } from "../formats/nydus/bootstrap.ts";
import { mergedNydus } from "../formats/nydus/merged.ts";
import { Decoders } from "./decoders.ts";
import type { LayerImage } from "./layer-image.ts";
import type { LayerStore, LayerStoreOptions } from "./store.ts";

const DEVICE_FILL = join(import.meta.dirname, "../../test/fakes/device-fill.ts");

const decoders = new Decoders({ threads: 2 });
after(() => decoders[Symbol.asyncDispose]());

const stores = new LayerStores();

function openStore(
  root: string,
  fetcher: GoldenFetcher,
  options: Partial<LayerStoreOptions> = {},
): Promise<LayerStore> {
  return stores.open(root, { fetcher, decoders, ...options });
}

function create(store: LayerStore, name: string, merged: MergedImage): Promise<LayerImage> {
  return store.createImage({ key: imageKey(name), merged, source: {}, dataSource: ({ digest }) => ({ digest }) });
}

/** Sha256 of the content of each file, by path, as an independent decoder found them. */
function golden(variant: string): Map<string, string> {
  const found = new Map<string, string>();
  for (const [path, entry] of Object.entries(decodedBootstrap(variant).tree))
    if (entry.sha256 !== undefined) found.set(path, entry.sha256);
  return found;
}

for (const variant of [
  "v6-zstd-1m",
  "v6-lz4-64k-sha256",
  "v6-none-1m-upper-layers",
  "v6-zstd-1m-batch",
  "v6-zstd-1m-encrypted-upper-layers",
  "v6-zran",
  "v6-zran-multi",
  "v6-chunkdict",
]) {
  test(`every file of the golden image ${variant} is what it should be, and then the image is complete`, async () => {
    const merged = mergedGolden(variant);
    const fetcher = new GoldenFetcher();
    const store = await openStore(stores.newRoot(), fetcher);
    const image = await create(store, variant, merged);
    assert.equal(image.isComplete, false);
    assert.equal(image.state.t, "sealed");
    const expected = new Set(golden(variant).values());
    const files = filesOf(merged.tree);
    for (const { path, inode } of files) {
      assert.ok(expected.has(hexOf(await contentOf(image, merged, inode))), path);
    }
    assert.equal(image.isComplete, true);
    await image.whenComplete();
    const { bytesFilled, bytesTotal, unitsFilled, unitsTotal } = image.statistics();
    assert.equal(bytesFilled, bytesTotal);
    assert.equal(unitsFilled, unitsTotal);
    assert.ok(bytesTotal > 0);
  });
}

test("files of an image in RAFS v5, whose chunks lie on no blocks, are verified chunk by chunk too", async () => {
  const bootstrap = readBootstrap(nydusBootstrap("v5-zstd-1m"));
  // the lowest layer's blob is left out of the repository
  const sizes = bootstrap.blobs.map((blob) => nydusBlob(blob.id)?.byteLength ?? blob.compressedSize);
  const all = mergedNydus(bootstrap, chunkInfos(bootstrap), sizes, "v5");
  const isHere = (inode: number) =>
    piecesOf(all, inode).every(({ space }) => nydusBlob(bootstrap.blobs[space]!.id) !== null);
  const here = asciiFiles(all).filter(({ inode }) => isHere(inode));
  assert.ok(here.length > 5);
  const merged = partOf(
    all,
    here.map(({ inode }) => inode),
  );
  const store = await openStore(stores.newRoot(), new GoldenFetcher());
  const image = await create(store, "v5", merged);
  const expected = new Set(golden("v6-zstd-1m").values());
  for (const { inode, path } of filesOf(merged.tree))
    assert.ok(expected.has(hexOf(await contentOf(image, merged, inode))), path);
  assert.equal(image.isComplete, true);
});

/** What the tests below share: the lowest layers' files, and a batch in which several of them lie. */
const whole = mergedGolden("v6-zstd-1m");
const files = asciiFiles(whole);
const inodesOf = (from: number, to: number) => files.slice(from, to).map(({ inode }) => inode);
/** Sha256 of a file's content, as the decoder found it. */
function truth(variant: string, merged: MergedImage, inode: number): string {
  return golden(variant).get(asciiFiles(merged).find((file) => file.inode === inode)!.path)!;
}

/** The decoder's listing has other names for bytes that are no ASCII. */
function asciiFiles(merged: MergedImage): { path: string; inode: number }[] {
  return filesOf(merged.tree).filter(({ path }) => /^[\x20-\x7e]*$/.test(path));
}

async function complete(image: LayerImage): Promise<void> {
  image.startBackground();
  await image.whenComplete();
  await Promise.all(image.devices.map(({ layer }) => layer.whenIdle()));
}

/** Nothing but what `part` needs is fetched, so a data file of it has holes elsewhere. */
function piecesOf(merged: MergedImage, inode: number): { space: number; piece: number }[] {
  const { tree } = merged;
  const found: { space: number; piece: number }[] = [];
  for (let segment = tree.segmentStart[inode]!; segment < tree.segmentStart[inode + 1]!; segment++) {
    const space = Math.floor(tree.segmentAddress[segment]! / ADDRESS_SPACE);
    const address = tree.segmentAddress[segment]! - space * ADDRESS_SPACE;
    found.push({ space, piece: merged.blobs[space]!.table.units.pieceAddress.indexOf(address) });
  }
  return found;
}

test("the background fills what the author wants first, then everything, and seals the data files", async () => {
  const fetcher = new GoldenFetcher();
  const root = stores.newRoot();
  const store = await openStore(root, fetcher);
  const last = files.at(-1)!;
  const image = await create(store, "first", {
    ...whole,
    prefetch: Uint32Array.from(piecesOf(whole, last.inode).flatMap(({ space, piece }) => [space, piece])),
  });
  await complete(image);
  const wanted = piecesOf(whole, last.inode)[0]!;
  const { units } = whole.blobs[wanted.space]!.table;
  assert.equal(fetcher.calls[0]!.blob, units.blobs[0]!.digest);
  assert.equal(fetcher.calls[0]!.start, units.unitStart[units.pieceUnit[wanted.piece]!]);
  assert.deepEqual(
    image.devices.map(({ layer }) => layer.state.t),
    image.devices.map(() => "sealed"),
  );
  const fetched = fetcher.calls.length;
  await stores.close(store);
  for (const bootId of [BOOT, OTHER_BOOT]) {
    const again = await openStore(root, fetcher, { bootId });
    const reopened = await again.get(image.id);
    assert.equal(reopened.isComplete, true);
    assert.equal(hexOf(await contentOf(reopened, whole, last.inode)), truth("v6-zstd-1m", whole, last.inode));
    assert.ok(statSync(reopened.devices[0]!.layer.path).mode % 0o1000 === 0o400);
    await stores.close(again);
  }
  assert.equal(fetcher.calls.length, fetched);
});

test("images share the data file of a blob, each chunk is fetched once, and each is complete when its own chunks are there", async () => {
  const fetcher = new GoldenFetcher();
  const store = await openStore(stores.newRoot(), fetcher);
  const [a, b] = [partOf(whole, inodesOf(0, 60)), partOf(whole, inodesOf(40, 100))];
  const first = await create(store, "a", a);
  const [second, third] = await Promise.all([create(store, "b", b), create(store, "c", b)]);
  assert.deepEqual(
    second.devices.map(({ layer }) => layer.id),
    third.devices.map(({ layer }) => layer.id),
  );
  assert.equal(store.list().filter((row) => row.kind === "data").length, whole.blobs.length);
  const { layer } = second.devices[0]!;
  assert.ok(store.list().find((row) => row.id === layer.id)!.users.length >= 2);
  for (const { inode } of filesOf(a.tree)) await contentOf(first, a, inode);
  assert.equal(first.isComplete, true);
  assert.equal(second.isComplete, false);
  const calls = fetcher.calls.length;
  const common = filesOf(b.tree).filter(({ path }) => Number(path.slice(2)) < 20);
  for (const { inode } of common) await contentOf(second, b, inode);
  assert.equal(fetcher.calls.length, calls, "the twenty files that both have are there");
  for (const { inode } of filesOf(b.tree)) await contentOf(second, b, inode);
  assert.ok(second.isComplete && third.isComplete);
  const units = fetcher.calls.map(({ blob, start }) => `${blob} ${start}`);
  assert.equal(new Set(units).size, units.length);
});

test("a chunk that no image binds is neither fetched nor readable until one does", async () => {
  const fetcher = new GoldenFetcher();
  const store = await openStore(stores.newRoot(), fetcher);
  const image = await create(store, "a", partOf(whole, inodesOf(0, 1)));
  const { layer } = image.devices[0]!;
  const other = piecesOf(
    whole,
    files.findLast(({ inode }) => piecesOf(whole, inode)[0]!.space === piecesOf(whole, inodesOf(0, 1)[0]!)[0]!.space)!
      .inode,
  )[0]!;
  const { units } = whole.blobs[other.space]!.table;
  const start = units.pieceAddress[other.piece]!;
  const range = { start, end: start + units.pieceLength[other.piece]! };
  await assert.rejects(
    () => layer.ensure(range),
    (error) => isHeadstartError(error, "HS_CHUNK_UNBOUND"),
  );
  assert.deepEqual(fetcher.calls, []);
  await create(store, "whole", whole);
  await layer.ensure(range);
  assert.equal(layer.fillMap.has(start / 4096), true);
});

test("an image that says otherwise of a chunk has a data file of its own, and harms nobody", async () => {
  const fetcher = new GoldenFetcher();
  const store = await openStore(stores.newRoot(), fetcher);
  const inode = inodesOf(10, 11)[0]!;
  const { space, piece } = piecesOf(whole, inode)[0]!;
  const liar = await create(store, "liar", lyingAbout(whole, space, piece));
  await assert.rejects(
    () => contentOf(liar, whole, inode),
    (error) => isHeadstartError(error, "HS_UNIT_DIGEST"),
  );
  const honest = await create(store, "honest", whole);
  const later = await create(store, "later", partOf(whole, [inode]));
  const variants = [liar, honest].map((image) => image.devices.map(({ layer }) => layer.id));
  assert.notEqual(variants[0]![space], variants[1]![space]);
  assert.equal(later.devices[0]!.layer.id, variants[1]![space]);
  assert.equal(hexOf(await contentOf(honest, whole, inode)), truth("v6-zstd-1m", whole, inode));
  await complete(honest);
  assert.ok(later.isComplete && honest.isComplete);
});

for (const variant of ["v6-zstd-1m-batch", "v6-zran"]) {
  test(`a lie about one chunk leaves the others of its unit readable, for other images too (${variant})`, async () => {
    const merged = mergedGolden(variant);
    const fetcher = new GoldenFetcher();
    const store = await openStore(stores.newRoot(), fetcher);
    // a unit that holds whole files of its own
    const place = (inode: number) => {
      const { space, piece } = piecesOf(merged, inode)[0]!;
      return { space, piece, unit: merged.blobs[space]!.table.units.pieceUnit[piece]! };
    };
    const small = asciiFiles(merged).filter(({ inode }) => piecesOf(merged, inode).length === 1);
    const [bad, good] = small.flatMap((one) =>
      small
        .filter((other) => {
          const [a, b] = [place(one.inode), place(other.inode)];
          return a.space === b.space && a.unit === b.unit && a.piece !== b.piece;
        })
        .map((other) => [one, other]),
    )[0]!;
    const { space, piece } = place(bad!.inode);
    const liar = await create(store, "liar", lyingAbout(merged, space, piece));
    const neighbour = partOf(merged, [good!.inode]);
    const honest = await create(store, "honest", neighbour);
    assert.equal(honest.devices[0]!.layer.id, liar.devices[space]!.layer.id, "they share the data file");
    const expected = truth(variant, merged, good!.inode);
    assert.equal(hexOf(await contentOf(honest, neighbour, filesOf(neighbour.tree)[0]!.inode)), expected);
    assert.equal(honest.isComplete, true);
    assert.equal(hexOf(await contentOf(liar, merged, good!.inode)), expected);
    await assert.rejects(
      () => contentOf(liar, merged, bad!.inode),
      (error) => isHeadstartError(error, "HS_UNIT_DIGEST"),
    );
    liar.startBackground();
    await Promise.all(liar.devices.map(({ layer }) => layer.whenIdle()));
    const { layer } = liar.devices[space]!;
    while (layer.trouble?.startsWith("1 chunks") !== true) await setTimeout(20);
    assert.notEqual(liar.trouble, null);
    assert.equal(honest.trouble, null);
    assert.equal(liar.isComplete, false);
    assert.equal(layer.state.t, "lazy");
  });
}

test("wrong bytes from the registry are fetched again, also such that do not decode, and are never seen", async () => {
  const fetcher = new GoldenFetcher();
  const store = await openStore(stores.newRoot(), fetcher);
  let spoil = 0;
  fetcher.onFetch = (_, bytes) => {
    // the middle of a frame gives other bytes, its head an error
    if (spoil++ % 3 === 0) bytes[spoil % 2 === 0 ? 0 : bytes.byteLength >> 1]! ^= 0x40;
  };
  const image = await create(store, "a", whole);
  const expected = new Set(golden("v6-zstd-1m").values());
  for (const { inode, path } of files) assert.ok(expected.has(hexOf(await contentOf(image, whole, inode))), path);
  assert.ok(fetcher.calls.some(({ attempt }) => attempt > 0));
});

test("a chunk that another blob of the node has is copied, not fetched, and verified", async () => {
  const fetcher = new GoldenFetcher();
  const store = await openStore(stores.newRoot(), fetcher);
  await complete(await create(store, "zstd", whole));
  const calls = fetcher.calls.length;
  const batch = mergedGolden("v6-zstd-1m-batch");
  const image = await create(store, "batch", batch);
  await complete(image);
  const expected = new Set(golden("v6-zstd-1m-batch").values());
  for (const { inode, path } of filesOf(batch.tree))
    assert.ok(expected.has(hexOf(await contentOf(image, batch, inode))), path);
  assert.equal(fetcher.calls.length, calls);
});

test("a complete data file of which more is wanted stays what it is while that cannot be noted, and takes it later", async () => {
  const root = stores.newRoot();
  const store = await openStore(root, new GoldenFetcher());
  const part = partOf(whole, inodesOf(0, 40));
  const small = await create(store, "small", part);
  await complete(small);
  const blocked = small.devices.map(({ layer }) => join(root, "layers", String(layer.id), "digests.new"));
  for (const path of blocked) mkdirSync(path);
  await assert.rejects(() => create(store, "whole", whole));
  await assert.rejects(() => create(store, "whole", whole));
  assert.equal(small.isComplete, true);
  for (const path of blocked) rmSync(path, { recursive: true });
  const image = await create(store, "whole", whole);
  assert.equal(image.isComplete, false);
  const expected = new Set(golden("v6-zstd-1m").values());
  for (const { inode, path } of filesOf(whole.tree))
    assert.ok(expected.has(hexOf(await contentOf(image, whole, inode))), path);
  await complete(image);
  assert.ok(image.devices.every(({ layer }) => layer.state.t === "sealed"));
});

test("a complete data file that is to hold more keeps what it has when the process is killed at that, in whatever boot", async () => {
  const batch = mergedGolden("v6-zstd-1m-batch");
  const inodes = filesOf(batch.tree).map(({ inode }) => inode);
  const part = partOf(batch, inodes.slice(0, 200));
  const root = stores.newRoot();
  const first = await openStore(root, new GoldenFetcher());
  const id = (await create(first, "part", part)).id;
  await complete(await first.get(id));
  await stores.close(first);
  const child = spawnSync(process.execPath, [DEVICE_FILL, root, OTHER_BOOT], {
    env: { ...process.env, HEADSTART_FAILPOINTS: "layer:data-extend=exit" },
    encoding: "utf8",
  });
  assert.equal(child.signal, "SIGKILL", child.stderr);
  const fetcher = new GoldenFetcher();
  const store = await openStore(root, fetcher, { bootId: OTHER_BOOT });
  const image = await store.get(id);
  const expected = new Set(golden("v6-zstd-1m-batch").values());
  for (const { inode, path } of filesOf(part.tree))
    assert.ok(expected.has(hexOf(await contentOf(image, part, inode))), path);
  assert.equal(image.isComplete, true);
  assert.deepEqual(fetcher.calls, []);
});

test("what an image wants besides, and gets, while a data file is being synced is synced too before it counts as complete", async (t) => {
  const store = await openStore(stores.newRoot(), new GoldenFetcher());
  const image = await create(store, "part", partOf(whole, inodesOf(0, 1)));
  const { layer } = image.devices[0]!;
  let syncs = 0;
  let filledAfter = -1;
  await onSync(t, async (path, sync) => {
    await sync();
    if (path !== layer.path || syncs++ > 0) return;
    const more = await create(store, "whole", whole);
    for (const { inode } of filesOf(whole.tree)) await contentOf(more, whole, inode);
    filledAfter = layer.statistics().unitsFilled;
  });
  await complete(image);
  await layer.whenIdle();
  assert.ok(filledAfter > 1);
  assert.equal(layer.state.t, "sealed");
  assert.equal(syncs, 2);
});

test("an image over a complete data file can be opened while another one adds to that", async (t) => {
  const store = await openStore(stores.newRoot(), new GoldenFetcher());
  const small = await create(store, "small", partOf(whole, inodesOf(0, 40)));
  await complete(small);
  await small.close();
  let reopened: LayerImage | null = null;
  await onSync(t, async (_path, sync) => {
    await sync();
    if (reopened === null && small.devices.some(({ layer }) => layer.state.t === "lazy"))
      reopened = await store.get(small.id);
  });
  const image = await create(store, "whole", whole);
  assert.equal((reopened as LayerImage | null)?.isComplete, true);
  assert.equal(image.isComplete, false);
});

test("data files go when the last image that refers to them has gone", async () => {
  const root = stores.newRoot();
  const store = await openStore(root, new GoldenFetcher());
  const a = await create(store, "a", partOf(whole, inodesOf(0, 1)));
  const b = await create(store, "b", whole);
  assert.deepEqual(store.unreferenced(), []);
  await assert.rejects(() => store.remove(a.devices[0]!.layer.id), /HS_LAYER_STATE/);
  await store.remove(b.id);
  const left = store.unreferenced();
  const kept = a.devices.map(({ layer }) => layer.id);
  assert.ok(left.length > 0 && left.every((id) => !kept.includes(id)));
  await store.remove(a.id);
  // an image that comes at that moment has data files of its own
  const [, again] = await Promise.all([
    Promise.all(store.unreferenced().map((id) => store.remove(id))),
    create(store, "again", whole),
  ]);
  assert.equal(hexOf(await contentOf(again, whole, files[0]!.inode)), truth("v6-zstd-1m", whole, files[0]!.inode));
  await store.remove(again.id);
  for (const id of store.unreferenced()) await store.remove(id);
  assert.deepEqual(store.list(), []);
  assert.equal(existsSync(join(root, "layers", String(kept[0]))), false);
});

test("what was filled is believed in the same boot, and after another only what was sealed", async () => {
  const root = stores.newRoot();
  const fetcher = new GoldenFetcher();
  const first = await openStore(root, fetcher);
  const part = partOf(whole, inodesOf(0, 40));
  const image = await create(first, "a", part);
  const some = filesOf(part.tree).slice(0, 20);
  for (const { inode } of some) await contentOf(image, part, inode);
  const calls = fetcher.calls.length;
  await stores.close(first);
  const second = await openStore(root, fetcher);
  const again = await second.get(image.id);
  for (const { inode } of some) await contentOf(again, part, inode);
  assert.equal(fetcher.calls.length, calls);
  await stores.close(second);
  const third = await openStore(root, fetcher, { bootId: OTHER_BOOT });
  const after = await third.get(image.id);
  assert.equal(after.isComplete, false);
  const name = Number(some[0]!.path.slice(2));
  const expected = truth("v6-zstd-1m", whole, files[name]!.inode);
  assert.equal(hexOf(await contentOf(after, part, some[0]!.inode)), expected);
  assert.ok(fetcher.calls.length > calls);
});

test("a process that is killed at any time leaves what the next one can go on with, in the same boot and after another", async () => {
  const batch = mergedGolden("v6-zstd-1m-batch");
  const part = partOf(
    batch,
    filesOf(batch.tree)
      .slice(0, 200)
      .map(({ inode }) => inode),
  );
  const expected = new Set(golden("v6-zstd-1m-batch").values());
  const points = [
    "layer:section-rename=4*exit",
    "layer:image-made",
    "layer:unit-bit=3*exit",
    "layer:sealed",
    "layer:data-extend",
    "layer:unit-bit=9*exit",
  ];
  for (const [index, point] of points.entries()) {
    const root = stores.newRoot();
    const rule = point.includes("=") ? point : `${point}=exit`;
    const child = spawnSync(process.execPath, [DEVICE_FILL, root, BOOT], {
      env: { ...process.env, HEADSTART_FAILPOINTS: rule },
      encoding: "utf8",
    });
    assert.equal(child.signal, "SIGKILL", `${rule}: ${child.stderr}`);
    const store = await openStore(root, new GoldenFetcher(), { bootId: index % 2 === 0 ? BOOT : OTHER_BOOT });
    for (const [name, merged] of [
      ["whole", batch],
      ["part", part],
    ] as const) {
      const image = await create(store, name, merged);
      for (const { inode, path } of filesOf(merged.tree))
        assert.ok(expected.has(hexOf(await contentOf(image, merged, inode))), `${rule}: ${path}`);
      await complete(image);
      assert.ok(image.devices.every(({ layer }) => layer.state.t === "sealed"));
    }
    await stores.close(store);
  }
});

test("a store of before data files is opened, and its layers keep their keys", async () => {
  const root = stores.newRoot();
  const { DatabaseSync } = await import("node:sqlite");
  const db = new DatabaseSync(join(root, "layers.db"));
  db.exec(VERSION_1);
  db.close();
  const store = await openStore(root, new GoldenFetcher());
  const [row] = store.list();
  assert.equal(row!.kind, "layer");
  assert.deepEqual(row!.devices, []);
  const { kind: _, ...key } = imageKey("x");
  assert.equal(store.find({ ...key, role: "upper", format: "soci", indexDigest: null })!.id, row!.id);
});

const { digest: X } = imageKey("x").identity;
/** As released before: PRAGMA user_version 1. */
const VERSION_1 = `CREATE TABLE layers (
     id INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT NOT NULL, state TEXT NOT NULL, code TEXT, reason TEXT, digest TEXT NOT NULL, size INTEGER NOT NULL, media_type TEXT NOT NULL,
     diff_id TEXT NOT NULL, role TEXT NOT NULL, format TEXT NOT NULL, index_digest TEXT, source TEXT NOT NULL, image_size INTEGER NOT NULL DEFAULT 0,
     inode_count INTEGER NOT NULL DEFAULT 0, stream_length INTEGER NOT NULL DEFAULT 0, boot_id TEXT NOT NULL DEFAULT '', created_ms INTEGER NOT NULL
   ) STRICT;
   CREATE UNIQUE INDEX layers_by_key ON layers (key) WHERE state <> 'broken';
   PRAGMA user_version = 1;
   INSERT INTO layers (key, state, digest, size, media_type, diff_id, role, format, source, created_ms)
   VALUES ('${X} ${X} upper soci -', 'opening', '${X}', 1, 'x', '${X}', 'upper', 'soci', '{}', 0);`;

test("a thread makes of a bootstrap what it is here, and a bad one is refused with the same error", async () => {
  const store = await openStore(stores.newRoot(), new GoldenFetcher());
  const bytes = nydusBootstrap("v6-zran");
  const bootstrap = await store.readBootstrap(bytes, "v6-zran");
  const sizes = bootstrap.blobs.map((blob) => nydusBlob(blob.id)!.byteLength);
  assert.deepEqual(await store.mergeNydus(bootstrap, chunkInfos(bootstrap), sizes, "v6-zran"), mergedGolden("v6-zran"));
  await assert.rejects(
    () => store.readBootstrap(bytes.subarray(0, 8192), "cut"),
    (error) => isHeadstartError(error) && error.kind === "corrupt",
  );
});

test("an image that claims more data than fits into memory as bits is refused before anything is made of it", async () => {
  const root = stores.newRoot();
  const store = await openStore(root, new GoldenFetcher());
  const many = manyBlobs(2);
  many.blobs[1]!.table.units.pieceAddress[0] = 2 ** 41;
  await assert.rejects(
    () => create(store, "huge", many),
    (error) => isHeadstartError(error, "HS_LIMIT"),
  );
  assert.deepEqual(readdirSync(join(root, "layers")), []);
});
