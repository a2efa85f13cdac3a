/** Specs/layer.md 3 to 7 and 9, rule by rule; numbers in the names are its sections and rows. */

import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { randomImage } from "../../../test/interop/random-layers.ts";
import {
  base256,
  directory,
  entry,
  file,
  globalHeader,
  hardLink,
  symlink,
  type TarFields,
  wholeTar,
} from "../../../test/tar-bytes.ts";
import { cpuMs } from "../../../test/tools/cpu-time.ts";
import { buildLayer, content, look, names } from "../../../test/tools/layer-trees.ts";
import { isHeadstartError } from "../../base/errors.ts";
import type { FileTree } from "../../erofs/file-tree.ts";
import type { LayerRole } from "../format.ts";
import { LayerTreeBuilder } from "./apply.ts";
import { TarReader } from "./records.ts";

type Parts = readonly (TarFields | Uint8Array)[];

const lowest = (...parts: Parts) => buildLayer("lowest", wholeTar(...parts));
const upper = (...parts: Parts) => buildLayer("upper", wholeTar(...parts));
/** An upper layer that knows the layers below. */
const over = (lowers: readonly FileTree[], ...parts: Parts) => buildLayer("upper", wholeTar(...parts), lowers);
const at = (tree: FileTree, path: string) => {
  const found = look(tree, path);
  assert.ok(found !== null, `${path} is not there`);
  return found;
};

function refuses(code: string, role: LayerRole | "both", ...parts: Parts): void {
  for (const one of role === "both" ? (["lowest", "upper"] as const) : [role]) {
    assert.throws(
      () => buildLayer(one, wholeTar(...parts)),
      (error) => isHeadstartError(error, "HS_LAYER_REFUSED") && error.details.refusal === code,
      `wanted ${code} as ${one}`,
    );
  }
}

const whiteout = (name: string, fields: TarFields = {}) => {
  const slash = name.lastIndexOf("/") + 1;
  return file(`${name.slice(0, slash)}.wh.${name.slice(slash)}`, "", fields);
};
const opaque = (name: string) => file(name === "" ? ".wh..wh..opq" : `${name}/.wh..wh..opq`);

// --- 2.4, 2.5

test("2.4, C14: the name of a global header makes parents and removes what stands there, trees too", () => {
  const { tree } = upper(file("a/b"), globalHeader({}, "a"), globalHeader({}, "new/dir/g"));
  assert.deepEqual(names(tree), ["d new", "d new/dir"]);
  assert.deepEqual(names(upper(globalHeader({}, "x/.wh.y")).tree), ["d x", "w x/y"]);
  assert.equal(at(upper(globalHeader({}, "x/.wh.y")).tree, "x/y").owner, "0:0");
});

test("2.5, C24: contiguous files, old GNU sparse files and unknown types are refused, unless the name makes a mark", () => {
  for (const type of ["7", "S", "V", "X", "D", "M", "N", "Z"]) {
    refuses("type", "both", { type, name: "f" });
    assert.deepEqual(
      names(upper({ type, name: ".wh.f", data: "skipped" }, file("g")).tree),
      ["f g", "w f"].sort((a, b) => (a.slice(2) < b.slice(2) ? -1 : 1)),
    );
    assert.deepEqual(names(upper({ type, name: "./", data: "skipped" }).tree), []);
  }
});

test("2.6: sparse files have their holes, and data that are exactly the sum of the pieces", () => {
  const pax = { "GNU.sparse.map": "2,3,10,2", "GNU.sparse.numblocks": "2", "GNU.sparse.size": "20" };
  const { tree, bytes } = lowest({ name: "s", pax, data: "abcde" });
  assert.equal(content(tree, "s", bytes), `\0\0abc\0\0\0\0\0de${"\0".repeat(8)}`);
  refuses("sparse", "both", { name: "s", pax, data: "abcd" });
  refuses("sparse", "both", { name: "s", pax, data: "abcdef" });
  assert.deepEqual(names(upper({ name: ".wh.s", pax, data: "abcdef" }).tree), ["w s"]);
});

// --- 3

test("3: names are bytes: no UTF-8, control bytes, backslash and colon are plain", () => {
  const { tree } = lowest(file(Buffer.from("caf\xe9\x01\\:", "latin1") as never));
  assert.deepEqual(names(tree), ["f caf\xe9\x01\\:"]);
});

test("3: names are cleaned as text first: slashes, dots, what leads out; link/../x is x", () => {
  const { tree } = lowest(
    file("/absolute"),
    file("a//b"),
    file("./c/./d"),
    file("e/../f"),
    file("../../g"),
    symlink("link", "a"),
    file("link/../h"),
    file("i/"),
  );
  assert.deepEqual(names(tree), ["d a", "f a/b", "f absolute", "d c", "f c/d", "f f", "f g", "f h", "f i", "l link"]);
});

test("3, C18: an entry for the root is ignored, whatever it is", () => {
  for (const name of ["", ".", "/", "./", "a/..", "..", "a/../.."]) {
    const { tree } = lowest(
      { type: "5", name, mode: 0o700, uid: 5 },
      { type: "2", name, link: "" },
      { type: "7", name },
    );
    const root = at(tree, "/");
    assert.deepEqual([names(tree), root.mode, root.owner, root.mtime], [[], "755", "0:0", 0], JSON.stringify(name));
  }
});

test("3: components over 255 bytes and paths over 4095 are refused, .wh. and 255 bytes are not", () => {
  const long = "n".repeat(255);
  assert.deepEqual(names(lowest({ name: "x", pax: { path: `${long}/${long}` } }).tree).length, 2);
  assert.deepEqual(names(upper({ name: "x", pax: { path: `.wh.${long}` } }).tree), [`w ${long}`]);
  refuses("name", "both", { name: "x", pax: { path: `${long}n` } });
  refuses("name", "both", { name: "x", pax: { path: `${long}n/x` } });
  refuses("name", "both", { name: "x", pax: { path: `.wh.${long}n` } });
  refuses("name", "both", { name: "x", pax: { path: `.wh.${long}/x` } });
  const path = `${"d/".repeat(2047)}`;
  assert.equal(names(lowest({ name: "x", pax: { path: path.slice(0, 4094) } }).tree).length, 2047);
  refuses("name", "both", { name: "x", pax: { path: `${path}xx` } });
});

test("3: symlink targets are kept as bytes, 1 to 4095 of them", () => {
  const target = "../".repeat(1365);
  assert.equal(at(lowest({ type: "2", name: "l", pax: { linkpath: target } }).tree, "l").target, target);
  refuses("name", "both", { type: "2", name: "l", pax: { linkpath: `${target}x` } });
  refuses("name", "both", { type: "2", name: "l", link: "" });
  const link = at(lowest(symlink("l", "t", { mode: 0o600 })).tree, "l");
  assert.deepEqual([link.mode, link.size], ["777", 1]);
});

test("3: hard link targets count from the root, follow links in their directory part, .. there is physical", () => {
  const { tree } = lowest(
    directory("deep/er"),
    file("deep/f", "x"),
    symlink("l", "deep/er"),
    symlink("final", "deep/f"),
    hardLink("h1", "/deep/f"),
    hardLink("h2", "./deep/f"),
    hardLink("h3", "../../deep/f"),
    hardLink("h4", "l/../f"),
    hardLink("h5", "final"),
  );
  assert.equal(at(tree, "deep/f").nlink, 5);
  for (const name of ["h1", "h2", "h3", "h4"]) assert.equal(at(tree, name).inode, at(tree, "deep/f").inode);
  assert.equal(at(tree, "h5").inode, at(tree, "final").inode);
});

// --- 4

test("4.1: parents are resolved through this layer's symlinks, inside the root", () => {
  const { tree } = lowest(
    directory("real"),
    symlink("rel", "real"),
    symlink("abs", "/real"),
    symlink("up", "../../real"),
    file("rel/a"),
    file("abs/b"),
    file("up/c"),
    symlink("real/self", "."),
    file("real/self/self/d"),
  );
  assert.deepEqual(
    names(tree).filter((name) => name.includes("real/")),
    ["f real/a", "f real/b", "f real/c", "f real/d", "l real/self"],
  );
});

test("4.1: symlinks of lower layers are not followed: the parent becomes a directory", () => {
  const below = lowest(directory("real"), symlink("l", "real")).tree;
  assert.deepEqual(names(over([below], file("l/f")).tree), ["d l", "f l/f"]);
});

test("4.1: a dangling symlink's target is made as the missing parent", () => {
  assert.deepEqual(names(lowest(symlink("l", "not/there"), file("l/f")).tree), [
    "l l",
    "d not",
    "d not/there",
    "f not/there/f",
  ]);
});

test("4.1: parents that are files, devices, links to files, or loops are refused; so are over 255 links", () => {
  refuses("parent", "both", file("f"), file("f/x"));
  refuses("parent", "both", { type: "3", name: "d", major: 1, minor: 3 }, file("d/x"));
  refuses("parent", "both", file("f"), symlink("l", "f"), file("l/x"));
  refuses("parent", "both", symlink("a", "b"), symlink("b", "a"), file("a/x"));
  refuses("parent", "both", file("f"), file("f/x/y"));
  const chain = (count: number) => [
    directory("l0"),
    ...Array.from({ length: count }, (_, index) => symlink(`l${index + 1}`, `l${index}`)),
    file(`l${count}/x`),
  ];
  assert.equal(look(lowest(...chain(255)).tree, "l0/x") !== null, true);
  refuses("parent", "both", ...chain(256));
});

test("4.1: a maze of symlinks ends in a refusal, soon", () => {
  const links = Array.from({ length: 39 }, (_, index) => ({
    type: "2",
    name: `m${index}`,
    pax: { linkpath: `${"./".repeat(2040)}m${index + 1}` },
  }));
  const files = Array.from({ length: 40 }, (_, index) => file(`m0/sub${index % 2}/x`));
  assert.equal(names(lowest(directory("m39"), ...links, files[0]!).tree).length, 42);
  const ms = cpuMs(() => refuses("parent", "lowest", directory("m39"), ...links, ...files));
  assert.ok(ms < 3000, `${ms} ms`);
});

test("4.1 step 8, C16: directory times are set last, by name, on whatever has the name by then", () => {
  const time = (name: string, ...parts: Parts) => at(lowest(...parts).tree, name).mtime;
  assert.equal(time("d", directory("d", { mtime: 5 }), file("d/f")), 5);
  assert.equal(time("d", directory("d", { mtime: 5 }), file("d", "", { mtime: 6 })), 5);
  assert.equal(time("t", directory("d", { mtime: 5 }), file("t", "", { mtime: 7 }), symlink("d", "t")), 5);
  assert.equal(time("d", directory("d", { mtime: 5 }), directory("d", { mtime: 8 })), 8);
});

test("4.1 step 8: a directory entry whose name leads nowhere at the end refuses the layer", () => {
  refuses("directory-lost", "both", directory("d"), globalHeader({}, "d"));
  refuses("directory-lost", "both", directory("d"), symlink("d", "dangling"));
  refuses("directory-lost", "both", directory("d/e"), file("d"));
  refuses("directory-lost", "both", directory("d/e"), globalHeader({}, "d"));
});

test("4.2, C16: directory on directory keeps children and the opaque mark, merges xattrs, takes the rest from the entry", () => {
  const { tree } = upper(
    directory("d", { mode: 0o700, uid: 1, xattrs: { "user.a": "1", "user.b": "1" } }),
    file("d/f"),
    opaque("d"),
    directory("d", { mode: 0o711, gid: 2, mtime: 9, xattrs: { "user.b": "2", "user.c": "2" } }),
  );
  const found = at(tree, "d");
  assert.deepEqual([names(tree), found.mode, found.owner, found.mtime], [["D d", "f d/f"], "711", "0:2", 9]);
  assert.deepEqual(found.xattrs, { "trusted.overlay.opaque": "y", "user.a": "1", "user.b": "2", "user.c": "2" });
});

test("4.2: a directory that another type replaces is gone with its tree and mark", () => {
  const { tree } = upper(file("d/f"), opaque("d"), file("d"));
  assert.deepEqual([names(tree), at(tree, "d").xattrs], [["f d"], {}]);
});

test("4.2: any other type is replaced alone; other links to the old inode keep content and metadata", () => {
  const { tree, bytes } = lowest(
    file("a", "old", { mode: 0o600, xattrs: { "user.x": "1" } }),
    hardLink("b", "a", { mode: 0o640, xattrs: {} }),
    file("a", "new!", { mode: 0o755 }),
  );
  assert.deepEqual([content(tree, "a", bytes), content(tree, "b", bytes)], ["new!", "old"]);
  assert.deepEqual([at(tree, "a").xattrs, at(tree, "b").xattrs, at(tree, "b").nlink], [{}, { "user.x": "1" }, 1]);
  assert.equal(at(tree, "b").mode, "640");
});

test("4.3: hard links to what is not there yet, to itself, to a directory, below what was just removed, or to nothing are refused", () => {
  refuses("link", "both", hardLink("a", "later"), file("later"));
  refuses("link", "both", file("a"), hardLink("a", "a"));
  refuses("link", "both", directory("d"), hardLink("a", "d"));
  refuses("link", "both", file("d/x"), hardLink("d", "d/x"));
  refuses("link", "both", file("x"), hardLink("a", ""));
  refuses("link", "both", file("x"), hardLink("a", "/"));
  refuses("link", "both", file("x"), hardLink("a", "x/y"));
});

test("4.3, C17: hard links to a lower layer's file are refused, never an empty file", () => {
  const below = lowest(file("f", "x")).tree;
  assert.throws(() => over([below], hardLink("g", "f")), /\(link\)/);
});

test("4.3: links to symlinks, fifos, devices, links, whiteouts share the inode", () => {
  const { tree } = upper(
    symlink("s", "t"),
    { type: "6", name: "p" },
    { type: "3", name: "c", major: 1, minor: 3 },
    whiteout("w"),
    ...["s", "p", "c", "w"].map((name) => hardLink(`${name}2`, name)),
    hardLink("s3", "s2"),
  );
  assert.deepEqual(names(tree), ["c c", "c c2", "p p", "p p2", "l s", "l s2", "l s3", "w w", "w w2"]);
  for (const name of ["s", "p", "c", "w"]) assert.equal(at(tree, name).inode, at(tree, `${name}2`).inode);
  assert.deepEqual([at(tree, "s").nlink, at(tree, "s").mode], [3, "777"]);
});

test("4.3, C17: the last link entry's owner, mode, time and xattrs show on all names", () => {
  const { tree } = lowest(
    file("a", "x", { mode: 0o4755, uid: 1, xattrs: { "user.a": "1" } }),
    hardLink("b", "a", { mode: 0o600, uid: 2, gid: 3, mtime: 7, xattrs: { "user.b": "2" } }),
  );
  const found = at(tree, "a");
  assert.deepEqual(
    [found.mode, found.owner, found.mtime, found.xattrs],
    ["600", "2:3", 7, { "user.a": "1", "user.b": "2" }],
  );
});

const CAPABILITY = Buffer.from("0100000200040000000000000000000000000000", "hex");

test("4.3: a link entry's chown removes the file capability unless the entry brings it again", () => {
  const cap = { "security.capability": CAPABILITY };
  const has = (tree: FileTree, name: string) => "security.capability" in at(tree, name).xattrs;
  assert.equal(has(lowest(file("a", "", { xattrs: cap })).tree, "a"), true);
  assert.equal(has(lowest(file("a", "", { xattrs: cap }), hardLink("b", "a")).tree, "a"), false);
  assert.equal(
    has(lowest(file("a", "", { xattrs: cap }), hardLink("b", "a", { uid: base256(-1n, 8) })).tree, "a"),
    false,
  );
  assert.equal(has(lowest(file("a", "", { xattrs: cap }), hardLink("b", "a", { xattrs: cap })).tree, "a"), true);
});

test("4.3: owner 4294967295 of a link entry leaves the owner", () => {
  const { tree } = lowest(file("a", "", { uid: 5, gid: 6 }), hardLink("b", "a", { uid: base256(-1n, 8), gid: 7 }));
  assert.equal(at(tree, "a").owner, "5:7");
});

// --- 5

test("5: implied directories are 0755, 0:0, time 0 in the layer, and flagged until their entry comes", () => {
  const { tree } = upper(file("a/b/c"), directory("d"), file("d/e"), file("f/g"), directory("f", { mode: 0o700 }));
  const found = at(tree, "a/b");
  assert.deepEqual([found.mode, found.owner, found.mtime, found.implied], ["755", "0:0", 0, true]);
  assert.deepEqual([at(tree, "d").implied, at(tree, "f").implied, at(tree, "f").mode], [false, false, "700"]);
});

test("5, C9: with the layers below, an implied directory copies mode, owner, time and xattrs of the topmost that has it", () => {
  const bottom = lowest(
    directory("tmp", { mode: 0o1777, uid: 1, xattrs: { "user.x": "0" } }),
    directory("only", { gid: 9 }),
  ).tree;
  const middle = over(
    [bottom],
    directory("tmp", { mode: 0o1770, uid: 2, gid: 3, mtime: 44, xattrs: { "user.y": "1" } }),
  ).tree;
  const { tree } = over([bottom, middle], file("tmp/f"), file("only/f"));
  const tmp = at(tree, "tmp");
  assert.deepEqual(
    [tmp.mode, tmp.owner, tmp.mtime, tmp.xattrs, tmp.implied],
    ["1770", "2:3", 44, { "user.y": "1" }, true],
  );
  assert.equal(at(tree, "only").owner, "0:9");
});

test("5: a lower non-directory or whiteout at the place itself gives 0755, 0:0", () => {
  const bottom = lowest(directory("a", { mode: 0o700 }), directory("b", { mode: 0o700 })).tree;
  const middle = over([bottom], file("a"), whiteout("b")).tree;
  const { tree } = over([bottom, middle], file("a/f"), file("b/f"));
  assert.deepEqual([at(tree, "a").mode, at(tree, "b").mode], ["755", "755"]);
});

test("5, C8: opaque marks are not looked at, and a lower symlink gives its target's attributes if that is in the same layer", () => {
  const bottom = lowest(directory("d/e", { mode: 0o700 }), directory("t", { mode: 0o711 })).tree;
  const middle = over(
    [bottom],
    directory("d"),
    opaque("d"),
    symlink("l", "t"),
    symlink("m", "u"),
    directory("u", { mode: 0o750 }),
  ).tree;
  const { tree, contested } = over([bottom, middle], file("d/e/f"), file("l/f"), file("m/f"));
  assert.deepEqual([at(tree, "d/e").mode, at(tree, "l").mode, at(tree, "m").mode], ["700", "755", "750"]);
  const same = over([bottom], directory("d"), opaque("d"), file("d/e/f")).tree;
  assert.equal(at(same, "d/e").mode, "700");
  assert.deepEqual(contested, []);
});

test("5, C7: a non-directory or loop on the way gives 0755, 0:0; left out when nothing but marks is below", () => {
  const below = lowest(file("a"), symlink("x", "y"), symlink("y", "x"), directory("d", { uid: 7 })).tree;
  const built = over([below], file("a/b/f"), file("x/z/f"), whiteout("a/c/w"), opaque("a/e/f"), file("d/f"));
  assert.deepEqual(names(built.tree), ["d a", "d a/b", "f a/b/f", "d d", "f d/f", "d x", "d x/z", "f x/z/f"]);
  assert.deepEqual([at(built.tree, "a/b").mode, at(built.tree, "a/b").owner, built.contested], ["755", "0:0", ["C7"]]);
});

test("5: an entry later gives owner, mode and time, copied xattrs stay; an entry first copies nothing", () => {
  const below = lowest(
    directory("a", { mode: 0o700, xattrs: { "user.x": "1", "user.y": "1" } }),
    directory("b", { xattrs: { "user.x": "1" } }),
  ).tree;
  const { tree } = over(
    [below],
    file("a/f"),
    directory("a", { mode: 0o711, uid: 4, mtime: 3, xattrs: { "user.y": "2" } }),
    directory("b"),
    file("b/f"),
  );
  const a = at(tree, "a");
  assert.deepEqual([a.mode, a.owner, a.mtime, a.xattrs], ["711", "4:0", 3, { "user.x": "1", "user.y": "2" }]);
  assert.deepEqual(at(tree, "b").xattrs, {});
});

test("5, C6: marks make their parents as well, also below a lower file or symlink", () => {
  assert.deepEqual(names(upper(whiteout("no/where/x"), opaque("or/there")).tree), [
    "d no",
    "d no/where",
    "w no/where/x",
    "d or",
    "D or/there",
  ]);
  const below = lowest(file("f"), symlink("l", "f")).tree;
  assert.deepEqual(names(over([below], whiteout("f/x"), whiteout("l/x")).tree), ["d f", "w f/x", "d l", "w l/x"]);
});

test("5, C10: without a lower source a setgid parent hands down its group, not the bit", () => {
  const { tree } = upper(directory("g", { mode: 0o2775, gid: 42 }), file("g/i/f", "", { gid: 0 }));
  assert.deepEqual([at(tree, "g/i").mode, at(tree, "g/i").owner, at(tree, "g/i/f").owner], ["755", "0:42", "0:0"]);
  const below = lowest(directory("g/i", { gid: 7 })).tree;
  assert.equal(at(over([below], directory("g", { mode: 0o2775, gid: 42 }), file("g/i/f")).tree, "g/i").owner, "0:7");
});

// --- 6

test("6: only the last component makes a mark, whatever its type, data, xattrs or mode", () => {
  assert.deepEqual(names(upper(file(".wh.x/y")).tree), ["d .wh.x", "f .wh.x/y"]);
  const { tree } = upper(
    { type: "5", name: ".wh.a/", xattrs: { "security.capability": "bad" } },
    { type: "2", name: ".wh.b", link: "" },
    { type: "0", name: ".wh.c", data: "skipped" },
  );
  assert.deepEqual(names(tree), ["w a", "w b", "w c"]);
});

test("6: .wh. and nothing, one or two dots are refused everywhere", () => {
  for (const name of [".wh.", ".wh..", ".wh...", "d/.wh.", "d/.wh..", "d/.wh..."])
    refuses("whiteout-name", "both", file(name));
});

test("6.1: a whiteout is a char device 0:0 of mode 0000 with the entry's owner; an opaque mark is an xattr", () => {
  const { tree } = upper(
    directory("d", { mtime: 5 }),
    whiteout("d/x", { uid: 3, gid: 4, mode: 0o777 }),
    opaque("d"),
    opaque("d"),
  );
  const found = at(tree, "d/x");
  assert.deepEqual([names(tree), found.mode, found.owner, found.mtime], [["D d", "w d/x"], "0", "3:4", 0]);
  assert.deepEqual([at(tree, "d").mtime, tree.hasMarks], [5, true]);
});

test("6.1, C11: an opaque mark in the root has no effect, but the layer has marks", () => {
  const { tree } = upper(opaque(""), file("f"));
  assert.deepEqual([names(tree), at(tree, "/").xattrs, tree.hasMarks], [["f f"], {}, true]);
});

test("6.1: through a symlink of this layer a mark works in its target", () => {
  assert.deepEqual(names(upper(directory("t"), symlink("l", "t"), whiteout("l/x"), opaque("l")).tree), [
    "l l",
    "D t",
    "w t/x",
  ]);
});

test("C1: a whiteout after a non-directory of its name: the entry stays", () => {
  const { tree, contested } = upper(file("f", "x"), whiteout("f"));
  assert.deepEqual([names(tree), contested], [["f f"], ["C1"]]);
});

test("C2: a whiteout after a directory makes it opaque; an implied one is 0755, 0:0", () => {
  const below = lowest(directory("i", { mode: 0o700, uid: 5, xattrs: { "user.x": "1" } })).tree;
  const { tree, contested } = over([below], directory("d", { mode: 0o711 }), whiteout("d"), file("i/f"), whiteout("i"));
  assert.deepEqual([names(tree), contested], [["D d", "D i", "f i/f"], ["C2"]]);
  const implied = at(tree, "i");
  assert.deepEqual([at(tree, "d").mode, implied.mode, implied.owner, implied.implied], ["711", "755", "0:0", false]);
  assert.deepEqual(Object.keys(implied.xattrs), ["trusted.overlay.opaque"]);
});

test("C3: the same whiteout twice is one", () => {
  const { tree, contested } = upper(whiteout("f", { uid: 1 }), whiteout("f", { uid: 2 }));
  assert.deepEqual([names(tree), at(tree, "f").owner, contested], [["w f"], "1:0", ["C3"]]);
});

test("C4: a whiteout, then a directory entry: the whiteout is gone and the directory is not opaque", () => {
  const { tree, contested } = upper(whiteout("d"), directory("d"));
  assert.deepEqual([names(tree), contested, tree.hasMarks], [["d d"], [], true]);
  assert.deepEqual(names(upper(whiteout("f"), file("f")).tree), ["f f"]);
});

test("C5: an entry below a whiteout of this layer makes an opaque directory of 0755, 0:0", () => {
  const { tree, contested } = over([lowest(directory("d", { mode: 0o700 })).tree], whiteout("d"), file("d/f"));
  assert.deepEqual(
    [names(tree), contested, at(tree, "d").mode, at(tree, "d").implied],
    [["D d", "f d/f"], ["C5"], "755", false],
  );
  refuses("parent", "lowest", { type: "3", name: "d" }, file("d/f"));
});

test("6.1: a char 0:0 entry, also any char in a v7 header, acts as a whiteout in every layer", () => {
  const zero = { type: "3", name: "z", major: 0, minor: 0 };
  const v7 = { type: "3", name: "v", form: "v7", major: 1, minor: 3 } as const;
  assert.deepEqual(names(lowest(zero, v7).tree), ["w v", "w z"]);
  assert.deepEqual(names(upper(zero, v7).tree), ["w v", "w z"]);
});

test("6.2, C12: in the lowest layer a whiteout removes what stands there now, with its tree; entries after it stay", () => {
  const { tree } = lowest(
    file("d/e/f"),
    file("g"),
    hardLink("h", "g"),
    whiteout("d"),
    whiteout("g"),
    whiteout("nothing"),
    whiteout("nothing"),
    file("d/new"),
  );
  assert.deepEqual([names(tree), at(tree, "h").nlink, tree.hasMarks], [["d d", "f d/new", "f h"], 1, true]);
  refuses("directory-lost", "lowest", directory("d"), whiteout("d"));
  assert.deepEqual(names(lowest(directory("d"), file("d/f"), whiteout("d"), directory("d")).tree), ["d d"]);
});

test("6.2, C12: in the lowest layer an opaque mark removes implied directories with all in them, at any depth", () => {
  const { tree } = lowest(
    directory("d"),
    file("d/f"),
    file("d/i/x"),
    directory("d/e"),
    file("d/e/j/y"),
    file("d/e/g"),
    opaque("d"),
    file("d/late/z"),
  );
  assert.deepEqual(names(tree), ["d d", "d d/e", "f d/e/g", "f d/f", "d d/late", "f d/late/z"]);
  // made by an entry before: its path counts, also when the directory of now is an implied one
  assert.deepEqual(names(lowest(file("d/e"), whiteout("d/e"), file("d/e/f"), opaque("d")).tree), [
    "d d",
    "d d/e",
    "f d/e/f",
  ]);
  assert.deepEqual(names(lowest(file("a/b"), opaque("")).tree), []);
});

test("6.2: of a mark in the lowest layer only its implied parents remain", () => {
  assert.deepEqual(names(lowest(whiteout("a/b/c"), opaque("x/y")).tree), ["d a", "d a/b", "d x", "d x/y"]);
});

test("6.3, C13: .wh..wh.X is a whiteout of .wh.X; a file below .wh..wh.plnk/ makes that directory", () => {
  assert.deepEqual(names(upper(file(".wh..wh.aufs"), file(".wh..wh.orph")).tree), ["w .wh.aufs", "w .wh.orph"]);
  assert.deepEqual(names(lowest(file(".wh..wh.aufs")).tree), []);
  assert.deepEqual(names(upper(file(".wh..wh.plnk/1.2")).tree), ["d .wh..wh.plnk", "f .wh..wh.plnk/1.2"]);
});

// --- 7

test("7.1: the mode is the low 12 bits, on devices and fifos too", () => {
  const { tree } = lowest(
    file("f", "", { mode: 0o107777 }),
    { type: "6", name: "p", mode: 0o6755 },
    { type: "4", name: "b", mode: 0o4600, major: 7 },
  );
  assert.deepEqual([at(tree, "f").mode, at(tree, "p").mode, at(tree, "b").mode], ["7777", "6755", "4600"]);
});

test("7.2, C19: owners are the low 32 bits; 4294967295 means 0, or the group of a setgid parent", () => {
  const { tree } = lowest(
    file("a", "", { uid: base256(2n ** 32n + 5n, 8), gid: base256(-5n, 8) }),
    file("b", "", { uid: base256(-1n, 8), gid: base256(2n ** 32n - 1n, 8) }),
    directory("g", { mode: 0o2755, gid: 42 }),
    file("g/c", "", { gid: base256(-1n, 8) }),
  );
  assert.deepEqual([at(tree, "a").owner, at(tree, "b").owner, at(tree, "g/c").owner], ["5:4294967291", "0:0", "0:42"]);
});

test("7.3: times before 1970 and beyond 64 bits of nanoseconds are 0", () => {
  const time = (mtime: string) => {
    const { mtime: seconds, nanoseconds } = at(lowest(file("f", "", { pax: { mtime } })).tree, "f");
    return [seconds, nanoseconds];
  };
  assert.deepEqual(time("1.9999999999"), [1, 999_999_999]);
  assert.deepEqual(time("-0.5"), [0, 0]);
  assert.deepEqual(time("9223372036.854775807"), [9_223_372_036, 854_775_807]);
  assert.deepEqual(time("9223372036.854775808"), [0, 0]);
  assert.deepEqual(time("9223372036854775807"), [0, 0]);
});

/** u32 version 2, then u16 tag, u16 permissions, u32 id. */
const acl = (...entries: readonly (readonly [number, number, number?])[]) => {
  const bytes = Buffer.alloc(4 + 8 * entries.length);
  bytes.writeUInt32LE(2);
  for (const [index, [tag, permissions, id]] of entries.entries()) {
    bytes.writeUInt16LE(tag, 4 + 8 * index);
    bytes.writeUInt16LE(permissions, 6 + 8 * index);
    bytes.writeUInt32LE(id ?? 0xffff_ffff, 8 + 8 * index);
  }
  return bytes;
};
const named = (owner: number, mask: number, other: number) =>
  acl([1, owner], [2, 5, 1000], [4, 4], [0x10, mask], [0x20, other]);
const ACCESS = "system.posix_acl_access";
const DEFAULT = "system.posix_acl_default";
const bin = (value: Uint8Array) => Buffer.from(value).toString("latin1");

test("7.4: the mode rewrites owner, mask and other of an access ACL; three entries are only a mode", () => {
  const { tree } = lowest(
    file("a", "", { mode: 0o640, xattrs: { [ACCESS]: named(7, 7, 7) } }),
    file("b", "", { mode: 0o640, xattrs: { [ACCESS]: acl([1, 7], [4, 7], [0x20, 7]) } }),
  );
  assert.deepEqual(at(tree, "a").xattrs, { [ACCESS]: bin(named(6, 4, 0)) });
  assert.deepEqual([at(tree, "b").xattrs, at(tree, "b").mode], [{}, "640"]);
});

test("7.4, C10: a default ACL is handed to everything made in the directory afterwards", () => {
  const defaults = named(7, 7, 5);
  const { tree } = upper(
    directory("d"),
    file("d/before"),
    directory("d", { xattrs: { [DEFAULT]: defaults } }),
    file("d/f", "", { mode: 0o604 }),
    directory("d/s", { mode: 0o710 }),
    file("d/i/f", "", { mode: 0o777 }),
    symlink("d/l", "x"),
    whiteout("d/w"),
    file("d/own", "", { mode: 0o600, xattrs: { [ACCESS]: acl([1, 6], [4, 4], [8, 1, 5], [0x10, 7], [0x20, 4]) } }),
  );
  assert.deepEqual(at(tree, "d/before").xattrs, {});
  assert.deepEqual(at(tree, "d/f").xattrs, { [ACCESS]: bin(named(6, 0, 4)) });
  assert.deepEqual(at(tree, "d/s").xattrs, { [ACCESS]: bin(named(7, 1, 0)), [DEFAULT]: bin(defaults) });
  assert.deepEqual(at(tree, "d/i").xattrs, { [ACCESS]: bin(named(7, 5, 5)), [DEFAULT]: bin(defaults) });
  assert.deepEqual(at(tree, "d/i/f").xattrs, { [ACCESS]: bin(named(7, 7, 7)) });
  assert.deepEqual(at(tree, "d/l").xattrs, {});
  assert.deepEqual(at(tree, "d/w").xattrs, { [ACCESS]: bin(named(0, 0, 0)) });
  assert.deepEqual(at(tree, "d/own").xattrs, { [ACCESS]: bin(acl([1, 6], [4, 4], [8, 1, 5], [0x10, 0], [0x20, 0])) });
});

test("7.4: no access ACL comes from a default ACL of three entries, and one of a lower layer's directory does not count", () => {
  const plain = acl([1, 7], [4, 5], [0x20, 5]);
  const { tree } = upper(directory("d", { xattrs: { [DEFAULT]: plain } }), file("d/f"), directory("d/s"));
  assert.deepEqual([at(tree, "d/f").xattrs, at(tree, "d/s").xattrs], [{}, { [DEFAULT]: bin(plain) }]);
  const below = lowest(directory("d", { xattrs: { [DEFAULT]: named(7, 7, 7) } })).tree;
  assert.deepEqual(at(over([below], directory("d"), file("d/f")).tree, "d/f").xattrs, {});
});

test("5, 7.4: an implied directory's copied default ACL reaches what is made in it", () => {
  const below = lowest(directory("d", { xattrs: { [DEFAULT]: named(7, 7, 7) } })).tree;
  const { tree } = over([below], file("d/f", "", { mode: 0o600 }));
  assert.deepEqual(at(tree, "d/f").xattrs, { [ACCESS]: bin(named(6, 0, 0)) });
});

test("7.5: device numbers are cut as mknod cuts them", () => {
  const device = (major: number, minor: number) =>
    at(lowest({ type: "3", name: "c", major: base256(BigInt(major), 8), minor: base256(BigInt(minor), 8) }).tree, "c")
      .device;
  assert.equal(device(4095, 1_048_575), "4095:1048575");
  assert.equal(device(4096 + 5, 1_048_576 + 6), "5:6");
  assert.deepEqual(names(lowest({ type: "3", name: "c", major: 4096, minor: base256(1_048_576n, 8) }).tree), ["w c"]);
});

test("7.6, C20: which xattrs are kept, dropped or refused", () => {
  const kept = (fields: TarFields, xattrs: TarFields["xattrs"]) =>
    Object.keys(at(lowest({ name: "x", ...fields, xattrs: xattrs! }).tree, "x").xattrs);
  const many = {
    "trusted.x": "1",
    "user.x": "",
    "user.overlay.opaque": "y",
    "security.x": "1",
    plain: "1",
    "system.x": "1",
    "odd.name": "1",
  };
  assert.deepEqual(kept({ type: "0" }, many), ["security.x", "user.overlay.opaque", "user.x"]);
  assert.deepEqual(kept({ type: "5" }, many), ["security.x", "user.overlay.opaque", "user.x"]);
  for (const type of ["2", "3", "6"]) assert.deepEqual(kept({ type, link: "t", major: 1 }, many), ["security.x"]);
  assert.deepEqual(kept({ type: "2", link: "t" }, { [ACCESS]: named(7, 7, 7), "security.capability": CAPABILITY }), [
    "security.capability",
  ]);
  assert.deepEqual(kept({ type: "0" }, { "trusted.overlay.opaque": "y", [`trusted.${"n".repeat(300)}`]: "1" }), []);
  for (const xattrs of [
    { "": "1" },
    { "user.": "1" },
    { [`user.${"n".repeat(251)}`]: "1" },
    { "user.x": Buffer.alloc(65_536) },
    { "security.capability": CAPABILITY.subarray(0, 19) },
    { "security.capability": Buffer.concat([CAPABILITY, new Uint8Array(4)]) },
    { [ACCESS]: acl([1, 7], [2, 5, 1000], [4, 5], [0x20, 4]) },
    { [ACCESS]: acl([3, 7]) },
    { [DEFAULT]: Buffer.from([2, 0, 0, 0, 1]) },
    { [DEFAULT]: named(7, 7, 7) },
  ] as Record<string, Uint8Array>[]) {
    refuses("xattr", "both", { type: "0", name: "x", xattrs });
  }
  const v3 = Buffer.from("0100000300040000000000000000000000000000e8030000", "hex");
  for (const value of [CAPABILITY, v3, Buffer.alloc(0)])
    assert.deepEqual(kept({ type: "0" }, { "security.capability": value }), ["security.capability"]);
  assert.equal(
    at(lowest({ name: "x", xattrs: { "user.big": Buffer.alloc(65_535) } }).tree, "x").xattrs["user.big"]!.length,
    65_535,
  );
});

// --- 10

test("10: a refusal names layer, code, entry number, escaped name and offset", () => {
  try {
    upper(file("ok"), { type: "7", name: "b\x01d" });
    assert.fail("not refused");
  } catch (error) {
    assert.ok(isHeadstartError(error, "HS_LAYER_REFUSED"));
    const { refusal, layer, entry: number, name, offset } = error.details;
    assert.deepEqual([refusal, layer, number, name, offset], ["type", "test", 2, "b\\x01d", 512]);
  }
});

test("a flood of entries ends in HS_LIMIT, not in a crash", () => {
  const value = Buffer.alloc(65_000);
  const one = entry({ name: "f", xattrs: { "user.a": value, "user.b": value, "user.c": value } });
  const builder = new LayerTreeBuilder("lowest", "test");
  const reader = new TarReader({ entry: (found) => builder.add(found).dataWanted, data() {} }, { layer: "test" });
  assert.throws(
    () => {
      for (let count = 0; count < 10_000; count++) reader.push(one);
    },
    (error) => isHeadstartError(error, "HS_LIMIT"),
  );
});

test("segments of files are their places in the tar; data of entries that leave nothing are not wanted", () => {
  const { tree } = lowest(file("a", "abc"), file("empty"), file("b", "x".repeat(600)));
  const segment = (name: string) => {
    const { inode } = at(tree, name);
    return [...tree.segmentAddress.subarray(tree.segmentStart[inode], tree.segmentStart[inode + 1])];
  };
  assert.deepEqual([segment("a"), segment("empty"), segment("b")], [[512], [], [2048]]);
});

test("random layers in either role give a sound tree or a typed error", () => {
  fc.assert(
    fc.property(fc.nat(), fc.boolean(), (seed, withLowers) => {
      const trees: FileTree[] = [];
      try {
        for (const [index, layer] of randomImage(seed).entries()) {
          const lowers = withLowers && index > 0 ? [...trees] : undefined;
          trees.push(buildLayer(index === 0 ? "lowest" : "upper", layer, lowers).tree);
        }
      } catch (error) {
        assert.ok(isHeadstartError(error, "HS_LAYER_REFUSED"), String(error));
      }
    }),
    { numRuns: 400 },
  );
});
