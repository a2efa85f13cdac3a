/** Specs/layer.md 5 and 8: what overlayfs shows of layers, and the lower that implied directories need. */

import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { randomImage } from "../../test/interop/random-layers.ts";
import { directory, file, hardLink, symlink, type TarFields, wholeTar } from "../../test/tar-bytes.ts";
import { buildLayer, look, names } from "../../test/tools/layer-trees.ts";
import { isHeadstartError } from "../base/errors.ts";
import type { FileTree } from "./file-tree.ts";
import { layersToRebuild, resolveChain } from "./implied.ts";
import { impliedAttributes, impliedLower, mergeTrees, treeInChain } from "./overlay.ts";

type Parts = readonly (TarFields | Uint8Array)[];

/** Trees of layers, lowest first, each for itself alone. */
const stack = (...layers: Parts[]) =>
  layers.map((parts, index) => buildLayer(index === 0 ? "lowest" : "upper", wholeTar(...parts)).tree);
const at = (tree: FileTree, path: string) => {
  const found = look(tree, path);
  assert.ok(found !== null, `${path} is not there`);
  return found;
};
const merged = (...layers: Parts[]) => mergeTrees(stack(...layers)).tree;

test("the topmost layer that has a name decides; directories merge", () => {
  const trees = stack(
    [directory("d", { mode: 0o700 }), file("d/low"), file("d/both", "12"), file("f")],
    [directory("d", { mode: 0o711, mtime: 5 }), file("d/both", "1234"), file("d/high"), symlink("f", "d")],
  );
  const { tree, layer, inode } = mergeTrees(trees);
  assert.deepEqual(names(tree), ["d d", "f d/both", "f d/high", "f d/low", "l f"]);
  assert.deepEqual([at(tree, "d").mode, at(tree, "d").mtime, at(tree, "d/both").size], ["711", 5, 4]);
  for (const [path, from] of [
    ["d/low", 0],
    ["d/both", 1],
    ["d/high", 1],
    ["d", 1],
  ] as const) {
    const found = at(tree, path).inode;
    assert.equal(layer[found], from, path);
    assert.equal(inode[found], at(trees[from]!, path).inode, path);
  }
});

test("a directory merges down to the first layer with a non-directory or whiteout, or, inclusive, an opaque directory", () => {
  const tree = merged(
    [file("file/0"), file("gone/0"), file("opaque/0")],
    [file("file"), file(".wh.gone"), file("opaque/1"), file("opaque/.wh..wh..opq")],
    [file("file/2"), file("gone/2"), file("opaque/2")],
  );
  assert.deepEqual(names(tree), ["d file", "f file/2", "d gone", "f gone/2", "d opaque", "f opaque/1", "f opaque/2"]);
});

test("whiteouts hide and are never shown, nor are trusted.overlay.* and ghosts in new or opaque directories", () => {
  const tree = merged(
    [file("a/f"), file("b/f"), file("c/f")],
    [
      file("a/.wh.f"),
      file(".wh.b"),
      directory("c"),
      file("c/.wh..wh..opq"),
      file("c/.wh.ghost"),
      file("new/.wh.ghost"),
      { type: "3", name: "z" },
    ],
  );
  assert.deepEqual(names(tree), ["d a", "d c", "d new"]);
  assert.deepEqual(at(tree, "c").xattrs, {});
  assert.equal(tree.hasMarks, false);
});

test("C11: an opaque mark in the root hides nothing", () => {
  assert.deepEqual(names(merged([file("a")], [file(".wh..wh..opq"), file("b")])), ["f a", "f b"]);
});

test("a name that comes back two layers later shows nothing of the lowest", () => {
  assert.deepEqual(names(merged([file("d/old")], [file(".wh.d")], [directory("d"), file("d/new")])), [
    "d d",
    "f d/new",
  ]);
});

test("link counts of non-directories are those of their layer, also when names are hidden; directories of several layers have 1", () => {
  const tree = merged(
    [file("a", "x"), hardLink("b", "a"), hardLink("c", "a"), directory("d/s"), directory("e/s")],
    [file(".wh.b"), directory("d")],
  );
  assert.deepEqual([at(tree, "a").nlink, at(tree, "a").inode], [3, at(tree, "c").inode]);
  assert.deepEqual([at(tree, "d").nlink, at(tree, "e").nlink], [1, 3]);
});

test("a one-layer image is a bind mount: a char device 0:0 shows", () => {
  const trees = stack([{ type: "3", name: "c" }, file("f")]);
  const view = mergeTrees(trees);
  assert.deepEqual(names(view.tree), ["w c", "f f"]);
  assert.deepEqual([view.tree, impliedLower(trees)], [trees[0], null]);
});

test("no layers at all are an empty root", () => {
  const { tree } = mergeTrees([]);
  assert.deepEqual([names(tree), at(tree, "/").mode, at(tree, "/").owner], [[], "755", "0:0"]);
});

test("5: an implied directory shows the attributes of the layers below, and so does the lower that is made for it", () => {
  const trees = stack(
    [
      directory("tmp", { mode: 0o1777, uid: 5, mtime: 33, xattrs: { "user.x": "1" } }),
      directory("opt", { mode: 0o750, gid: 9 }),
    ],
    [file("tmp/f"), file("opt/own/f")],
  );
  const { tree } = mergeTrees(trees);
  const tmp = at(tree, "tmp");
  assert.deepEqual([tmp.mode, tmp.owner, tmp.mtime, tmp.xattrs], ["1777", "5:0", 33, { "user.x": "1" }]);
  const lower = impliedLower(trees)!;
  assert.deepEqual(names(lower), ["d opt", "d tmp"]);
  assert.deepEqual(
    [at(lower, "tmp").mode, at(lower, "tmp").xattrs, at(lower, "opt").owner],
    ["1777", { "user.x": "1" }, "0:9"],
  );
  assert.deepEqual(
    impliedAttributes(trees)
      .map(({ path }) => path)
      .sort(),
    ["/opt", "/tmp"],
  );
});

test("5: one layer in two chains takes from each what is below it there", () => {
  const [layer] = [buildLayer("upper", wholeTar(file("tmp/f"))).tree];
  const one = stack([directory("tmp", { mode: 0o1777 })]);
  const other = stack([directory("tmp", { mode: 0o700 })]);
  assert.equal(at(mergeTrees([one[0]!, layer]).tree, "tmp").mode, "1777");
  assert.equal(at(mergeTrees([other[0]!, layer]).tree, "tmp").mode, "700");
  assert.equal(at(treeInChain([one[0]!, layer], 1), "tmp").mode, "1777");
  assert.equal(at(layer, "tmp").mode, "755");
});

test("5: what was implied in between passes on what it took", () => {
  const trees = stack([directory("a", { mode: 0o700 })], [file("a/1")], [file("a/2")]);
  assert.equal(at(mergeTrees(trees).tree, "a").mode, "700");
  assert.equal(at(treeInChain(trees, 2), "a").mode, "700");
});

test("5, C10: an implied directory in one that took setgid from below has its group", () => {
  const trees = stack([directory("g", { mode: 0o2775, gid: 42 })], [file("g/new/f")]);
  const { tree } = mergeTrees(trees);
  assert.deepEqual([at(tree, "g").mode, at(tree, "g/new").mode, at(tree, "g/new").owner], ["2775", "755", "0:42"]);
});

test("5: no lower is made where nothing differs: no implied directory, none below, or one that a higher layer has an entry for", () => {
  assert.equal(impliedLower(stack([directory("a")], [directory("a"), file("a/f")])), null);
  assert.equal(impliedLower(stack([file("b")], [file("a/f")])), null);
  assert.equal(
    impliedLower(stack([directory("a", { mode: 0o700 })], [file("a/f")], [directory("a", { mode: 0o711 })])),
    null,
  );
  assert.equal(impliedLower(stack([directory("a", { mode: 0o700 })], [file("a/f")], [file(".wh.a")])), null);
});

test("5: ancestors in the lower look as they do anyway, opaque marks are not copied", () => {
  const trees = stack(
    [directory("a", { mode: 0o701 }), directory("a/b", { mode: 0o702 }), file("a/b/low")],
    [directory("a", { mode: 0o711, uid: 3 }), file("a/.wh..wh..opq"), file("a/b/f")],
  );
  const lower = impliedLower(trees)!;
  assert.deepEqual(names(lower), ["d a", "d a/b"]);
  assert.deepEqual(
    [at(lower, "a").mode, at(lower, "a").owner, at(lower, "a/b").mode, lower.hasMarks],
    ["711", "3:0", "702", false],
  );
  assert.deepEqual(names(mergeTrees([...trees, lower]).tree), names(mergeTrees(trees).tree));
});

test("5, C8: a symlink below gives its target's attributes, the opaque mark of the layer itself is not looked at", () => {
  const trees = stack(
    [directory("real", { mode: 0o711 }), symlink("l", "real"), directory("o/p", { mode: 0o700 })],
    [file("l/f"), directory("o"), file("o/.wh..wh..opq"), file("o/p/f")],
  );
  const { tree } = mergeTrees(trees);
  assert.deepEqual([at(tree, "l").mode, at(tree, "o/p").mode], ["711", "700"]);
});

test("5, C7: what holds nothing but marks below a lower non-directory is hidden by a whiteout", () => {
  const trees = stack([file("a")], [file("a/b/.wh.c"), file("a/d/f")]);
  assert.deepEqual(names(mergeTrees(trees).tree), ["d a", "d a/d", "f a/d/f"]);
  assert.deepEqual(names(treeInChain(trees, 1)), ["d a", "d a/d", "f a/d/f"]);
  assert.deepEqual(names(impliedLower(trees)!), ["d a", "w a/b"]);
});

test("5, C7: what holds nothing but marks above a symlink that leads nowhere leaves the symlink to be seen", () => {
  const trees = stack([symlink("b", "b")], [file("b/.wh.c")]);
  assert.deepEqual(names(mergeTrees(trees).tree), ["l b"]);
  const lower = impliedLower(trees)!;
  assert.deepEqual(names(lower), ["l b"]);
  assert.equal(at(lower, "b").target, "b");
});

test("5: a directory that was implied before its entry came has the lower xattrs under its own", () => {
  const trees = stack(
    [directory("a", { mode: 0o700, xattrs: { "user.x": "low", "user.y": "low" } })],
    [file("a/f"), directory("a", { mode: 0o711, xattrs: { "user.y": "own" } })],
  );
  const found = at(mergeTrees(trees).tree, "a");
  assert.deepEqual([found.mode, found.xattrs], ["711", { "user.x": "low", "user.y": "own" }]);
  assert.deepEqual(at(impliedLower(trees)!, "a").xattrs, { "user.x": "low", "user.y": "own" });
});

test("7.4: a default ACL that an implied directory copies reaches the layer's files: such layers are named", () => {
  const entries = ["01000700ffffffff", "02000500e8030000", "04000500ffffffff", "10000700ffffffff", "20000500ffffffff"];
  const value = Buffer.from(`02000000${entries.join("")}`, "hex");
  const low: Parts = [directory("d", { xattrs: { "system.posix_acl_default": value } })];
  const rebuild = (...layers: Parts[]) => layersToRebuild(resolveChain(stack(...layers)));
  assert.deepEqual(rebuild(low, [file("d/f")]), [1]);
  assert.deepEqual(rebuild(low, [symlink("d/l", "x")]), []);
  assert.deepEqual(rebuild(low, [directory("d"), file("d/f")]), []);
});

test("with the lower on top, the raw stack shows what the merged view says", () => {
  fc.assert(
    fc.property(fc.nat(), (seed) => {
      const trees: FileTree[] = [];
      try {
        for (const [index, layer] of randomImage(seed).entries()) {
          trees.push(buildLayer(index === 0 ? "lowest" : "upper", layer).tree);
        }
      } catch (error) {
        assert.ok(isHeadstartError(error, "HS_LAYER_REFUSED"), String(error));
        return;
      }
      const lower = impliedLower(trees);
      if (lower === null) return;
      const wanted = mergeTrees(trees).tree;
      // an image's own implied flags are of no account in what the kernel sees
      const raw = [...trees, lower].map((tree) => ({ ...tree, flags: new Uint8Array(tree.inodeCount) }));
      const got = mergeTrees(raw).tree;
      assert.deepEqual(names(got), names(wanted));
      for (const name of names(got)) {
        const path = name.slice(2);
        const { inode: _a, nlink: _b, implied: _c, ...seen } = at(got, path);
        const { inode: _d, nlink: _e, implied: _f, ...should } = at(wanted, path);
        assert.deepEqual(seen, should, path);
      }
    }),
    { numRuns: 1500 },
  );
});
