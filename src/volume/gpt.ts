/**
 * GPT partition tables of disks with 512-byte sectors (UEFI 5.3; specs/warm-volume.md 3): protective MBR, a header and 128 entries at the front, the same at the end.
 * What we write equals sgdisk's table byte for byte. The reader is strict: both copies must be there, right and the same.
 */

import { crc32 } from "node:zlib";
import { Reader, struct, Writer } from "../base/bytes.ts";
import { HeadstartError } from "../base/errors.ts";
import { MiB } from "../base/limits.ts";

export const SECTOR = 512;
const ENTRIES = 128;
const ENTRIES_LBA = 2;
const NAME_UNITS_MAX = 36;
/** Before the partition and behind it: what keeps a partition on whole 512 KiB of a snapshot. */
const MARGIN = MiB;

const gpt_header = struct("gpt_header", 92, {
  signature: 8,
  revision: "u32",
  header_size: "u32",
  header_crc32: "u32",
  reserved: "u32",
  my_lba: "u64",
  alternate_lba: "u64",
  first_usable_lba: "u64",
  last_usable_lba: "u64",
  disk_guid: 16,
  partition_entry_lba: "u64",
  num_partition_entries: "u32",
  sizeof_partition_entry: "u32",
  partition_entry_array_crc32: "u32",
});
const gpt_entry = struct("gpt_entry", 128, {
  partition_type_guid: 16,
  unique_partition_guid: 16,
  starting_lba: "u64",
  ending_lba: "u64",
  attributes: "u64",
  partition_name: 72,
});

const SIGNATURE = Buffer.from("EFI PART");
const REVISION = 0x00010000;
const ENTRIES_SIZE = ENTRIES * gpt_entry.size;
const ENTRIES_SECTORS = ENTRIES_SIZE / SECTOR;
/** MBR, header, entries. */
const PRIMARY_SECTORS = ENTRIES_LBA + ENTRIES_SECTORS;
/** Entries, header. */
const BACKUP_SECTORS = ENTRIES_SECTORS + 1;
const MBR_ENTRY_AT = 446;
const MBR_MARK_AT = 510;
const PROTECTIVE_TYPE = 0xee;
const GUID_SYNTAX = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/;

export interface GptPartition {
  /** Lower case, with hyphens. */
  readonly typeGuid: string;
  readonly uniqueGuid: string;
  readonly name: string;
  readonly firstLba: number;
  /** Inclusive. */
  readonly lastLba: number;
}

export interface GptDisk {
  readonly sectors: number;
  readonly diskGuid: string;
  readonly partitions: readonly GptPartition[];
}

/** What identifies Bottlerocket's preferred data partition ("DATA-B", as its factory image has it). */
export const BOTTLEROCKET_DATA = {
  typeGuid: "626f7474-6c65-6474-6861-726d61726b73",
  uniqueGuid: "5b94e8df-28b8-485c-9d19-362263b5944c",
  name: "BOTTLEROCKET-DATA",
} as const;

/** A disk with one partition of `bytes` (whole sectors) at 1 MiB and 1 MiB behind it. */
export function singlePartitionDisk(
  bytes: number,
  diskGuid: string,
  partition: Pick<GptPartition, "typeGuid" | "uniqueGuid" | "name">,
): GptDisk {
  const firstLba = MARGIN / SECTOR;
  const sectors = firstLba + bytes / SECTOR + MARGIN / SECTOR;
  return { sectors, diskGuid, partitions: [{ ...partition, firstLba, lastLba: firstLba + bytes / SECTOR - 1 }] };
}

export interface GptBytes {
  /** From byte 0 of the disk. */
  readonly primary: Uint8Array;
  /** From byte `backupOffset`, up to the disk's end. */
  readonly backup: Uint8Array;
  readonly backupOffset: number;
}

/** Throws HS_INTERNAL for a table that cannot be. */
export function encodeGpt(disk: GptDisk): GptBytes {
  const problem = problemOf(disk);
  if (problem !== null) throw new HeadstartError("HS_INTERNAL", { what: `GPT: ${problem}` });
  const entries = encodeEntries(disk.partitions);
  const last = disk.sectors - 1;
  const backupEntries = disk.sectors - BACKUP_SECTORS;
  const primary = new Uint8Array(PRIMARY_SECTORS * SECTOR);
  primary.set(encodeMbr(disk.sectors));
  primary.set(encodeHeader(disk, { my: 1, other: last, entriesAt: ENTRIES_LBA }, entries), SECTOR);
  primary.set(entries, ENTRIES_LBA * SECTOR);
  const backup = new Uint8Array(BACKUP_SECTORS * SECTOR);
  backup.set(entries);
  backup.set(encodeHeader(disk, { my: last, other: 1, entriesAt: backupEntries }, entries), ENTRIES_SIZE);
  return { primary, backup, backupOffset: backupEntries * SECTOR };
}

function problemOf({ sectors, diskGuid, partitions }: GptDisk): string | null {
  if (!(Number.isSafeInteger(sectors) && sectors >= PRIMARY_SECTORS + BACKUP_SECTORS)) return `${sectors} sectors`;
  if (partitions.length > ENTRIES) return `${partitions.length} partitions`;
  if (!GUID_SYNTAX.test(diskGuid)) return `disk GUID ${diskGuid}`;
  const sorted = partitions.toSorted((a, b) => a.firstLba - b.firstLba);
  let free = PRIMARY_SECTORS;
  for (const { typeGuid, uniqueGuid, name, firstLba, lastLba } of sorted) {
    if (!GUID_SYNTAX.test(typeGuid) || !GUID_SYNTAX.test(uniqueGuid)) return `GUIDs ${typeGuid}, ${uniqueGuid}`;
    if (name.length > NAME_UNITS_MAX) return `the name ${name} is longer than ${NAME_UNITS_MAX} units`;
    if (!(firstLba >= free && lastLba >= firstLba && lastLba < sectors - BACKUP_SECTORS)) {
      return `a partition of sectors ${firstLba} to ${lastLba} on a disk of ${sectors}`;
    }
    free = lastLba + 1;
  }
  return null;
}

function encodeMbr(sectors: number): Uint8Array {
  const bytes = new Uint8Array(SECTOR);
  const entry = new Writer(16)
    .put(Uint8Array.of(0, 0, 2, 0, PROTECTIVE_TYPE, 0xff, 0xff, 0xff))
    .u32(1)
    .u32(Math.min(sectors - 1, 0xffffffff));
  bytes.set(entry.finish(), MBR_ENTRY_AT);
  bytes.set([0x55, 0xaa], MBR_MARK_AT);
  return bytes;
}

function encodeHeader(
  disk: GptDisk,
  { my, other, entriesAt }: { my: number; other: number; entriesAt: number },
  entries: Uint8Array,
): Uint8Array {
  const header = new Writer(gpt_header.size)
    .put(SIGNATURE)
    .u32(REVISION)
    .u32(gpt_header.size)
    .u32(0)
    .u32(0)
    .u64(my)
    .u64(other)
    .u64(PRIMARY_SECTORS)
    .u64(disk.sectors - PRIMARY_SECTORS)
    .put(guidBytes(disk.diskGuid))
    .u64(entriesAt)
    .u32(ENTRIES)
    .u32(gpt_entry.size)
    .u32(crc32(entries));
  const sum = crc32(header.finish());
  return header.patchU32(gpt_header.offsets.header_crc32, sum).finish();
}

function encodeEntries(partitions: readonly GptPartition[]): Uint8Array {
  const writer = new Writer(ENTRIES_SIZE);
  for (const { typeGuid, uniqueGuid, name, firstLba, lastLba } of partitions) {
    const text = Buffer.alloc(NAME_UNITS_MAX * 2);
    text.write(name, "utf16le");
    writer.put(guidBytes(typeGuid)).put(guidBytes(uniqueGuid)).u64(firstLba).u64(lastLba).u64(0).put(text);
  }
  return writer.zeros(ENTRIES_SIZE - writer.length).finish();
}

/** The first three fields little endian, the last two as written. */
function guidBytes(guid: string): Uint8Array {
  const bytes = Buffer.from(guid.replaceAll("-", ""), "hex");
  bytes.subarray(0, 4).reverse();
  bytes.subarray(4, 6).reverse();
  bytes.subarray(6, 8).reverse();
  return bytes;
}

function guidText(stored: Uint8Array): string {
  const bytes = Buffer.from(stored);
  bytes.subarray(0, 4).reverse();
  bytes.subarray(4, 6).reverse();
  bytes.subarray(6, 8).reverse();
  return bytes.toString("hex").replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, "$1-$2-$3-$4-$5");
}

/** The bytes of a disk, as ext4/read.ts takes them. */
export interface DiskSource {
  readonly size: number;
  /** Exactly `length` bytes inside of `size`; a view that is not to be changed. */
  readAt(offset: number, length: number): Uint8Array;
}

/**
 * True when the disk begins with a protective MBR and a GPT signature.
 */
export function hasGpt(source: DiskSource): boolean {
  return source.size >= 2 * SECTOR && SIGNATURE.equals(source.readAt(SECTOR, SIGNATURE.byteLength));
}

/** Throws HS_GPT_INVALID for anything that is not right in both copies. */
export function readGpt(source: DiskSource): GptDisk {
  const sectors = Math.floor(source.size / SECTOR);
  if (source.size % SECTOR !== 0 || sectors < PRIMARY_SECTORS + BACKUP_SECTORS) {
    throw damaged(`a disk of ${source.size} bytes`);
  }
  readMbr(source, sectors);
  const primary = readCopy(source, sectors, 1);
  const backup = readCopy(source, sectors, sectors - 1);
  if (primary.diskGuid !== backup.diskGuid) throw damaged("the copies name different disks");
  if (!primary.entries.equals(backup.entries)) throw damaged("the copies have different entries");
  const disk = { sectors, diskGuid: primary.diskGuid, partitions: readEntries(primary.entries) };
  const problem = problemOf(disk);
  if (problem !== null) throw damaged(problem);
  return disk;
}

function readMbr(source: DiskSource, sectors: number): void {
  const mbr = source.readAt(0, SECTOR);
  const expected = encodeMbr(sectors);
  // boot code and disk signature may be there; the entries and the mark are fixed but for the end in old C/H/S form
  const same = (from: number, to: number) => expected.subarray(from, to).every((byte, at) => mbr[from + at] === byte);
  const isProtective = same(MBR_ENTRY_AT, MBR_ENTRY_AT + 5) && same(MBR_ENTRY_AT + 8, MBR_MARK_AT + 2);
  if (!isProtective) throw damaged("no protective MBR of the disk's size");
}

function readCopy(source: DiskSource, sectors: number, lba: number): { diskGuid: string; entries: Buffer } {
  const what = `header at sector ${lba}`;
  const header = Buffer.from(source.readAt(lba * SECTOR, gpt_header.size));
  const reader = new Reader(header, { what: `GPT ${what}`, base: lba * SECTOR });
  if (!SIGNATURE.equals(reader.take(8))) throw damaged(`${what}: no signature`);
  const revision = reader.u32();
  const size = reader.u32();
  if (revision !== REVISION || size !== gpt_header.size) throw damaged(`${what}: revision ${revision}, ${size} bytes`);
  const sum = reader.u32();
  header.writeUInt32LE(0, gpt_header.offsets.header_crc32);
  if (crc32(header) !== sum) throw damaged(`${what}: its checksum is wrong`);
  const isPrimary = lba === 1;
  const expected: [string, bigint][] = [
    ["reserved", 0n],
    ["my LBA", BigInt(lba)],
    ["other LBA", BigInt(isPrimary ? sectors - 1 : 1)],
    ["first usable LBA", BigInt(PRIMARY_SECTORS)],
    ["last usable LBA", BigInt(sectors - PRIMARY_SECTORS)],
  ];
  for (const [field, want] of expected) {
    const got = field === "reserved" ? BigInt(reader.u32()) : reader.u64big();
    if (got !== want) throw damaged(`${what}: ${field} is ${got}, not ${want}`);
  }
  const diskGuid = guidText(reader.take(16));
  const entriesAt = reader.u64big();
  const count = reader.u32();
  const entrySize = reader.u32();
  const entriesSum = reader.u32();
  const wantAt = isPrimary ? ENTRIES_LBA : sectors - BACKUP_SECTORS;
  if (entriesAt !== BigInt(wantAt) || count !== ENTRIES || entrySize !== gpt_entry.size) {
    throw damaged(`${what}: ${count} entries of ${entrySize} bytes at sector ${entriesAt}`);
  }
  const entries = Buffer.from(source.readAt(wantAt * SECTOR, ENTRIES_SIZE));
  if (crc32(entries) !== entriesSum) throw damaged(`${what}: the checksum of its entries is wrong`);
  return { diskGuid, entries };
}

function readEntries(entries: Buffer): GptPartition[] {
  const found: GptPartition[] = [];
  for (let index = 0; index < ENTRIES; index++) {
    const bytes = entries.subarray(index * gpt_entry.size, (index + 1) * gpt_entry.size);
    const reader = new Reader(bytes, { what: `GPT entry ${index}` });
    const type = reader.take(16);
    if (type.every((byte) => byte === 0)) continue;
    const uniqueGuid = guidText(reader.take(16));
    const firstLba = reader.u64big();
    const lastLba = reader.u64big();
    if (firstLba > Number.MAX_SAFE_INTEGER || lastLba > Number.MAX_SAFE_INTEGER) {
      throw damaged(`entry ${index}: sectors ${firstLba} to ${lastLba}`);
    }
    const text = Buffer.from(reader.skip(8).take(NAME_UNITS_MAX * 2)).toString("utf16le");
    found.push({
      typeGuid: guidText(type),
      uniqueGuid,
      name: text.split("\0", 1)[0]!,
      firstLba: Number(firstLba),
      lastLba: Number(lastLba),
    });
  }
  return found;
}

function damaged(what: string): HeadstartError {
  return new HeadstartError("HS_GPT_INVALID", { what: `GPT: ${what}` });
}
