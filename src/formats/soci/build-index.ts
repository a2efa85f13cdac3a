/**
 * One pass over a layer blob (specs/soci.md 3.3, 3.4), the half that decodes: finds checkpoints and collects the table of contents, and hands what it decoded,
 * and where spans begin, to the half that hashes (build-hash.ts). The two run on a thread each, so that a layer is indexed at the speed of inflate alone.
 */

import { HeadstartError } from "../../base/errors.ts";
import { alignUp } from "../../base/ranges.ts";
import { GzipInflate } from "../gzip/inflate.ts";
import { isGzip } from "../gzip/member.ts";
import { isHeaderOnly, type TarEntry, TarReader, TarType } from "../tar/records.ts";
import type { ZtocEntry } from "./entries.ts";
import type { ZtocEntryType } from "./ondisk.ts";
import { GzipZinfoWriter, tarZinfo, writeZtoc } from "./write.ts";

/** What the hashing half is told. Offsets are in the blob. */
export interface IndexSink {
  /** Decoded bytes, for gzip only: a plain tar's are its stored ones. Valid as GzipInflate says. */
  decoded(bytes: Uint8Array): void;
  /** The stored bytes of a span begin at `offset`; the one before ends at `previousEnd`, one byte later when they share it. */
  cut(offset: number, previousEnd: number): void;
  memberEnd(crc: number, length: number): void;
}

/** Why a layer gets no zTOC although it is sound: SOCI's builder or reader cannot have it (specs/soci.md 2.3). */
export class NotIndexable extends Error {
  override readonly name = "NotIndexable";
}

export interface IndexerOptions {
  readonly spanSize: number;
  /** Names the layer in errors. */
  readonly layer: string;
  readonly nextBuffer?: () => Uint8Array;
}

export class LayerIndexer implements Disposable {
  readonly #options: IndexerOptions;
  readonly #sink: IndexSink;
  readonly #toc: TocCollector;
  #gzip: { readonly inflate: GzipInflate; readonly zinfo: GzipZinfoWriter } | null = null;
  #started = false;
  #stored = 0;
  #lastOut = 0;
  #nextTarCut = 0;

  constructor(options: IndexerOptions, sink: IndexSink) {
    if (!Number.isSafeInteger(options.spanSize) || options.spanSize < 0) {
      throw new HeadstartError("HS_USAGE", { what: `a span size of ${options.spanSize} bytes` });
    }
    this.#options = options;
    this.#sink = sink;
    this.#toc = new TocCollector(options.layer);
  }

  /** Throws HS_LAYER_REFUSED, HS_LIMIT, NotIndexable. The first chunk must have 4 bytes or more, or be all there is. */
  push(chunk: Uint8Array): void {
    if (!this.#started) this.#start(chunk);
    this.#stored += chunk.byteLength;
    if (this.#gzip !== null) {
      this.#gzip.inflate.push(chunk);
      return;
    }
    this.#toc.push(chunk);
    for (; this.#nextTarCut < this.#stored; this.#nextTarCut += this.#options.spanSize) {
      this.#sink.cut(this.#nextTarCut, this.#nextTarCut);
    }
  }

  /** The whole blob was pushed. Throws HS_LAYER_REFUSED when it is cut. */
  finish(): void {
    if (!this.#started) throw new NotIndexable("the blob is empty");
    this.#gzip?.inflate.finish();
    this.#toc.finish();
  }

  get compression(): "gzip" | "tar" {
    return this.#gzip === null ? "tar" : "gzip";
  }

  get toc(): TocCollector {
    return this.#toc;
  }

  /** After finish(), once the spans' digests are known. */
  writeZtoc(buildTool: string, spanDigests: readonly string[]): Uint8Array {
    return writeZtoc({
      buildTool,
      compressedSize: this.#stored,
      uncompressedSize: this.#toc.archiveEnd,
      entries: this.#toc.entries,
      compression: this.compression,
      checkpoints: this.#gzip?.zinfo.finish() ?? tarZinfo(this.#options.spanSize, this.#stored),
      spanDigests,
    });
  }

  [Symbol.dispose](): void {
    this.#gzip?.inflate[Symbol.dispose]();
  }

  #start(chunk: Uint8Array): void {
    this.#started = true;
    if (isZstd(chunk)) throw new NotIndexable("it is compressed with zstd, which SOCI has no spans for");
    if (!isGzip(chunk)) {
      if (this.#options.spanSize === 0)
        throw new HeadstartError("HS_USAGE", { what: "a span size of 0 for a plain tar" });
      return;
    }
    const zinfo = new GzipZinfoWriter(this.#options.spanSize);
    const { nextBuffer } = this.#options;
    const inflate = new GzipInflate({
      verify: false,
      data: (bytes) => {
        this.#toc.push(bytes);
        this.#sink.decoded(bytes);
      },
      boundary: (consumed, produced, bits) => {
        // strictly greater, as SOCI has it, which at span size 0 also keeps two checkpoints from one place: SOCI writes such and then refuses them
        if (zinfo.count === 0 || produced - this.#lastOut > this.#options.spanSize) {
          zinfo.add(consumed, produced, bits, inflate.window);
          this.#lastOut = produced;
          this.#sink.cut(consumed - (bits === 0 ? 0 : 1), consumed);
        }
        return this.#lastOut + this.#options.spanSize;
      },
      memberEnd: (crc, length) => this.#sink.memberEnd(crc, length),
      ...(nextBuffer && { nextBuffer }),
    });
    this.#gzip = { inflate, zinfo };
  }
}

/** A zstd frame or a skippable one (specs/layer.md 1.1). */
function isZstd(bytes: Uint8Array): boolean {
  if (bytes.byteLength < 4) return false;
  if (bytes[0] === 0x28 && bytes[1] === 0xb5 && bytes[2] === 0x2f && bytes[3] === 0xfd) return true;
  return (bytes[0]! & 0xf0) === 0x50 && bytes[1] === 0x2a && bytes[2] === 0x4d && bytes[3] === 0x18;
}

/** Reads the tar and keeps what a zTOC says about each entry. */
export class TocCollector {
  readonly entries: ZtocEntry[] = [];
  /** True if SOCI's `xattr` optimization must not be applied: an xattr, or an opaque mark (specs/soci.md 2.1). */
  hasXattrs = false;
  readonly #reader: TarReader;
  #entriesEnd = 0;

  constructor(layer: string) {
    this.#reader = new TarReader({ entry: (entry) => this.#entry(entry), data() {} }, { layer });
  }

  push(bytes: Uint8Array): void {
    this.#reader.push(bytes);
  }

  finish(): void {
    this.#reader.finish();
  }

  /** Where a reader of the archive stops: behind the two blocks of zeros that end it, or at the end of a stream that has fewer. */
  get archiveEnd(): number {
    return Math.min(this.#reader.offset, this.#entriesEnd + 1024);
  }

  #entry(entry: TarEntry): boolean {
    const type = TYPES.get(entry.type);
    if (type === undefined) throw new NotIndexable(`entry ${entry.number} is of a type that SOCI does not take`);
    // what the reader hands out are copies, and views of bodies that are nobody else's: they may be kept
    const pax =
      entry.pax.size === 0
        ? NO_PAX
        : [...entry.pax].sort(byKey).map(([key, value]) => ({ key: Buffer.from(key, "latin1"), value }));
    for (const { key } of pax) {
      if (startsWith(key, "GNU.sparse.")) throw new NotIndexable(`entry ${entry.number} is a sparse file`);
      if (startsWith(key, "SCHILY.xattr.")) this.hasXattrs = true;
    }
    if (endsWith(entry.name, ".wh..wh..opq")) this.hasXattrs = true;
    this.#entriesEnd = alignUp(entry.dataOffset + entry.storedSize, 512);
    this.entries.push({
      name: entry.name,
      type,
      dataOffset: entry.dataOffset,
      // SOCI copies the header's size and refuses the result when it is read
      size: isHeaderOnly(entry.type) ? 0 : entry.size,
      linkname: entry.linkname,
      mode: entry.mode,
      uid: entry.uid,
      gid: entry.gid,
      uname: entry.uname,
      gname: entry.gname,
      mtime: { seconds: entry.mtimeSeconds, nanoseconds: entry.mtimeNanoseconds },
      devmajor: entry.devMajor,
      devminor: entry.devMinor,
      pax,
    });
    return false;
  }
}

const NO_PAX: ZtocEntry["pax"] = [];

function byKey([a]: [string, unknown], [b]: [string, unknown]): number {
  return a < b ? -1 : 1;
}

const TYPES: ReadonlyMap<number, ZtocEntryType> = new Map([
  [TarType.regular, "reg"],
  [TarType.hardLink, "hardlink"],
  [TarType.symlink, "symlink"],
  [TarType.char, "char"],
  [TarType.block, "block"],
  [TarType.directory, "dir"],
  [TarType.fifo, "fifo"],
]);

function startsWith(bytes: Uint8Array, prefix: string): boolean {
  return (
    bytes.byteLength >= prefix.length && Buffer.from(bytes.subarray(0, prefix.length)).toString("latin1") === prefix
  );
}

function endsWith(bytes: Uint8Array, suffix: string): boolean {
  if (bytes.byteLength < suffix.length || bytes.at(-1) !== suffix.charCodeAt(suffix.length - 1)) return false;
  return Buffer.from(bytes.subarray(-suffix.length)).toString("latin1") === suffix;
}
