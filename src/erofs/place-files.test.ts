import assert from "node:assert/strict";
import { test } from "node:test";
import { type FileTree, FileTreeBuilder, FileType } from "./file-tree.ts";
import { EROFS_NULL_ADDR } from "./ondisk.ts";
import { adoptFiles, placeFiles } from "./place-files.ts";
import { visitAddresses, visitFileRange } from "./placement.ts";

const PLAIN = { mode: 0o644, uid: 0, gid: 0, mtimeSeconds: 0, mtimeNanoseconds: 0 };
type Segments = readonly (readonly [fileOffset: number, length: number, address: number])[];

/** Inodes 1, 2, ... are files of these sizes and segments. */
function treeOf(...files: readonly (readonly [size: number, segments: Segments])[]): FileTree {
  const builder = new FileTreeBuilder(PLAIN);
  files.forEach(([size, segments], index) => {
    const inode = builder.addInode({
      ...PLAIN,
      type: FileType.regular,
      size,
      segments: segments.map(([fileOffset, length, address]) => ({ fileOffset, length, address })),
    });
    builder.addName(0, Buffer.from(`${index}`), inode);
  });
  return builder.finish();
}

test("files lie in address order, whatever their inode numbers, each from a block on", () => {
  const tree = treeOf([5000, [[0, 5000, 90_000]]], [0, []], [1, [[0, 1, 512]]], [4096, [[0, 4096, 2048]]]);
  const placed = placeFiles(tree, 8192, undefined);
  assert.deepEqual([...placed.startBlock], [EROFS_NULL_ADDR, 4, EROFS_NULL_ADDR, 2, 3]);
  assert.equal(placed.end, 6 * 4096);
  assert.deepEqual([...placed.placement.fileOffset], [8192, 12_288, 16_384]);
  assert.deepEqual([...placed.placement.address], [512, 2048, 90_000]);
});

test("one unit of the stream goes to one run of the file", () => {
  const tree = treeOf(...Array.from({ length: 50 }, (_, index) => [700, [[0, 700, 512 + index * 1536]]] as const));
  const { placement } = placeFiles(tree, 4096, undefined);
  const parts: number[] = [];
  visitAddresses(placement, 512 + 10 * 1536, 512 + 20 * 1536, (_address, fileOffset) => parts.push(fileOffset));
  assert.deepEqual(
    parts,
    Array.from({ length: 10 }, (_, index) => 4096 * (11 + index)),
  );
});

test("hot files come first, in the order asked for; a second mention changes nothing", () => {
  const tree = treeOf([10, [[0, 10, 512]]], [10, [[0, 10, 1536]]], [10, [[0, 10, 2560]]]);
  const placed = placeFiles(tree, 4096, Uint32Array.of(3, 1, 3));
  assert.deepEqual([...placed.startBlock.subarray(1)], [2, 3, 1]);
  assert.throws(() => placeFiles(tree, 4096, Uint32Array.of(0)), { code: "HS_INTERNAL" });
  assert.throws(() => placeFiles(tree, 4096, Uint32Array.of(9)), { code: "HS_INTERNAL" });
});

test("holes of a sparse file have room and no rows", () => {
  const tree = treeOf(
    [
      20_000,
      [
        [4096, 100, 512],
        [15_000, 5000, 1024],
      ],
    ],
    [3, [[0, 3, 9000]]],
  );
  const { startBlock, placement, end } = placeFiles(tree, 4096, undefined);
  assert.deepEqual([...startBlock.subarray(1)], [1, 6]);
  assert.equal(end, 7 * 4096);
  const rows: number[][] = [];
  visitFileRange(placement, 4096, 24_576, (address, fileOffset, length) => rows.push([address, fileOffset, length]));
  assert.deepEqual(rows, [
    [512, 8192, 100],
    [1024, 19_096, 5000],
  ]);
});

test("files with the same segments share one extent; the same start alone does not", () => {
  const tree = treeOf(
    [100, [[0, 100, 512]]],
    [100, [[0, 100, 512]]],
    [100, [[0, 100, 512]]],
    [50, [[0, 50, 512]]],
    [8000, []],
    [8000, []],
  );
  const { startBlock, placement, end } = placeFiles(tree, 4096, undefined);
  assert.deepEqual([...startBlock.subarray(1)], [2, 2, 2, 1, 3, 3]);
  assert.equal(placement.rowCount, 2);
  assert.equal(end, 5 * 4096);
});

test("places of an eager pull are taken over, gaps and shared ones included", () => {
  const tree = treeOf([5000, [[0, 5000, 512]]], [10, [[0, 10, 9000]]], [10, [[0, 10, 9000]]], [0, []]);
  const placed = adoptFiles(tree, Float64Array.of(-1, 16_384, 4096, 4096, -1), 16_384 + 5000);
  assert.deepEqual([...placed.startBlock], [EROFS_NULL_ADDR, 4, 1, 1, EROFS_NULL_ADDR]);
  assert.equal(placed.end, 24_576);
  assert.deepEqual([...placed.placement.fileOffset], [16_384, 4096]);
  assert.equal(adoptFiles(treeOf(), Float64Array.of(-1), 0).end, 4096);
});

test("unsound places of an eager pull are refused", () => {
  const tree = treeOf([5000, [[0, 5000, 512]]], [10, [[0, 10, 9000]]]);
  const wrong: readonly (readonly [string, Float64Array, number])[] = [
    ["none for a file with data", Float64Array.of(-1, -1, 4096), 8192],
    ["not on a block", Float64Array.of(-1, 4096, 12_289), 16_384],
    ["over the superblock", Float64Array.of(-1, 4096, 0), 16_384],
    ["overlapping", Float64Array.of(-1, 4096, 8192), 16_384],
    ["the same for different data", Float64Array.of(-1, 4096, 4096), 16_384],
    ["behind the end", Float64Array.of(-1, 4096, 16_384), 16_384],
    ["not a number", Float64Array.of(-1, 4096, Number.NaN), 16_384],
    ["too few", Float64Array.of(-1, 4096), 16_384],
  ];
  for (const [what, places, end] of wrong) {
    assert.throws(() => adoptFiles(tree, places, end), { code: "HS_INTERNAL" }, what);
  }
  assert.throws(() => adoptFiles(tree, Float64Array.of(-1, 4096, 12_288), 2 ** 45), { code: "HS_EROFS_LIMIT" });
});
