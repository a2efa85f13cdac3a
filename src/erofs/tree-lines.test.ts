import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { FileTreeBuilder, FileType } from "./file-tree.ts";
import { bytesToText, compareTreeLines, type TreeLine, textToBytes, treeLines } from "./tree-lines.ts";

const COMMON = { mode: 0o644, uid: 0, gid: 0, mtimeSeconds: 1, mtimeNanoseconds: 5 } as const;
const bytes = (text: string) => Buffer.from(text, "latin1");

async function linesOf(builder: FileTreeBuilder): Promise<TreeLine[]> {
  const lines: TreeLine[] = [];
  for await (const line of treeLines(builder.finish(), { sha256: (inode) => `sha of ${inode}` })) lines.push(line);
  return lines;
}

test("lines ascend by the bytes of the whole path, not by directory", async () => {
  const builder = new FileTreeBuilder({ ...COMMON, mode: 0o755 });
  const directory = builder.addInode({ ...COMMON, type: FileType.directory });
  builder.addName(0, bytes("a"), directory);
  for (const [parent, name] of [
    [directory, "b"],
    [0, "a-"],
    [0, "a.b"],
    [0, "a0"],
    [0, "\xff"],
  ] as const) {
    builder.addName(parent, bytes(name), builder.addInode({ ...COMMON, type: FileType.fifo }));
  }
  assert.deepEqual(
    (await linesOf(builder)).map(({ path }) => path),
    ["/", "/a", "/a-", "/a.b", "/a/b", "/a0", "/\udcff"],
  );
});

test("every type has its keys, in order", async () => {
  const builder = new FileTreeBuilder({ ...COMMON, mode: 0o755 });
  const add = (name: string, fields: Omit<Parameters<typeof builder.addInode>[0], keyof typeof COMMON>) => {
    const inode = builder.addInode({ ...COMMON, ...fields });
    builder.addName(0, bytes(name), inode);
    return inode;
  };
  add("char", { type: FileType.char, rdevMajor: 1, rdevMinor: 3 });
  add("dir", { type: FileType.directory, xattrs: [{ name: bytes("user.x"), value: bytes("\0v") }] });
  builder.addName(0, bytes("hard"), add("reg", { type: FileType.regular, size: 7 }));
  add("sym", { type: FileType.symlink, target: bytes("caf\xe9") });
  const common = { mode: "0644", uid: 0, gid: 0, mtime_ns: "1000000005" };
  const reg = { ...common, nlink: 2, size: 7, sha256: "sha of 3" };
  const expected: unknown[] = [
    { path: "/", type: "dir", ...common, mode: "0755" },
    { path: "/char", type: "char", ...common, nlink: 1, rdev: [1, 3] },
    { path: "/dir", type: "dir", ...common, xattrs: { "user.x": "0076" } },
    { path: "/hard", type: "reg", ...reg, linked_with: ["/reg"] },
    { path: "/reg", type: "reg", ...reg, linked_with: ["/hard"] },
    { path: "/sym", type: "symlink", ...common, nlink: 1, size: 4, target: "caf\udce9" },
  ];
  const lines = await linesOf(builder);
  assert.deepEqual(lines, expected);
  assert.deepEqual(
    lines.map((line) => Object.keys(line)),
    expected.map((line) => Object.keys(line as object)),
  );
});

test("times before 1970 and with leading zeros are exact", async () => {
  const time = async (mtimeSeconds: number, mtimeNanoseconds: number) =>
    (await linesOf(new FileTreeBuilder({ ...COMMON, mtimeSeconds, mtimeNanoseconds })))[0]!.mtime_ns;
  assert.deepEqual([await time(-2, 500_000_000), await time(8_589_934_597, 1)], ["-1500000000", "8589934597000000001"]);
});

test("bytes that are no UTF-8 are lone surrogates, one for each byte, and come back", () => {
  assert.equal(bytesToText(bytes("a\xff\xc3\xa9\xe2\x82")), "a\udcff\u00e9\udce2\udc82");
  assert.equal(bytesToText(bytes("\xed\xa0\x80\xc0\x80\xf5")), "\udced\udca0\udc80\udcc0\udc80\udcf5");
  assert.equal(JSON.stringify(bytesToText(bytes("\xe9"))), '"\\udce9"');
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 30 }), (any) => {
      assert.deepEqual(Buffer.from(textToBytes(bytesToText(any))), Buffer.from(any));
    }),
  );
});

test("a comparison names what is missing, extra or different, and does not compare a null", () => {
  const line = (path: string, more: object = {}): TreeLine => ({
    path,
    type: "dir",
    mode: "0755",
    uid: 0,
    gid: 0,
    mtime_ns: "1",
    ...more,
  });
  const expected = [
    line("/"),
    line("/a", { mtime_ns: null }),
    line("/b", { xattrs: { x: "1", y: "2" } }),
    line("/c"),
    line("/d", { nlink: 1 }),
  ];
  const got = [
    line("/", { uid: 1 }),
    line("/a", { mtime_ns: "5" }),
    line("/b", { xattrs: { y: "2", x: "1" } }),
    line("/d"),
    line("/e"),
  ];
  assert.deepEqual(
    compareTreeLines(expected, got).map(({ path, key, expected: want, got: have }) => [
      path,
      key,
      typeof want === "object" ? "" : want,
      typeof have === "object" ? "" : have,
    ]),
    [
      ["/", "uid", 0, 1],
      ["/c", "missing", "", undefined],
      ["/d", "nlink", 1, undefined],
      ["/e", "extra", undefined, ""],
    ],
  );
  assert.deepEqual(compareTreeLines(got, got), []);
});
