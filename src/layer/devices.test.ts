/** Images over several blobs and their data files, with golden Nydus images. Mounts of them: test/e2e/device-mounts.test.ts. */

import assert from "node:assert/strict";
import { existsSync, mkdtempSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, afterEach, test } from "node:test";
import { decodedBootstrap } from "../../test/suites/golden-nydus.ts";
import {
  contentOf,
  filesOf,
  GoldenFetcher,
  hexOf,
  imageKey,
  lyingAbout,
  mergedGolden,
  partOf,
} from "../../test/suites/nydus-merged.ts";
import { isHeadstartError } from "../base/errors.ts";
import { ADDRESS_SPACE } from "../erofs/file-tree.ts";
import type { MergedImage } from "../formats/format.ts";
import { Decoders } from "./decoders.ts";
import type { LayerImage } from "./layer-image.ts";
import { LayerStore, type LayerStoreOptions } from "./store.ts";

const BOOT = "11111111-2222-3333-4444-555555555555";
const NEXT_BOOT = "66666666-2222-3333-4444-555555555555";

const decoders = new Decoders({ threads: 2 });
after(() => decoders[Symbol.asyncDispose]());

const roots: string[] = [];
const stores: LayerStore[] = [];
afterEach(async () => {
  for (const store of stores.splice(0)) await store[Symbol.asyncDispose]();
  for (const root of roots.splice(0)) rmSync(root, { recursive: true, force: true });
});

function newRoot(): string {
  const root = mkdtempSync(join(tmpdir(), "devices-test-"));
  roots.push(root);
  return root;
}

async function openStore(
  root: string,
  fetcher: GoldenFetcher,
  options: Partial<LayerStoreOptions> = {},
): Promise<LayerStore> {
  const store = await LayerStore.open(root, { fetcher, decoders, bootId: BOOT, ...options });
  stores.push(store);
  return store;
}

async function close(store: LayerStore): Promise<void> {
  stores.splice(stores.indexOf(store), 1);
  await store[Symbol.asyncDispose]();
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
    const store = await openStore(newRoot(), fetcher);
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
