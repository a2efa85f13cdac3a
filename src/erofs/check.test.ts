import assert from "node:assert/strict";
import { test } from "node:test";
import { imageBytes, mendChecksum, UUID } from "../../test/tools/erofs-bytes.ts";
import { isHeadstartError } from "../base/errors.ts";
import { checkErofs } from "./check.ts";
import { FileTreeBuilder, FileType } from "./file-tree.ts";
import { openErofs } from "./read.ts";
import { bytesSource } from "./source.ts";
import { layoutLazy } from "./write.ts";

const ROOT = { mode: 0o755, uid: 0, gid: 0, mtimeSeconds: 1_700_000_000, mtimeNanoseconds: 0 };

/** The worked example (nids: root 36, hello.txt 39 at 0x4e0, link 41 at 0x520; entries at 0x4a0; data at 0x1000). */
function example(): Uint8Array {
  const builder = new FileTreeBuilder(ROOT);
  const hello = builder.addInode({
    ...ROOT,
    type: FileType.regular,
    mode: 0o644,
    uid: 1000,
    gid: 1000,
    mtimeSeconds: 1_700_000_123,
    mtimeNanoseconds: 42,
    size: 13,
    segments: [{ fileOffset: 0, length: 13, address: 512 }],
  });
  builder.addName(0, Buffer.from("hello.txt"), hello);
  const target = Buffer.from("hello.txt");
  builder.addName(0, Buffer.from("link"), builder.addInode({ ...ROOT, type: FileType.symlink, mode: 0o777, target }));
  return imageBytes(layoutLazy(builder.finish(), { uuid: UUID }));
}

function refusal(image: Uint8Array): string | null {
  try {
    checkErofs(openErofs(bytesSource(image)));
    return null;
  } catch (error) {
    assert.ok(isHeadstartError(error, "HS_EROFS_INVALID"), String(error));
    return error.message;
  }
}

test("an image of ours passes", () => {
  assert.equal(refusal(example()), null);
});

const u16 = (at: number, value: number) => (image: Uint8Array) => new DataView(image.buffer).setUint16(at, value, true);
const u32 = (at: number, value: number) => (image: Uint8Array) => new DataView(image.buffer).setUint32(at, value, true);
const u8 = (at: number, value: number) => (image: Uint8Array) => {
  image[at] = value;
};
/** What the kernel makes of each: specs/erofs-fuse.md 6. The message must name what was changed. */
const DAMAGE: readonly (readonly [string, (image: Uint8Array) => void, RegExp])[] = [
  ["a wrong magic", u32(1024, 0xe0f5e1e3), /magic/],
  ["an unknown incompatible feature", u32(1104, 0x200), /incompatible features 0x200/],
  ["a known incompatible feature that we never write", u32(1104, 4), /incompatible features 0x4/],
  ["blocks of 256 bytes", u8(1036, 8), /blocks of 2\^8/],
  ["blocks of 8192 bytes", u8(1036, 13), /blocks of 2\^13/],
  ["directory blocks of two blocks", u8(1114, 1), /directory blocks/],
  ["a root nid that is a file", u16(1038, 39), /root/],
  ["a root nid in zeros", u16(1038, 60), /inode 60: i_mode/],
  ["no checksum", u32(1032, 2), /compatible features 0x2/],
  ["an unknown compatible feature", u32(1032, 0x43), /compatible features 0x43/],
  ["too few blocks", u32(1060, 1), /1 blocks/],
  ["too many blocks", u32(1060, 1000), /1000 blocks/],
  ["extra devices", u16(1110, 1), /extra_devices/],
  ["a wrong inode count", u32(1040, 4), /inodes/],
  ["a start block beyond the end", u32(0x4f0, 2), /outside of the image/],
  ["a start block far beyond the end", u32(0x4f0, 0xfffffffe), /outside of the image/],
  ["a file whose data lie in the metadata", u32(0x4f0, 0), /used twice/],
  ["a file without a start block", u32(0x4f0, 0xffffffff), /outside of the image/],
  [
    "entries that are not sorted",
    (image) => {
      // "hello.txt" becomes "zello.txt", which belongs behind "link"
      image[0x4d3] = 0x7a;
    },
    /out of order/,
  ],
  ["a first name offset that is no multiple of 12", u16(0x4a8, 47), /first name offset/],
  ["a first name offset of 0", u16(0x4a8, 0), /first name offset/],
  ["a name that ends before it begins", u16(0x4c0, 2), /name/],
  ["a slash in a name", u8(0x4d5, 0x2f), /named "he\/lo/],
  ["a NUL in a name", u8(0x4d5, 0), /named "he.u0000lo/],
  ["an entry whose nid points into zeros", u32(0x4b8, 70), /inode 70: i_mode/],
  ["an entry whose nid points into data", u32(0x4b8, 128), /inode 128: i_format/],
  ["an entry whose nid is outside", u32(0x4b8, 256), /inode 256: lies outside/],
  ["an entry whose nid is beyond 2^32", u32(0x4bc, 1), /2\^32/],
  ["an entry of another type than its inode", u8(0x4c2, 7), /type/],
  ["an entry of an unknown type", u8(0x4c2, 8), /type 8/],
  ['"." that is another inode', u32(0x4a0, 39), /"\." is nid 39/],
  ['".." that is another inode', u32(0x4ac, 39), /"\.\." is nid 39/],
  ["layout 7", u16(0x4e0, 0xf), /data layout 7/],
  ["layout 1, compressed", u16(0x4e0, 3), /data layout 1/],
  ["an unknown i_format bit", u16(0x4e0, 0x21), /i_format is 0x21/],
  ["i_format bit 4, for newer kernels only", u16(0x520, 0x14), /i_format is 0x14/],
  ["an xattr count of 1", u16(0x4e2, 1), /without entries/],
  ["xattrs that reach out of the image", u16(0x4e2, 0xffff), /outside of the image/],
  ["a symlink of 5000 bytes", u32(0x528, 5000), /5000/],
  ["a symlink whose tail crosses the block", u32(0x528, 4000), /crosses a block/],
  ["a NUL in a link target", u8(0x542, 0), /NUL/],
  ["a directory whose tail crosses the block", u32(0x488, 3000), /crosses a block/],
  ["a file of 2^63 bytes", u32(0x4ec, 0x80000000), /i_size/],
  ["fewer links than names", u32(0x4e0 + 44, 0), /nlink is 0/],
  ["a wrong nlink of a directory", u16(0x486, 3), /nlink is 3/],
  ["nanoseconds beyond a second", u32(0x4e0 + 40, 1_000_000_000), /time/],
  ["another i_ino", u32(0x4f4, 40), /i_ino/],
  ["reserved bytes that are set", u32(0x510, 1), /reserved/],
  ["a time that older kernels ignore", u32(0x48c, 1), /reserved/],
  ["an owner of 4294967295", u32(0x4f8, 0xffffffff), /owner/],
];

for (const [name, change, message] of DAMAGE) {
  test(`${name} is refused`, () => {
    const image = example();
    change(image);
    mendChecksum(image);
    assert.match(refusal(image) ?? "accepted", message);
  });
}

test("a wrong checksum is refused", () => {
  const image = example();
  image[0x500] = 1;
  assert.match(refusal(image) ?? "accepted", /checksum/);
});

test("a file that is cut short is refused, wherever it is cut", () => {
  for (const size of [0, 1024, 4000, 4096, 4109, 8191]) {
    assert.notEqual(refusal(example().subarray(0, size)), null, `${size} bytes`);
  }
});

test("two inodes may share one whole extent, and nothing else may overlap", () => {
  const build = () => {
    const builder = new FileTreeBuilder(ROOT);
    for (const name of ["a", "b"]) {
      const segments = [{ fileOffset: 0, length: 9000, address: name === "a" ? 512 : 16_384 }];
      const inode = builder.addInode({ ...ROOT, type: FileType.regular, size: 9000, segments });
      builder.addName(0, Buffer.from(name), inode);
    }
    const layout = layoutLazy(builder.finish(), { uuid: UUID });
    return { image: imageBytes(layout), startOfB: layout.nidOf[2]! * 32 + 16 };
  };
  const shared = build();
  u32(shared.startOfB, 1)(shared.image);
  mendChecksum(shared.image);
  assert.equal(refusal(shared.image), null);
  const shifted = build();
  u32(shifted.startOfB, 2)(shifted.image);
  mendChecksum(shifted.image);
  assert.match(refusal(shifted.image) ?? "accepted", /used twice/);
});

test("a name filter that would hide an xattr is refused", () => {
  const builder = new FileTreeBuilder({
    ...ROOT,
    xattrs: [{ name: Buffer.from("trusted.overlay.opaque"), value: Buffer.from("y") }],
  });
  const image = imageBytes(layoutLazy(builder.finish(), { uuid: UUID }));
  assert.equal(refusal(image), null);
  u32(1152 + 32, 0xffffffff)(image);
  mendChecksum(image);
  assert.match(refusal(image) ?? "accepted", /filter/);
});
