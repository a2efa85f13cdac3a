/**
 * A tree of 100 000 entries (5 000 directories, 95 000 files of 4.5 KB on average) laid out and emitted, read back and checked.
 *
 *   node bench/micro/erofs-write.ts [REGEXP]
 *
 * The first run of a case counts most in practice (a layer is laid out once, with cold code), so it is shown beside the median.
 */

import { checkErofs } from "../../src/erofs/check.ts";
import { type FileTree, FileTreeBuilder, FileType } from "../../src/erofs/file-tree.ts";
import { openErofs } from "../../src/erofs/read.ts";
import { layoutSource } from "../../src/erofs/source.ts";
import { type ErofsLayout, layoutEager, layoutLazy } from "../../src/erofs/write.ts";

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

const pattern = new RegExp(process.argv[2] ?? "");
const uuid = new Uint8Array(16);
const tree = makeBuilder().finish();
const { places, end } = placesInOrder(tree);
let written: ErofsLayout | undefined;
/** Made when first needed, so that the case of layoutLazy itself starts cold. */
const lazy = () => {
  written ??= layoutLazy(tree, { uuid });
  return written;
};
const builders = Array.from({ length: ROUNDS }, makeBuilder);

const CASES: readonly (readonly [string, () => void])[] = [
  ["FileTreeBuilder.finish", () => builders.pop()!.finish()],
  ["layoutLazy", () => layoutLazy(tree, { uuid })],
  ["layoutEager", () => layoutEager(tree, places, end, { uuid })],
  ["checkErofs", () => checkErofs(openErofs(layoutSource(lazy())))],
  ["toFileTree", () => openErofs(layoutSource(lazy())).toFileTree()],
];

for (const [name, run] of CASES) {
  if (!pattern.test(name)) continue;
  const times = Array.from({ length: ROUNDS }, () => {
    const start = performance.now();
    run();
    return performance.now() - start;
  });
  const median = times.toSorted((a, b) => a - b)[Math.floor(ROUNDS / 2)]!;
  console.log(
    `${name.padEnd(24)} first ${times[0]!.toFixed(0).padStart(4)} ms, median ${median.toFixed(0).padStart(4)} ms`,
  );
}
console.log(`${tree.inodeCount} inodes, ${(lazy().dataStart / 2 ** 20).toFixed(1)} MiB of metadata`);
