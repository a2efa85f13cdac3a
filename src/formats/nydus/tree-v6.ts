/**
 * The tree of a RAFS v6 bootstrap: EROFS inodes whose regular files are arrays of chunk indexes into blobs (specs/nydus.md 2.5). One walk; an inode is read
 * once; directories have one name; what files claim of the file's bytes is summed up and bounded by the file's size.
 */

import { compareBytes } from "../../base/bytes.ts";
import { LIMITS } from "../../base/limits.ts";
import { parseDirectoryBlock } from "../../erofs/directory.ts";
import { ADDRESS_SPACE, type FileTree, FileTreeBuilder, FileType, type InodeFields } from "../../erofs/file-tree.ts";
import {
  deviceMajor,
  deviceMinor,
  EROFS_I_DATALAYOUT_BIT,
  EROFS_I_FORMAT_KNOWN,
  EROFS_I_VERSION_EXTENDED,
  EROFS_INODE_FLAT_INLINE,
  EROFS_INODE_FLAT_PLAIN,
  EROFS_SLOT_SIZE,
  erofs_inode_compact,
  erofs_inode_extended,
  erofs_xattr_ibody_header,
  typeOfMode,
} from "../../erofs/ondisk.ts";
import { isDots, printable } from "../../erofs/read.ts";
import { parseXattrs } from "../../erofs/xattr.ts";
import type { NydusBlob } from "./blob-table.ts";
import type { ChunkUseCollector } from "./chunks.ts";
import {
  CHUNK_BASED,
  CHUNK_FORMAT_BITS,
  CHUNK_FORMAT_INDEXES,
  CHUNK_INDEX_SIZE,
  NYDUS_LIMITS,
  nydusInvalid,
  RAFS_BLOCK_SIZE,
} from "./ondisk.ts";

export interface TreeV6Input {
  readonly what: string;
  readonly metaAt: number;
  readonly rootNid: number;
  /** mtime of compact inodes. */
  readonly buildTime: number;
  readonly chunkSize: number;
  readonly blobs: readonly NydusBlob[];
  readonly uses: ChunkUseCollector;
}

export function readTreeV6(
  bytes: Uint8Array,
  input: TreeV6Input,
): { tree: FileTree; inodeOfNid: ReadonlyMap<number, number> } {
  return new TreeReader(bytes, input).read();
}

interface RawInode {
  readonly nid: number;
  readonly type: FileType;
  readonly size: number;
  readonly inline: boolean;
  readonly fields: InodeFields;
  readonly nlink: number;
  /** i_u. */
  readonly u: number;
  /** Where the xattrs end. */
  readonly bodyEnd: number;
}

interface Directory {
  readonly raw: RawInode;
  readonly inode: number;
  readonly parentNid: number;
  readonly depth: number;
}

class TreeReader {
  readonly #bytes: Uint8Array;
  readonly #view: DataView;
  readonly #input: TreeV6Input;
  /** Inode of the tree by nid; a directory is in `#directories` too. */
  readonly #known = new Map<number, number>();
  readonly #types = new Map<number, FileType>();
  /** i_nlink by inode of the tree; 0 for directories, whose links follow from the tree. */
  readonly #links: number[] = [];
  #budget: number;

  constructor(bytes: Uint8Array, input: TreeV6Input) {
    this.#bytes = bytes;
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    this.#input = input;
    this.#budget = bytes.byteLength;
  }

  read(): { tree: FileTree; inodeOfNid: ReadonlyMap<number, number> } {
    const root = this.#inode(this.#input.rootNid);
    if (root.type !== FileType.directory) throw this.#bad(root.nid, "the root is no directory");
    const builder = new FileTreeBuilder(root.fields);
    this.#remember(root, 0);
    const stack: Directory[] = [{ raw: root, inode: 0, parentNid: root.nid, depth: 0 }];
    let names = 0;
    for (let top = stack.pop(); top !== undefined; top = stack.pop()) {
      const directories: Directory[] = [];
      let dots = 0;
      for (const entry of this.#readdir(top.raw)) {
        const bad = (message: string) => this.#bad(top.raw.nid, `${printable(entry.name)} ${message}`);
        if (isDots(entry.name)) {
          if (entry.nid !== (entry.name.length === 1 ? top.raw.nid : top.parentNid)) throw bad(`is nid ${entry.nid}`);
          dots++;
          continue;
        }
        if (++names > LIMITS.layerEntries) throw bad(`is name number ${names}`);
        let inode = this.#known.get(entry.nid);
        if (inode === undefined) {
          const raw = this.#inode(entry.nid);
          inode = builder.addInode(raw.fields);
          this.#remember(raw, inode);
          if (raw.type === FileType.directory) {
            if (top.depth >= NYDUS_LIMITS.directoryDepth) throw bad("is too deep");
            directories.push({ raw, inode, parentNid: top.raw.nid, depth: top.depth + 1 });
          }
        } else if (this.#types.get(entry.nid) === FileType.directory) {
          throw bad(`is a second name of directory ${entry.nid}`);
        }
        if (this.#types.get(entry.nid) !== entry.type) throw bad(`has type ${entry.type}, its inode another`);
        builder.addName(top.inode, entry.name, inode);
      }
      if (dots !== 2) throw this.#bad(top.raw.nid, `"." or ".." is missing`);
      while (directories.length > 0) stack.push(directories.pop()!);
    }
    const tree = builder.finish();
    // of a file that layers above hid names of, the image may count those too, as overlayfs does; never fewer than can be seen
    this.#links.forEach((nlink, inode) => {
      tree.nlink[inode] = Math.max(tree.nlink[inode]!, nlink);
    });
    return { tree, inodeOfNid: this.#known };
  }

  #remember(raw: RawInode, inode: number): void {
    this.#known.set(raw.nid, inode);
    this.#types.set(raw.nid, raw.type);
    this.#links[inode] = raw.type === FileType.directory ? 0 : raw.nlink;
  }

  #inode(nid: number): RawInode {
    const { metaAt } = this.#input;
    const at = metaAt + nid * EROFS_SLOT_SIZE;
    // nid 0 is the zero block before the metadata: nydusd forbids it
    if (nid === 0 || at + erofs_inode_compact.size > this.#bytes.byteLength) throw this.#bad(nid, "lies outside");
    const view = this.#view;
    const common = erofs_inode_compact.offsets;
    const format = view.getUint16(at + common.i_format, true);
    if ((format & ~EROFS_I_FORMAT_KNOWN) !== 0) throw this.#bad(nid, `i_format is 0x${format.toString(16)}`);
    const layout = format >>> EROFS_I_DATALAYOUT_BIT;
    const mode = view.getUint16(at + common.i_mode, true);
    const type = typeOfMode(mode);
    if (type === 0) throw this.#bad(nid, `i_mode is 0${mode.toString(8)}`);
    const icount = view.getUint16(at + common.i_xattr_icount, true);
    const u = view.getUint32(at + common.i_u, true);
    const extended = (format & EROFS_I_VERSION_EXTENDED) !== 0;
    const xattrAt = at + (extended ? erofs_inode_extended.size : erofs_inode_compact.size);
    const xattrSize = icount === 0 ? 0 : erofs_xattr_ibody_header.size + 4 * (icount - 1);
    const bodyEnd = xattrAt + xattrSize;
    if (bodyEnd > this.#bytes.byteLength) throw this.#bad(nid, "lies outside");
    this.#spend(nid, xattrSize);

    let owner: Pick<InodeFields, "uid" | "gid" | "mtimeSeconds" | "mtimeNanoseconds">;
    let size: number;
    let nlink: number;
    if (extended) {
      const offsets = erofs_inode_extended.offsets;
      owner = {
        uid: view.getUint32(at + offsets.i_uid, true),
        gid: view.getUint32(at + offsets.i_gid, true),
        mtimeSeconds: i64(view, at + offsets.i_mtime),
        mtimeNanoseconds: view.getUint32(at + offsets.i_mtime_nsec, true),
      };
      size = i64(view, at + offsets.i_size);
      nlink = view.getUint32(at + offsets.i_nlink, true);
    } else {
      owner = {
        uid: view.getUint16(at + common.i_uid, true),
        gid: view.getUint16(at + common.i_gid, true),
        mtimeSeconds: this.#input.buildTime,
        mtimeNanoseconds: 0,
      };
      size = view.getUint32(at + common.i_size, true);
      nlink = view.getUint16(at + common.i_nlink, true);
    }
    if (!(Number.isSafeInteger(size) && size >= 0)) throw this.#bad(nid, `i_size is ${size}`);
    if (!Number.isSafeInteger(owner.mtimeSeconds) || owner.mtimeNanoseconds >= 1e9)
      throw this.#bad(nid, "the time is out of range");
    const inline = layout === EROFS_INODE_FLAT_INLINE;
    const fits = type === FileType.regular ? layout === CHUNK_BASED : inline || layout === EROFS_INODE_FLAT_PLAIN;
    if (!fits) throw this.#bad(nid, `data layout ${layout} with i_mode 0${mode.toString(8)}`);
    const sized = type === FileType.regular || type === FileType.directory || type === FileType.symlink;
    if (!sized && size !== 0) throw this.#bad(nid, "a device, fifo or socket with data");
    const raw = { nid, type, size, nlink, inline, u, bodyEnd };
    const device = type === FileType.char || type === FileType.block;
    const fields: InodeFields = {
      type,
      mode: mode & 0o7777,
      ...owner,
      size: type === FileType.regular ? size : 0,
      rdevMajor: device ? deviceMajor(u) : 0,
      rdevMinor: device ? deviceMinor(u) : 0,
      xattrs: xattrSize === 0 ? [] : this.#xattrs(nid, this.#bytes.subarray(xattrAt, bodyEnd)),
      ...(type === FileType.symlink ? { target: this.#target(raw) } : {}),
      ...(type === FileType.regular ? { segments: this.#segments(raw) } : {}),
    };
    return { ...raw, fields };
  }

  #xattrs(nid: number, body: Uint8Array) {
    const found = parseXattrs(body, { filter: "ignored" });
    if (typeof found === "string") throw this.#bad(nid, found);
    return found;
  }

  /** Bytes [start, end) of what a directory or symlink holds: whole blocks from i_u on, the rest behind the inode if it is inline. */
  #content(raw: Pick<RawInode, "nid" | "size" | "inline" | "u" | "bodyEnd">, start: number, end: number): Uint8Array {
    const tailStart = raw.inline ? Math.floor(raw.size / RAFS_BLOCK_SIZE) * RAFS_BLOCK_SIZE : raw.size;
    const inTail = raw.inline && start >= tailStart;
    const at = inTail ? raw.bodyEnd + (start - tailStart) : raw.u * RAFS_BLOCK_SIZE + start;
    const length = end - start;
    if (!(at + length <= this.#bytes.byteLength)) throw this.#bad(raw.nid, "its content lies outside");
    if (inTail && (raw.bodyEnd % RAFS_BLOCK_SIZE) + (raw.size - tailStart) > RAFS_BLOCK_SIZE)
      throw this.#bad(raw.nid, "its tail crosses a block");
    this.#spend(raw.nid, length);
    return this.#bytes.subarray(at, at + length);
  }

  #target(raw: Pick<RawInode, "nid" | "size" | "inline" | "u" | "bodyEnd">): Uint8Array {
    if (!(raw.size > 0 && raw.size <= LIMITS.symlinkBytes)) throw this.#bad(raw.nid, `a target of ${raw.size} bytes`);
    const target = this.#content(raw, 0, raw.size);
    if (target.includes(0)) throw this.#bad(raw.nid, "a NUL in the link target");
    return target;
  }

  #readdir(raw: RawInode): { name: Uint8Array; nid: number; type: FileType }[] {
    const entries: { name: Uint8Array; nid: number; type: FileType }[] = [];
    for (let start = 0; start < raw.size; start += RAFS_BLOCK_SIZE) {
      const block = this.#content(raw, start, Math.min(start + RAFS_BLOCK_SIZE, raw.size));
      const problem = parseDirectoryBlock(block, (name, nid, type) => entries.push({ name, nid, type }));
      if (problem !== null) throw this.#bad(raw.nid, `block ${start / RAFS_BLOCK_SIZE}: ${problem}`);
    }
    for (let index = 1; index < entries.length; index++) {
      if (compareBytes(entries[index - 1]!.name, entries[index]!.name) >= 0)
        throw this.#bad(raw.nid, `${printable(entries[index]!.name)} is out of order`);
    }
    return entries;
  }

  /** One index for each piece of `chunkSize`; a larger chunk size in the inode says that they lie behind each other (specs/nydus.md 2.5). */
  #segments(raw: Pick<RawInode, "nid" | "size" | "u" | "bodyEnd">): NonNullable<InodeFields["segments"]> {
    const { chunkSize, blobs, uses } = this.#input;
    const count = Math.ceil(raw.size / chunkSize);
    const format = raw.u & 0xffff;
    const bits = format & CHUNK_FORMAT_BITS;
    if (raw.u >>> 16 !== 0 || (format & ~CHUNK_FORMAT_BITS) !== CHUNK_FORMAT_INDEXES)
      throw this.#bad(raw.nid, `chunk format 0x${raw.u.toString(16)}`);
    const step = 2 ** bits * RAFS_BLOCK_SIZE;
    if (count > 0 && step < chunkSize) throw this.#bad(raw.nid, `chunks of ${step} bytes`);
    const start = Math.ceil(raw.bodyEnd / CHUNK_INDEX_SIZE) * CHUNK_INDEX_SIZE;
    if (!(start + count * CHUNK_INDEX_SIZE <= this.#bytes.byteLength))
      throw this.#bad(raw.nid, `${count} chunk indexes lie outside`);
    this.#spend(raw.nid, count * CHUNK_INDEX_SIZE);
    const segments: { fileOffset: number; length: number; address: number }[] = [];
    for (let piece = 0; piece < count; piece++) {
      const at = start + piece * CHUNK_INDEX_SIZE;
      const high = this.#view.getUint16(at + 2, true);
      const chunk = this.#view.getUint16(at, true) + (high >>> 8) * 0x1_0000;
      const block = this.#view.getUint32(at + 4, true);
      const fileOffset = piece * chunkSize;
      const length = Math.min(chunkSize, raw.size - fileOffset);
      // a hole: the builder makes none, the kernel knows them
      if (block === 0xffff_ffff) continue;
      const blob = blobs[(high & 0xff) - 1];
      const bad = (message: string) => this.#bad(raw.nid, `piece ${piece}: ${message}`);
      if (blob === undefined) throw bad(`device ${high & 0xff} of ${blobs.length}`);
      if (chunk >= blob.chunkCount) throw bad(`chunk ${chunk} of ${blob.chunkCount}`);
      const offset = block * RAFS_BLOCK_SIZE;
      if (offset + length > blob.uncompressedSize) throw bad(`address ${offset} in ${blob.uncompressedSize} bytes`);
      const address = blob.index * ADDRESS_SPACE + offset;
      const before = segments.at(-1);
      if ((piece * chunkSize) % step !== 0 && before !== undefined && before.address + chunkSize !== address)
        throw bad("it does not follow the one before, as the inode says");
      uses.add(blob.index, offset, length, chunk);
      segments.push({ fileOffset, length, address });
    }
    return segments;
  }

  /** In a sound file inodes have their bytes to themselves; claims beyond its size mean that they share them. */
  #spend(nid: number, count: number): void {
    this.#budget -= count;
    if (this.#budget < 0) throw this.#bad(nid, "inodes claim the same bytes over and over");
  }

  #bad(nid: number, message: string) {
    return nydusInvalid(this.#input.what, `inode ${nid}: ${message}`);
  }
}

function i64(view: DataView, at: number): number {
  return view.getInt32(at + 4, true) * 2 ** 32 + view.getUint32(at, true);
}
