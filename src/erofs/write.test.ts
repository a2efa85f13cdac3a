import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { test } from "node:test";
import { FORMS, layoutAs, UUID } from "../../test/tools/erofs-bytes.ts";
import { randomTree } from "../../test/tools/random-tree.ts";
import { checkErofs } from "./check.ts";
import { type FileTree, FileTreeBuilder, FileType, type InodeFields } from "./file-tree.ts";
import { openErofs } from "./read.ts";
import { layoutSource } from "./source.ts";
import { type ErofsLayout, impliedInodes, layoutLazy } from "./write.ts";

const bytes = (text: string) => Buffer.from(text);

test("the worked example of the specification comes out byte for byte", () => {
  const root = { mode: 0o755, uid: 0, gid: 0, mtimeSeconds: 1_700_000_000, mtimeNanoseconds: 0 };
  const builder = new FileTreeBuilder(root);
  const hello = builder.addInode({
    type: FileType.regular,
    mode: 0o644,
    uid: 1000,
    gid: 1000,
    mtimeSeconds: 1_700_000_123,
    mtimeNanoseconds: 42,
    size: 13,
    segments: [{ fileOffset: 0, length: 13, address: 512 }],
  });
  const link = builder.addInode({ ...root, type: FileType.symlink, mode: 0o777, target: bytes("hello.txt") });
  builder.addName(0, bytes("link"), link);
  builder.addName(0, bytes("hello.txt"), hello);
  const layout = layoutLazy(builder.finish(), { uuid: Buffer.from("00112233445566778899aabbccddeeff", "hex") });
  assert.equal(layout.size, 8192);
  const image = new Uint8Array(layout.size);
  for (const part of layout.parts) image.set(part.bytes, part.offset);
  assert.deepEqual([...layout.placement.fileOffset], [4096]);
  image.set(bytes("hello, erofs\n"), layout.placement.fileOffset[0]);
  assert.equal(Buffer.from(image.subarray(1024, 1032)).toString("hex"), "e2e1f5e03889e64b");
  assert.equal(
    createHash("sha256").update(image).digest("hex"),
    "bf9b88afcd5088d7ae33fdef553eaad8aa8a7b8c56bd66bb72044a42906fb354",
  );
});

const PLAIN = { mode: 0o644, uid: 0, gid: 0, mtimeSeconds: 1_700_000_000, mtimeNanoseconds: 0 };

/** A root with one entry `x`. */
function treeWith(fields: Partial<InodeFields>, name = bytes("x")): FileTree {
  const builder = new FileTreeBuilder({ ...PLAIN, mode: 0o755 });
  builder.addName(0, name, builder.addInode({ ...PLAIN, type: FileType.regular, ...fields }));
  return builder.finish();
}

const options = { uuid: UUID };

test("the same tree gives the same bytes, in both forms", () => {
  for (const form of FORMS) {
    const [first, second] = [1, 2].map(() => layoutAs(form, randomTree(7, { entries: 400 })));
    assert.deepEqual(second, first);
  }
});

test("an image is whole blocks, metadata and every file begin on one, and nids do not depend on the form", () => {
  const tree = randomTree(11, { entries: 300 });
  const [lazy, eager] = FORMS.map((form) => layoutAs(form, tree)) as [ErofsLayout, ErofsLayout];
  assert.deepEqual(lazy.nidOf, eager.nidOf);
  assert.equal(lazy.nidOf[0], 36);
  for (const layout of [lazy, eager]) {
    for (const value of [layout.size, layout.dataStart, layout.metadataRange.start, layout.metadataRange.end]) {
      assert.equal(value % 4096, 0);
    }
    for (const { offset, bytes } of layout.parts) assert.equal((offset + bytes.length) % 4096, 0);
  }
  assert.deepEqual(lazy.metadataRange, { start: 0, end: lazy.dataStart });
  assert.equal(eager.metadataRange.end, eager.size);
});

test("most inodes are compact: the epoch is the commonest whole second, the earliest of several", () => {
  const builder = new FileTreeBuilder({ ...PLAIN, mtimeSeconds: 5 });
  const times = [7, 7, 9, 9, -3, -3, -3];
  times.forEach((mtimeSeconds, index) => {
    const inode = builder.addInode({ ...PLAIN, type: FileType.fifo, mtimeSeconds });
    builder.addName(0, bytes(`${index}`), inode);
  });
  const layout = layoutLazy(builder.finish(), options);
  assert.equal(layout.epoch, 7);
  const reader = openErofs(layoutSource(layout));
  const shown = reader.readdir(reader.root).filter((entry) => entry.type === FileType.fifo);
  assert.deepEqual(
    shown.map(({ nid }) => [reader.inode(nid).mtimeSeconds, reader.inode(nid).extended]),
    times.map((time) => [time, time !== 7]),
  );
});

test("an inode is extended as soon as one of its values does not fit 32 bytes", () => {
  const extended = (fields: Partial<InodeFields>) => {
    const layout = layoutLazy(treeWith(fields), options);
    return openErofs(layoutSource(layout)).inode(layout.nidOf[1]!).extended;
  };
  assert.equal(extended({}), false);
  assert.equal(extended({ uid: 65_535, gid: 65_535, size: 2 ** 32 - 1 }), false);
  assert.equal(extended({ uid: 65_536 }), true);
  assert.equal(extended({ gid: 65_536 }), true);
  assert.equal(extended({ size: 2 ** 32 }), true);
  assert.equal(extended({ mtimeNanoseconds: 1 }), true);
});

test("more links than 16 bits hold are written", () => {
  const builder = new FileTreeBuilder(PLAIN);
  const inode = builder.addInode({ ...PLAIN, type: FileType.regular });
  for (let index = 0; index < 65_536; index++) builder.addName(0, bytes(`${index}`), inode);
  const layout = layoutLazy(builder.finish(), options);
  const reader = openErofs(layoutSource(layout));
  assert.equal(reader.inode(layout.nidOf[inode]!).nlink, 65_536);
  checkErofs(reader);
});

test("bodies around a block edge: whatever fits a block with its inode stays in one block, larger xattrs cross", () => {
  for (let size = 3900; size <= 4100; size++) {
    const name = bytes("security.x");
    const target = Buffer.alloc(200, 0x61);
    const xattrs = [{ name, value: Buffer.alloc(size - 100, 1) }];
    const layout = layoutLazy(treeWith({ type: FileType.symlink, target, xattrs }), options);
    const reader = openErofs(layoutSource(layout));
    checkErofs(reader);
    const link = reader.inode(layout.nidOf[1]!);
    assert.deepEqual(Buffer.from(reader.readlink(link)), target);
    assert.equal(link.tailAt >= 0, 32 + link.xattrSize + 200 <= 4096, `${size}`);
    assert.deepEqual(Buffer.from(reader.xattrs(link)[0]!.value), xattrs[0]!.value);
  }
  const large = { name: bytes("user.large"), value: Buffer.alloc(65_535, 7) };
  const layout = layoutLazy(treeWith({ xattrs: [large, { name: bytes("user.b"), value: bytes("") }] }), options);
  const reader = openErofs(layoutSource(layout));
  checkErofs(reader);
  assert.deepEqual(
    reader
      .xattrs(reader.inode(layout.nidOf[1]!))
      .map(({ name, value }) => [Buffer.from(name).toString(), value.length]),
    [
      ["user.b", 0],
      ["user.large", 65_535],
    ],
  );
});

test("what EROFS cannot represent is refused, never clamped", () => {
  const value = Buffer.alloc(60_000);
  const refused: readonly (readonly [string, Partial<InodeFields>])[] = [
    ["owner", { uid: 0xffffffff }],
    ["group", { gid: 0xffffffff }],
    ["a link target of 4096 bytes", { type: FileType.symlink, target: Buffer.alloc(4096, 0x61) }],
    ["an empty link target", { type: FileType.symlink, target: Buffer.alloc(0) }],
    ["a major number of 13 bits", { type: FileType.block, rdevMajor: 0x1000 }],
    ["a minor number of 21 bits", { type: FileType.char, rdevMinor: 0x100000 }],
    ["a fraction of a second too large", { mtimeNanoseconds: 1_000_000_000 }],
    ["a broken time", { mtimeSeconds: 0.5 }],
    ["a size beyond 16 TiB", { size: 2 ** 44 }],
    ["a size that no number holds", { size: 2 ** 60 }],
    ["a negative size", { size: -1 }],
    ["an unknown name prefix", { xattrs: [{ name: bytes("btrfs.compression"), value: bytes("zstd") }] }],
    ["a prefix without a name", { xattrs: [{ name: bytes("user."), value: bytes("") }] }],
    ["another system attribute", { xattrs: [{ name: bytes("system.posix_acl_accessory"), value: bytes("") }] }],
    ["too many xattrs", { xattrs: ["a", "b", "c", "d", "e"].map((name) => ({ name: bytes(`user.${name}`), value })) }],
  ];
  for (const [what, fields] of refused) {
    assert.throws(() => layoutLazy(treeWith(fields), options), { code: "HS_EROFS_LIMIT" }, what);
  }
  assert.throws(() => layoutLazy(treeWith({ size: 2 ** 44 - 4096 }), options), { code: "HS_EROFS_LIMIT" });
  assert.equal(layoutLazy(treeWith({ size: 2 ** 44 - 8192 }), options).size, 2 ** 44 - 4096);
});

test("metadata that would not fit into memory are refused before anything is allocated", () => {
  const builder = new FileTreeBuilder(PLAIN);
  const xattrs = ["a", "b", "c", "d"].map((name) => ({ name: bytes(`user.${name}`), value: bytes("") }));
  for (let index = 0; index < 18_000; index++) {
    builder.addName(0, bytes(`${index}`), builder.addInode({ ...PLAIN, type: FileType.regular, xattrs }));
  }
  const tree = builder.finish();
  tree.xattrValueLength.fill(60_000);
  assert.throws(() => layoutLazy(tree, options), { code: "HS_EROFS_LIMIT" });
});

test("implied directories are listed, and their nids bring the flags back", () => {
  const tree = randomTree(3, { entries: 400 });
  const implied = impliedInodes(tree);
  assert.ok(implied.length > 0);
  const layout = layoutLazy(tree, options);
  const impliedNids = Array.from(implied, (inode) => layout.nidOf[inode]!);
  const again = openErofs(layoutSource(layout)).toFileTree({ impliedNids });
  const nids = layoutLazy(again, options).nidOf;
  assert.deepEqual(Array.from(impliedInodes(again), (inode) => nids[inode]!).sort(), [...impliedNids].sort());
  assert.equal(impliedInodes(openErofs(layoutSource(layout)).toFileTree()).length, 0);
});
