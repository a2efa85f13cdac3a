/**
 * Chunk-based files: where their data lie when these are in other files than the image ("devices"), by a table of 8-byte indexes behind each inode (specs/erofs-fuse.md 3.4, 3.7).
 *
 *   file     |  run 0: device 1, block 7 ...  |  run 1: device 3 ...  |  hole  |  run 2 ... |
 *   indexes  |   1:7   |   1:7+c   | ...      |   3:...   | ...       |   -    |    ...     |     one for each chunk of c blocks
 *
 * A run is a stretch of a file that lies in one piece in one device. The chunk size of a file is the largest power of two at whose multiples all its runs begin and
 * end: a file in one run has one index, and the kernel one mapping for it.
 */

import { HeadstartError } from "../base/errors.ts";
import { alignUp } from "../base/ranges.ts";
import { ADDRESS_SPACE, type FileTree, FileType } from "./file-tree.ts";
import {
  EROFS_BLOCK_BITS,
  EROFS_CHUNK_FORMAT_BLKBITS_MASK,
  EROFS_CHUNK_FORMAT_INDEXES,
  EROFS_NULL_ADDR,
  erofs_deviceslot,
  erofs_inode_chunk_index,
} from "./ondisk.ts";
import { IMAGE_BYTES_MAX } from "./place-files.ts";
import { BLOCK_SIZE } from "./placement.ts";

/** A file that holds data and no metadata. */
export interface ErofsDevice {
  /** 1 to 64 ASCII characters, part of the image. The kernel takes the place of the file from the mount option, not from here. */
  readonly tag: string;
  /** Bytes, a multiple of 4096. */
  readonly size: number;
}

/** As Nydus: device numbers of 8 bits, 0 is the image itself and 255 is never used. */
export const DEVICES_MAX = 254;
const CHUNK_BITS_MAX = EROFS_BLOCK_BITS + EROFS_CHUNK_FORMAT_BLKBITS_MASK;

export class ChunkMap {
  readonly devices: readonly ErofsDevice[];
  readonly tree: FileTree;
  /** Number of the device of each address space, 0 for none. */
  readonly deviceOf: Uint16Array;
  /** log2 of each file's chunk size; 0 for inodes without chunks. */
  readonly #bits: Uint8Array;

  constructor(tree: FileTree, devices: readonly ErofsDevice[], deviceOf: Uint16Array) {
    this.tree = tree;
    this.devices = devices;
    this.deviceOf = deviceOf;
    this.#bits = new Uint8Array(tree.inodeCount);
    for (let inode = 0; inode < tree.inodeCount; inode++) {
      if (tree.type[inode] === FileType.regular && tree.size[inode]! > 0) this.#bits[inode] = this.#chunkBits(inode);
    }
  }

  isChunked(inode: number): boolean {
    return this.#bits[inode] !== 0;
  }

  bits(inode: number): number {
    return this.#bits[inode]!;
  }

  /** i_u. */
  format(inode: number): number {
    return (this.#bits[inode]! - EROFS_BLOCK_BITS) | EROFS_CHUNK_FORMAT_INDEXES;
  }

  /** Bytes that an inode of `size` bytes (xattrs included) takes with its indexes. */
  sizeWith(inode: number, size: number): number {
    if (!this.isChunked(inode)) return size;
    const count = Math.ceil(this.tree.size[inode]! / 2 ** this.#bits[inode]!);
    return alignUp(size, erofs_inode_chunk_index.size) + count * erofs_inode_chunk_index.size;
  }

  /** Calls `visit(fileOffset, length, device, offset)` for every run of a file, ascending. */
  visitRuns(inode: number, visit: (fileOffset: number, length: number, device: number, offset: number) => void): void {
    const { tree } = this;
    const end = tree.segmentStart[inode + 1]!;
    let segment = tree.segmentStart[inode]!;
    while (segment < end) {
      const fileOffset = tree.segmentFileOffset[segment]!;
      const address = tree.segmentAddress[segment]!;
      let length = tree.segmentLength[segment]!;
      for (segment++; segment < end; segment++) {
        const follows =
          tree.segmentFileOffset[segment] === fileOffset + length && tree.segmentAddress[segment] === address + length;
        if (!follows || length % BLOCK_SIZE !== 0) break;
        length += tree.segmentLength[segment]!;
      }
      const space = Math.floor(address / ADDRESS_SPACE);
      const device = this.deviceOf[space] ?? 0;
      const offset = address - space * ADDRESS_SPACE;
      const sound =
        device > 0 &&
        offset % BLOCK_SIZE === 0 &&
        alignUp(offset + length, BLOCK_SIZE) <= this.devices[device - 1]!.size;
      if (!sound)
        throw new HeadstartError("HS_EROFS_LIMIT", {
          what: `inode ${inode}: its data at byte ${offset} of device ${device} do not lie on blocks of a device`,
        });
      visit(fileOffset, length, device, offset);
    }
  }

  #chunkBits(inode: number): number {
    const size = this.tree.size[inode]!;
    let bits = Math.min(CHUNK_BITS_MAX, Math.max(EROFS_BLOCK_BITS, Math.ceil(Math.log2(size))));
    // (log2 rounds: one index too many is harmless, one too few would cut the file)
    if (2 ** bits < size && bits < CHUNK_BITS_MAX) bits++;
    const align = (offset: number) => {
      while (offset % 2 ** bits !== 0 && bits >= EROFS_BLOCK_BITS) bits--;
    };
    this.visitRuns(inode, (fileOffset, length) => {
      align(fileOffset);
      if (fileOffset + length < size) align(fileOffset + length);
    });
    if (bits < EROFS_BLOCK_BITS)
      throw new HeadstartError("HS_EROFS_LIMIT", { what: `inode ${inode}: pieces of it do not begin on blocks` });
    return bits;
  }
}

/** Throws HS_EROFS_LIMIT for too many devices, too large ones, and data that no device can hold as they are. */
export function mapChunks(tree: FileTree, spaces: readonly (ErofsDevice | null)[]): ChunkMap {
  const deviceOf = new Uint16Array(spaces.length);
  const devices: ErofsDevice[] = [];
  spaces.forEach((device, space) => {
    if (device === null) return;
    const { tag, size } = device;
    if (!/^[\x21-\x7e]+$/.test(tag) || tag.length > erofs_deviceslot.offsets.blocks_lo)
      throw new HeadstartError("HS_INTERNAL", { what: `device tag ${JSON.stringify(tag)}` });
    if (!(size > 0 && size % BLOCK_SIZE === 0 && size <= IMAGE_BYTES_MAX))
      throw new HeadstartError("HS_EROFS_LIMIT", { what: `a device of ${size} bytes` });
    deviceOf[space] = devices.push(device);
  });
  if (devices.length > DEVICES_MAX)
    throw new HeadstartError("HS_EROFS_LIMIT", { what: `data in ${devices.length} files, at most ${DEVICES_MAX}` });
  return new ChunkMap(tree, devices, deviceOf);
}

/** The indexes of one file, behind what ends at byte `end`. */
export function emitChunks(map: ChunkMap, inode: number, view: DataView, end: number): void {
  const entry = erofs_inode_chunk_index;
  const first = alignUp(end, entry.size);
  const chunkSize = 2 ** map.bits(inode);
  const count = Math.ceil(map.tree.size[inode]! / chunkSize);
  for (let chunk = 0; chunk < count; chunk++)
    view.setUint32(first + chunk * entry.size + entry.offsets.startblk, EROFS_NULL_ADDR, true);
  map.visitRuns(inode, (fileOffset, length, device, offset) => {
    for (let done = 0; done < length; done += chunkSize) {
      const at = first + ((fileOffset + done) / chunkSize) * entry.size;
      view.setUint16(at + entry.offsets.device_id, device, true);
      view.setUint32(at + entry.offsets.startblk, (offset + done) / BLOCK_SIZE, true);
    }
  });
}
