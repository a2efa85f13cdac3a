import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { open } from "node:fs/promises";
import { dirname, join } from "node:path";
import { test } from "node:test";
import fc from "fast-check";
import { temporaryFolder } from "../../test/tools/erofs-image.ts";
import { isHeadstartError } from "../base/errors.ts";
import { GiB, MiB } from "../base/limits.ts";
import {
  BOTTLEROCKET_DATA,
  type DiskSource,
  encodeGpt,
  type GptDisk,
  hasGpt,
  readGpt,
  singlePartitionDisk,
} from "./gpt.ts";

const golden = (name: string) =>
  readFileSync(join(dirname(dirname(import.meta.dirname)), "test/golden/volume/gpt", name));
const DISK_GUID = "6ba7b810-9dad-11d1-80b4-00c04fd430c8";
const DISK = singlePartitionDisk(8 * GiB, DISK_GUID, BOTTLEROCKET_DATA);

/** A disk that is zero but for its tables. */
function diskOf(size: number, parts: readonly { offset: number; bytes: Uint8Array }[]): DiskSource {
  return {
    size,
    readAt(offset, length) {
      const bytes = new Uint8Array(length);
      for (const part of parts) {
        const from = Math.max(offset, part.offset);
        const to = Math.min(offset + length, part.offset + part.bytes.byteLength);
        if (from < to) bytes.set(part.bytes.subarray(from - part.offset, to - part.offset), from - offset);
      }
      return bytes;
    },
  };
}

function sourceOf(disk: GptDisk): DiskSource {
  const { primary, backup, backupOffset } = encodeGpt(disk);
  return diskOf(disk.sectors * 512, [
    { offset: 0, bytes: primary },
    { offset: backupOffset, bytes: backup },
  ]);
}

test("Bottlerocket's table is sgdisk's, byte for byte", () => {
  const { primary, backup, backupOffset } = encodeGpt(DISK);
  assert.deepEqual(Buffer.from(primary), golden("primary.bin"));
  assert.deepEqual(Buffer.from(backup), golden("backup.bin"));
  assert.equal(backupOffset + backup.byteLength, 8 * GiB + 2 * MiB);
});

test("the golden table reads as what sgdisk was asked for", () => {
  const size = 8 * GiB + 2 * MiB;
  const backup = golden("backup.bin");
  const source = diskOf(size, [
    { offset: 0, bytes: golden("primary.bin") },
    { offset: size - backup.byteLength, bytes: backup },
  ]);
  assert.equal(hasGpt(source), true);
  assert.deepEqual(readGpt(source), DISK);
});

test("sgdisk, sfdisk and blkid agree with what was written", async () => {
  using folder = temporaryFolder("headstart-gpt-");
  const path = join(folder.path, "disk");
  const disk = singlePartitionDisk(64 * MiB, DISK_GUID, BOTTLEROCKET_DATA);
  const { primary, backup, backupOffset } = encodeGpt(disk);
  {
    await using file = await open(path, "w");
    await file.truncate(disk.sectors * 512);
    await file.write(primary, 0, primary.byteLength, 0);
    await file.write(backup, 0, backup.byteLength, backupOffset);
  }
  assert.match(execFileSync("sgdisk", ["-v", path], { encoding: "utf8" }), /No problems found/);
  const table = JSON.parse(execFileSync("sfdisk", ["--json", path], { encoding: "utf8" })) as {
    partitiontable: {
      id: string;
      partitions: { start: number; size: number; type: string; uuid: string; name: string }[];
    };
  };
  assert.equal(table.partitiontable.id.toLowerCase(), DISK_GUID);
  const [partition] = table.partitiontable.partitions;
  assert.deepEqual(
    { ...partition, node: undefined, type: partition?.type.toLowerCase(), uuid: partition?.uuid.toLowerCase() },
    {
      node: undefined,
      start: 2048,
      size: (64 * MiB) / 512,
      type: BOTTLEROCKET_DATA.typeGuid,
      uuid: BOTTLEROCKET_DATA.uniqueGuid,
      name: BOTTLEROCKET_DATA.name,
    },
  );
  const probed = execFileSync("blkid", ["-p", "-o", "export", path], { encoding: "utf8" });
  assert.match(probed, new RegExp(`PTUUID=${DISK_GUID}`));
  assert.match(probed, /PTTYPE=gpt/);
});

const guid = fc.uuid();
const disks = fc
  .record({
    diskGuid: guid,
    parts: fc.array(
      fc.record({
        typeGuid: guid.filter((value) => !/^[0-]+$/.test(value)),
        uniqueGuid: guid,
        name: fc.string({ maxLength: 36, unit: "grapheme-ascii" }),
        gap: fc.nat(100),
        length: fc.integer({ min: 1, max: 1000 }),
      }),
      { maxLength: 20 },
    ),
    tail: fc.nat(1000),
  })
  .map(({ diskGuid, parts, tail }): GptDisk => {
    let next = 34;
    const partitions = parts.map(({ gap, length, ...rest }) => {
      const firstLba = next + gap;
      next = firstLba + length;
      return { ...rest, firstLba, lastLba: next - 1 };
    });
    return { sectors: next + tail + 33, diskGuid, partitions };
  });

test("any table reads as it was written", () => {
  fc.assert(
    fc.property(disks, (disk) => assert.deepEqual(readGpt(sourceOf(disk)), disk)),
    { numRuns: 100 },
  );
});

test("a flipped bit anywhere in headers and entries is found, in either copy", () => {
  const { primary, backup, backupOffset } = encodeGpt(DISK);
  const size = DISK.sectors * 512;
  const checked = [...range(512, 512 + 92), ...range(1024, 1024 + 16384)];
  fc.assert(
    fc.property(fc.constantFrom(...checked), fc.nat(7), fc.boolean(), (at, bit, inBackup) => {
      const [first, second] = [Uint8Array.from(primary), Uint8Array.from(backup)];
      if (!inBackup) first[at]! ^= 1 << bit;
      else second[at < 1024 ? at - 512 + 16384 : at - 1024]! ^= 1 << bit;
      const source = diskOf(size, [
        { offset: 0, bytes: first },
        { offset: backupOffset, bytes: second },
      ]);
      assert.throws(
        () => readGpt(source),
        (error) => isHeadstartError(error, "HS_GPT_INVALID"),
      );
    }),
    { numRuns: 500 },
  );
});

test("a disk that is shorter or longer than its table says is refused", () => {
  const { primary, backup, backupOffset } = encodeGpt(DISK);
  for (const size of [0, 511, 512 * 40, DISK.sectors * 512 - 512, DISK.sectors * 512 + 512]) {
    const source = diskOf(size, [
      { offset: 0, bytes: primary },
      { offset: backupOffset, bytes: backup },
    ]);
    assert.throws(
      () => readGpt(source),
      (error) => isHeadstartError(error, "HS_GPT_INVALID"),
    );
  }
});

test("overlapping partitions are not written", () => {
  const part = { ...BOTTLEROCKET_DATA, firstLba: 2048, lastLba: 4095 };
  const disk = {
    sectors: 100_000,
    diskGuid: DISK_GUID,
    partitions: [part, { ...part, firstLba: 4095, lastLba: 5000 }],
  };
  assert.throws(
    () => encodeGpt(disk),
    (error) => isHeadstartError(error, "HS_INTERNAL"),
  );
});

function range(start: number, end: number): number[] {
  return Array.from({ length: end - start }, (_, index) => start + index);
}
