import assert from "node:assert/strict";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import {
  contentOf,
  filesOf,
  GoldenFetcher,
  imageKey,
  lyingAbout,
  mergedGolden,
  partOf,
} from "../../test/suites/nydus-merged.ts";
import { ADDRESS_SPACE } from "../erofs/file-tree.ts";
import type { MergedImage } from "../formats/format.ts";
import { LayerStore } from "./store.ts";

test("chunks that no source has right are the trouble of images that need them, not of others over the same data file", async () => {
  await using stack = new AsyncDisposableStack();
  const root = mkdtempSync(join(tmpdir(), "unsound-test-"));
  stack.defer(() => rmSync(root, { recursive: true, force: true }));
  const fetcher = new GoldenFetcher();
  const store = stack.use(await LayerStore.open(root, { fetcher, bootId: "11111111-2222-3333-4444-555555555555" }));
  const create = (name: string, merged: MergedImage) =>
    store.createImage({ key: imageKey(name), merged, source: {}, dataSource: ({ digest }) => ({ digest }) });
  const merged = mergedGolden("v6-zstd-1m");
  const { tree } = merged;
  /** The first chunk of each file in blob 0. */
  const inFirst = filesOf(tree).flatMap(({ inode }) => {
    const address = tree.segmentAddress[tree.segmentStart[inode]!] ?? -1;
    const isThere = tree.segmentStart[inode]! < tree.segmentStart[inode + 1]! && address < ADDRESS_SPACE;
    return isThere ? [{ inode, piece: merged.blobs[0]!.table.units.pieceAddress.indexOf(address) }] : [];
  });
  const bad = inFirst[0]!;
  const good = inFirst.find(({ piece }) => piece !== bad.piece)!;
  const liar = await create("liar", lyingAbout(merged, 0, bad.piece));
  const honest = await create("honest", partOf(merged, [good.inode]));
  assert.equal(honest.devices[0]!.layer.id, liar.devices[0]!.layer.id);
  await assert.rejects(() => contentOf(liar, merged, bad.inode), { code: "HS_UNIT_DIGEST" });
  assert.match(liar.unsound ?? "", /HS_UNIT_DIGEST/);
  assert.equal(honest.isComplete, false);
  assert.equal(honest.unsound, null);
  assert.match(liar.devices[0]!.layer.trouble ?? "", /HS_UNIT_DIGEST/);
});
