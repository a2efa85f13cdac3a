import assert from "node:assert/strict";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { temporaryFolder } from "../../../test/tools/erofs-image.ts";
import { ext4Options, fsckExt4, imageBytes, MiB } from "../../../test/tools/ext4-image.ts";
import { crc32c } from "../../base/crc32c.ts";
import { isHeadstartError } from "../../base/errors.ts";
import { FileTreeBuilder, FileType, type InodeFields } from "../../erofs/file-tree.ts";
import { bytesSource } from "../../erofs/source.ts";
import { checkExt4 } from "./check.ts";
import { descriptorChecksum, inodeChecksum, inodeSeed, superblockChecksum, viewOf, xattrChecksum } from "./checksum.ts";
import { type Ext4Layout, layoutExt4 } from "./layout.ts";
import { BLOCK, ext4_group_desc, ext4_inode, ext4_super_block, INODE_SIZE } from "./ondisk.ts";
import { openExt4 } from "./read.ts";

const PLAIN = { mode: 0o755, uid: 0, gid: 0, mtimeSeconds: 1_700_000_000, mtimeNanoseconds: 0 };

/** Two files, a directory with a sub-directory, two inodes on one xattr block. */
function makeLayout(): Ext4Layout {
  const builder = new FileTreeBuilder(PLAIN);
  const add = (directory: number, name: string, fields: Partial<InodeFields>) => {
    const inode = builder.addInode({ ...PLAIN, type: FileType.regular, ...fields });
    builder.addName(directory, Buffer.from(name), inode);
    return inode;
  };
  const xattrs = [{ name: Buffer.from("user.big"), value: Buffer.alloc(200, 1) }];
  for (const name of ["a", "b"]) {
    add(0, name, { size: 9000, segments: [{ fileOffset: 0, length: 9000, address: name.charCodeAt(0) }], xattrs });
  }
  add(add(0, "d", { type: FileType.directory }), "e", { type: FileType.directory });
  return layoutExt4(builder.finish(), ext4Options({ size: 8 * MiB, growthCeiling: 64 * 1024 * MiB }));
}

/** An image that is changed, with every checksum repaired: only the meaning is wrong. */
class Patient {
  readonly layout = makeLayout();
  readonly image: Uint8Array;
  readonly seed: number;

  private constructor(image: Uint8Array) {
    this.image = image;
    this.seed = crc32c(this.layout.options.uuid);
  }

  static async make(): Promise<Patient> {
    return new Patient(await imageBytes(makeLayout()));
  }

  inode(number: number, change: (view: DataView, at: typeof ext4_inode.offsets) => void): void {
    const start = this.layout.geometry.inodeTables[0]! * BLOCK + (number - 1) * INODE_SIZE;
    const bytes = this.image.subarray(start, start + INODE_SIZE);
    const view = viewOf(bytes);
    change(view, ext4_inode.offsets);
    const sum = inodeChecksum(inodeSeed(this.seed, number, 0), bytes);
    view.setUint16(ext4_inode.offsets.i_checksum_lo, sum & 0xffff, true);
    view.setUint16(ext4_inode.offsets.i_checksum_hi, sum >>> 16, true);
  }

  group(change: (view: DataView, at: typeof ext4_group_desc.offsets) => void): void {
    const bytes = this.image.subarray(BLOCK, BLOCK + 64);
    const view = viewOf(bytes);
    change(view, ext4_group_desc.offsets);
    view.setUint16(ext4_group_desc.offsets.bg_checksum, descriptorChecksum(this.seed, 0, bytes), true);
  }

  superblock(change: (view: DataView, at: typeof ext4_super_block.offsets) => void): void {
    const bytes = this.image.subarray(1024, 2048);
    const view = viewOf(bytes);
    change(view, ext4_super_block.offsets);
    view.setUint32(ext4_super_block.offsets.s_checksum, superblockChecksum(bytes), true);
  }

  bitmap(kind: "block" | "inode", index: number): void {
    const { geometry } = this.layout;
    const start = (kind === "block" ? geometry.blockBitmaps : geometry.inodeBitmaps)[0]! * BLOCK;
    this.image[start + (index >> 3)]! ^= 1 << (index & 7);
    const length = kind === "block" ? BLOCK : geometry.inodesPerGroup / 8;
    const sum = crc32c(this.image.subarray(start, start + length), this.seed);
    this.group((view, at) => {
      view.setUint16(at[`bg_${kind}_bitmap_csum_lo`], sum & 0xffff, true);
      view.setUint16(at[`bg_${kind}_bitmap_csum_hi`], sum >>> 16, true);
    });
  }
}

const CASES: Readonly<Record<string, { words: RegExp; harm: (patient: Patient) => void }>> = {
  "a link count of a file": {
    words: /2 links are stored, 1 names/,
    harm: (patient) =>
      patient.inode(patient.layout.inodeOf[1]!, (view, at) => view.setUint16(at.i_links_count, 2, true)),
  },
  "a link count of a directory": {
    words: /links are stored/,
    harm: (patient) => patient.inode(2, (view, at) => view.setUint16(at.i_links_count, 9, true)),
  },
  "a count of sectors": {
    words: /sectors are stored/,
    harm: (patient) => patient.inode(patient.layout.inodeOf[2]!, (view, at) => view.setUint32(at.i_blocks_lo, 8, true)),
  },
  "two files on one block": {
    words: /is used twice/,
    harm: (patient) => {
      const { physical } = patient.layout.extentsOf(1)[0]!;
      patient.inode(patient.layout.inodeOf[2]!, (view, at) => view.setUint32(at.i_block + 20, physical, true));
    },
  },
  "a file on the inode table": {
    words: /is used twice/,
    harm: (patient) =>
      patient.inode(patient.layout.inodeOf[2]!, (view, at) =>
        view.setUint32(at.i_block + 20, patient.layout.geometry.inodeTables[0]!, true),
      ),
  },
  "a used block that the bitmap calls free": {
    words: /block bitmap of group 0/,
    harm: (patient) => patient.bitmap("block", patient.layout.extentsOf(1)[0]!.physical),
  },
  "a free block that the bitmap calls used": {
    words: /block bitmap of group 0/,
    harm: (patient) => patient.bitmap("block", 2000),
  },
  "an inode that no name leads to": {
    words: /inode bitmap of group 0/,
    harm: (patient) => patient.bitmap("inode", 100),
  },
  "a count of free blocks": {
    words: /free blocks/,
    harm: (patient) => patient.group((view, at) => view.setUint16(at.bg_free_blocks_count_lo, 1, true)),
  },
  "a count of directories": {
    words: /directories/,
    harm: (patient) => patient.group((view, at) => view.setUint16(at.bg_used_dirs_count_lo, 1, true)),
  },
  "the superblock's count of free inodes": {
    words: /free inodes/,
    harm: (patient) => patient.superblock((view, at) => view.setUint32(at.s_free_inodes_count, 1, true)),
  },
  "a reference count of an xattr block": {
    words: /used by 2 inodes, says 3/,
    harm: (patient) => {
      const { block } = patient.layout.regions[0]!.xattrBlocks[0]!;
      const bytes = patient.image.subarray(block * BLOCK, (block + 1) * BLOCK);
      viewOf(bytes).setUint32(4, 3, true);
      viewOf(bytes).setUint32(16, xattrChecksum(patient.seed, block, bytes), true);
    },
  },
  "a reserved descriptor block that points elsewhere": {
    words: /reserved block/,
    harm: (patient) => {
      const start = patient.layout.geometry.resizeBlock * BLOCK;
      viewOf(patient.image).setUint32(start + patient.layout.geometry.descBlocks * 4, 77, true);
    },
  },
};

test("damage with repaired checksums is found by its meaning, as by e2fsck", async () => {
  using folder = temporaryFolder("headstart-ext4-");
  const path = join(folder.path, "image");
  const sound = await Patient.make();
  checkExt4(openExt4(bytesSource(sound.image)));
  writeFileSync(path, sound.image);
  fsckExt4(path);
  for (const [name, { words, harm }] of Object.entries(CASES)) {
    const patient = await Patient.make();
    harm(patient);
    assert.throws(
      () => checkExt4(openExt4(bytesSource(patient.image))),
      (error) => isHeadstartError(error, "HS_EXT4_INVALID") && words.test(error.message),
      name,
    );
    // e2fsck takes the superblock's own counts for hints
    if (name.startsWith("the superblock's")) continue;
    writeFileSync(path, patient.image);
    assert.throws(() => fsckExt4(path), name);
  }
});
