import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdirSync, readdirSync, renameSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { open } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { differences, temporaryFolder } from "../../../test/tools/erofs-image.ts";
import {
  addressContent,
  expectedListing,
  ext4Options,
  fsckExt4,
  imageBytes,
  MiB,
  mountExt4,
  mountedListing,
  writeLayout,
  writeTree,
} from "../../../test/tools/ext4-image.ts";
import { fillFromAddress, randomTree } from "../../../test/tools/random-tree.ts";
import { type ErrorCode, isHeadstartError } from "../../base/errors.ts";
import { GiB } from "../../base/limits.ts";
import { type FileTree, FileTreeBuilder, FileType, type InodeFields } from "../../erofs/file-tree.ts";
import { fdSource } from "../../erofs/source.ts";
import { checkExt4 } from "./check.ts";
import { layoutExt4 } from "./layout.ts";
import { openExt4 } from "./read.ts";
import { writeExt4 } from "./write.ts";

const PLAIN = { mode: 0o755, uid: 0, gid: 0, mtimeSeconds: 1_700_000_000, mtimeNanoseconds: 5 };
const text = (value: string) => Buffer.from(value);

/** Calls `fill` with a builder and an allocator of addresses. */
function treeOf(fill: (builder: FileTreeBuilder, file: (size: number) => Partial<InodeFields>) => void): FileTree {
  const builder = new FileTreeBuilder(PLAIN);
  let address = 0;
  fill(builder, (size) => {
    address += 2 * size + 1;
    return { size, segments: size > 0 ? [{ fileOffset: 0, length: size, address: address - size }] : [] };
  });
  return builder.finish();
}

function treeWith(fields: Partial<InodeFields>, name = text("x")): FileTree {
  return treeOf((builder) => {
    builder.addName(0, name, builder.addInode({ ...PLAIN, type: FileType.regular, ...fields }));
  });
}

/** e2fsck, the kernel through a loop mount, and our own reader agree with the tree. */
function prove(path: string, mountpoint: string, layout: ReturnType<typeof layoutExt4>): void {
  fsckExt4(path);
  {
    using _mount = mountExt4(path, mountpoint);
    assert.deepEqual(differences(expectedListing(layout), mountedListing(mountpoint)), []);
  }
}

async function checkFile(path: string): Promise<void> {
  await using file = await open(path);
  checkExt4(openExt4(fdSource(file.fd)));
}

test("trees with everything a layer can hold are what e2fsck and the kernel see", async () => {
  using folder = temporaryFolder("headstart-ext4-");
  const mountpoint = join(folder.path, "mnt");
  mkdirSync(mountpoint);
  for (const seed of [1, 2, 3]) {
    const path = join(folder.path, `${seed}.img`);
    const tree = randomTree(seed, { entries: 400, large: seed === 1, xattrBytes: 3000 });
    const layout = await writeTree(path, tree);
    prove(path, mountpoint, layout);
    await checkFile(path);
  }
});

test("extent trees of every depth, indexes of one and two levels, shared xattr blocks and files over superblock copies", async () => {
  using folder = temporaryFolder("headstart-ext4-");
  const mountpoint = join(folder.path, "mnt");
  mkdirSync(mountpoint);
  const path = join(folder.path, "image");
  let large = 0;
  const tree = treeOf((builder, file) => {
    const add = (directory: number, name: string, fields: Partial<InodeFields>) => {
      const inode = builder.addInode({ ...PLAIN, type: FileType.regular, ...fields });
      builder.addName(directory, text(name), inode);
      return inode;
    };
    for (const pieces of [4, 5, 340, 1360, 1361, 3000]) {
      const segments = Array.from({ length: pieces }, (_, index) => ({
        fileOffset: index * 8192 + 5,
        length: 100,
        address: pieces * 2 ** 20 + index * 128,
      }));
      add(0, `pieces-${pieces}`, { size: pieces * 8192, segments });
    }
    const names = add(0, "names", file(5));
    const one = add(0, "one-level", { type: FileType.directory });
    for (let index = 0; index < 3000; index++) builder.addName(one, text(`name-${index}`), names);
    const two = add(0, "two-levels", { type: FileType.directory });
    for (let index = 0; index < 9000; index++) builder.addName(two, text(`${index}${"ü".repeat(110)}`), names);
    const xattrs = [
      { name: text("trusted.overlay.opaque"), value: text("y") },
      { name: text("security.selinux"), value: text("system_u:object_r:cache_t:s0\0") },
    ];
    for (let index = 0; index < 1100; index++) add(one, `opaque-${index}`, { type: FileType.directory, xattrs });
    large = add(0, "large", file(3 * MiB));
  });
  // 128 blocks before the superblock copy of group 1
  const place = { startBlock: 32_640, blockCount: 1280, firstInode: 8193, inodeCount: 1 };
  const layout = await writeTree(path, tree, { size: 256 * MiB, regions: [{ inodes: [large], place }] });
  assert.equal(layout.extentsOf(large).length, 2);
  assert.deepEqual(
    layout.regions[0]!.xattrBlocks.map(({ refcount }) => refcount),
    [1024, 76],
  );
  prove(path, mountpoint, layout);
  await checkFile(path);
});

test("e2fsck, dumpe2fs and blkid agree on an empty tree, and on a disk of 64 groups that is nearly all holes", async () => {
  using folder = temporaryFolder("headstart-ext4-");
  const path = join(folder.path, "image");
  for (const size of [1 * MiB, 40 * MiB, 8 * GiB, 8 * GiB + 300 * 4096]) {
    const layout = await writeTree(path, new FileTreeBuilder(PLAIN).finish(), { size });
    fsckExt4(path);
    await checkFile(path);
    const figures = execFileSync("dumpe2fs", ["-h", path], { encoding: "utf8", stdio: ["ignore", "pipe", "ignore"] });
    assert.match(figures, new RegExp(`Block count: +${layout.geometry.blocks}\n`));
    assert.match(figures, new RegExp(`Inodes per group: +${layout.geometry.inodesPerGroup}\n`));
    const probed = execFileSync("blkid", ["-p", "-o", "export", path], { encoding: "utf8" });
    assert.match(probed, /^UUID=11111111-2222-4333-8444-555555555555$/m);
    assert.match(probed, /^TYPE=ext4$/m);
    const reserved = layout.geometry.reservedDescBlocks;
    if (reserved > 0) assert.match(figures, new RegExp(`Reserved GDT blocks: +${reserved}\n`));
  }
});

test("debugfs reads every file without the kernel", async () => {
  using folder = temporaryFolder("headstart-ext4-");
  const path = join(folder.path, "image");
  const tree = treeOf((builder, file) => {
    for (const size of [0, 1, 4096, 4097, 300_000]) {
      builder.addName(0, text(`f${size}`), builder.addInode({ ...PLAIN, type: FileType.regular, ...file(size) }));
    }
  });
  const layout = await writeTree(path, tree);
  const out = join(folder.path, "out");
  mkdirSync(out);
  execFileSync("debugfs", ["-R", `rdump / ${out}`, path], { stdio: "ignore" });
  const names = readdirSync(out).filter((name) => name !== "lost+found");
  assert.deepEqual(names.sort(), ["f0", "f1", "f300000", "f4096", "f4097"]);
  for (const name of names) {
    const size = Number(name.slice(1));
    const inode = layout.tree.size.indexOf(size);
    const address = layout.tree.segmentAddress[layout.tree.segmentStart[inode]!] ?? 0;
    const expected = Buffer.from(fillFromAddress(new Uint8Array(size), address));
    const got = execFileSync("cat", [join(out, name)], { maxBuffer: MiB });
    assert.equal(got.equals(expected), true, name);
  }
});

test("the kernel changes what we wrote, and e2fsck and our reader accept what it left", async () => {
  using folder = temporaryFolder("headstart-ext4-");
  const mountpoint = join(folder.path, "mnt");
  mkdirSync(mountpoint);
  const path = join(folder.path, "image");
  const tree = treeOf((builder, file) => {
    const big = builder.addInode({ ...PLAIN, type: FileType.directory });
    builder.addName(0, text("big"), big);
    for (let index = 0; index < 1000; index++) {
      builder.addName(
        big,
        text(`file-${index}`),
        builder.addInode({ ...PLAIN, type: FileType.regular, ...file(index) }),
      );
    }
  });
  await writeTree(path, tree, { size: 64 * MiB });
  {
    using _mount = mountExt4(path, mountpoint, "rw");
    for (let index = 0; index < 1000; index += 2) rmSync(join(mountpoint, `big/file-${index}`));
    for (let index = 0; index < 1500; index++) writeFileSync(join(mountpoint, `big/new-${index}`), `${index}`);
    renameSync(join(mountpoint, "big/file-1"), join(mountpoint, "moved"));
    truncateSync(join(mountpoint, "big/file-999"), 100_000);
    writeFileSync(join(mountpoint, "filler"), Buffer.alloc(30 * MiB, 7));
    rmSync(join(mountpoint, "big/file-3"));
  }
  fsckExt4(path);
  await checkFile(path);
});

test("resize2fs grows it, and what was there stays", async () => {
  using folder = temporaryFolder("headstart-ext4-");
  const mountpoint = join(folder.path, "mnt");
  mkdirSync(mountpoint);
  const path = join(folder.path, "image");
  const layout = await writeTree(path, randomTree(5, { entries: 200, xattrBytes: 3000 }), { size: 1 * GiB });
  assert.equal(layout.geometry.journal.end - layout.geometry.journal.start, 16_384);
  execFileSync("resize2fs", [path, "20G"], { stdio: "ignore" });
  prove(path, mountpoint, layout);
  await checkFile(path);
});

test("the same tree gives the same bytes, whatever the pieces in which contents come", async () => {
  const layout = () => layoutExt4(randomTree(11, { entries: 300, xattrBytes: 3000 }), ext4Options());
  const whole = await imageBytes(layout(), async ({ address, length }) =>
    fillFromAddress(new Uint8Array(length), address),
  );
  const drops = await imageBytes(layout(), async function* ({ address, length }) {
    for (let at = 0; at < length; at += 777) {
      yield fillFromAddress(new Uint8Array(Math.min(777, length - at)), address + at);
    }
  });
  assert.equal(Buffer.compare(whole, drops), 0);
});

test("writes ascend, are whole blocks, do not overlap and never cross a multiple of 1 MiB; contents are asked for in that order", async () => {
  const tree = randomTree(12, { entries: 500, xattrBytes: 3000 });
  const inodes = Array.from({ length: 100 }, (_, index) => tree.inodeCount - 1 - index);
  const layout = layoutExt4(tree, ext4Options({ regions: [{ inodes }] }));
  const asked: number[] = [];
  let end = 0;
  await writeExt4(
    layout,
    (segment) => {
      if (asked.at(-1) !== segment.inode) asked.push(segment.inode);
      return addressContent(segment);
    },
    {
      write(offset, { byteLength }) {
        assert.equal(offset % 4096, 0);
        assert.equal(byteLength % 4096, 0);
        assert.equal(Math.floor(offset / MiB), Math.floor((offset + byteLength - 1) / MiB));
        assert.equal(offset >= end, true);
        end = offset + byteLength;
      },
    },
  );
  const listed = asked.filter((inode) => inodes.includes(inode));
  assert.deepEqual(asked.slice(-listed.length), listed);
  assert.deepEqual(
    listed,
    inodes.filter((inode) => listed.includes(inode)),
  );
});

/** Layers under directories of their own; each region holds a layer's inodes. */
function layered(layers: Readonly<Record<string, number>>): { tree: FileTree; regions: Map<string, number[]> } {
  const regions = new Map<string, number[]>();
  const tree = treeOf((builder) => {
    for (const [name, files] of Object.entries(layers)) {
      const directory = builder.addInode({ ...PLAIN, type: FileType.directory });
      builder.addName(0, text(name), directory);
      const own = [directory];
      for (let index = 0; index < files; index++) {
        const size = 5000 + index;
        const segments = [{ fileOffset: 0, length: size, address: name.charCodeAt(0) * 2 ** 30 + index * 16_384 }];
        const inode = builder.addInode({ ...PLAIN, type: FileType.regular, size, segments });
        builder.addName(directory, text(`file-${index}`), inode);
        own.push(inode);
      }
      regions.set(name, own);
    }
  });
  return { tree, regions };
}

test("a layer that is given its former place lands on the same 512 KiB blocks, whatever became of the others", async () => {
  using folder = temporaryFolder("headstart-ext4-");
  const path = join(folder.path, "image");
  const size = 48 * MiB;
  const inodesPerGroup = 8192;
  const before = layered({ a: 300, b: 400, c: 1200, d: 10 });
  const first = layoutExt4(
    before.tree,
    ext4Options({ size, inodesPerGroup, regions: [...before.regions.values()].map((inodes) => ({ inodes })) }),
  );
  const placeOf = new Map([...before.regions.keys()].map((name, index) => [name, first.regions[index + 1]!.place]));
  // b is gone, c and d stay, a has grown into something else, e is new
  const after = layered({ A: 600, c: 1200, d: 10, e: 20 });
  const second = layoutExt4(
    after.tree,
    ext4Options({
      size,
      inodesPerGroup,
      restPlace: first.regions[0]!.place,
      regions: [...after.regions].map(([name, inodes]) => ({ inodes, place: placeOf.get(name) })),
    }),
  );
  await writeLayout(path, second);
  fsckExt4(path);
  const [old, fresh] = [await imageBytes(first), await imageBytes(second)];
  for (const name of ["c", "d"]) {
    const { startBlock, blockCount, firstInode, inodeCount } = placeOf.get(name)!;
    assert.equal(startBlock % 128, 0);
    const range = [startBlock * 4096, (startBlock + blockCount) * 4096] as const;
    assert.equal(Buffer.compare(old.subarray(...range), fresh.subarray(...range)), 0, name);
    const table = first.geometry.inodeTables[0]! * 4096 + (firstInode - 1) * 256;
    const inodes = [table, table + inodeCount * 256] as const;
    assert.equal(Buffer.compare(old.subarray(...inodes), fresh.subarray(...inodes)), 0, `${name}: inodes`);
  }
  // e fits where b was
  assert.equal(second.regions[4]!.place.startBlock < placeOf.get("c")!.startBlock, true);
});

test("an unchanged tree with the former places gives the same bytes", async () => {
  const { tree, regions } = layered({ a: 30, b: 40 });
  const requests = [...regions.values()].map((inodes) => ({ inodes }));
  const first = layoutExt4(tree, ext4Options({ regions: requests }));
  const second = layoutExt4(
    tree,
    ext4Options({
      size: first.size,
      restPlace: first.regions[0]!.place,
      regions: requests.map((request, index) => ({ ...request, place: first.regions[index + 1]!.place })),
    }),
  );
  assert.equal(Buffer.compare(await imageBytes(first), await imageBytes(second)), 0);
});

test("what ext4 cannot hold is refused with its path", () => {
  const refused = (code: ErrorCode, words: RegExp, make: () => unknown) =>
    assert.throws(make, (error) => isHeadstartError(error, code) && words.test(error.message));
  const limit = (words: RegExp, fields: Partial<InodeFields>) =>
    refused("HS_EXT4_LIMIT", words, () => layoutExt4(treeWith(fields), ext4Options()));
  limit(/"\/x": device 4096:0/, { type: FileType.char, rdevMajor: 4096 });
  limit(/"\/x": device 1:1048576/, { type: FileType.block, rdevMajor: 1, rdevMinor: 2 ** 20 });
  limit(/"\/x": its xattrs take/, { xattrs: [{ name: text("user.a"), value: Buffer.alloc(4050) }] });
  limit(/"\/x": ext4 has no place/, { xattrs: [{ name: text("os2.a"), value: text("v") }] });
  limit(/"\/x": system.posix_acl_access/, {
    xattrs: [{ name: text("system.posix_acl_access"), value: Buffer.alloc(7) }],
  });
  limit(/"\/x": a link target of 4096 bytes/, { type: FileType.symlink, target: Buffer.alloc(4096, 0x61) });
  limit(/"\/x": the time/, { mtimeSeconds: 2 ** 34 });
  limit(/"\/x": 17592186044416 bytes/, { size: 2 ** 44 });
});

test("too many hard links, and a file called lost+found, are refused", () => {
  const links = treeOf((builder) => {
    const inode = builder.addInode({ ...PLAIN, type: FileType.regular });
    for (let index = 0; index < 65_001; index++) builder.addName(0, text(`${index}`), inode);
  });
  assert.throws(() => layoutExt4(links, ext4Options()), /HS_EXT4_LIMIT.*65001 hard links/);
  assert.throws(() => layoutExt4(treeWith({}, text("lost+found")), ext4Options()), /HS_EXT4_LIMIT.*lost\+found/);
});

test("a directory of more sub-directories than a link count holds says 1", () => {
  const tree = treeOf((builder) => {
    for (let index = 0; index < 65_000; index++) {
      builder.addName(0, text(`${index}`), builder.addInode({ ...PLAIN, type: FileType.directory }));
    }
  });
  assert.equal(layoutExt4(tree, ext4Options()).linksOf[0], 1);
});

test("a tree that does not fit its size is refused before anything is written", () => {
  const tree = treeOf((builder, file) => {
    builder.addName(0, text("x"), builder.addInode({ ...PLAIN, type: FileType.regular, ...file(20 * MiB) }));
  });
  for (const size of [4096, 20 * MiB, 2 ** 50]) {
    assert.throws(
      () => layoutExt4(tree, ext4Options({ size })),
      (error) => isHeadstartError(error, "HS_EXT4_FULL"),
    );
  }
  assert.throws(() => layoutExt4(tree, ext4Options({ size: 20 * MiB })), /the least is \d+ \(2[3-9] MiB\)/);
  const layout = layoutExt4(tree, ext4Options({ size: { free: 5 * MiB, unit: MiB } }));
  assert.equal(layout.size % MiB, 0);
  assert.equal(layout.size < 32 * MiB, true);
});

test("contents that are shorter or longer than their segment are refused with the path", async () => {
  const layout = layoutExt4(
    treeWith({ size: 10, segments: [{ fileOffset: 0, length: 10, address: 1 }] }),
    ext4Options(),
  );
  for (const length of [9, 11]) {
    await assert.rejects(
      imageBytes(layout, () => new Uint8Array(length)),
      (error) => isHeadstartError(error, "HS_SIZE_MISMATCH") && /"\/x"/.test(error.message),
    );
  }
});

test("what source and sink throw comes out", async () => {
  const layout = layoutExt4(randomTree(3, { entries: 100, xattrBytes: 3000 }), ext4Options());
  const source = new Error("source");
  await assert.rejects(
    imageBytes(layout, () => {
      throw source;
    }),
    source,
  );
  const sink = new Error("sink");
  await assert.rejects(writeExt4(layout, addressContent, { write: () => Promise.reject(sink) }), sink);
  const signal = AbortSignal.abort();
  await assert.rejects(writeExt4(layout, addressContent, { write: () => undefined }, { signal }), {
    name: "AbortError",
  });
});

test("no write is under way any more when a failure comes out", async () => {
  const tree = treeOf((builder, file) => {
    builder.addName(0, text("x"), builder.addInode({ ...PLAIN, type: FileType.regular, ...file(5 * MiB) }));
  });
  let underWay = 0;
  const writing = writeExt4(
    layoutExt4(tree, ext4Options()),
    function* () {
      yield new Uint8Array(4 * MiB);
      throw new Error("cut");
    },
    {
      async write() {
        underWay++;
        await new Promise((resolve) => setTimeout(resolve, 20));
        underWay--;
      },
    },
  );
  await assert.rejects(writing, /cut/);
  assert.equal(underWay, 0);
});
