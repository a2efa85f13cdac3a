/** Random trees whose data are scattered over several devices, as those of images over data files are. */

import type { ErofsDevice } from "../../src/erofs/chunks.ts";
import { ADDRESS_SPACE, type FileTree, FileType } from "../../src/erofs/file-tree.ts";
import { randomTree, seeded } from "./random-tree.ts";

/**
 * A random tree whose files lie in chunks of one size (by seed), each in any of `spaces` address spaces or in none (a hole), neighbours often together. No file uses
 * space 1: its device is null.
 */
export function deviceTree(
  seed: number,
  options: { entries: number; spaces?: number },
): { tree: FileTree; devices: (ErofsDevice | null)[] } {
  const tree = randomTree(seed, options);
  const spaces = options.spaces ?? 4;
  const random = seeded(seed + 1000);
  const chunkSize = 4096 << random.below(4);
  const ends = new Array<number>(spaces).fill(4096 * random.below(3));
  const start = new Uint32Array(tree.inodeCount + 1);
  const fileOffset: number[] = [];
  const length: number[] = [];
  const address: number[] = [];
  for (let inode = 0; inode < tree.inodeCount; inode++) {
    start[inode] = address.length;
    if (tree.type[inode] !== FileType.regular) continue;
    let space = 0;
    for (let offset = 0; offset < tree.size[inode]!; offset += chunkSize) {
      if (random.chance(0.4)) space = random.pick([...Array(spaces).keys()].filter((each) => each !== 1));
      if (random.chance(0.15)) continue;
      // apart from the one before, now and then
      if (random.chance(0.3)) ends[space]! += 4096 * (1 + random.below(5));
      fileOffset.push(offset);
      length.push(Math.min(chunkSize, tree.size[inode]! - offset));
      address.push(space * ADDRESS_SPACE + ends[space]!);
      ends[space]! += Math.ceil(length.at(-1)! / 4096) * 4096;
    }
  }
  start[tree.inodeCount] = address.length;
  return {
    tree: {
      ...tree,
      segmentStart: start,
      segmentFileOffset: Float64Array.from(fileOffset),
      segmentLength: Float64Array.from(length),
      segmentAddress: Float64Array.from(address),
    },
    devices: ends.map((end, space) => (space === 1 ? null : { tag: `device${space}`, size: end + 4096 })),
  };
}
