/** Layers into one image: what overlayfs would show, over the blobs that are still needed. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { nydusBootstrap } from "../../../../test/suites/golden-nydus.ts";
import {
  fixtureInMemory,
  fixtureMergedTree,
  type LayerInMemory,
  layerInMemory,
  linesFromAddresses,
  linesOf,
} from "../../../../test/tools/nydus-in-memory.ts";
import { type FileTree, FileTreeBuilder, FileType, type InodeFields } from "../../../erofs/file-tree.ts";
import { mergeTrees } from "../../../erofs/overlay.ts";
import { compareTreeLines } from "../../../erofs/tree-lines.ts";
import { readBootstrap } from "../bootstrap.ts";
import { readLayerBootstrap } from "../layer-bootstrap.ts";
import { Compressor } from "../ondisk.ts";
import { writeBootstrap, writeLayerBootstrap } from "./bootstrap.ts";
import { ChunkDictionary, imageBlobs, openDictionary } from "./dictionary.ts";
import { mergeLayers } from "./merge.ts";

const CHUNK = 4096;
const PLAIN = { mode: 0o644, uid: 0, gid: 0, mtimeSeconds: 1_700_000_000, mtimeNanoseconds: 5 };

/** Paths with their fields; parents come first. */
function treeOf(paths: Record<string, Partial<InodeFields>>): FileTree {
  const builder = new FileTreeBuilder(PLAIN);
  const inodes = new Map([["", 0]]);
  for (const [path, fields] of Object.entries(paths)) {
    const cut = path.lastIndexOf("/");
    const inode = builder.addInode({ ...PLAIN, type: FileType.directory, ...fields });
    inodes.set(path, inode);
    builder.addName(inodes.get(path.slice(0, Math.max(cut, 0)))!, Buffer.from(path.slice(cut + 1)), inode);
  }
  return builder.finish();
}

const file = (size: number, address: number): Partial<InodeFields> => ({
  type: FileType.regular,
  size,
  segments: size === 0 ? [] : [{ fileOffset: 0, length: size, address }],
});
const WHITEOUT: Partial<InodeFields> = { type: FileType.char, mode: 0 };

async function mergedLines(
  layers: readonly LayerInMemory[],
  prefetch: readonly string[] = [],
  others: readonly LayerInMemory[] = [],
) {
  const merged = mergeLayers(
    layers.map(({ layer }) => layer),
    { prefetch },
  );
  const bootstrap = readBootstrap(writeBootstrap(merged));
  const dataOf = new Map([...layers, ...others].map(({ layer, data }) => [layer.blob?.facts.id, data]));
  const spaces = bootstrap.blobs.map(({ id }) => dataOf.get(id)!);
  return { bootstrap, lines: await linesOf(bootstrap.tree, spaces) };
}

test("the fixture's layers, merged, are the tree that overlayfs showed, links and nanoseconds included", async () => {
  const { bootstrap, lines } = await mergedLines(await fixtureInMemory());
  assert.deepEqual(compareTreeLines(fixtureMergedTree(), lines), []);
  assert.equal(bootstrap.blobs.length, 3);
});

test("blobs stand in the order in which the real tool's walk meets them: a directory's own files, then each directory in it, whole", async () => {
  const layers = await fixtureInMemory();
  const [lowest, middle, top] = layers.map(({ layer }) => layer.blob!.facts.id);
  const ids = (built: readonly LayerInMemory[]) =>
    mergeLayers(built.map(({ layer }) => layer)).blobs.map(({ facts }) => facts.id);
  assert.deepEqual(ids(layers), [middle, lowest, top]);
  const deep = [
    layerInMemory(treeOf({ b: {}, "b/x": file(10, 1) }), { chunkSize: CHUNK }),
    layerInMemory(treeOf({ a: {}, "a/a": {}, "a/a/x": file(10, 20) }), { chunkSize: CHUNK, role: "upper" }),
    layerInMemory(treeOf({ z: file(10, 40) }), { chunkSize: CHUNK, role: "upper" }),
  ];
  const order = [deep[2]!, deep[1]!, deep[0]!];
  assert.deepEqual(
    ids(deep),
    order.map(({ layer }) => layer.blob!.facts.id),
  );
});

test("what layer bootstraps say of the layers, read back, merges to the same image", async () => {
  const layers = await fixtureInMemory();
  const again = layers.map(({ layer }) => {
    const bytes = writeLayerBootstrap({ ...layer, compressor: Compressor.none, refId: null });
    const { id, compressedSize } = layer.blob!.facts;
    return readLayerBootstrap(bytes, { id, size: compressedSize }, layer.role).tree;
  });
  const lines = async (trees: readonly FileTree[]) => {
    const moved = trees.map((tree, space) => ({
      ...tree,
      segmentAddress: tree.segmentAddress.map((address) => address + space * 2 ** 44),
    }));
    return await linesOf(
      mergeTrees(moved).tree,
      layers.map(({ data }) => data),
    );
  };
  // implied directories lose their flag: what they take from below is in the merged bootstrap, not in a layer's
  const implied = new Set(["/data", "/mid", "/etc"]);
  const differences = compareTreeLines(await lines(layers.map(({ layer }) => layer.tree)), await lines(again));
  assert.deepEqual(
    differences.filter(({ path }) => !implied.has(path)),
    [],
  );
});

test("a blob that no file needs any more is left out, and the others are numbered anew", async () => {
  const layers = [
    layerInMemory(treeOf({ a: {}, "a/x": file(5000, 1), b: file(10, 2) }), { chunkSize: CHUNK }),
    layerInMemory(treeOf({ c: file(9000, 3) }), { chunkSize: CHUNK, role: "upper" }),
    layerInMemory(treeOf({ a: WHITEOUT, b: WHITEOUT, d: file(0, 0) }), { chunkSize: CHUNK, role: "upper" }),
  ];
  const { bootstrap, lines } = await mergedLines(layers);
  assert.deepEqual(
    lines.map(({ path }) => path),
    ["/", "/c", "/d"],
  );
  assert.deepEqual(
    bootstrap.blobs.map(({ id }) => id),
    [layers[1]!.layer.blob!.facts.id],
  );
});

test("two layers of the same bytes share one blob", async () => {
  const tree = treeOf({ a: file(5000, 1) });
  const other = treeOf({ b: file(5000, 1) });
  const layers = [layerInMemory(tree, { chunkSize: CHUNK }), layerInMemory(other, { chunkSize: CHUNK, role: "upper" })];
  const { bootstrap, lines } = await mergedLines(layers);
  assert.equal(bootstrap.blobs.length, 1);
  assert.equal(lines[1]!.sha256, lines[2]!.sha256);
});

test("an image of more blobs than the format has numbers for is refused, and says what to do", () => {
  const layers = Array.from({ length: 255 }, (_, index) => {
    const tree = treeOf({ [`file-${index}`]: file(100, index * 1000 + 1) });
    return layerInMemory(tree, { chunkSize: CHUNK, role: index === 0 ? "lowest" : "upper" }).layer;
  });
  assert.throws(() => mergeLayers(layers), { code: "HS_NYDUS_LIMIT", message: /255 blobs.*254.*squash/ });
  assert.equal(mergeLayers(layers.slice(1).with(0, { ...layers[1]!, role: "lowest" })).blobs.length, 254);
});

test("layers that were built for another image are refused", () => {
  const { layer } = layerInMemory(treeOf({ a: file(10, 1) }), { chunkSize: CHUNK });
  assert.throws(() => mergeLayers([]), { code: "HS_INTERNAL" });
  assert.throws(() => mergeLayers([layer, layer]), { code: "HS_INTERNAL" });
  assert.throws(() => mergeLayers([layer, { ...layer, role: "upper", chunkSize: 8192 }]), { code: "HS_INTERNAL" });
});

test("prefetch names files and directories in the caller's order, each once, and only those that are there", async () => {
  const layers = [
    layerInMemory(treeOf({ a: {}, "a/x": file(10, 1), b: file(20, 2), c: file(30, 3) }), { chunkSize: CHUNK }),
  ];
  const { bootstrap } = await mergedLines(layers, ["/c", "/none", "/a", "/b/x", "//c/", "/a/x"]);
  const sizes = bootstrap.prefetch.map((inode) => bootstrap.tree.size[inode]);
  assert.deepEqual(sizes, [30, 0, 10]);
  const everything = await mergedLines(layers, ["/c", "/"]);
  assert.deepEqual(everything.bootstrap.prefetch, [], "the root means everything: no order");
});

test("chunks of a dictionary are referred to, and only its blobs that are", async () => {
  const base = [
    layerInMemory(treeOf({ lib: file(40_000, 1), other: file(100, 9) }), { chunkSize: CHUNK }),
    layerInMemory(treeOf({ unused: file(5000, 77) }), { chunkSize: CHUNK, role: "upper" }),
  ];
  const bytes = writeBootstrap(mergeLayers(base.map(({ layer }) => layer)));
  const dictionary = openDictionary(bytes, { chunkSize: CHUNK, digester: "sha256" });
  assert.equal(dictionary.blobs.length, 2);
  assert.equal(dictionary.chunkCount, 10 + 1 + 2);
  const tree = treeOf({ copy: file(40_000, 1), new: file(3000, 500) });
  const built = layerInMemory(tree, { chunkSize: CHUNK, dictionary });
  assert.equal(built.layer.blob!.chunks.count, 1, "only what is new is stored");
  const { bootstrap, lines } = await mergedLines([built], [], base);
  assert.deepEqual(
    bootstrap.blobs.map(({ id }) => id),
    [base[0]!.layer.blob!.facts.id, built.layer.blob!.facts.id],
  );
  assert.deepEqual(lines, await linesFromAddresses(tree));
  const own = writeLayerBootstrap({ ...built.layer, compressor: Compressor.none, refId: null });
  const { id, compressedSize } = built.layer.blob!.facts;
  const layer = readLayerBootstrap(own, { id, size: compressedSize }, "lowest");
  assert.deepEqual(
    layer.blobs.map((blob) => blob.id),
    [id, base[0]!.layer.blob!.facts.id],
    "the layer's own blob is the first",
  );
});

test("a dictionary that cannot serve the conversion says which options would", () => {
  const golden = nydusBootstrap("v6-zstd-64k");
  const dictionary = openDictionary(golden, { chunkSize: 65_536, digester: "blake3" });
  const { records } = readBootstrap(golden);
  assert.ok(dictionary.find(records.digest.subarray(0, 32), records.size[0]!));
  assert.equal(dictionary.find(records.digest.subarray(0, 32), records.size[0]! + 1), null);
  assert.throws(() => openDictionary(golden, { chunkSize: 1 << 20, digester: "blake3" }), {
    code: "HS_NYDUS_LIMIT",
    message: /--chunk-size 65536/,
  });
  assert.throws(() => openDictionary(golden, { chunkSize: 65_536, digester: "sha256" }), {
    code: "HS_NYDUS_LIMIT",
    message: /--digester blake3/,
  });
  const refs = openDictionary(nydusBootstrap("v6-zran"), { chunkSize: 1 << 20, digester: "sha256" });
  assert.equal(refs.chunkCount, 0, "chunks of refs are left out");
  assert.equal(new ChunkDictionary(imageBlobs(readBootstrap(nydusBootstrap("v5-zstd-1m")))).chunkCount, 0);
});

test("a dictionary whose records contradict each other is refused", () => {
  const bytes = Buffer.from(nydusBootstrap("v6-zstd-64k"));
  const { records, uses } = readBootstrap(bytes);
  const table = Number(bytes.readBigUInt64LE(1152 + 24));
  const used = new Set(uses.record);
  const conversion = { chunkSize: 65_536, digester: "blake3" } as const;
  assert.equal(used.size, records.count, "every record is one of a used chunk, so the reader itself looks at each");
  // one more record, of a chunk that no file has, in front of all others
  const size = records.count * 80;
  const more = Buffer.concat([bytes, Buffer.alloc(4096)]);
  bytes.copy(more, table + size, table, table + 80);
  more.writeBigUInt64LE(BigInt(size + 80), 1152 + 32);
  const blob = 1;
  const free = Array.from({ length: 402 }, (_, index) => index).find(
    (index) => !records.index.some((taken, record) => taken === index && records.blob[record] === blob),
  )!;
  more.writeUInt32LE(blob, table + size + 32);
  more.writeUInt32LE(free, table + size + 72);
  more.writeBigUInt64LE(2n ** 40n, table + size + 56);
  assert.throws(() => openDictionary(more, conversion), { code: "HS_NYDUS_INVALID", message: /records? of chunk/ });
});
