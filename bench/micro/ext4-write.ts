/**
 * An ext4 file system of 20 000 files (20 KB on average) and some large ones, about 1 GB, written to a file, against writing the same bytes to a file with no
 * file system around them. Rounds of the two alternate. Then layout and memory of 100 000 files, contents left out.
 */

import { mkdtempSync, rmSync } from "node:fs";
import { type FileHandle, open } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type FileTree, FileTreeBuilder, FileType } from "../../src/erofs/file-tree.ts";
import { fdSource } from "../../src/erofs/source.ts";
import { checkExt4 } from "../../src/volume/ext4/check.ts";
import { type Ext4Options, layoutExt4 } from "../../src/volume/ext4/layout.ts";
import { openExt4 } from "../../src/volume/ext4/read.ts";
import { type ContentSegment, fileSink, writeExt4 } from "../../src/volume/ext4/write.ts";
import { type BenchCase, percentile, type Report } from "../case.ts";

const MiB = 2 ** 20;
const PIECE = new Uint8Array(64 * 1024).fill(0x5a);
const ROUNDS = 5;
const PLAIN = { mode: 0o644, uid: 0, gid: 0, mtimeSeconds: 1_700_000_000, mtimeNanoseconds: 0 };
const LABEL = Buffer.from("system_u:object_r:cache_t:s0\0");
const OPTIONS: Ext4Options = {
  size: { free: 0, unit: MiB },
  uuid: new Uint8Array(16).fill(1),
  hashSeed: new Uint8Array(16).fill(2),
  time: PLAIN.mtimeSeconds,
};

function makeTree(files: number, large: number): FileTree {
  const builder = new FileTreeBuilder({ ...PLAIN, mode: 0o755 });
  const directories = [0];
  const add = (directory: number, name: string, size: number) => {
    const inode = builder.addInode({
      ...PLAIN,
      type: FileType.regular,
      size,
      segments: size > 0 ? [{ fileOffset: 0, length: size, address: 0 }] : [],
      xattrs: [{ name: Buffer.from("security.selinux"), value: LABEL }],
    });
    builder.addName(directory, Buffer.from(name), inode);
  };
  for (let index = 0; index < files / 20; index++) {
    const inode = builder.addInode({ ...PLAIN, mode: 0o755, type: FileType.directory });
    builder.addName(directories[Math.floor(index / 8)]!, Buffer.from(`directory-${index}`), inode);
    directories.push(inode);
  }
  for (let index = 0; index < files; index++) {
    add(directories[index % directories.length]!, `file-${index}`, (index * 7919) % 40_000);
  }
  for (let index = 0; index < large; index++) add(0, `large-${index}`, 64 * MiB);
  return builder.finish();
}

function* content({ length }: Pick<ContentSegment, "length">): Generator<Uint8Array> {
  for (let done = 0; done < length; done += PIECE.byteLength) {
    yield length - done >= PIECE.byteLength ? PIECE : PIECE.subarray(0, length - done);
  }
}

async function timed(path: string, work: (file: FileHandle) => Promise<void>): Promise<number> {
  rmSync(path, { force: true });
  await using file = await open(path, "w");
  const start = performance.now();
  await work(file);
  return performance.now() - start;
}

async function measureWrite(report: Report): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), "headstart-bench-"));
  try {
    const tree = makeTree(20_000, 10);
    const bytes = tree.size.reduce((sum, size) => sum + size, 0);
    const path = join(folder, "image");
    const ours: number[] = [];
    const plain: number[] = [];
    const buffer = new Uint8Array(MiB).fill(0x5a);
    for (let round = 0; round < ROUNDS; round++) {
      plain.push(
        await timed(path, async (file) => {
          for (let at = 0; at < bytes; at += MiB) await file.write(buffer, 0, Math.min(MiB, bytes - at), at);
        }),
      );
      ours.push(
        await timed(path, async (file) => {
          const layout = layoutExt4(tree, OPTIONS);
          await file.truncate(layout.size);
          await writeExt4(layout, content, fileSink(file));
        }),
      );
    }
    const rate = (times: number[]) => bytes / 1e3 / percentile(times, 0.5);
    report("contents", bytes / 1e6, "MB");
    report("ext4, layout included", rate(ours), "MB/s");
    report("the same bytes alone", rate(plain), "MB/s");
    report("ratio", percentile(ours, 0.5) / percentile(plain, 0.5), "x");
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

async function measureMany(report: Report): Promise<void> {
  const tree = makeTree(100_000, 280);
  globalThis.gc?.();
  const before = process.memoryUsage().rss;
  const start = performance.now();
  const layout = layoutExt4(tree, OPTIONS);
  const laidOut = performance.now();
  let bytes = 0;
  let peak = 0;
  await writeExt4(layout, content, {
    write(_offset, piece) {
      bytes += piece.byteLength;
      peak = Math.max(peak, process.memoryUsage.rss());
    },
  });
  const end = performance.now();
  report("inodes", tree.inodeCount, "inodes");
  report("image", layout.size / 2 ** 30, "GiB");
  report("layout", laidOut - start, "ms");
  report("emit into nothing", bytes / 1e3 / (end - laidOut), "MB/s");
  report("peak memory", peak / MiB, "MiB");
  report("before, with the tree", before / MiB, "MiB");
}

async function measureRead(report: Report): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), "headstart-bench-"));
  try {
    const tree = makeTree(20_000, 0);
    await using file = await open(join(folder, "image"), "w+");
    const layout = layoutExt4(tree, OPTIONS);
    await file.truncate(layout.size);
    await writeExt4(layout, content, fileSink(file));
    const reader = openExt4(fdSource(file.fd));
    const start = performance.now();
    reader.toFileTree();
    const read = performance.now();
    checkExt4(reader);
    report("into a FileTree", read - start, "ms");
    report("checkExt4", performance.now() - read, "ms");
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

export const EXT4_CASES: readonly BenchCase[] = [
  { name: "ext4.write", about: "1 GB in 21 000 inodes as ext4, against the bytes alone", run: measureWrite },
  { name: "ext4.many", about: "20 GB in 105 000 inodes: layout, emission, memory", run: measureMany },
  { name: "ext4.read", about: "21 000 inodes read back and checked", run: measureRead },
];
