import assert from "node:assert/strict";
import { closeSync, mkdtempSync, openSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import fc from "fast-check";
import { cpuMs } from "../../test/tools/cpu-time.ts";
import { FORMS, imageBytes, layoutAs, mendChecksum } from "../../test/tools/erofs-bytes.ts";
import { randomTree } from "../../test/tools/random-tree.ts";
import { isHeadstartError } from "../base/errors.ts";
import { checkErofs } from "./check.ts";
import {
  childName,
  type FileTree,
  FileTreeBuilder,
  FileType,
  INODE_IMPLIED,
  INODE_IMPLIED_FIRST,
  symlinkTarget,
  xattrName,
  xattrValue,
} from "./file-tree.ts";
import { openErofs } from "./read.ts";
import { bytesSource, fdSource, layoutSource } from "./source.ts";
import { impliedInodes, layoutLazy } from "./write.ts";

const hex = (bytes: Uint8Array) => Buffer.from(bytes).toString("hex");

/** Path -> all attributes, and the first path of the same inode. File data are left out: their addresses differ. */
function describeTree(tree: FileTree): Map<string, string> {
  const lines = new Map<string, string>();
  const firstPath = new Map<number, string>();
  const visit = (inode: number, path: string) => {
    if (!firstPath.has(inode)) firstPath.set(inode, path);
    const xattrs: string[] = [];
    for (let index = tree.xattrStart[inode]!; index < tree.xattrStart[inode + 1]!; index++) {
      xattrs.push(`${hex(xattrName(tree, index))}=${hex(xattrValue(tree, index))}`);
    }
    const fields = [tree.type, tree.mode, tree.uid, tree.gid, tree.mtimeSeconds, tree.mtimeNanoseconds, tree.size];
    const more = [tree.nlink, tree.rdevMajor, tree.rdevMinor, tree.flags];
    const target = tree.type[inode] === FileType.symlink ? hex(symlinkTarget(tree, inode)) : "";
    lines.set(path, `${[...fields, ...more].map((field) => field[inode])} ${target} ${xattrs} ${firstPath.get(inode)}`);
    for (let child = tree.childStart[inode]!; child < tree.childStart[inode + 1]!; child++) {
      visit(tree.childInode[child]!, `${path}/${hex(childName(tree, child))}`);
    }
  };
  visit(0, "");
  return lines;
}

test("a tree that was written comes back, hard links and all, with its data at their places", () => {
  for (let seed = 100; seed < 130; seed++) {
    const tree = randomTree(seed, { entries: 150, large: seed % 10 === 0 });
    for (const form of FORMS) {
      const layout = layoutAs(form, tree);
      const reader = openErofs(layoutSource(layout));
      checkErofs(reader);
      const nidsOf = (flag: 1 | 2) => Array.from(impliedInodes(tree, flag), (inode) => layout.nidOf[inode]!);
      const again = reader.toFileTree({
        impliedNids: nidsOf(INODE_IMPLIED),
        impliedFirstNids: nidsOf(INODE_IMPLIED_FIRST),
      });
      assert.deepEqual(describeTree(again), describeTree(tree));
      assert.equal(again.hasMarks, tree.hasMarks);
      const imageOffsets = new Map<number, number>();
      for (let row = 0; row < layout.placement.rowCount; row++) {
        imageOffsets.set(layout.placement.address[row]!, layout.placement.fileOffset[row]!);
      }
      for (let inode = 0; inode < tree.inodeCount; inode++) {
        if (tree.type[inode] !== FileType.regular) continue;
        const [extent, ...more] = reader.extents(reader.inode(layout.nidOf[inode]!));
        assert.equal(more.length, 0);
        for (let segment = tree.segmentStart[inode]!; segment < tree.segmentStart[inode + 1]!; segment++) {
          assert.equal(
            imageOffsets.get(tree.segmentAddress[segment]!),
            extent!.imageOffset + tree.segmentFileOffset[segment]!,
          );
        }
      }
    }
  }
});

test("lookup finds every name, and none that is not there", () => {
  const layout = layoutLazy(randomTree(42, { entries: 2500 }), { uuid: new Uint8Array(16) });
  const reader = openErofs(layoutSource(layout));
  let found = 0;
  reader.walk({
    inode: () => {},
    name: (directory, name, inode) => {
      assert.equal(reader.lookup(directory, name)?.nid, inode.nid);
      const longer = Buffer.concat([name, Buffer.from([1])]);
      const entries = reader.readdir(directory);
      if (!entries.some((entry) => longer.equals(entry.name))) assert.equal(reader.lookup(directory, longer), null);
      found++;
    },
  });
  assert.ok(found > 2000);
  assert.equal(reader.lookup(reader.root, Buffer.from([0xff, 0xff])), null);
  assert.equal(reader.lookup(reader.root, Buffer.from("."))?.nid, reader.root.nid);
});

test("a file is read through windows as memory is, and one that shrinks meanwhile is an error", () => {
  const folder = mkdtempSync(join(tmpdir(), "headstart-erofs-read-"));
  const path = join(folder, "image");
  const image = imageBytes(layoutAs("eager", randomTree(9, { entries: 1500 })));
  writeFileSync(path, image);
  const fd = openSync(path, "r");
  try {
    const fromFile = openErofs(fdSource(fd)).toFileTree();
    assert.deepEqual(describeTree(fromFile), describeTree(openErofs(bytesSource(image)).toFileTree()));
    const late = openErofs(fdSource(fd));
    truncateSync(path, 8192);
    assert.throws(() => late.toFileTree(), { code: "HS_TRUNCATED" });
  } finally {
    closeSync(fd);
    rmSync(folder, { recursive: true });
  }
});

test("a directory that many inodes claim is not read over and over", () => {
  const plain = { mode: 0o755, uid: 0, gid: 0, mtimeSeconds: 0, mtimeNanoseconds: 0 };
  const builder = new FileTreeBuilder(plain);
  for (let index = 0; index < 4000; index++) {
    const value = Buffer.alloc(3900);
    const xattrs = index === 0 ? [{ name: Buffer.from("user.a"), value }] : [];
    const inode = builder.addInode({ ...plain, type: FileType.regular, xattrs });
    builder.addName(0, Buffer.from(`${index}`), inode);
  }
  const layout = layoutLazy(builder.finish(), { uuid: new Uint8Array(16) });
  const image = imageBytes(layout);
  const view = new DataView(image.buffer);
  for (let inode = 1; inode < 4000; inode++) view.setUint16(layout.nidOf[inode]! * 32 + 2, 0x4000, true);
  mendChecksum(image);
  const ms = cpuMs(() =>
    assert.throws(() => openErofs(bytesSource(image)).walk({ inode: () => {}, name: () => {} }), {
      code: "HS_EROFS_INVALID",
    }),
  );
  assert.ok(ms < 1000, `${ms} ms`);
});

/** Reads all that a reader can; every outcome but a value or HS_EROFS_INVALID is a fault. */
function readAll(image: Uint8Array): void {
  const attempt = (work: () => void) => {
    try {
      work();
    } catch (error) {
      if (!isHeadstartError(error, "HS_EROFS_INVALID")) throw error;
    }
  };
  attempt(() => {
    const reader = openErofs(bytesSource(image));
    attempt(() => checkErofs(reader));
    attempt(() => reader.toFileTree());
    for (let nid = 0; nid < 400; nid++) {
      attempt(() => {
        const inode = reader.inode(nid);
        reader.extents(inode);
        attempt(() => reader.xattrs(inode));
        attempt(() => reader.readlink(inode));
        if (inode.type !== FileType.directory) return;
        attempt(() => reader.readdir(inode));
        attempt(() => reader.lookup(inode, Buffer.from("lib-7.txt")));
      });
    }
  });
}

test("whatever the bytes are, reading ends in a value or in HS_EROFS_INVALID", () => {
  const images = FORMS.flatMap((form) => [1, 2, 3].map((seed) => layoutAs(form, randomTree(seed, { entries: 60 }))));
  fc.assert(
    fc.property(
      fc.nat({ max: images.length - 1 }),
      fc.array(fc.tuple(fc.double({ min: 0, max: 1, noNaN: true }), fc.nat({ max: 255 })), {
        minLength: 1,
        maxLength: 12,
      }),
      fc.boolean(),
      fc.boolean(),
      (which, changes, mend, superblockToo) => {
        const layout = images[which]!;
        const image = imageBytes(layout);
        const { start, end } = layout.metadataRange;
        for (const [place, value] of changes) {
          image[start + Math.floor(place * (end - start - 1))] = value;
          if (superblockToo) image[1024 + Math.floor(place * 127)] = value;
        }
        if (mend) mendChecksum(image);
        readAll(image);
      },
    ),
    { numRuns: 600 },
  );
  fc.assert(
    fc.property(fc.uint8Array({ minLength: 0, maxLength: 9000 }), (bytes) => readAll(bytes)),
    { numRuns: 100 },
  );
});
