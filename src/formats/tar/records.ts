/**
 * The tar reader: decompressed bytes of any cut in, entries and their data out (specs/layer.md 2). It reads what Go's archive/tar reads, byte for byte,
 * since containerd unpacks with that: ustar, PAX, star, GNU and v7 headers, long names, sparse maps, the end of the archive.
 *
 *   push(chunk) ...  ->  entry(e)  data(view, offset) data(...)  entry(e) ...  ->  finish()
 *
 * An entry is emitted when all its extension headers (and a sparse map in its data) are read; its fields are as the archive has them: no name is cleaned,
 * no type judged (apply.ts does). Data are views of the pushed chunk, valid during the call. Nothing is held but one header block, one extension body
 * (at most 1 MiB each of PAX, `L` and `K`) or one sparse map.
 *
 * Knows bytes. Must not know what entries mean. Throws HS_LAYER_REFUSED (tar-header, tar-cut, pax, sparse) and HS_LIMIT.
 */

import { HeadstartError } from "../../base/errors.ts";
import { LIMITS } from "../../base/limits.ts";
import { readHeader, TAR_BLOCK, type TarHeader } from "./header.ts";
import { exactOrLow32, low32, parseInt64, parsePaxTime } from "./numbers.ts";
import { NO_PAX_RECORDS, type PaxRecords, parsePax, paxText } from "./pax.ts";
import { type RefusalCode, refusal } from "./refusal.ts";
import { SparseMapReader, type SparsePiece, soundPieces, sparseForm, sparseMapOfRecords } from "./sparse.ts";

/** Type flags as they stand in an entry: the byte of the header, but NUL has become regular or directory. */
export const TarType = {
  regular: 0x30,
  hardLink: 0x31,
  symlink: 0x32,
  char: 0x33,
  block: 0x34,
  directory: 0x35,
  fifo: 0x36,
  globalHeader: 0x67,
} as const;

export interface TarEntry {
  /** From 1, in the archive's order; global headers count. */
  readonly number: number;
  /** One of TarType, or any other byte. */
  readonly type: number;
  readonly name: Uint8Array;
  readonly linkname: Uint8Array;
  /** The whole number; only its low 12 bits mean anything. */
  readonly mode: number;
  /** Low 32 bits of the number. */
  readonly uid: number;
  readonly gid: number;
  readonly uname: Uint8Array;
  readonly gname: Uint8Array;
  readonly mtimeSeconds: number;
  readonly mtimeNanoseconds: number;
  /** Bytes of the file, a sparse one expanded. For types without data what the header says, which means nothing. */
  readonly size: number;
  readonly devMajor: number;
  readonly devMinor: number;
  /** All records of the entry's extended header. */
  readonly pax: PaxRecords;
  /** Where the first of its headers begins and its data begin, in the uncompressed tar. */
  readonly headerOffset: number;
  readonly dataOffset: number;
  /** Bytes that stand at dataOffset; 0 for types without data. */
  readonly storedSize: number;
  /** Which parts of the file the stored bytes are, in order; null: all of it. */
  readonly sparse: readonly SparsePiece[] | null;
}

export interface TarHandler {
  /** True if the entry's data are wanted. */
  entry(entry: TarEntry): boolean;
  /** Stored data of the entry that came last; `chunk` is a view, `offset` its place in the uncompressed tar. */
  data(chunk: Uint8Array, offset: number): void;
}

type State = "header" | "body" | "map" | "data" | "padding" | "end";

export class TarReader {
  readonly #handler: TarHandler;
  readonly #layer: string;
  #state: State = "header";
  /** Offset in the stream of the next byte. */
  #offset: number;
  #entries = 0;
  /** A block that came in pieces. */
  readonly #block = new Uint8Array(TAR_BLOCK);
  #blockLength = 0;
  #zeroBlock = false;

  /** Bytes still to come of the body, data or padding, and the padding behind. */
  #remaining = 0;
  #padding = 0;
  #body: Uint8Array = EMPTY;
  #bodyLength = 0;
  #bodyType = 0;
  #wanted = false;

  /** Where the first header of the entry that is being read begins; `#extending` once an extension header of it was read. */
  #headerOffset: number;
  #extending = false;
  #pax: PaxRecords = NO_PAX_RECORDS;
  #longName: Uint8Array = EMPTY;
  #longLink: Uint8Array = EMPTY;
  /** A global header or an entry whose body or map is being read. */
  #pending: TarHeader | null = null;
  #map: SparseMapReader | null = null;
  #mapBytes = 0;

  /** `offset`: where in the uncompressed tar the first pushed byte stands. */
  constructor(handler: TarHandler, options: { layer: string; offset?: number }) {
    this.#handler = handler;
    this.#layer = options.layer;
    this.#offset = options.offset ?? 0;
    this.#headerOffset = this.#offset;
  }

  /** Bytes read so far, counted from the start of the tar. */
  get offset(): number {
    return this.#offset;
  }

  get entries(): number {
    return this.#entries;
  }

  /** True between entries: no header, body or data is half read. */
  get atBorder(): boolean {
    return (this.#state === "header" && this.#blockLength === 0 && !this.#extending) || this.#state === "end";
  }

  push(chunk: Uint8Array): void {
    if (this.#offset + chunk.byteLength > LIMITS.layerBytes) {
      throw new HeadstartError("HS_LIMIT", {
        what: `layer ${this.#layer}: the tar is longer than ${LIMITS.layerBytes} bytes`,
      });
    }
    const length = chunk.byteLength;
    let position = 0;
    while (position < length) {
      switch (this.#state) {
        case "data": {
          const count = Math.min(this.#remaining, length - position);
          if (this.#wanted) this.#handler.data(chunk.subarray(position, position + count), this.#offset);
          this.#skip(count);
          position += count;
          break;
        }
        case "header": {
          if (this.#blockLength === 0 && length - position >= TAR_BLOCK) {
            const block = chunk.subarray(position, position + TAR_BLOCK);
            position += TAR_BLOCK;
            this.#offset += TAR_BLOCK;
            this.#header(block);
          } else {
            const count = this.#gather(chunk, position);
            position += count;
            if (this.#blockLength === TAR_BLOCK) {
              this.#blockLength = 0;
              this.#header(this.#block);
            }
          }
          break;
        }
        case "padding": {
          const count = Math.min(this.#remaining, length - position);
          this.#skip(count);
          position += count;
          break;
        }
        case "body": {
          const count = Math.min(this.#remaining, length - position);
          this.#body.set(chunk.subarray(position, position + count), this.#bodyLength);
          this.#bodyLength += count;
          this.#offset += count;
          this.#remaining -= count;
          position += count;
          if (this.#remaining === 0) this.#bodyDone();
          break;
        }
        case "map": {
          position += this.#gather(chunk, position);
          if (this.#blockLength === TAR_BLOCK) {
            this.#blockLength = 0;
            this.#mapBlock();
          }
          break;
        }
        case "end": {
          this.#offset += length - position;
          return;
        }
        default:
          this.#state satisfies never;
      }
    }
  }

  /** The stream has ended. Throws when it may not end here. */
  finish(): void {
    if (this.#state === "header" && this.#blockLength > 0) throw this.#refuse("tar-cut", "a block is cut short");
    if (this.#state === "data") throw this.#refuse("tar-cut", "the data of a file are cut short");
    if (this.#state === "body") throw this.#refuse("tar-cut", "an extension header is cut short");
    if (this.#state === "map") throw this.#refuse("tar-cut", "a sparse map is cut short");
  }

  /** Copies towards a whole block; the number of bytes taken. */
  #gather(chunk: Uint8Array, position: number): number {
    const count = Math.min(TAR_BLOCK - this.#blockLength, chunk.byteLength - position);
    this.#block.set(chunk.subarray(position, position + count), this.#blockLength);
    this.#blockLength += count;
    this.#offset += count;
    return count;
  }

  #skip(count: number): void {
    this.#offset += count;
    this.#remaining -= count;
    if (this.#remaining > 0) return;
    if (this.#padding > 0) {
      this.#state = "padding";
      this.#remaining = this.#padding;
      this.#padding = 0;
    } else {
      this.#state = "header";
    }
  }

  /** Goes on behind `length` bytes of data (or of an extension body) and their padding. */
  #expect(state: "data" | "body", length: number): void {
    this.#state = state;
    this.#remaining = length;
    this.#padding = -length & (TAR_BLOCK - 1);
    if (length > 0) return;
    if (state === "body") this.#bodyDone();
    else this.#skip(0);
  }

  #header(block: Uint8Array): void {
    if (!this.#extending) this.#headerOffset = this.#offset - TAR_BLOCK;
    const header = readHeader(block);
    if (header === "zero") {
      if (this.#zeroBlock) this.#state = "end";
      this.#zeroBlock = true;
      return;
    }
    if (this.#zeroBlock) throw this.#refuse("tar-header", "behind a block of zeros stands one that is not zero");
    if (typeof header === "string") throw this.#refuse("tar-header", header);
    if (this.#entries >= LIMITS.layerEntries) {
      throw new HeadstartError("HS_LIMIT", {
        what: `layer ${this.#layer}: more than ${LIMITS.layerEntries} entries`,
      });
    }
    switch (header.type) {
      case 0x78: // x
      case 0x67: // g
      case 0x4c: // L
      case 0x4b: // K
        this.#extension(header);
        break;
      default:
        this.#entry(header);
    }
  }

  #extension(header: TarHeader): void {
    const size = header.size;
    if (typeof size !== "number" || size < 0) throw this.#refuse("tar-header", "a negative size", header);
    if (size > LIMITS.paxBytes) throw this.#refuse("pax", "an extension header of more than 1 MiB", header);
    this.#extending = true;
    this.#body = new Uint8Array(size);
    this.#bodyLength = 0;
    this.#bodyType = header.type;
    this.#pending = header.type === TarType.globalHeader ? header : null;
    this.#expect("body", size);
  }

  #bodyDone(): void {
    const body = this.#body;
    this.#body = EMPTY;
    if (this.#bodyType === 0x4c) this.#longName = cString(body);
    else if (this.#bodyType === 0x4b) this.#longLink = cString(body);
    else {
      const records = parsePax(body);
      if (typeof records === "string") throw this.#refuse("pax", records, this.#pending);
      if (this.#bodyType === TarType.globalHeader) this.#globalHeader(records);
      else this.#pax = records;
    }
    this.#remaining = 0;
    this.#skip(0);
  }

  /** Its values mean nothing, its name does; and it throws away the extensions that came before it (specs/layer.md 2.4). */
  #globalHeader(records: PaxRecords): void {
    const header = this.#pending!;
    this.#pending = null;
    const path = records.get("path");
    this.#emit({
      number: ++this.#entries,
      type: TarType.globalHeader,
      name: path !== undefined && path.byteLength > 0 ? path : header.name,
      linkname: EMPTY,
      mode: 0,
      uid: 0,
      gid: 0,
      uname: EMPTY,
      gname: EMPTY,
      mtimeSeconds: 0,
      mtimeNanoseconds: 0,
      size: 0,
      devMajor: 0,
      devMinor: 0,
      pax: records,
      headerOffset: this.#headerOffset,
      dataOffset: this.#offset,
      storedSize: 0,
      sparse: null,
    });
  }

  #emit(entry: TarEntry): void {
    this.#extending = false;
    this.#pax = NO_PAX_RECORDS;
    this.#longName = EMPTY;
    this.#longLink = EMPTY;
    this.#pending = null;
    this.#wanted = this.#handler.entry(entry);
  }

  #entry(plain: TarHeader): void {
    // Go refuses a negative size in the header before it looks at the PAX record that replaces it
    if (!isHeaderOnly(plain.type) && plain.size < 0) throw this.#refuse("tar-header", "a negative size", plain);
    const header = this.#merge(plain);
    if (header.type === 0) header.type = header.name.at(-1) === 0x2f ? TarType.directory : TarType.regular;
    const size = header.size;
    let stored = 0;
    if (!isHeaderOnly(header.type)) {
      if (size < 0) throw this.#refuse("tar-header", "a negative size", header);
      if (typeof size !== "number" || size > LIMITS.layerBytes) {
        throw this.#refuse("tar-header", `a file of ${size} bytes`, header);
      }
      stored = size;
    }
    // extension blocks of an old GNU sparse file stand between its header and its data; the type is refused anyway, whatever is in them
    if (header.type === 0x53 && header.extendedSparse) throw this.#refuse("type", "an old GNU sparse file", header);
    const { form } = sparseForm(this.#pax);
    if (form === "none") {
      this.#deliver(header, stored, null);
      return;
    }
    if (isHeaderOnly(header.type)) throw this.#refuse("sparse", "a sparse map on a type without data", header);
    const name = this.#pax.get("GNU.sparse.name");
    if (name !== undefined && name.byteLength > 0) header.name = name;
    header.size = this.#sparseSize(stored, header);
    if (form === "records") {
      const pieces = sparseMapOfRecords(this.#pax);
      if (pieces === null) throw this.#refuse("sparse", "a malformed sparse map", header);
      this.#deliver(header, stored, pieces);
      return;
    }
    this.#pending = header;
    this.#map = new SparseMapReader();
    this.#mapBytes = 0;
    this.#remaining = stored;
    if (stored < TAR_BLOCK) throw this.#refuse("sparse", "the data are too short for a sparse map", header);
    this.#state = "map";
  }

  #mapBlock(): void {
    const header = this.#pending!;
    const pieces = this.#map!.push(this.#block);
    this.#remaining -= TAR_BLOCK;
    this.#mapBytes += TAR_BLOCK;
    if (pieces === "bad") throw this.#refuse("sparse", "a malformed sparse map", header);
    if (pieces === "more") {
      if (this.#remaining < TAR_BLOCK) throw this.#refuse("sparse", "the data are too short for their map", header);
      if (this.#mapBytes >= LIMITS.paxBytes) throw this.#refuse("sparse", "a sparse map of more than 1 MiB", header);
      return;
    }
    this.#map = null;
    this.#deliver(header, this.#remaining, pieces);
  }

  #sparseSize(stored: number, header: TarHeader): number {
    let text = this.#pax.get("GNU.sparse.size");
    if (text === undefined || text.byteLength === 0) text = this.#pax.get("GNU.sparse.realsize");
    if (text === undefined || text.byteLength === 0) return stored;
    const size = parseInt64(paxText(text));
    if (size === null || size < 0) throw this.#refuse("sparse", "a malformed size", header);
    if (typeof size !== "number" || size > LIMITS.layerBytes) {
      throw this.#refuse("sparse", `a file of ${size} bytes`, header);
    }
    return size;
  }

  #deliver(header: TarHeader, stored: number, sparse: readonly SparsePiece[] | null): void {
    const size = exactOrLow32(header.size);
    if (sparse !== null && !soundPieces(sparse, size)) {
      throw this.#refuse("sparse", "the pieces of a sparse file overlap or lie outside of it", header);
    }
    this.#emit({
      number: ++this.#entries,
      type: header.type,
      name: header.name,
      linkname: header.linkname,
      mode: exactOrLow32(header.mode),
      uid: low32(header.uid),
      gid: low32(header.gid),
      uname: header.uname,
      gname: header.gname,
      mtimeSeconds: header.mtimeSeconds,
      mtimeNanoseconds: header.mtimeNanoseconds,
      size,
      devMajor: exactOrLow32(header.devMajor),
      devMinor: exactOrLow32(header.devMinor),
      pax: this.#pax,
      headerOffset: this.#headerOffset,
      dataOffset: this.#offset,
      storedSize: stored,
      sparse,
    });
    this.#expect("data", stored);
  }

  /** Puts PAX records and GNU long names over the header's fields, and checks all numbers (specs/layer.md 2.3). */
  #merge(header: TarHeader): TarHeader {
    for (const [key, value] of this.#pax) {
      if (value.byteLength === 0) continue;
      switch (key) {
        case "path":
          header.name = value;
          break;
        case "linkpath":
          header.linkname = value;
          break;
        case "uname":
          header.uname = value;
          break;
        case "gname":
          header.gname = value;
          break;
        case "uid":
        case "gid":
        case "size": {
          const number = parseInt64(paxText(value));
          if (number === null) throw this.#refuse("pax", `the PAX record ${key} is no number`, header);
          header[key] = number;
          break;
        }
        case "mtime":
        case "atime":
        case "ctime": {
          const time = parsePaxTime(paxText(value));
          if (time === null) throw this.#refuse("pax", `the PAX record ${key} is no time`, header);
          if (key === "mtime") {
            header.mtimeSeconds = time.seconds;
            header.mtimeNanoseconds = time.nanoseconds;
          }
          break;
        }
      }
    }
    if (this.#longName.byteLength > 0) header.name = this.#longName;
    if (this.#longLink.byteLength > 0) header.linkname = this.#longLink;
    return header;
  }

  #refuse(code: RefusalCode, reason: string, header?: TarHeader | null): HeadstartError {
    return refusal(code, reason, {
      layer: this.#layer,
      entry: this.#entries + 1,
      name: header?.name,
      offset: this.#headerOffset,
    });
  }
}

/**
 * The one entry whose headers are exactly `headers` (what a table of contents says stands before a file's data), at `offset` in the uncompressed tar. Throws
 * HS_LAYER_REFUSED when they are no tar headers, HS_INDEX_MISMATCH when they are more or less than one entry's.
 */
export function parseEntryAt(headers: Uint8Array, offset: number, layer: string): TarEntry {
  let found: TarEntry | null = null;
  let count = 0;
  const reader = new TarReader(
    {
      entry(entry) {
        found = entry;
        count++;
        return false;
      },
      data() {},
    },
    { layer, offset },
  );
  reader.push(headers);
  const entry = found as TarEntry | null;
  if (entry === null || count !== 1 || entry.dataOffset !== offset + headers.byteLength) {
    throw new HeadstartError("HS_INDEX_MISMATCH", {
      what: `layer ${layer}: the ${headers.byteLength} bytes at ${offset} of the tar are not the headers of one entry`,
      offset,
    });
  }
  return entry;
}

const EMPTY: Uint8Array = new Uint8Array(0);

/** Types that never have data, whatever their size says. */
export function isHeaderOnly(type: number): boolean {
  return type >= TarType.hardLink && type <= TarType.fifo;
}

function cString(bytes: Uint8Array): Uint8Array {
  const end = bytes.indexOf(0);
  return end < 0 ? bytes : bytes.subarray(0, end);
}
