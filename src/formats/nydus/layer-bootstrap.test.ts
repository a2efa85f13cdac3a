/** Bootstraps that blobs carry of their own layer: what is not known in them, and marks as names. */

import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { layerInMemory } from "../../../test/tools/nydus-in-memory.ts";
import { HeadstartError } from "../../base/errors.ts";
import {
  childName,
  type FileTree,
  FileTreeBuilder,
  FileType,
  findChild,
  type InodeFields,
  isWhiteout,
  xattrName,
} from "../../erofs/file-tree.ts";
import { readLayerBootstrap } from "./layer-bootstrap.ts";
import { marksOfNames, namesOfMarks } from "./marks.ts";
import { Compressor } from "./ondisk.ts";
import { writeLayerBootstrap } from "./write/bootstrap.ts";

const PLAIN = { mode: 0o644, uid: 7, gid: 8, mtimeSeconds: 1_700_000_000, mtimeNanoseconds: 0 };

/** Paths with what they are: "d" a directory, "f" a file, else the path that they are another name of. */
function treeOf(paths: Record<string, "d" | "f" | Partial<InodeFields> | `=${string}`>): FileTree {
  const builder = new FileTreeBuilder(PLAIN);
  const inodes = new Map([["", 0]]);
  for (const [path, kind] of Object.entries(paths)) {
    const cut = path.lastIndexOf("/");
    const parent = inodes.get(path.slice(0, Math.max(cut, 0)))!;
    const linked = typeof kind === "string" && kind.startsWith("=") ? inodes.get(kind.slice(1)) : undefined;
    const type = kind === "d" ? FileType.directory : FileType.regular;
    const inode = linked ?? builder.addInode({ ...PLAIN, type, ...(typeof kind === "string" ? {} : kind) });
    inodes.set(path, inode);
    builder.addName(parent, Buffer.from(path.slice(cut + 1), "latin1"), inode);
  }
  return builder.finish();
}

/** "path", with "-" before a whiteout and "!" behind an opaque directory; sorted. */
function shown(tree: FileTree): string[] {
  const found: string[] = [];
  const visit = (inode: number, path: string) => {
    for (let index = tree.xattrStart[inode]!; index < tree.xattrStart[inode + 1]!; index++) {
      if (Buffer.from(xattrName(tree, index)).toString("latin1") === "trusted.overlay.opaque") found.push(`${path}/!`);
    }
    for (let dirent = tree.childStart[inode]!; dirent < tree.childStart[inode + 1]!; dirent++) {
      const child = tree.childInode[dirent]!;
      const name = `${path}/${Buffer.from(childName(tree, dirent)).toString("latin1")}`;
      found.push(isWhiteout(tree, child) ? `-${name}` : name);
      visit(child, name);
    }
  };
  visit(0, "");
  return found.sort();
}

test("names that are marks become marks, in an upper layer; in the lowest one nothing is below that they could hide", () => {
  const tree = treeOf({
    a: "d",
    "a/.wh.gone": "f",
    "a/.wh..wh..opq": "f",
    "a/kept": "f",
    ".wh.top": "f",
    ".wh..wh.x": "f",
    ".wh.x": "f",
    ".white": "f",
    ".w": "f",
  });
  const upper = marksOfNames(tree, "upper", "here");
  assert.deepEqual(shown(upper.tree), [
    "-/.wh.x",
    "-/a/gone",
    "-/top",
    "-/x",
    "/.w",
    "/.white",
    "/a",
    "/a/!",
    "/a/kept",
  ]);
  assert.deepEqual(shown(marksOfNames(tree, "lowest", "here").tree), ["/.w", "/.white", "/a", "/a/kept"]);
  const whiteout = upper.tree.childInode[findChild(upper.tree, 0, Buffer.from("top"))]!;
  assert.deepEqual(
    [upper.tree.mode[whiteout], upper.tree.uid[whiteout], upper.tree.gid[whiteout], upper.tree.mtimeSeconds[whiteout]],
    [0, 7, 8, 0],
  );
  assert.deepEqual(
    Array.from(upper.inodeOf, (number) => number >= 0),
    Array.from(tree.type, (_, inode) => [0, 1, 4, 8, 9].includes(inode)),
    "numbers of all but marks are known",
  );
});

test("what stands beside its own whiteout stays, and its directory is not opaque; the root's opaque mark says nothing", () => {
  const tree = treeOf({ ".wh.f": "f", f: "f", ".wh.d": "f", d: "d", "d/x": "f", ".wh..wh..opq": "f" });
  assert.deepEqual(shown(marksOfNames(tree, "upper", "here").tree), ["/d", "/d/x", "/f"]);
});

test("a mark that shares its inode with a file does not change the file", () => {
  const tree = treeOf({ a: "f", ".wh.b": "=a", z: "=a" });
  assert.deepEqual(shown(marksOfNames(tree, "upper", "here").tree), ["-/b", "/a", "/z"]);
});

test("whiteouts of nothing are refused", () => {
  for (const name of [".wh.", ".wh..", ".wh..."])
    assert.throws(() => marksOfNames(treeOf({ [name]: "f" }), "upper", "here"), { code: "HS_NYDUS_INVALID" });
});

test("a whiteout whose name has no room for the prefix stays a device", () => {
  const [fits, long] = ["a".repeat(251), "b".repeat(252)];
  const whiteout = { type: FileType.char, mode: 0 };
  const tree = treeOf({ [fits]: whiteout, [long]: whiteout });
  const names = namesOfMarks(tree);
  assert.deepEqual(shown(names), [`-/${long}`, `/.wh.${fits}`]);
  assert.deepEqual(shown(marksOfNames(names, "upper", "here").tree), shown(tree));
});

test("whatever bytes of a layer's bootstrap change, it is read or refused by a typed error", () => {
  const tree = treeOf({
    a: "d",
    "a/x": { size: 9000, segments: [{ fileOffset: 0, length: 9000, address: 5 }] },
    b: { type: FileType.char, mode: 0 },
  });
  const { layer } = layerInMemory(tree, { chunkSize: 4096, role: "upper" });
  const bytes = writeLayerBootstrap({ ...layer, compressor: Compressor.none, refId: null });
  const blob = { id: "c".repeat(64), size: 20_000 };
  assert.equal(readLayerBootstrap(bytes, blob, "upper").tree.inodeCount, tree.inodeCount);
  const places = fc.oneof(
    fc.integer({ min: 1024, max: 1536 }),
    fc.integer({ min: 4096, max: 4352 }),
    fc.integer({ min: 12_288, max: 13_000 }),
    fc.integer({ min: 0, max: bytes.byteLength - 1 }),
  );
  fc.assert(
    fc.property(fc.array(fc.tuple(places, fc.nat(255)), { minLength: 1, maxLength: 6 }), (patches) => {
      const changed = Buffer.from(bytes);
      for (const [at, value] of patches) changed[at] = value;
      try {
        readLayerBootstrap(changed, blob, "upper");
      } catch (error) {
        if (!(error instanceof HeadstartError) || error.code === "HS_INTERNAL") throw error;
      }
    }),
    { numRuns: 300 },
  );
});
