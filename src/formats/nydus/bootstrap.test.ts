/** Bootstraps that are not sound: each ends in a typed error (specs/nydus.md 4). */

import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { nydusBootstrap } from "../../../test/suites/golden-nydus.ts";
import { HeadstartError, isHeadstartError } from "../../base/errors.ts";
import { readBootstrap, sniffBootstrap } from "./bootstrap.ts";

const SUPER = 1024;
const EXT = 1152;
const DEVICES = 1408;
const BLOBS = 4096;
const CHUNKS = 61_440;
const META = 8192;
/** nid 128, its entries inline behind it: ".", "..", "bin" (a directory), "box". */
const ROOT = META + 128 * 32;
const ROOT_ENTRIES = ROOT + 64;
/** /bin/cap, a file with an xattr and one chunk. */
const FILE = META + 146 * 32;

const v6 = nydusBootstrap("v6-zstd-1m");
const v5 = nydusBootstrap("v5-zstd-1m");

type Patch = (bytes: Buffer<ArrayBuffer>) => Buffer<ArrayBuffer> | undefined;
const u8 =
  (at: number, value: number): Patch =>
  (bytes) =>
    void bytes.writeUInt8(value, at);
const u16 =
  (at: number, value: number): Patch =>
  (bytes) =>
    void bytes.writeUInt16LE(value, at);
const u32 =
  (at: number, value: number): Patch =>
  (bytes) =>
    void bytes.writeUInt32LE(value, at);
const u64 =
  (at: number, value: bigint): Patch =>
  (bytes) =>
    void bytes.writeBigUInt64LE(value, at);
const text =
  (at: number, value: string): Patch =>
  (bytes) =>
    void bytes.write(value, at, "latin1");

const BAD_V6: Readonly<Record<string, Patch>> = {
  "N1: a size that is no multiple of the block size": (bytes) => bytes.subarray(0, bytes.length - 512),
  "N1: too few bytes": (bytes) => bytes.subarray(0, 2048),
  "N1: the magic": u32(SUPER, 0xe0f5e1e3),
  "N1: a checksum": u32(SUPER + 4, 1),
  "N1: unknown incompat bits": u32(SUPER + 80, 0x1c),
  "N1: blocks of 1024 bytes": u8(SUPER + 12, 10),
  "N1: tarfs": u8(SUPER + 12, 9),
  "N1: extra slots": u8(SUPER + 13, 1),
  "N1: shared xattrs": u32(SUPER + 44, 1),
  "N1: no inodes": u64(SUPER + 16, 0n),
  "N2: devices beyond the image": u16(SUPER + 86, 254),
  "N2: more devices than there can be": u16(SUPER + 86, 255),
  "N2: device slots elsewhere": u16(SUPER + 88, 12),
  "N2: a device of another blob": text(DEVICES, "0".repeat(64)),
  "N2: a device without blocks": u32(DEVICES + 64, 0),
  "N3: an unaligned blob table": u64(EXT + 8, 4160n),
  "N3: a blob table outside": u64(EXT + 8, 2n ** 40n),
  "N3: half a blob": u32(EXT + 16, 768 - 128),
  "N3: fewer blobs than devices": u32(EXT + 16, 512),
  "N3: a chunk table outside": u64(EXT + 24, 2n ** 40n),
  "N3: half a chunk record": u64(EXT + 32, 27_281n),
  "N3: a chunk table over the blob table": u64(EXT + 24, 4096n),
  "N3: a size beyond 2^53": u64(EXT + 32, 2n ** 60n),
  "chunks of no power of two": u32(EXT + 20, 0x18_0000),
  "two compressors": u64(EXT, 0x82n | 0x4n),
  "N4: an index that is not the position": u32(BLOBS + 64, 1),
  "N4: another chunk size than the image's": u32(BLOBS + 68, 4096),
  "N4: too many chunks": u32(BLOBS + 72, 2 ** 24 + 1),
  "N4: an unknown compressor": u32(BLOBS + 76, 4),
  "N4: an unknown digester": u32(BLOBS + 80, 2),
  "N4: unknown features": u32(BLOBS + 84, 0x7000_1021),
  "N4: not aligned": u32(BLOBS + 84, 0x7000_0020),
  "a ref without the entries that it needs": u32(BLOBS + 84, 0x7000_0031),
  "N4: batch without the entries that it needs": u32(BLOBS + 84, 0x7000_00a1),
  "N4: more than 1 TiB stored": u64(BLOBS + 88, 2n ** 41n),
  "N4: more than 16 TiB": u64(BLOBS + 96, 2n ** 45n),
  "N5: an id with path characters": text(BLOBS, "../".padEnd(64, "a")),
  "N5: the same id twice": (bytes) => {
    bytes.copy(bytes, BLOBS + 256, BLOBS, BLOBS + 64);
    bytes.copy(bytes, DEVICES + 128, DEVICES, DEVICES + 64);
    return undefined;
  },
  "N5: an id in capitals": text(BLOBS, "A".repeat(64)),
  "N5: a bootstrap that does not know its blob": text(BLOBS, "x".repeat(64)),
  "N7: a chunk array of another size than its entries": u64(BLOBS + 128, 2n ** 30n),
  "N7: a chunk array that is larger stored": u64(BLOBS + 120, 97n),
  "an unknown cipher": u32(BLOBS + 216, 2),
  "a cipher without encryption": u32(BLOBS + 216, 1),
  "a chunk record of a blob that there is not": u32(CHUNKS + 32, 3),
  "a chunk record without bytes": u32(CHUNKS + 44, 0),
  "N18: a chunk record of another address than the tree's": u64(CHUNKS + 56, 4096n),
  "N18: a chunk record of another length than the tree's": u32(CHUNKS + 44, 12),
  "a chunk record twice": (bytes) => {
    bytes.copy(bytes, CHUNKS + 80, CHUNKS, CHUNKS + 80);
    return undefined;
  },
  "N17: the root outside": u16(SUPER + 14, 65_535),
  "N17: metadata outside": u32(SUPER + 40, 100_000),
  "N17: an unknown inode format": u16(FILE, 0x29),
  "N17: a file that is not made of chunks": u16(FILE, 1),
  "N17: a directory made of chunks": u16(ROOT, 9),
  "N17: a mode of no file": u16(FILE + 4, 0o030755),
  "N17: a size of more chunks than there is room for": u64(FILE + 8, 2n ** 50n),
  "N17: a negative size": u64(FILE + 8, 2n ** 63n),
  "N17: chunk format bits that nobody knows": u32(FILE + 16, 0x60),
  "N17: smaller chunks than the image's": u32(FILE + 16, 0x20),
  "N17: an xattr area beyond the file": u16(FILE + 2, 0xffff),
  "N17: a time out of range": u32(FILE + 40, 2 ** 30),
  "N19: a first name offset that is no multiple": u16(ROOT_ENTRIES + 8, 13),
  "N19: a name offset beyond the block": u16(ROOT_ENTRIES + 8, 0xfff0),
  "N19: another type than the inode's": u8(ROOT_ENTRIES + 24 + 10, 1),
  "N19: a nid of zero": u64(ROOT_ENTRIES + 24, 0n),
  '"." that points elsewhere': u64(ROOT_ENTRIES, 141n),
  "N20: a directory that holds the root": u64(ROOT_ENTRIES + 24, 128n),
  "N20: one directory under two names": (bytes) => {
    bytes.copy(bytes, ROOT_ENTRIES + 36, ROOT_ENTRIES + 24, ROOT_ENTRIES + 24 + 8);
    return undefined;
  },
  "N22: an unknown xattr index": u8(FILE + 64 + 12 + 1, 9),
  "N22: an xattr value beyond the area": u16(FILE + 64 + 12 + 2, 0xffff),
};

test("each bad RAFS v6 bootstrap of specs/nydus.md is refused by a typed error that says where", () => {
  for (const [name, patch] of Object.entries(BAD_V6)) {
    const copy = Buffer.from(v6);
    const bytes = patch(copy) ?? copy;
    assert.throws(
      () => readBootstrap(bytes, "here"),
      (error) => error instanceof HeadstartError && error.code !== "HS_INTERNAL" && error.message.includes("here"),
      name,
    );
  }
});

test("chunk indexes that name no device, no chunk or no address are refused", () => {
  const at = FILE + 64 + 12 + 4 * (v6.readUInt16LE(FILE + 2) - 1);
  const index = Math.ceil(at / 8) * 8;
  assert.equal(v6.readUInt32LE(index + 4), 1081, "the golden chunk index of /bin/cap");
  for (const [name, patch] of Object.entries({
    "device 0": u16(index + 2, 0),
    "a device beyond": u16(index + 2, 4),
    "a chunk beyond": u16(index, 343),
    "an address beyond": u32(index + 4, 1403),
    "an address of another chunk": u32(index + 4, 1082),
  })) {
    const bytes = Buffer.from(v6);
    patch(bytes);
    assert.throws(() => readBootstrap(bytes), { code: "HS_NYDUS_INVALID" }, name);
  }
});

test("a chunk without a record has no digest, and the tree is the same", () => {
  const bytes = Buffer.from(v6);
  u64(EXT + 24, 0n)(bytes);
  u64(EXT + 32, 0n)(bytes);
  const bootstrap = readBootstrap(bytes);
  assert.equal(bootstrap.tree.inodeCount, 388);
  assert.ok(bootstrap.uses.record.every((record) => record === -1));
});

test("a prefetch table that makes no sense is no reason to refuse an image", () => {
  for (const [at, size] of [
    [2n ** 40n, 4],
    [4096n, 4],
    [8000n, 5],
    [0n, 8],
  ] as const) {
    const bytes = Buffer.from(v6);
    u64(EXT + 40, at)(bytes);
    u32(EXT + 48, size)(bytes);
    assert.deepEqual(readBootstrap(bytes).prefetch, []);
  }
});

const BAD_V5: Readonly<Record<string, Patch>> = {
  "another version": u32(4, 0x600),
  "a superblock of another size": u32(8, 4096),
  "no compressor": u64(16, 0x14n),
  "no inodes": u32(56, 0),
  "an inode table outside": u64(32, 2n ** 40n),
  "more inodes than the table holds": u32(56, 2 ** 24),
  "a blob table outside": u64(48, 2n ** 40n),
  "a blob without an extended entry": u32(68, 2),
  "an extended entry without a blob": u32(68, 4),
  "N24: an inode outside": u32(8192 + 4, 0xffff_ffff),
  "N24: no separator behind an id": u8(9752 + 72, 1),
  "N24: an id that is none": text(9752 + 8, "../".padEnd(64, "a")),
};

test("each bad RAFS v5 bootstrap is refused by a typed error", () => {
  const root = v5.readUInt32LE(8192) * 8;
  const more: Readonly<Record<string, Patch>> = {
    ...BAD_V5,
    "N24: children beyond the table": u32(root + 96, 100_000),
    "N24: a directory that is its own child": u32(root + 92, 1),
    "N24: a root without a name": u16(root + 100, 0),
    "N24: a name that is too long": u16(root + 100, 300),
    "a root that is a file": u32(root + 60, 0o100755),
  };
  for (const [name, patch] of Object.entries(more)) {
    const bytes = Buffer.from(v5);
    patch(bytes);
    assert.throws(
      () => readBootstrap(bytes),
      (error) => isHeadstartError(error, "HS_NYDUS_INVALID", "HS_TRUNCATED", "HS_LIMIT"),
      name,
    );
  }
});

test("whatever bytes of a bootstrap change, it is read or refused by a typed error, soon", () => {
  // where the tables, the first inodes and the first names are, and anywhere
  const places = (length: number) =>
    fc.oneof(
      fc.integer({ min: SUPER, max: SUPER + 512 }),
      fc.integer({ min: BLOBS, max: BLOBS + 768 }),
      fc.integer({ min: ROOT, max: ROOT + 4096 }),
      fc.integer({ min: 0, max: length - 1 }),
    );
  for (const golden of [v6, v5]) {
    fc.assert(
      fc.property(
        fc.array(fc.tuple(places(golden.length), fc.integer({ min: 0, max: 255 })), { minLength: 1, maxLength: 8 }),
        (patches) => {
          const bytes = Buffer.from(golden);
          for (const [at, value] of patches) bytes[at] = value;
          try {
            readBootstrap(bytes);
          } catch (error) {
            if (!(error instanceof HeadstartError) || error.code === "HS_INTERNAL") throw error;
          }
        },
      ),
      { numRuns: 150 },
    );
  }
});

test("a bootstrap is told from other files by its first bytes", () => {
  assert.equal(sniffBootstrap(v6), "v6");
  assert.equal(sniffBootstrap(v5), "v5");
  assert.equal(sniffBootstrap(new Uint8Array(8192)), null);
  assert.equal(sniffBootstrap(Buffer.from("short")), null);
});
