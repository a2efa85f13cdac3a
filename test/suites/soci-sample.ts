/** A small layer with its zTOC, made on the spot, with any part of it wrong as a test wants. */

import { createHash } from "node:crypto";
import { gzipSync } from "node:zlib";
import { GzipInflate } from "../../src/formats/gzip/inflate.ts";
import type { ZtocEntry } from "../../src/formats/soci/entries.ts";
import { SOCI_BUILD_TOOL } from "../../src/formats/soci/ondisk.ts";
import { readZtoc, type Ztoc } from "../../src/formats/soci/read.ts";
import { GzipZinfoWriter, tarZinfo, writeZtoc, type ZtocContent } from "../../src/formats/soci/write.ts";

export interface SampleOptions {
  /** Zeros behind the end of the archive. */
  readonly padding?: number;
  readonly spanSize?: number;
  /** Over the first entry. */
  readonly change?: Partial<ZtocEntry>;
  readonly hideLast?: boolean;
  /** Instead of the gzipped tar, for the blob alone. */
  readonly blob?: Buffer;
  readonly zinfoVersion?: 1 | 2;
  /** FNAME of the gzip header. */
  readonly fileName?: string;
  readonly compression?: "gzip" | "tar";
  readonly uncompressedSize?: (size: number) => number;
}

export interface Sample {
  readonly content: ZtocContent;
  readonly blob: Buffer;
  readonly tar: Buffer;
}

/** One ustar header block, or with long PAX records three blocks. */
export function tarHeader(fields: {
  name: string;
  type?: string;
  size?: number;
  mode?: number;
  linkname?: string;
  mtime?: number;
}): Buffer {
  const block = Buffer.alloc(512);
  block.write(fields.name, 0, 100, "latin1");
  const octal = (value: number, at: number, length: number) =>
    block.write(value.toString(8).padStart(length - 1, "0"), at, "latin1");
  octal(fields.mode ?? 0o644, 100, 8);
  octal(0, 108, 8);
  octal(0, 116, 8);
  octal(fields.size ?? 0, 124, 12);
  octal(fields.mtime ?? 1_700_000_000, 136, 12);
  block.write("        ", 148, "latin1");
  block.write(fields.type ?? "0", 156, "latin1");
  block.write(fields.linkname ?? "", 157, 100, "latin1");
  block.write("ustar\x0000root", 257, "latin1");
  block.write("root", 297, "latin1");
  let sum = 0;
  for (const byte of block) sum += byte;
  block.write(`${sum.toString(8).padStart(6, "0")}\0 `, 148, "latin1");
  return block;
}

export function tarFile(name: string, data: Buffer): Buffer {
  return Buffer.concat([tarHeader({ name, size: data.length }), data, Buffer.alloc(-data.length & 511)]);
}

/** Bytes that deflate cannot shrink much, the same in each run. */
export function noise(length: number, seed = 1): Buffer {
  const bytes = Buffer.alloc(length);
  let state = seed;
  for (let index = 0; index < length; index++) {
    state = (Math.imul(state, 1_103_515_245) + 12_345) >>> 0;
    bytes[index] = state >>> 24;
  }
  return bytes;
}

export function sample(options: SampleOptions = {}): Sample {
  const big = noise(200_000);
  const parts = [
    tarFile("a", Buffer.from("hi")),
    tarHeader({ name: "d/", type: "5", mode: 0o755 }),
    tarFile("d/b", big),
  ];
  const end = parts.reduce((total, part) => total + part.length, 0) + 1024;
  const tar = Buffer.concat([...parts, Buffer.alloc(1024 + (options.padding ?? 0))]);
  const compression = options.compression ?? "gzip";
  const blob = compression === "tar" ? tar : gzipWithName(tar, options.fileName ?? "");
  const entry = (name: string, dataOffset: number, size: number, more: Partial<ZtocEntry> = {}): ZtocEntry => ({
    name: Buffer.from(name),
    type: "reg",
    dataOffset,
    size,
    linkname: Buffer.alloc(0),
    mode: 0o644,
    uid: 0,
    gid: 0,
    uname: Buffer.from("root"),
    gname: Buffer.from("root"),
    mtime: { seconds: 1_700_000_000, nanoseconds: 0 },
    devmajor: 0,
    devminor: 0,
    pax: [],
    ...more,
  });
  const entries = [
    entry("a", 512, 2, options.change),
    entry("d/", 1536, 0, { type: "dir", mode: 0o755 }),
    entry("d/b", 2048, big.length),
  ];
  if (options.hideLast) entries.pop();
  const spanSize = options.spanSize ?? 4_194_304;
  const spans =
    compression === "gzip" ? gzipSpans(blob, spanSize, options.zinfoVersion ?? 2) : tarSpans(blob, spanSize);
  const stored = options.blob ?? blob;
  const content: ZtocContent = {
    buildTool: SOCI_BUILD_TOOL,
    compressedSize: stored.length,
    uncompressedSize: options.uncompressedSize?.(end) ?? end,
    entries,
    compression,
    checkpoints: spans.checkpoints,
    spanDigests: spans.starts.map((start, index) => {
      const range = stored.subarray(start, spans.ends[index] ?? stored.length);
      return `sha256:${createHash("sha256").update(range).digest("hex")}`;
    }),
  };
  return { content, blob: stored, tar };
}

export function sampleZtoc(options: SampleOptions): { ztoc: Ztoc; blob: Buffer; tar: Buffer } {
  const { content, blob, tar } = sample(options);
  return { ztoc: readZtoc(writeZtoc(content)), blob, tar };
}

function gzipWithName(tar: Buffer, name: string): Buffer {
  const plain = gzipSync(tar, { level: 6 });
  if (name === "") return plain;
  const header = Buffer.from(plain.subarray(0, 10));
  header[3] = 8;
  return Buffer.concat([header, Buffer.from(`${name}\0`, "latin1"), plain.subarray(10)]);
}

function gzipSpans(blob: Buffer, spanSize: number, version: 1 | 2) {
  const writer = new GzipZinfoWriter(spanSize);
  const starts: number[] = [];
  const ends: number[] = [];
  let last = 0;
  using inflate = new GzipInflate({
    data() {},
    boundary(consumed, produced, bits) {
      if (writer.count > 0 && produced - last <= spanSize) return last + spanSize;
      writer.add(consumed, produced, bits, inflate.window);
      if (starts.length > 0) ends.push(consumed);
      starts.push(version === 1 && starts.length === 0 ? 10 : consumed - (bits === 0 ? 0 : 1));
      last = produced;
      return last + spanSize;
    },
  });
  inflate.push(blob);
  inflate.finish();
  const all = writer.finish();
  const checkpoints = version === 2 ? all : Buffer.concat([all.subarray(0, 12), all.subarray(12 + 32_785)]);
  return { checkpoints, starts, ends };
}

function tarSpans(blob: Buffer, spanSize: number) {
  const starts: number[] = [];
  for (let start = 0; start < blob.length; start += spanSize) starts.push(start);
  return { checkpoints: tarZinfo(spanSize, blob.length), starts, ends: starts.slice(1) };
}
