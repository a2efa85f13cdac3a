/**
 * A tree of 100 000 entries (5 000 directories, 95 000 files of 4.5 KB on average) laid out and emitted, read back and checked. The first run of a case counts most in practice (a layer is laid
 * out once, with cold code), so it is shown beside the median.
 */

import { checkErofs } from "../../src/erofs/check.ts";
import { type FileTree, FileTreeBuilder, FileType } from "../../src/erofs/file-tree.ts";
import { openErofs } from "../../src/erofs/read.ts";
import { layoutSource } from "../../src/erofs/source.ts";
import { type ErofsLayout, layoutEager, layoutLazy } from "../../src/erofs/write.ts";
import { type BenchCase, percentile, type Report } from "../case.ts";

const ENTRIES = 100_000;
const DIRECTORIES = 5_000;
const ROUNDS = 7;
const PLAIN = { mode: 0o755, uid: 0, gid: 0, mtimeSeconds: 1_700_000_000, mtimeNanoseconds: 0 };
const CAPABILITY = Buffer.from("0100000200200000000000000000000000000000", "hex");

function makeBuilder(): FileTreeBuilder {
  const builder = new FileTreeBuilder(PLAIN);
  const directories = [0];
  for (let index = 0; index < DIRECTORIES; index++) {
    const inode = builder.addInode({ ...PLAIN, type: FileType.directory });
    builder.addName(directories[Math.floor(index / 8)]!, Buffer.from(`directory-${index}`), inode);
    directories.push(inode);
  }
  let address = 512;
  for (let index = DIRECTORIES + 1; index < ENTRIES; index++) {
    const size = (index * 7919) % 9000;
    const inode = builder.addInode({
      ...PLAIN,
      type: FileType.regular,
      // a third each: the commonest time is the epoch
      mtimeSeconds: PLAIN.mtimeSeconds + (index % 3),
      size,
      segments: size > 0 ? [{ fileOffset: 0, length: size, address }] : [],
      xattrs: index % 50 === 0 ? [{ name: Buffer.from("security.capability"), value: CAPABILITY }] : [],
    });
    address += 512 + Math.ceil(size / 512) * 512;
    builder.addName(directories[index % directories.length]!, Buffer.from(`file-${index}.txt`), inode);
  }
  return builder;
}

function placesInOrder(tree: FileTree): { places: Float64Array; end: number } {
  const places = new Float64Array(tree.inodeCount).fill(-1);
  let end = 4096;
  for (let inode = 0; inode < tree.inodeCount; inode++) {
    if (tree.type[inode] !== FileType.regular || tree.size[inode] === 0) continue;
    places[inode] = end;
    end += Math.ceil(tree.size[inode]! / 4096) * 4096;
  }
  return { places, end };
}

interface Work {
  readonly tree: FileTree;
  readonly builder: FileTreeBuilder;
  readonly layout: () => ErofsLayout;
}

const UUID = new Uint8Array(16);

function eager(tree: FileTree): void {
  const { places, end } = placesInOrder(tree);
  layoutEager(tree, places, end, { uuid: UUID });
}

const WORKS: Readonly<Record<string, readonly [string, (work: Work) => void]>> = {
  "erofs.finish": ["FileTreeBuilder.finish", ({ builder }) => builder.finish()],
  "erofs.layout-lazy": ["layoutLazy, metadata first", ({ tree }) => layoutLazy(tree, { uuid: UUID })],
  "erofs.layout-eager": ["layoutEager, metadata last", ({ tree }) => eager(tree)],
  "erofs.check": ["checkErofs", ({ layout }) => checkErofs(openErofs(layoutSource(layout())))],
  "erofs.read": ["reading it back into a FileTree", ({ layout }) => openErofs(layoutSource(layout())).toFileTree()],
};

function measure(report: Report, work: (work: Work) => void): void {
  const tree = makeBuilder().finish();
  let written: ErofsLayout | undefined;
  /** Made when first needed, so that the case of layoutLazy itself starts cold. */
  const layout = () => {
    written ??= layoutLazy(tree, { uuid: UUID });
    return written;
  };
  const times = Array.from({ length: ROUNDS }, () => {
    const builder = makeBuilder();
    const start = performance.now();
    work({ tree, builder, layout });
    return performance.now() - start;
  });
  report("first, with cold code", times[0]!, "ms");
  report("median", percentile(times, 0.5), "ms");
  report("metadata", layout().dataStart / 2 ** 20, "MiB");
}

export const EROFS_CASES: readonly BenchCase[] = Object.entries(WORKS).map(([name, [what, work]]) => ({
  name,
  about: `${what}, a tree of ${ENTRIES} entries`,
  run: (report) => measure(report, work),
}));
