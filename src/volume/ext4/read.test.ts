import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { readFileSync, truncateSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { test } from "node:test";
import { gunzipSync } from "node:zlib";
import fc from "fast-check";
import { temporaryFolder } from "../../../test/tools/erofs-image.ts";
import { ext4Options, imageBytes, MiB, readLines, writtenLines } from "../../../test/tools/ext4-image.ts";
import { randomTree } from "../../../test/tools/random-tree.ts";
import { isHeadstartError } from "../../base/errors.ts";
import { FileTreeBuilder, FileType } from "../../erofs/file-tree.ts";
import { bytesSource } from "../../erofs/source.ts";
import { bytesToText, compareTreeLines } from "../../erofs/tree-lines.ts";
import { checkExt4 } from "./check.ts";
import { layoutExt4 } from "./layout.ts";
import { BLOCK, INODE_SIZE } from "./ondisk.ts";
import { type Ext4Inode, type Ext4Reader, openExt4 } from "./read.ts";

const golden = join(dirname(dirname(dirname(import.meta.dirname))), "test/golden/volume/ext4");

interface GoldenFile {
  readonly path: string;
  readonly ino: number;
  readonly mode: string;
  readonly uid: number;
  readonly gid: number;
  readonly links: number;
  readonly size: number;
  readonly sectors: number;
  readonly flags: string;
  readonly mtime: readonly [number, number];
  readonly extents?: readonly (readonly [number, number, number, string?])[];
  readonly extentCount?: number;
  readonly entries?: number;
  readonly target?: string;
  readonly rdev?: readonly [number, number];
  readonly xattrs?: readonly { readonly name: string; readonly value: string }[];
  readonly hardlink?: boolean;
}

interface Golden {
  readonly superblock: { readonly blocks: number; readonly freeBlocks: number; readonly uuid: string };
  readonly groups: readonly { readonly blockBitmap: number; readonly inodeTable: number; readonly flags: number }[];
  readonly files: readonly GoldenFile[];
}

const MODES = [0, 0o100000, 0o040000, 0o020000, 0o060000, 0o010000, 0o140000, 0o120000];
const ACLS = new Set(["system.posix_acl_access", "system.posix_acl_default"]);

/** Every path of the image, without decoding by tree: names as text. */
function byPath(reader: Ext4Reader): Map<string, Ext4Inode> {
  const found = new Map<string, Ext4Inode>([["/", reader.root]]);
  const paths = new Map<number, string>([[reader.root.number, ""]]);
  reader.walk({
    inode: () => undefined,
    name(directory, name, inode) {
      const path = `${paths.get(directory.number)}/${bytesToText(name)}`;
      found.set(path, inode);
      if (inode.type === FileType.directory) paths.set(inode.number, path);
    },
  });
  return found;
}

test("the image that mkfs and the kernel made reads as its description says", () => {
  const image = gunzipSync(readFileSync(join(golden, "kernel.img.gz")));
  const description = JSON.parse(readFileSync(join(golden, "kernel.json"), "utf8")) as Golden;
  const reader = openExt4(bytesSource(image));
  assert.equal(reader.superblock.blocks, description.superblock.blocks);
  assert.equal(reader.superblock.freeBlocks, description.superblock.freeBlocks);
  assert.equal(Buffer.from(reader.superblock.uuid).toString("hex"), description.superblock.uuid);
  description.groups.forEach((group, index) => {
    const { blockBitmap, inodeTable, flags } = reader.groups[index]!;
    assert.deepEqual(
      { blockBitmap, inodeTable, flags },
      { blockBitmap: group.blockBitmap, inodeTable: group.inodeTable, flags: group.flags },
    );
  });
  const found = byPath(reader);
  for (const file of description.files) {
    const inode = found.get(file.path);
    assert.ok(inode, file.path);
    assert.equal(inode.number, file.ino, file.path);
    if (file.hardlink) continue;
    const { extents } = reader.extents(inode);
    assert.deepEqual(
      {
        mode: MODES[inode.type]! | inode.mode,
        owner: [inode.uid, inode.gid],
        links: inode.nlink,
        size: inode.size,
        sectors: inode.sectors,
        flags: inode.flags,
        mtime: [inode.mtimeSeconds, inode.mtimeNanoseconds],
      },
      {
        mode: Number(file.mode),
        owner: [file.uid, file.gid],
        links: file.links,
        size: file.size,
        sectors: file.sectors,
        flags: Number(file.flags),
        mtime: file.mtime,
      },
      file.path,
    );
    if (file.extents !== undefined && inode.type !== FileType.symlink) {
      assert.equal(extents.length, file.extentCount, file.path);
      const rows = extents.map(({ logical, length, physical, unwritten }) =>
        unwritten ? [logical, length, physical, "unwritten"] : [logical, length, physical],
      );
      assert.deepEqual(rows.slice(0, file.extents.length), file.extents, file.path);
    }
    if (file.entries !== undefined) assert.equal(reader.readdir(inode).entries.length + 2, file.entries, file.path);
    if (file.target !== undefined) assert.equal(Buffer.from(reader.readlink(inode)).toString("latin1"), file.target);
    if (file.rdev !== undefined) assert.deepEqual([inode.rdevMajor, inode.rdevMinor], file.rdev, file.path);
    // the description has ACLs as they lie on disk
    const plain = (list: readonly { name: string; value: string }[]) =>
      list.filter(({ name }) => !ACLS.has(name)).map(({ name, value }) => [name, value]);
    const xattrs = reader.xattrs(inode).map(({ name, value }) => ({
      name: Buffer.from(name).toString("latin1"),
      value: Buffer.from(value).toString("hex"),
    }));
    assert.deepEqual(plain(xattrs), plain(file.xattrs ?? []), file.path);
  }
  const acl = reader.xattrs(found.get("/acl")!)[0]!;
  const stored = Buffer.from(acl.value).toString("hex");
  assert.equal(
    stored,
    "020000000100070" +
      "0ffffffff" +
      "02000700d2040000" +
      "04000500ffffffff" +
      "080005002e160000" +
      "10000700ffffffff" +
      "20000500ffffffff",
  );
  checkExt4(reader);
});

test("what was written is read: every path, attribute, link group, xattr and byte", async () => {
  for (const seed of [21, 22, 23]) {
    const tree = randomTree(seed, { entries: 500, xattrBytes: 3000 });
    const reader = openExt4(bytesSource(await imageBytes(layoutExt4(tree, ext4Options()))));
    checkExt4(reader);
    assert.deepEqual(compareTreeLines(await writtenLines(tree), await readLines(reader)), []);
  }
});

test("an image that is read back and written again is the same", async () => {
  const first = await imageBytes(layoutExt4(randomTree(31, { entries: 300, xattrBytes: 3000 }), ext4Options()));
  const reader = openExt4(bytesSource(first));
  const { tree } = reader.toFileTree();
  const layout = layoutExt4(tree, ext4Options());
  const lines = await readLines(
    openExt4(bytesSource(await imageBytes(layout, ({ address, length }) => first.subarray(address, address + length)))),
  );
  assert.deepEqual(compareTreeLines(await readLines(reader), lines), []);
});

test("images of mkfs without checksums, and with meta_bg, are read", () => {
  using folder = temporaryFolder("headstart-ext4-");
  const source = join(folder.path, "in");
  execFileSync("mkdir", ["-p", join(source, "sub")]);
  writeFileSync(join(source, "sub/file"), "content");
  for (const features of [
    ["-O", "64bit,^metadata_csum"],
    ["-O", "64bit,metadata_csum,^resize_inode,meta_bg"],
  ]) {
    const path = join(folder.path, "image");
    writeFileSync(path, "");
    truncateSync(path, 300 * MiB);
    execFileSync("mkfs.ext4", ["-q", "-F", "-b", "4096", "-I", "256", ...features, "-d", source, path]);
    const reader = openExt4(bytesSource(readFileSync(path)));
    checkExt4(reader);
    const file = byPath(reader).get("/sub/file");
    assert.ok(file);
    assert.equal(Buffer.from(reader.read(file, 0, 100)).toString(), "content");
  }
});

test("an ext4 with features that we do not know is refused by name", () => {
  using folder = temporaryFolder("headstart-ext4-");
  const path = join(folder.path, "image");
  writeFileSync(path, "");
  truncateSync(path, 32 * MiB);
  execFileSync("mkfs.ext4", ["-q", "-F", "-b", "4096", "-O", "inline_data", path]);
  assert.throws(
    () => openExt4(bytesSource(readFileSync(path))),
    (error) => isHeadstartError(error, "HS_FORMAT_UNSUPPORTED") && /incompatible features 0x8000/.test(error.message),
  );
});

interface Sample {
  readonly image: Uint8Array;
  /** Bytes that a checksum covers, or that must have one value. */
  readonly covered: Uint32Array;
}

/** A small image with one of everything, and which of its bytes are covered. */
async function sample(): Promise<Sample> {
  const plain = { mode: 0o755, uid: 0, gid: 0, mtimeSeconds: 1_700_000_000, mtimeNanoseconds: 0 };
  const builder = new FileTreeBuilder(plain);
  const add = (directory: number, name: string, fields: Partial<Parameters<typeof builder.addInode>[0]>) => {
    const inode = builder.addInode({ ...plain, type: FileType.regular, ...fields });
    builder.addName(directory, Buffer.from(name), inode);
    return inode;
  };
  const big = { name: Buffer.from("user.big"), value: Buffer.alloc(200, 1) };
  const segments = Array.from({ length: 400 }, (_, index) => ({
    fileOffset: index * 8192,
    length: 10,
    address: index * 16,
  }));
  const file = add(0, "pieces", { size: 400 * 8192, segments, xattrs: [big] });
  const names = add(0, "names", { type: FileType.directory });
  for (let index = 0; index < 600; index++) builder.addName(names, Buffer.from(`a-longer-name-${index}`), file);
  add(0, "link", { type: FileType.symlink, target: Buffer.alloc(100, 0x61) });
  const layout = layoutExt4(builder.finish(), ext4Options({ size: 8 * MiB, growthCeiling: 64 * 1024 * MiB }));
  const image = await imageBytes(layout);
  const covered: number[] = [];
  const cover = (start: number, length: number) => {
    for (let at = start; at < start + length; at++) covered.push(at);
  };
  cover(1024, 1024);
  cover(BLOCK, 64 * layout.geometry.groups);
  for (const block of layout.geometry.blockBitmaps) cover(block * BLOCK, BLOCK);
  for (const block of layout.geometry.inodeBitmaps) cover(block * BLOCK, layout.geometry.inodesPerGroup / 8);
  for (const number of [2, 7, 8, 11, ...layout.inodeOf]) {
    cover(layout.geometry.inodeTables[0]! * BLOCK + (number - 1) * INODE_SIZE, INODE_SIZE);
  }
  for (let inode = 0; inode < layout.tree.inodeCount; inode++) {
    for (const node of layout.nodesOf(inode)) cover(node * BLOCK, BLOCK);
    if (layout.tree.type[inode] !== FileType.directory) continue;
    const indexed = layout.indexed[inode] === 1;
    layout.extentsOf(inode).forEach(({ physical, length }) => {
      // of an index block only the pairs in use count
      for (let index = indexed ? 1 : 0; index < length; index++) cover((physical + index) * BLOCK, BLOCK);
    });
  }
  for (const { block } of layout.regions[0]!.xattrBlocks) cover(block * BLOCK, BLOCK);
  return { image, covered: Uint32Array.from(covered) };
}

function examine(image: Uint8Array): void {
  const reader = openExt4(bytesSource(image));
  checkExt4(reader);
  reader.toFileTree();
}

const isTyped = (error: unknown) =>
  isHeadstartError(error, "HS_EXT4_INVALID", "HS_FORMAT_UNSUPPORTED", "HS_TRUNCATED", "HS_MALFORMED");

test("one flipped bit in any checksummed structure is found", async () => {
  const { image, covered } = await sample();
  examine(image);
  fc.assert(
    fc.property(fc.nat(covered.length - 1), fc.nat(7), (index, bit) => {
      const at = covered[index]!;
      image[at]! ^= 1 << bit;
      try {
        assert.throws(() => examine(image), isTyped, `bit ${bit} of byte ${at}`);
      } finally {
        image[at]! ^= 1 << bit;
      }
    }),
    { numRuns: 10_000 },
  );
});

test("damage of any kind ends in a value or a typed error, with checksums and without", async () => {
  const { image } = await sample();
  const bare = Uint8Array.from(image);
  // without metadata_csum nothing shields the reader from values that lie
  new DataView(bare.buffer).setUint32(1024 + 0x64, 0x6b, true);
  const outcomes = { sound: 0, refused: 0 };
  const metadata = image.length / 4;
  fc.assert(
    fc.property(
      fc.boolean(),
      fc.array(fc.record({ at: fc.nat(metadata - 8), bytes: fc.uint8Array({ minLength: 1, maxLength: 8 }) }), {
        minLength: 1,
        maxLength: 20,
      }),
      (checked, damages) => {
        const damaged = Uint8Array.from(checked ? image : bare);
        for (const { at, bytes } of damages) damaged.set(bytes, at);
        try {
          examine(damaged);
          outcomes.sound++;
        } catch (error) {
          assert.ok(isTyped(error), String(error));
          outcomes.refused++;
        }
      },
    ),
    { numRuns: 200 },
  );
  assert.ok(outcomes.sound > 0 && outcomes.refused > 0, JSON.stringify(outcomes));
});

test("a cut image is refused", async () => {
  const { image } = await sample();
  for (const size of [0, 1024, 2047, 2048, 4096, 5000, image.length - 4096]) {
    assert.throws(() => examine(image.subarray(0, size)), isTyped);
  }
});
