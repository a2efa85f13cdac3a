/** Bootstraps that we write, mounted by the kernel over their blobs' address spaces and checked by fsck.erofs: both know EROFS and nothing of us. */

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { type FileTree, FileTreeBuilder, FileType } from "../../src/erofs/file-tree.ts";
import { mergeTrees } from "../../src/erofs/overlay.ts";
import { compareTreeLines } from "../../src/erofs/tree-lines.ts";
import { Compressor } from "../../src/formats/nydus/ondisk.ts";
import { writeBootstrap } from "../../src/formats/nydus/write/bootstrap.ts";
import { planInodes } from "../../src/formats/nydus/write/bootstrap-inodes.ts";
import { openDictionary } from "../../src/formats/nydus/write/dictionary.ts";
import { mergeLayers } from "../../src/formats/nydus/write/merge.ts";
import { MountFlag, mount, unmount } from "../../src/linux/mount.ts";
import { differences, listMount, listTree, temporaryFolder } from "../tools/erofs-image.ts";
import { kernelLines } from "../tools/kernel-lines.ts";
import { fixtureInMemory, fixtureMergedTree, layerInMemory } from "../tools/nydus-in-memory.ts";
import { randomTree } from "../tools/random-tree.ts";

interface WrittenImage {
  readonly bootstrap: Uint8Array;
  readonly spaces: readonly Uint8Array[];
}

/** Writes the image and its devices into `folder`, has fsck.erofs look at it, and mounts it. */
function mountImage(folder: string, image: WrittenImage, what: string): Disposable & { readonly target: string } {
  const target = join(folder, "mnt");
  mkdirSync(target, { recursive: true });
  const source = join(folder, "image.boot");
  writeFileSync(source, image.bootstrap);
  const devices = image.spaces.map((bytes, index) => {
    const path = join(folder, `device-${index}`);
    writeFileSync(path, bytes);
    return path;
  });
  const fsck = spawnSync("fsck.erofs", ["--extract", ...devices.map((path) => `--device=${path}`), source], {
    encoding: "utf8",
  });
  assert.equal(fsck.status, 0, `${what}: ${fsck.stdout}${fsck.stderr}`);
  const data = devices.map((path) => `device=${path}`).join(",");
  mount({ source, target, type: "erofs", flags: MountFlag.readOnly, data });
  return { target, [Symbol.dispose]: () => unmount(target) };
}

/** What the kernel shows is `tree`. */
function checkMounted(
  folder: string,
  image: WrittenImage & { readonly nidOf: Uint32Array },
  tree: FileTree,
  what: string,
): void {
  using mounted = mountImage(folder, image, what);
  assert.deepEqual(differences(listTree(tree, image.nidOf), listMount(mounted.target)), [], what);
}

test("random trees, with chunks of several sizes: fsck.erofs is content, and the mount shows every entry as the tree has it", () => {
  using folder = temporaryFolder("headstart-nydus-");
  for (let seed = 1; seed <= 16; seed++) {
    const tree = randomTree(seed, { entries: 20 + (seed % 8) * 60 });
    const chunkSize = [4096, 8192, 65_536, 1 << 20][seed % 4]!;
    const { layer, data } = layerInMemory(tree, { chunkSize });
    const bootstrap = writeBootstrap({
      tree: layer.tree,
      chunkSize,
      compressor: Compressor.none,
      digester: layer.digester,
      blobs: layer.blob === null ? [] : [layer.blob],
      prefetch: [],
    });
    const { nidOf } = planInodes(layer.tree, chunkSize);
    const spaces = layer.blob === null ? [] : [data];
    checkMounted(folder.path, { bootstrap, nidOf, spaces }, tree, `seed ${seed}`);
  }
});

test("an image over several blobs, one of them a dictionary's: each file is read from its device", () => {
  using folder = temporaryFolder("headstart-nydus-");
  const chunkSize = 4096;
  const shared = randomTree(101, { entries: 60 });
  const base = layerInMemory(shared, { chunkSize });
  const dictionary = openDictionary(writeBootstrap(mergeLayers([base.layer])), { chunkSize, digester: "sha256" });
  const other = randomTree(102, { entries: 60 });
  const lower = layerInMemory(other, { chunkSize });
  // the same data under other names: whatever the upper layer stores is the dictionary's already
  const upper = layerInMemory(shared, { chunkSize, role: "upper", dictionary });
  assert.equal(upper.layer.blob, null);
  const merged = mergeLayers([lower.layer, upper.layer]);
  assert.equal(merged.blobs.length, 2);
  const dataOf = new Map([base, lower].map(({ layer, data }) => [layer.blob!.facts.id, data]));
  const spaces = merged.blobs.map(({ facts }) => dataOf.get(facts.id)!);
  const bootstrap = writeBootstrap(merged);
  // the same merge of the sources, whose contents do not come from chunks
  const wanted = { ...mergeTrees([other, shared]).tree, nlink: merged.tree.nlink };
  const { nidOf } = planInodes(merged.tree, chunkSize);
  checkMounted(folder.path, { bootstrap, nidOf, spaces }, wanted, "merged");
});

test("the fixture's image shows what overlayfs showed of its layers, links and nanoseconds included", async () => {
  using folder = temporaryFolder("headstart-nydus-");
  const layers = await fixtureInMemory();
  const merged = mergeLayers(layers.map(({ layer }) => layer));
  const dataOf = new Map(layers.map(({ layer, data }) => [layer.blob!.facts.id, data]));
  const spaces = merged.blobs.map(({ facts }) => dataOf.get(facts.id)!);
  using mounted = mountImage(folder.path, { bootstrap: writeBootstrap(merged), spaces }, "fixture");
  assert.deepEqual(compareTreeLines(fixtureMergedTree(), kernelLines(mounted.target, 1n << 62n)), []);
});

test("directories around block edges and one of 20 000 entries: every name is found", () => {
  using folder = temporaryFolder("headstart-nydus-");
  const plain = { mode: 0o755, uid: 0, gid: 0, mtimeSeconds: 1_700_000_000, mtimeNanoseconds: 0 };
  const builder = new FileTreeBuilder(plain);
  const directory = (name: string, count: number, length: number) => {
    const inode = builder.addInode({ ...plain, type: FileType.directory });
    builder.addName(0, Buffer.from(name), inode);
    for (let index = 0; index < count; index++) {
      const child = builder.addInode({ ...plain, type: FileType.fifo });
      builder.addName(inode, Buffer.from(`${index}`.padEnd(length, "n")), child);
    }
  };
  // "." and ".." take 27 bytes, an entry 12 and its name: inode and tail fill a block at 4032, the first block ends at 4096
  for (let count = 60; count <= 66; count++)
    for (const length of [50, 51, 52]) directory(`${count}-${length}`, count, length);
  directory("many", 20_000, 12);
  const tree = builder.finish();
  const { layer } = layerInMemory(tree, { chunkSize: 4096 });
  const bootstrap = writeBootstrap(mergeLayers([layer]));
  checkMounted(folder.path, { bootstrap, nidOf: planInodes(tree, 4096).nidOf, spaces: [] }, tree, "directories");
});
