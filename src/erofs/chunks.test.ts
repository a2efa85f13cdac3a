import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { deviceTree } from "../../test/tools/device-tree.ts";
import { imageBytes, mendChecksum, UUID } from "../../test/tools/erofs-bytes.ts";
import { isHeadstartError } from "../base/errors.ts";
import { checkErofs } from "./check.ts";
import { ADDRESS_SPACE, type FileTree, FileTreeBuilder, FileType } from "./file-tree.ts";
import { openErofs } from "./read.ts";
import { bytesSource, layoutSource } from "./source.ts";
import { layoutDevices, layoutLazy } from "./write.ts";

const PLAIN = { mode: 0o644, uid: 0, gid: 0, mtimeSeconds: 0, mtimeNanoseconds: 0 };
const options = { uuid: UUID };
const device = (size: number, tag = "a") => ({ tag, size });

/** One file "x". */
function treeOf(size: number, segments: readonly { fileOffset: number; length: number; address: number }[]): FileTree {
  const builder = new FileTreeBuilder({ ...PLAIN, mode: 0o755 });
  builder.addName(0, Buffer.from("x"), builder.addInode({ ...PLAIN, type: FileType.regular, size, segments }));
  return builder.finish();
}

test("what is written is read back: every run of every file, in its device", () => {
  for (let seed = 1; seed <= 40; seed++) {
    const { tree, devices } = deviceTree(seed, { entries: 120 });
    const layout = layoutDevices(tree, devices, options);
    const reader = openErofs(layoutSource(layout));
    checkErofs(reader);
    assert.deepEqual(
      reader.superblock.devices.map(({ tag }) => tag),
      devices.flatMap((each) => (each === null ? [] : [each.tag])),
    );
    for (let inode = 0; inode < tree.inodeCount; inode++) {
      if (tree.type[inode] !== FileType.regular) continue;
      const found: [number, number][] = [];
      for (const extent of reader.extents(reader.inode(layout.nidOf[inode]!))) {
        // space 1 has no device: numbers behind it move up
        const space = extent.device === 1 ? 0 : extent.device;
        for (let at = 0; at < extent.length; at += 4096)
          found.push([extent.fileOffset + at, space * ADDRESS_SPACE + extent.imageOffset + at]);
      }
      const expected: [number, number][] = [];
      for (let segment = tree.segmentStart[inode]!; segment < tree.segmentStart[inode + 1]!; segment++)
        for (let at = 0; at < tree.segmentLength[segment]!; at += 4096)
          expected.push([tree.segmentFileOffset[segment]! + at, tree.segmentAddress[segment]! + at]);
      assert.deepEqual(found, expected, `seed ${seed}, inode ${inode}`);
    }
    assert.deepEqual(imageBytes(layoutDevices(tree, devices, options)), imageBytes(layout));
  }
});

test("a file in one run has one index, however large it is, and one in pieces an index for each of the largest chunk that fits", () => {
  const sizeWith = (tree: FileTree, size: number) => layoutDevices(tree, [device(size)], options).size;
  const one = treeOf(2 ** 40 + 1, [{ fileOffset: 0, length: 2 ** 40 + 1, address: 4096 }]);
  assert.equal(sizeWith(one, 2 ** 40 + 3 * 4096), 4096);
  const two = [
    { fileOffset: 0, length: 2 ** 20, address: 2 ** 30 },
    { fileOffset: 2 ** 20, length: 100, address: 0 },
  ];
  const layout = layoutDevices(treeOf(2 ** 20 + 100, two), [device(2 ** 31)], options);
  const inode = openErofs(layoutSource(layout)).inode(layout.nidOf[1]!);
  assert.equal(inode.chunkBits, 20);
  assert.equal(inode.at + inode.bodySize - inode.chunksAt, 16);
});

test("data that no device can hold as they are, and too many devices, are refused", () => {
  const refused = (work: () => unknown) => assert.throws(work, (error) => isHeadstartError(error, "HS_EROFS_LIMIT"));
  const whole = (address: number) => treeOf(5000, [{ fileOffset: 0, length: 5000, address }]);
  refused(() => layoutDevices(whole(24), [device(1 << 20)], options));
  refused(() => layoutDevices(whole(0), [device(4096)], options));
  refused(() => layoutDevices(whole(ADDRESS_SPACE), [device(1 << 20)], options));
  refused(() => layoutDevices(whole(0), [null], options));
  refused(() =>
    layoutDevices(treeOf(5000, [{ fileOffset: 100, length: 4900, address: 0 }]), [device(1 << 20)], options),
  );
  refused(() => layoutDevices(whole(0), [device(5000)], options));
  const many = (count: number) => Array.from({ length: count }, (_, index) => device(1 << 20, `d${index}`));
  assert.equal(openErofs(layoutSource(layoutDevices(whole(0), many(254), options))).superblock.devices.length, 254);
  refused(() => layoutDevices(whole(0), many(255), options));
});

test("a tree without data needs no device, and its image no feature", () => {
  const tree = treeOf(0, []);
  assert.deepEqual(imageBytes(layoutDevices(tree, [null], options)), imageBytes(layoutLazy(tree, options)));
});

test("whatever the bytes are, reading an image with devices ends in a value or in HS_EROFS_INVALID", () => {
  const layouts = [1, 2, 3].map((seed) => {
    const { tree, devices } = deviceTree(seed, { entries: 60 });
    return layoutDevices(tree, devices, options);
  });
  fc.assert(
    fc.property(
      fc.nat({ max: layouts.length - 1 }),
      fc.array(fc.tuple(fc.double({ min: 0, max: 1, noNaN: true }), fc.nat({ max: 255 })), {
        minLength: 1,
        maxLength: 8,
      }),
      fc.boolean(),
      (which, changes, mend) => {
        const layout = layouts[which]!;
        const image = imageBytes(layout);
        for (const [place, value] of changes) image[1024 + Math.floor(place * (layout.size - 1025))] = value;
        if (mend) mendChecksum(image);
        try {
          const reader = openErofs(bytesSource(image));
          checkErofs(reader);
          reader.toFileTree();
        } catch (error) {
          if (!isHeadstartError(error, "HS_EROFS_INVALID")) throw error;
        }
      },
    ),
    { numRuns: 600 },
  );
});
