/**
 * What a path is: the root directory of a containerd, an ext4 file system, or a disk with a partition table around one. Told by its bytes; a damaged table or superblock
 * is still recognised by what is left of it, so that the damage is named.
 */

import { closeSync, fstatSync, openSync, statSync } from "node:fs";
import { HeadstartError } from "../../base/errors.ts";
import { readFully } from "../../base/files.ts";
import { MiB } from "../../base/limits.ts";
import { fdSource } from "../../erofs/source.ts";
import { EXT4_MAGIC, ext4_super_block, SUPER_OFFSET } from "../ext4/ondisk.ts";
import type { ImageSource } from "../ext4/parse-superblock.ts";
import { type DiskSource, hasGpt, SECTOR } from "../gpt.ts";

export interface OpenDirectory extends Disposable {
  readonly kind: "directory";
  readonly path: string;
}

export interface OpenDisk extends Disposable {
  readonly kind: "disk";
  readonly path: string;
  readonly fd: number;
  /** The whole of it. */
  readonly disk: DiskSource;
  /** True: a partition table is there, or what is left of one. */
  readonly partitioned: boolean;
}

/** Where the one partition begins, and how much lies behind it. */
export const PARTITION_AT = MiB;
const BACKUP_MARGIN = MiB;

/** `assumed`: what to take bytes for that show nothing of what they are. Throws HS_NOT_FOUND, HS_FORMAT_UNSUPPORTED for what is neither. */
export function openVolume(path: string, assumed: "gpt" | "ext4" | null = null): OpenDirectory | OpenDisk {
  const known = statSync(path, { throwIfNoEntry: false });
  if (known === undefined) throw new HeadstartError("HS_NOT_FOUND", { what: path });
  if (known.isDirectory()) return { kind: "directory", path, [Symbol.dispose]() {} };
  if (!known.isFile() && !known.isBlockDevice()) {
    throw new HeadstartError("HS_FORMAT_UNSUPPORTED", { what: `${path} is no directory, file or disk` });
  }
  const fd = openSync(path, "r");
  try {
    const disk = copies(fdSource(fd, known.isFile() ? fstatSync(fd).size : deviceSize(fd)));
    const kind = recognise(disk) ?? assumed;
    if (kind === null) {
      throw new HeadstartError("HS_FORMAT_UNSUPPORTED", { what: `${path}: neither ext4 nor a disk with a GPT` });
    }
    return { kind: "disk", path, fd, disk, partitioned: kind === "gpt", [Symbol.dispose]: () => closeSync(fd) };
  } catch (error) {
    closeSync(fd);
    throw error;
  }
}

/** Names and inodes are kept for long: as views they would keep the windows that they were read in. */
function copies(source: DiskSource): DiskSource {
  return { size: source.size, readAt: (offset, length) => source.readAt(offset, length).slice() };
}

/** The file system of a disk: the disk itself, or its one partition. */
export function fileSystemOf(disk: OpenDisk): { readonly source: ImageSource; readonly base: number } {
  if (!disk.partitioned) return { source: disk.disk, base: 0 };
  const size = Math.max(0, disk.disk.size - PARTITION_AT - BACKUP_MARGIN);
  return {
    base: PARTITION_AT,
    source: { size, readAt: (offset, length) => disk.disk.readAt(PARTITION_AT + offset, length) },
  };
}

function recognise(disk: DiskSource): "gpt" | "ext4" | null {
  if (hasGpt(disk)) return "gpt";
  if (isExt4(disk, 0)) return "ext4";
  const backup = disk.size - SECTOR;
  if (backup > SECTOR && Buffer.from(disk.readAt(backup, 8)).toString("latin1") === "EFI PART") return "gpt";
  return isExt4(disk, PARTITION_AT) ? "gpt" : null;
}

function isExt4(disk: DiskSource, base: number): boolean {
  const at = base + SUPER_OFFSET + ext4_super_block.offsets.s_magic;
  return (
    disk.size >= base + SUPER_OFFSET + ext4_super_block.size &&
    Buffer.from(disk.readAt(at, 2)).readUInt16LE() === EXT4_MAGIC
  );
}

/** A block device says no size: its end is where nothing can be read any more. */
function deviceSize(fd: number): number {
  const probe = new Uint8Array(SECTOR);
  const isThere = (sector: number) => {
    try {
      return readFully(fd, probe, sector * SECTOR) === SECTOR;
    } catch {
      return false;
    }
  };
  let high = 1;
  while (isThere(high - 1)) high *= 2;
  let low = Math.floor(high / 2);
  while (low < high) {
    const middle = Math.floor((low + high) / 2);
    if (isThere(middle)) low = middle + 1;
    else high = middle;
  }
  return low * SECTOR;
}
