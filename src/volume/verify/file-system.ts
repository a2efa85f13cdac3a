/**
 * The disk around containerd's stores: its partition table, and the ext4 in it as a whole (specs/warm-volume.md 3, 7). What the first thing wrong in a structure hides
 * is not looked for behind it.
 */

import { describeError, isHeadstartError } from "../../base/errors.ts";
import { MiB } from "../../base/limits.ts";
import { checkExt4 } from "../ext4/check.ts";
import { BLOCK, JOURNAL_MAGIC, SUPER_OFFSET } from "../ext4/ondisk.ts";
import { type Ext4Reader, openExt4 } from "../ext4/read.ts";
import { BOTTLEROCKET_DATA, readGpt, SECTOR } from "../gpt.ts";
import type { Findings } from "./findings.ts";
import { fileSystemOf, type OpenDisk, PARTITION_AT } from "./open-volume.ts";

/** Null: nothing can be read of it. */
export function checkFileSystem(disk: OpenDisk, findings: Findings): Ext4Reader | null {
  if (disk.partitioned) checkTable(disk, findings);
  const { source, base } = fileSystemOf(disk);
  const place = base === 0 ? "file system" : "partition 1";
  let reader: Ext4Reader;
  try {
    reader = openExt4(source);
  } catch (error) {
    fileSystemError(error, place, findings);
    return null;
  }
  if (source.readAt(0, SUPER_OFFSET).some((byte) => byte !== 0)) {
    findings.add("file-system", place, "its first 1024 bytes are not zero: another signature may be found there");
  }
  try {
    checkExt4(reader);
    checkJournal(reader, place, findings);
  } catch (error) {
    fileSystemError(error, place, findings);
  }
  return reader;
}

export function fileSystemError(error: unknown, place: string, findings: Findings): void {
  if (!isHeadstartError(error)) throw error;
  findings.add("file-system", place, describeError(error));
}

/** Since core-kit grows the file system online, the journal has to be large enough for that (specs/warm-volume.md 1.2). */
const GROWABLE_FROM = 1024 * MiB;
const GROWABLE_JOURNAL_BLOCKS = 16_384;

function checkJournal(reader: Ext4Reader, place: string, findings: Findings): void {
  const { superblock } = reader;
  const isGrown = superblock.blocks * BLOCK >= GROWABLE_FROM;
  if (superblock.journalInode === 0) {
    findings.add("file-system", place, "has no journal");
    return;
  }
  const inode = reader.inode(superblock.journalInode);
  const bytes = Buffer.alloc(BLOCK);
  // an inode of any size
  bytes.set(reader.read(inode, 0, BLOCK));
  const blocks = inode.size / BLOCK;
  const field = (index: number) => bytes.readUInt32BE(index * 4);
  // magic, type 4 (superblock v2), -, block size, blocks, first block, sequence, start (0: clean), error
  const isSound = field(0) === JOURNAL_MAGIC && field(1) === 4 && field(3) === BLOCK && field(4) === blocks;
  if (!isSound || field(5) !== 1 || field(7) !== 0 || field(8) !== 0) {
    findings.add("file-system", `${place}, journal`, "its superblock is not that of a clean journal of its size");
  }
  if (isGrown && blocks < GROWABLE_JOURNAL_BLOCKS) {
    findings.add(
      "file-system",
      `${place}, journal`,
      `${blocks} blocks are too few to grow online, at least ${GROWABLE_JOURNAL_BLOCKS} are needed`,
    );
  }
}

function checkTable(disk: OpenDisk, findings: Findings): void {
  const place = "partition table";
  const rule = "partition-table";
  try {
    const { partitions, sectors } = readGpt(disk.disk);
    const [partition, ...more] = partitions;
    if (partition === undefined || more.length > 0) {
      findings.differs(rule, place, "the number of partitions", partitions.length, 1);
      return;
    }
    for (const field of ["typeGuid", "uniqueGuid", "name"] as const) {
      if (partition[field] !== BOTTLEROCKET_DATA[field]) {
        findings.differs(rule, `${place}, entry 0`, field, partition[field], BOTTLEROCKET_DATA[field]);
      }
    }
    const first = PARTITION_AT / SECTOR;
    const last = sectors - PARTITION_AT / SECTOR - 1;
    if (partition.firstLba !== first || partition.lastLba !== last) {
      const found = `${partition.firstLba} to ${partition.lastLba}`;
      findings.differs(rule, `${place}, entry 0`, "its sectors", found, `${first} to ${last}`);
    }
  } catch (error) {
    if (!isHeadstartError(error)) throw error;
    findings.add(rule, place, describeError(error));
  }
  checkGaps(disk, findings);
}

/** Boot code, and what lies between the table and the partition: whoever looks for signatures shall find one alone. */
function checkGaps({ disk }: OpenDisk, findings: Findings): void {
  const tableEnd = 34 * SECTOR;
  const gaps: readonly (readonly [from: number, to: number])[] = [
    [0, 446],
    [tableEnd, PARTITION_AT],
    [disk.size - MiB, disk.size - 33 * SECTOR],
  ];
  for (const [from, to] of gaps) {
    if (to <= from || from < 0 || to > disk.size) continue;
    const bytes = disk.readAt(from, to - from);
    if (Buffer.alloc(bytes.byteLength).equals(bytes)) continue;
    const at = bytes.findIndex((byte) => byte !== 0);
    findings.add("partition-table", `byte ${from + at}`, "is not zero, and belongs to nothing");
  }
}
