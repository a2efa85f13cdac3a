/**
 * Cutting one tar into several by member: headers and data are passed on as they are, byte for byte, so nothing that a header says gets lost.
 * For tars that we made ourselves a moment ago: what is malformed ends in HS_MALFORMED.
 */

import { type FileHandle, open } from "node:fs/promises";
import { HeadstartError } from "../base/errors.ts";

export interface TarMember {
  /** Without "./" in front and "/" behind; "" is the root. */
  readonly path: string;
  readonly flag: string;
  /** Of a hard link, like `path`. */
  readonly target: string;
  /** From the first of its headers to the next member. */
  readonly start: number;
  readonly end: number;
  /** Of its data. */
  readonly dataStart: number;
  readonly size: number;
}

const BLOCK = 512;
/** Of PAX records or a GNU long name: our own tars have short ones. */
const EXTENSION_BYTES_MAX = 1 << 20;

/** All members in order. Throws HS_MALFORMED. */
export async function listTar(file: FileHandle): Promise<TarMember[]> {
  const members: TarMember[] = [];
  const block = Buffer.alloc(BLOCK);
  let extension: { path?: string; linkpath?: string; size?: number } = {};
  let start = 0;
  for (let position = 0; ; ) {
    const { bytesRead } = await file.read(block, 0, BLOCK, position);
    if (bytesRead < BLOCK || block[0] === 0) return members;
    const header = readHeader(block, position);
    const dataStart = position + BLOCK;
    const size = "xgLK".includes(header.flag) ? header.size : (extension.size ?? header.size);
    position = dataStart + Math.ceil(size / BLOCK) * BLOCK;
    if ("xLK".includes(header.flag)) {
      const records = await readExtension(file, dataStart, size);
      if (header.flag === "x") extension = { ...extension, ...parsePax(records) };
      else extension[header.flag === "L" ? "path" : "linkpath"] = records.toString("latin1").replace(/\0.*$/s, "");
      continue;
    }
    members.push({
      path: clean(extension.path ?? header.path),
      flag: header.flag,
      target: clean(extension.linkpath ?? header.target),
      start,
      end: position,
      dataStart,
      size,
    });
    extension = {};
    start = position;
  }
}

function readHeader(block: Buffer, position: number) {
  const text = (start: number, end: number) => block.toString("latin1", start, end).replace(/\0.*$/s, "");
  const size = Number.parseInt(text(124, 136).trim() || "0", 8);
  if (!(size >= 0) || block.toString("latin1", 257, 262) !== "ustar") {
    throw new HeadstartError("HS_MALFORMED", { what: `tar header at byte ${position}` });
  }
  const prefix = block.toString("latin1", 257, 263) === "ustar\0" ? text(345, 500) : "";
  const name = text(0, 100);
  return {
    path: prefix === "" ? name : `${prefix}/${name}`,
    flag: text(156, 157) || "0",
    target: text(157, 257),
    size,
  };
}

async function readExtension(file: FileHandle, position: number, size: number): Promise<Buffer> {
  if (size > EXTENSION_BYTES_MAX) throw new HeadstartError("HS_MALFORMED", { what: `tar extension of ${size} bytes` });
  const buffer = Buffer.alloc(size);
  await file.read(buffer, 0, size, position);
  return buffer;
}

function parsePax(records: Buffer): { path?: string; linkpath?: string; size?: number } {
  const found: { path?: string; linkpath?: string; size?: number } = {};
  for (let at = 0; at < records.byteLength; ) {
    const length = Number.parseInt(records.toString("latin1", at, at + 20), 10);
    if (!(length > 0)) throw new HeadstartError("HS_MALFORMED", { what: "PAX record in a tar of ours" });
    const record = records.toString("latin1", at, at + length - 1);
    const [, key = "", value = ""] = /^\d+ ([^=]+)=(.*)$/s.exec(record) ?? [];
    if (key === "path" || key === "linkpath") found[key] = value;
    if (key === "size") found.size = Number(value);
    at += length;
  }
  return found;
}

function clean(path: string): string {
  return path.replace(/^(\.?\/)+|^\.$|\/+$/g, "");
}

const CHUNK_BYTES = 1 << 20;

/** A tar of these members of `file`, in the order given, neighbours in one read. */
export async function* copyMembers(path: string, members: readonly TarMember[]): AsyncGenerator<Buffer> {
  await using file = await open(path, "r");
  for (let index = 0; index < members.length; ) {
    const { start } = members[index]!;
    let { end } = members[index++]!;
    while (index < members.length && members[index]!.start === end) end = members[index++]!.end;
    for (let position = start; position < end; ) {
      const chunk = Buffer.allocUnsafe(Math.min(CHUNK_BYTES, end - position));
      const { bytesRead } = await file.read(chunk, 0, chunk.byteLength, position);
      if (bytesRead === 0) throw new HeadstartError("HS_TRUNCATED", { what: `${path} at byte ${position}` });
      yield chunk.subarray(0, bytesRead);
      position += bytesRead;
    }
  }
  yield Buffer.alloc(2 * BLOCK);
}
