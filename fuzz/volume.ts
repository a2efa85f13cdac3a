/** Fuzzers of volume/: disks and file systems with something wrong in them are read or refused, soon; what `checkExt4` accepts can be read whole. */

import { crc32 } from "node:zlib";
import { bytesSource } from "../src/erofs/source.ts";
import { checkExt4 } from "../src/volume/ext4/check.ts";
import { layoutExt4 } from "../src/volume/ext4/layout.ts";
import { openExt4 } from "../src/volume/ext4/read.ts";
import { BOTTLEROCKET_DATA, encodeGpt, readGpt, singlePartitionDisk } from "../src/volume/gpt.ts";
import { ext4Options, imageBytes } from "../test/tools/ext4-image.ts";
import { randomTree } from "../test/tools/random-tree.ts";
import { type Fuzzer, mutate, type Random, tolerated } from "./fuzzer.ts";

const RO_COMPAT_AT = 1024 + 0x64;
const METADATA_CSUM = 0x400;
const SECTOR = 512;

/** Half of the images have no checksums, so that values that lie get past the door. */
async function damagedExt4(random: Random): Promise<Uint8Array> {
  const tree = randomTree(random.below(2 ** 31), { entries: 1 + random.below(60), xattrBytes: 3000 });
  const layout = layoutExt4(tree, ext4Options());
  const image = await imageBytes(layout);
  const view = new DataView(image.buffer);
  if (random.below(2) === 0) view.setUint32(RO_COMPAT_AT, view.getUint32(RO_COMPAT_AT, true) & ~METADATA_CSUM, true);
  // where inodes and directories lie; contents say nothing to a reader
  const tables = layout.geometry.inodeTables[0]! * 4096;
  const directories = layout.regions[0]!.place.startBlock * 4096;
  const start = random.pick([1024, tables, directories]);
  const piece = image.subarray(start, start + 128 * 1024);
  piece.set(mutate(piece, random).subarray(0, piece.byteLength));
  return image;
}

function damagedDisk(random: Random): Uint8Array {
  const disk = singlePartitionDisk(
    random.below(64) * SECTOR + SECTOR,
    "6ba7b810-9dad-11d1-80b4-00c04fd430c8",
    BOTTLEROCKET_DATA,
  );
  const { primary, backup, backupOffset } = encodeGpt(disk);
  const image = new Uint8Array(disk.sectors * SECTOR);
  for (const [bytes, offset] of [
    [primary, 0],
    [backup, backupOffset],
  ] as const) {
    const own = random.below(2) === 0 ? bytes : mutate(bytes, random).subarray(0, bytes.byteLength);
    image.set(own, offset);
  }
  // a header checksum that fits lets the fields be looked at
  if (random.below(2) === 0) {
    const header = image.subarray(SECTOR, SECTOR + 92);
    header.fill(0, 16, 20);
    new DataView(header.buffer, header.byteOffset).setUint32(16, crc32(header), true);
  }
  return image;
}

export const VOLUME_FUZZERS: { readonly [name: string]: Fuzzer } = {
  "ext4.read": {
    async round(random) {
      const image = await damagedExt4(random);
      const sound = tolerated(() => {
        const reader = openExt4(bytesSource(image));
        checkExt4(reader);
        return reader;
      });
      tolerated(() => openExt4(bytesSource(image)).toFileTree());
      if (sound !== null) sound.toFileTree();
    },
  },
  "gpt.read": {
    round(random) {
      const image = damagedDisk(random);
      tolerated(() => readGpt(bytesSource(image)));
    },
  },
};
