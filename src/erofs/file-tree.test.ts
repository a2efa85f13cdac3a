import assert from "node:assert/strict";
import { test } from "node:test";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { childName, FileTreeBuilder, FileType, findChild, xattrName } from "./file-tree.ts";

const PLAIN = { mode: 0o755, uid: 0, gid: 0, mtimeSeconds: 1, mtimeNanoseconds: 2 };
const FILE = { ...PLAIN, type: FileType.regular } as const;
const text = (bytes: Uint8Array) => Buffer.from(bytes).toString();

test("names come in any order, between those of other directories, and stand sorted under their own", () => {
  const builder = new FileTreeBuilder(PLAIN);
  const directory = builder.addInode({ ...PLAIN, type: FileType.directory });
  builder.addName(0, Buffer.from("m"), directory);
  const shared = builder.addInode(FILE);
  for (const name of ["z", "a", "\u00e9", "ab"]) {
    builder.addName(directory, Buffer.from(name), shared);
    builder.addName(0, Buffer.from(`${name}-too`), builder.addInode(FILE));
  }
  const tree = builder.finish();
  const names = (of: number) => {
    const found: string[] = [];
    for (let at = tree.childStart[of]!; at < tree.childStart[of + 1]!; at++) found.push(text(childName(tree, at)));
    return found;
  };
  assert.deepEqual(names(0), ["a-too", "ab-too", "m", "z-too", "\u00e9-too"]);
  assert.deepEqual(names(directory), ["a", "ab", "z", "\u00e9"]);
  assert.equal(tree.childInode[findChild(tree, directory, Buffer.from("ab"))], shared);
  assert.deepEqual([tree.nlink[0], tree.nlink[directory], tree.nlink[shared]], [3, 2, 4]);
});

test("what the caller does with his arrays afterwards changes nothing", () => {
  const builder = new FileTreeBuilder(PLAIN);
  const name = Buffer.from("file");
  const xattrs = [{ name: Buffer.from("user.b"), value: Buffer.from("1") }];
  const segments = [{ fileOffset: 0, length: 5, address: 512 }];
  builder.addName(0, name, builder.addInode({ ...FILE, size: 5, xattrs, segments }));
  name.fill("x");
  xattrs[0]!.name.fill("x");
  segments[0]!.length = 100;
  const tree = builder.finish();
  assert.deepEqual([text(childName(tree, 0)), text(xattrName(tree, 0)), tree.segmentLength[0]], ["file", "user.b", 5]);
});

test("a name twice in one directory, an inode without one, segments beyond the file and a name in no directory are refused", () => {
  const attempt = (work: (builder: FileTreeBuilder) => void) => () => {
    const builder = new FileTreeBuilder(PLAIN);
    work(builder);
    builder.finish();
  };
  const twice = attempt((builder) => {
    for (const name of ["a", "b", "a"]) builder.addName(0, Buffer.from(name), builder.addInode(FILE));
  });
  assert.throws(twice, { code: "HS_INTERNAL" });
  assert.throws(
    attempt((builder) => void builder.addInode(FILE)),
    { code: "HS_INTERNAL" },
  );
  const beyond = attempt((builder) => {
    const segments = [{ fileOffset: 3, length: 3, address: 0 }];
    builder.addName(0, Buffer.from("a"), builder.addInode({ ...FILE, size: 5, segments }));
  });
  assert.throws(beyond, { code: "HS_MALFORMED" });
  const inFile = attempt((builder) => {
    const file = builder.addInode(FILE);
    builder.addName(0, Buffer.from("a"), file);
    builder.addName(file, Buffer.from("b"), builder.addInode(FILE));
  });
  assert.throws(inFile, { code: "HS_INTERNAL" });
});

test("an entry that was added is no object any more", () => {
  setFlagsFromString("--expose-gc");
  const collect = runInNewContext("gc") as () => void;
  const entries = 20_000;
  const builder = new FileTreeBuilder(PLAIN);
  collect();
  const before = process.memoryUsage().heapUsed;
  for (let index = 0; index < entries; index++) {
    const segments = [{ fileOffset: 0, length: 1, address: index }];
    const xattrs = [{ name: Buffer.from("user.a"), value: Buffer.from("b") }];
    builder.addName(0, Buffer.from(`file-${index}`), builder.addInode({ ...FILE, size: 1, segments, xattrs }));
  }
  collect();
  const grown = process.memoryUsage().heapUsed - before;
  assert.equal(builder.finish().inodeCount, entries + 1);
  // objects took some 700 bytes each; what is left is code and the like
  assert.ok(grown < 100 * entries, `${grown} bytes for ${entries} entries`);
});
