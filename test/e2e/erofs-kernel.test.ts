/** EROFS images of ours, seen by the kernel and by two versions of fsck.erofs. */

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { closeSync, lstatSync, mkdirSync, openSync, readdirSync, readFileSync } from "node:fs";
import { join, relative } from "node:path";
import { test } from "node:test";
import { checkErofs } from "../../src/erofs/check.ts";
import { type FileTree, FileTreeBuilder, FileType, type InodeFields } from "../../src/erofs/file-tree.ts";
import { openErofs } from "../../src/erofs/read.ts";
import { fdSource, layoutSource } from "../../src/erofs/source.ts";
import { layoutDevices } from "../../src/erofs/write.ts";
import { mount, unmount } from "../../src/linux/mount.ts";
import { mountErofs } from "../../src/mount/erofs-mount.ts";
import { deviceTree } from "../tools/device-tree.ts";
import { FORMS, layoutAs } from "../tools/erofs-bytes.ts";
import {
  differences,
  listMount,
  listTree,
  mountImage,
  temporaryFolder,
  writeDevice,
  writeImage,
} from "../tools/erofs-image.ts";
import { sidFsck, systemFsck } from "../tools/erofs-utils.ts";
import { randomTree } from "../tools/random-tree.ts";

/** The acceptance run is HEADSTART_EROFS_TREES=200. */
const TREES = Number(process.env.HEADSTART_EROFS_TREES ?? 24);

test("random trees in both forms: fsck 1.5 and sid's are content, and the mount shows every entry as the tree has it", () => {
  using folder = temporaryFolder("headstart-erofs-");
  const target = join(folder.path, "mnt");
  mkdirSync(target);
  const checkers = [systemFsck(), sidFsck()];
  for (let seed = 1; seed <= TREES; seed++) {
    const tree = randomTree(seed, { entries: 20 + (seed % 8) * 60, large: seed % 12 === 1 });
    for (const form of FORMS) {
      const layout = layoutAs(form, tree);
      checkErofs(openErofs(layoutSource(layout)));
      const image = join(folder.path, "image.erofs");
      writeImage(image, layout);
      for (const fsck of checkers) fsck(image, { data: seed % 12 !== 1 });
      using _mount = mountImage(image, target, seed % 2 === 0 ? "file" : "loop");
      assert.deepEqual(differences(listTree(tree, layout.nidOf), listMount(target)), [], `seed ${seed}, ${form}`);
    }
  }
});

test("random trees with data in other files: the mount shows every byte, by files and by loop devices", async () => {
  using folder = temporaryFolder("headstart-erofs-");
  const target = join(folder.path, "mnt");
  mkdirSync(target);
  for (let seed = 1; seed <= Math.ceil(TREES / 3); seed++) {
    const { tree, devices } = deviceTree(seed, { entries: 20 + (seed % 8) * 60 });
    const layout = layoutDevices(tree, devices, { uuid: new Uint8Array(16).fill(seed) });
    const file = join(folder.path, "image.erofs");
    writeImage(file, layout);
    const paths = devices.flatMap((device, space) => {
      if (device === null) return [];
      const path = join(folder.path, `device${space}`);
      writeDevice(path, tree, space, device.size);
      return [path];
    });
    const backing = seed % 2 === 0 ? "file" : "loop";
    await mountErofs({ file, target, backing, directio: false, devices: paths });
    try {
      assert.deepEqual(differences(listTree(tree, layout.nidOf), listMount(target)), [], `seed ${seed}`);
    } finally {
      unmount(target);
    }
  }
});

test("directories around block edges: every name is found by readdir and by lookup", () => {
  using folder = temporaryFolder("headstart-erofs-");
  const target = join(folder.path, "mnt");
  mkdirSync(target);
  const builder = new FileTreeBuilder(PLAIN);
  const directory = (name: string, names: Iterable<string>) => {
    const inode = builder.addInode({ ...PLAIN, type: FileType.directory });
    builder.addName(0, Buffer.from(name), inode);
    for (const child of names) {
      builder.addName(inode, Buffer.from(child), builder.addInode({ ...PLAIN, type: FileType.regular }));
    }
  };
  directory("empty", []);
  directory("one", ["a"]);
  directory("ten thousand", numbered(10_000, 20));
  // "." and ".." take 27 bytes, an entry with a name of n bytes 12 + n: these sum up to each size around one, two and three blocks
  for (const blocks of [1, 2, 3]) {
    for (let off = -70; off <= 40; off += blocks === 1 ? 1 : 7) {
      directory(`size ${blocks} ${off}`, namesOfSize(blocks * 4096 + off));
    }
  }
  const tree = builder.finish();
  for (const form of FORMS) {
    const layout = layoutAs(form, tree);
    checkErofs(openErofs(layoutSource(layout)));
    const image = join(folder.path, "image.erofs");
    writeImage(image, layout);
    for (const fsck of [systemFsck(), sidFsck()]) fsck(image);
    using _mount = mountImage(image, target, "file");
    assert.deepEqual(differences(listTree(tree, layout.nidOf), listMount(target)), []);
  }
});

test("a directory of 100 000 entries is found whole", () => {
  using folder = temporaryFolder("headstart-erofs-");
  const target = join(folder.path, "mnt");
  mkdirSync(target);
  const builder = new FileTreeBuilder(PLAIN);
  let address = 512;
  for (const name of numbered(100_000, 30)) {
    const segments = [{ fileOffset: 0, length: 3, address }];
    const inode = builder.addInode({ ...PLAIN, type: FileType.regular, size: 3, segments });
    builder.addName(0, Buffer.from(name), inode);
    address += 1024;
  }
  const tree = builder.finish();
  const layout = layoutAs("lazy", tree);
  checkErofs(openErofs(layoutSource(layout)));
  const image = join(folder.path, "image.erofs");
  writeImage(image, layout);
  systemFsck()(image, { data: false });
  using _mount = mountImage(image, target, "file");
  assert.deepEqual(differences(listTree(tree, layout.nidOf), listMount(target)), []);
});

test("an image that mkfs.erofs made of this repository's sources is read as the files are", () => {
  using folder = temporaryFolder("headstart-erofs-");
  const source = join(import.meta.dirname, "../../src");
  const image = join(folder.path, "image.erofs");
  execFileSync("mkfs.erofs", ["-x-1", "--quiet", image, source], { stdio: "pipe" });
  const fd = openSync(image, "r");
  try {
    const reader = openErofs(fdSource(fd));
    const paths = new Map([[reader.root.nid, source]]);
    let files = 0;
    reader.walk({
      inode: () => {},
      name: (directory, name, inode) => {
        const path = join(paths.get(directory.nid)!, Buffer.from(name).toString());
        paths.set(inode.nid, path);
        const stat = lstatSync(path);
        assert.equal(inode.mode, stat.mode & 0o7777, path);
        if (inode.type !== FileType.regular) return;
        const content = Buffer.concat(
          reader.extents(inode).map(({ imageOffset, length }) => reader.source.readAt(imageOffset, length)),
        );
        assert.ok(content.equals(readFileSync(path)), path);
        files++;
      },
    });
    assert.ok(files > 20);
    assert.equal(reader.toFileTree().inodeCount, reader.superblock.inodeCount);
  } finally {
    closeSync(fd);
  }
});

test("overlayfs merges two images as it merges two unpacked layers: whiteouts, opaque marks, a changed type", () => {
  using folder = temporaryFolder("headstart-erofs-");
  const names = ["lower", "upper", "merged"] as const;
  const [lower, upper, merged] = names.map((name) => join(folder.path, name)) as [string, string, string];
  for (const path of [lower, upper, merged]) mkdirSync(path);
  const build = (paths: Record<string, Partial<InodeFields>>): FileTree => {
    const builder = new FileTreeBuilder(PLAIN);
    const inodes = new Map([["", 0]]);
    for (const [path, fields] of Object.entries(paths)) {
      const inode = builder.addInode({ ...PLAIN, type: FileType.directory, ...fields });
      inodes.set(path, inode);
      const cut = path.lastIndexOf("/");
      builder.addName(inodes.get(path.slice(0, Math.max(cut, 0)))!, Buffer.from(path.slice(cut + 1)), inode);
    }
    return builder.finish();
  };
  const file = { type: FileType.regular };
  const whiteout = { type: FileType.char, mode: 0 };
  const opaque = { xattrs: [{ name: Buffer.from("trusted.overlay.opaque"), value: Buffer.from("y") }] };
  const layers = {
    lower: build({ a: {}, "a/gone": file, "a/stays": file, b: {}, "b/hidden": file, c: file, d: {}, "d/e": file }),
    upper: build({ a: {}, "a/gone": whiteout, b: opaque, "b/new": file, c: {}, "c/in": file, d: file, f: whiteout }),
  };
  using mounts = new DisposableStack();
  for (const name of ["lower", "upper"] as const) {
    const image = join(folder.path, `${name}.erofs`);
    writeImage(image, layoutAs("lazy", layers[name]));
    mounts.use(mountImage(image, join(folder.path, name), "file"));
  }
  mount({ source: "overlay", target: merged, type: "overlay", flags: 1, data: `lowerdir=${upper}:${lower}` });
  mounts.defer(() => unmount(merged));
  const shown = readdirSync(merged, { recursive: true, withFileTypes: true })
    .map((entry) => relative(merged, join(entry.parentPath, entry.name)) + (entry.isDirectory() ? "/" : ""))
    .sort();
  assert.deepEqual(shown, ["a/", "a/stays", "b/", "b/new", "c/", "c/in", "d"]);
});

const PLAIN = { mode: 0o755, uid: 0, gid: 0, mtimeSeconds: 1_700_000_000, mtimeNanoseconds: 0 };

function* numbered(count: number, length: number): Iterable<string> {
  for (let index = 0; index < count; index++) yield `${index}`.padEnd(1 + (index % length), "-");
}

/** Names whose entries together with "." and ".." take `size` bytes, when no block boundary cuts them. */
function* namesOfSize(size: number): Iterable<string> {
  let left = size - 27;
  for (let index = 0; left > 0; index++) {
    // the last name takes what is left, if it can
    const entry = left <= 267 ? left : left - 120 < 13 ? 60 : 120;
    const length = Math.max(entry - 12, 1);
    yield `${index}`.padEnd(length, "n").slice(0, Math.max(length, `${index}`.length));
    left -= entry;
  }
}
