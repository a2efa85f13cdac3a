import assert from "node:assert/strict";
import { test } from "node:test";
import { listTree } from "../../test/tools/erofs-image.ts";
import { randomTree } from "../../test/tools/random-tree.ts";
import { FileTreeBuilder, FileType, findChild, xattrName, xattrValue } from "../erofs/file-tree.ts";
import { type Graft, graftTrees, type Label } from "./graft.ts";

const PLAIN = { mode: 0o755, uid: 0, gid: 0, mtimeSeconds: 1_700_000_000, mtimeNanoseconds: 0 };
const LABEL: Label = { name: Buffer.from("security.selinux"), value: Buffer.from("cache_t\0") };

/** A skeleton of "<n>/fs" directories and a file; the inode of each fs. */
function skeletonOf(count: number) {
  const builder = new FileTreeBuilder(PLAIN);
  const places: number[] = [];
  for (let index = 0; index < count; index++) {
    const directory = builder.addInode({ ...PLAIN, type: FileType.directory });
    builder.addName(0, Buffer.from(String(index)), directory);
    places.push(builder.addInode({ ...PLAIN, type: FileType.directory }));
    builder.addName(directory, Buffer.from("fs"), places[index]!);
  }
  const xattrs = [{ name: Buffer.from("user.own"), value: Buffer.from("x") }];
  builder.addName(0, Buffer.from("file"), builder.addInode({ ...PLAIN, type: FileType.regular, xattrs }));
  return { tree: builder.finish(), places };
}

const random = (seed: number) => randomTree(seed, { entries: 400, large: false, xattrBytes: 300 });

test("each tree stands under its place as it was, and the skeleton around it", () => {
  const { tree: skeleton, places } = skeletonOf(3);
  const grafts: Graft[] = places.map((at, index) => ({ at, tree: random(index + 1) }));
  const { tree, firstInodes } = graftTrees(skeleton, grafts, null);
  assert.equal(
    tree.inodeCount,
    skeleton.inodeCount + grafts.reduce((sum, graft) => sum + graft.tree.inodeCount - 1, 0),
  );
  const whole = listTree(
    tree,
    Uint32Array.from({ length: tree.inodeCount }, (_, inode) => inode),
  );
  const seen = new Set<string>();
  for (const [index, { at, tree: own }] of grafts.entries()) {
    const numbers = Uint32Array.from({ length: own.inodeCount }, (_, inode) =>
      inode === 0 ? at : firstInodes[index]! + inode - 1,
    );
    for (const [path, line] of listTree(own, numbers)) {
      const moved = path === "." ? `./${index}/fs` : path.replace(/^\./, `./${index}/fs`);
      assert.equal(whole.get(moved), line, moved);
      seen.add(moved);
    }
  }
  for (const path of [".", "./0", "./1", "./2", "./file"]) {
    assert.ok(whole.has(path), path);
    seen.add(path);
  }
  assert.deepEqual(
    [...whole.keys()].filter((path) => !seen.has(path)),
    [],
  );
});

test("a label is on every inode of the grafts, in place of one of its name, among the others by name; the skeleton has its own", () => {
  const { tree: skeleton, places } = skeletonOf(2);
  const builder = new FileTreeBuilder(PLAIN);
  const xattr = (name: string, value: string) => ({ name: Buffer.from(name), value: Buffer.from(value) });
  const xattrs = [xattr("security.capability", "c"), xattr("security.selinux", "old"), xattr("user.z", "z")];
  builder.addName(0, Buffer.from("f"), builder.addInode({ ...PLAIN, type: FileType.regular, xattrs }));
  const labelled = builder.finish();
  const { tree, firstInodes } = graftTrees(
    skeleton,
    [
      { at: places[0]!, tree: labelled },
      { at: places[1]!, tree: random(7) },
    ],
    LABEL,
  );
  const namesOf = (inode: number) => {
    const names: string[] = [];
    for (let at = tree.xattrStart[inode]!; at < tree.xattrStart[inode + 1]!; at++) {
      names.push(`${Buffer.from(xattrName(tree, at))}=${Buffer.from(xattrValue(tree, at))}`);
    }
    return names;
  };
  assert.deepEqual(namesOf(firstInodes[0]!), ["security.capability=c", "security.selinux=cache_t\0", "user.z=z"]);
  assert.deepEqual(namesOf(places[0]!), ["security.selinux=cache_t\0"]);
  assert.deepEqual(namesOf(tree.childInode[findChild(tree, 0, Buffer.from("file"))]!), ["user.own=x"]);
  for (let inode = firstInodes[0]!; inode < tree.inodeCount; inode++) {
    const names = namesOf(inode);
    assert.ok(names.includes("security.selinux=cache_t\0"), `inode ${inode}`);
    assert.deepEqual(
      names,
      names.toSorted((a, b) => Buffer.compare(Buffer.from(a.split("=")[0]!), Buffer.from(b.split("=")[0]!))),
    );
  }
});
