import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { cleanPath, joinPath, PathError, type PathErrorReason, Resolver } from "./root-path.ts";

/** Directories are objects, symlinks strings, files null. */
type Item = { [name: string]: Item } | string | null;

function resolver(root: { [name: string]: Item }): Resolver<Item> {
  return new Resolver<Item>({
    root,
    child: (directory, name) => {
      const names = directory as { [name: string]: Item };
      return Object.hasOwn(names, name) ? names[name] : undefined;
    },
    isDirectory: (item) => item !== null && typeof item === "object",
    symlinkTarget: (item) => (typeof item === "string" ? item : null),
  });
}

function fails(reason: PathErrorReason, work: () => unknown): void {
  assert.throws(work, (error) => error instanceof PathError && error.reason === reason, reason);
}

test("paths are cleaned as text: slashes, dots, never above the root", () => {
  assert.deepEqual(["", "/", "a//b/", "./a/./b", "a/../..//b", "../.."].map(cleanPath), [
    "/",
    "/",
    "/a/b",
    "/a/b",
    "/b",
    "/",
  ]);
  assert.equal(joinPath("/a/b", "../c"), "/a/c");
});

test("what has no symlink on its way, or is not there, stays as it is", () => {
  const paths = resolver({ a: { b: {} } });
  for (const path of ["/", "/a", "/a/b", "/a/b/none", "/none/none"]) assert.equal(paths.resolve(path), path);
  assert.equal(paths.resolve("a/./b/../b"), "/a/b");
});

test("symlinks are followed inside the root, also the last; absolute ones begin at the root", () => {
  const paths = resolver({
    d: { e: {}, up: "..", out: "../../../../d", abs: "/d/e" },
    l: "d",
    ll: "l/abs",
    dangling: "no/where",
  });
  assert.equal(paths.resolve("/l"), "/d");
  assert.equal(paths.resolve("/l/e"), "/d/e");
  assert.equal(paths.resolve("/ll"), "/d/e");
  assert.equal(paths.resolve("/d/up/l/abs/x"), "/d/e/x");
  assert.equal(paths.resolve("/d/out"), "/d");
  assert.equal(paths.resolve("/dangling/x"), "/no/where/x");
});

test("dots behind a symlink go up from its target, dots inside a relative target are text", () => {
  const paths = resolver({ a: { b: { c: {} } }, l: "a/b", t: "l/../x" });
  assert.equal(paths.resolve("/l/.."), "/a");
  assert.equal(paths.resolve("/t"), "/x");
});

test("files on the way, loops and overlong names are errors", () => {
  const paths = resolver({ f: null, l: "f", a: "b", b: "a", self: "self/x" });
  fails("not-directory", () => paths.resolve("/f/x"));
  fails("not-directory", () => paths.resolve("/l/x"));
  fails("loop", () => paths.resolve("/a"));
  fails("loop", () => paths.resolve("/a/x"));
  fails("too-long", () => paths.resolve(`/${"n".repeat(256)}`));
  assert.throws(() => paths.resolve("/self"), PathError);
  assert.equal(paths.resolve("/f"), "/f");
});

test("255 symlinks on one way are followed, 256 are not", () => {
  const chain = (count: number) =>
    resolver(
      Object.fromEntries([["l0", {}], ...Array.from({ length: count }, (_, index) => [`l${index + 1}`, `l${index}`])]),
    );
  assert.equal(chain(255).resolve("/l255"), "/l0");
  fails("loop", () => chain(256).resolve("/l256"));
});

test("what stands at a resolved path is found, nothing below a file", () => {
  const paths = resolver({ d: { f: null }, l: "d" });
  assert.equal(paths.at("/d/f"), null);
  assert.equal(paths.at("/l"), "d");
  for (const path of ["/d/g", "/d/f/x", "/l/f"]) assert.equal(paths.at(path), undefined);
});

test("random mazes resolve to a clean path without symlinks, or to an error", () => {
  const name = fc.constantFrom("a", "b", "c");
  const target = fc
    .array(fc.constantFrom("a", "b", "c", "..", ".", ""), { minLength: 1, maxLength: 5 })
    .map((parts) => parts.join("/") || "/");
  const { item } = fc.letrec<{ item: Item }>((tie) => ({
    item: fc.oneof({ maxDepth: 3 }, target, fc.constant(null), fc.dictionary(name, tie("item"), { maxKeys: 3 })),
  }));
  fc.assert(
    fc.property(fc.dictionary(name, item, { maxKeys: 3 }), target, (root, path) => {
      const paths = resolver(root);
      try {
        const resolved = paths.resolve(path);
        assert.equal(cleanPath(resolved), resolved);
        assert.notEqual(typeof paths.at(resolved), "string");
        assert.equal(paths.resolve(resolved), resolved);
      } catch (error) {
        assert.ok(error instanceof PathError, String(error));
      }
    }),
    { numRuns: 1000 },
  );
});
