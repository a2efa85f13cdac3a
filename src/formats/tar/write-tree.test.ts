import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import { test } from "node:test";
import fc from "fast-check";
import { fillFromAddress, randomTree } from "../../../test/tools/random-tree.ts";
import { type FileTree, FileTreeBuilder, FileType } from "../../erofs/file-tree.ts";
import { compareTreeLines, type TreeLine, treeLines } from "../../erofs/tree-lines.ts";
import { collect } from "../../oci/registry/testing.ts";
import { readLayerTree } from "./read-layer.ts";
import { writeTreeTar } from "./write-tree.ts";

/** What the stream has at a file's segments, zeros between. */
function contentOf(tree: FileTree, inode: number): Uint8Array {
  const bytes = new Uint8Array(tree.size[inode]!);
  for (let segment = tree.segmentStart[inode]!; segment < tree.segmentStart[inode + 1]!; segment++) {
    const at = tree.segmentFileOffset[segment]!;
    fillFromAddress(bytes.subarray(at, at + tree.segmentLength[segment]!), tree.segmentAddress[segment]!);
  }
  return bytes;
}

async function* streamed(tree: FileTree, inode: number) {
  yield contentOf(tree, inode);
}

async function lines(tree: FileTree, sha256: (inode: number) => string): Promise<TreeLine[]> {
  const all: TreeLine[] = [];
  for await (const line of treeLines(tree, { sha256 })) all.push(line);
  return all;
}

const write = async (tree: FileTree) => {
  const { chunks, leftOut } = writeTreeTar(tree, (inode) => streamed(tree, inode));
  return { bytes: await collect(chunks), leftOut };
};

test("a tree that was written as a tar is the same tree when it is read", async () => {
  await fc.assert(
    fc.asyncProperty(fc.nat(100_000), async (seed) => {
      const tree = randomTree(seed, { entries: 60 });
      const { bytes, leftOut } = await write(tree);
      const read = await readLayerTree(
        (async function* () {
          yield bytes;
        })(),
        { mediaType: "application/vnd.oci.image.layer.v1.tar", role: "lowest", hashContents: true },
      );
      const wanted = await lines(tree, (inode) => createHash("sha256").update(contentOf(tree, inode)).digest("hex"));
      const expected = wanted
        .filter(({ type, rdev }) => type !== "socket" && !(type === "char" && rdev![0] === 0 && rdev![1] === 0))
        .map(unpacked);
      // an unpack leaves the root as it is
      assert.equal(wanted.length - expected.length, leftOut.length);
      const got = await lines(read.tree, (inode) => read.contentSha256(inode));
      assert.deepEqual(compareTreeLines(expected.slice(1), got.slice(1).map(unpacked)), []);
    }),
    { numRuns: 60 },
  );
});

/** What an unpack makes of it: no marks, no time before 1970; the random trees' access ACLs do not fit their modes, which no kernel shows. */
function unpacked(line: TreeLine): TreeLine {
  const { xattrs = {}, ...rest } = line;
  const kept = Object.entries(xattrs).filter(
    ([name]) => !name.startsWith("trusted.overlay.") && name !== "system.posix_acl_access",
  );
  const time = BigInt(line.mtime_ns!) < 0n ? "0" : line.mtime_ns;
  return { ...rest, mtime_ns: time, ...(kept.length > 0 && { xattrs: Object.fromEntries(kept) }) };
}

test("the same tree gives the same bytes, and tar(1) lists all of it", async () => {
  const tree = randomTree(7, { entries: 300 });
  const { bytes } = await write(tree);
  assert.deepEqual((await write(tree)).bytes, bytes);
  const listed = execFileSync("tar", ["-t", "--quoting-style=escape"], { input: bytes });
  assert.ok(listed.toString().split("\n").length > 200);
});

test("names that a layer would take for marks are left out and told", async () => {
  const times = { mtimeSeconds: 0, mtimeNanoseconds: 0, uid: 0, gid: 0, mode: 0o644 };
  const builder = new FileTreeBuilder({ ...times, mode: 0o755 });
  builder.addName(0, Buffer.from(".wh.gone"), builder.addInode({ ...times, type: FileType.regular, size: 0 }));
  builder.addName(0, Buffer.from("gone"), builder.addInode({ ...times, type: FileType.regular, size: 0 }));
  const { bytes, leftOut } = await write(builder.finish());
  assert.deepEqual(
    leftOut.map((path) => Buffer.from(path).toString()),
    [".wh.gone"],
  );
  assert.equal(Buffer.from(bytes).includes(".wh."), false);
});
