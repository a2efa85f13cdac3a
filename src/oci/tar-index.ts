/**
 * Where the members of a tar lie, without unpacking it: enough for image archives (ustar, GNU long names, pax path, linkpath and size). Layers are
 * read by formats/tar, which knows every kind of entry; this knows files and links by name.
 */

import { open } from "node:fs/promises";
import { HeadstartError } from "../base/errors.ts";
import { LIMITS } from "../base/limits.ts";
import { type FilePiece, readExactly } from "./local.ts";

const BLOCK = 512;
/** An archive holds some blobs per image; docker save writes three members a layer. */
const MEMBERS_MAX = 1_000_000;
const GZIP_MAGIC = [0x1f, 0x8b];
const ZSTD_MAGIC = [0x28, 0xb5, 0x2f, 0xfd];

export class TarIndex {
  readonly path: string;
  readonly #files = new Map<string, FilePiece>();
  readonly #links = new Map<string, string>();

  private constructor(path: string) {
    this.path = path;
  }

  /** Reads the headers of the whole archive. Throws HS_MALFORMED, HS_TRUNCATED, HS_LIMIT, HS_FORMAT_UNSUPPORTED (a compressed one). */
  static async open(path: string, what: string, signal?: AbortSignal): Promise<TarIndex> {
    const index = new TarIndex(path);
    await index.#scan(what, signal);
    return index;
  }

  get names(): readonly string[] {
    return [...this.#files.keys()];
  }

  /** The file of that name, or the one that a link of that name ends at. */
  find(name: string): FilePiece | undefined {
    let current = cleanName(name);
    for (let hops = 0; hops < 8; hops++) {
      const piece = this.#files.get(current);
      if (piece !== undefined) return piece;
      const target = this.#links.get(current);
      if (target === undefined) return undefined;
      current = target;
    }
    return undefined;
  }

  async #scan(what: string, signal: AbortSignal | undefined): Promise<void> {
    await using file = await open(this.path, "r").catch((cause) => {
      throw new HeadstartError("HS_NOT_FOUND", { what: `${what}: cannot be opened`, cause });
    });
    const { size: end } = await file.stat();
    const header = new Uint8Array(BLOCK);
    let long: { path?: string; link?: string; size?: number } = {};
    for (let position = 0, members = 0; position + BLOCK <= end; members++) {
      signal?.throwIfAborted();
      if (members > MEMBERS_MAX) throw new HeadstartError("HS_LIMIT", { what: `${what}: too many members` });
      await readExactly(file, header, position, what);
      if (position === 0) refuseCompressed(header, what);
      if (header.every((byte) => byte === 0)) return;
      checkSum(header, `${what}: header at byte ${position}`);
      const type = String.fromCharCode(header[156]!);
      const bodyAt = position + BLOCK;
      const size = long.size ?? readNumber(header.subarray(124, 136), `${what}: size at byte ${position}`);
      const isMeta = type === "x" || type === "g" || type === "L" || type === "K";
      const bodySize = isMeta ? readNumber(header.subarray(124, 136), what) : hasBody(type) ? size : 0;
      if (bodySize > end - bodyAt) {
        throw new HeadstartError("HS_TRUNCATED", {
          what: `${what}: the member at byte ${position} ends after the file`,
        });
      }
      if (isMeta) {
        if (bodySize > LIMITS.paxBytes)
          throw new HeadstartError("HS_LIMIT", { what: `${what}: a name of ${bodySize} bytes` });
        const body = new Uint8Array(bodySize);
        await readExactly(file, body, bodyAt, what);
        if (type === "L") long.path = text(body);
        else if (type === "K") long.link = text(body);
        else if (type === "x") long = { ...long, ...readPax(body, what) };
      } else {
        const name = cleanName(long.path ?? headerName(header));
        const link = long.link ?? text(header.subarray(157, 257));
        if (type === "0" || type === "\0" || type === "7") {
          this.#files.set(name, { path: this.path, offset: bodyAt, size });
          this.#links.delete(name);
        } else if (type === "1") this.#links.set(name, cleanName(link));
        else if (type === "2") this.#links.set(name, resolveLink(name, link));
        long = {};
      }
      position = bodyAt + Math.ceil(bodySize / BLOCK) * BLOCK;
    }
  }
}

function hasBody(type: string): boolean {
  return !["1", "2", "3", "4", "5", "6"].includes(type);
}

function refuseCompressed(header: Uint8Array, what: string): void {
  for (const magic of [GZIP_MAGIC, ZSTD_MAGIC]) {
    if (magic.every((byte, index) => header[index] === byte)) {
      throw new HeadstartError("HS_FORMAT_UNSUPPORTED", {
        what: `${what}: a compressed archive cannot be read at random: decompress it first`,
      });
    }
  }
}

function checkSum(header: Uint8Array, what: string): void {
  let sum = 8 * 0x20;
  for (let index = 0; index < BLOCK; index++) if (index < 148 || index >= 156) sum += header[index]!;
  const stored = Number.parseInt(text(header.subarray(148, 156)).trim() || "0", 8);
  if (stored !== sum) throw new HeadstartError("HS_MALFORMED", { what: `${what}: not a tar header (check sum)` });
}

/** Octal text, or GNU's base-256. */
function readNumber(field: Uint8Array, what: string): number {
  let value = 0;
  if (field[0]! & 0x80) {
    value = field[0]! & 0x7f;
    for (const byte of field.subarray(1)) value = value * 256 + byte;
  } else {
    const digits = text(field).trim();
    value = digits === "" ? 0 : /^[0-7]+$/.test(digits) ? Number.parseInt(digits, 8) : Number.NaN;
  }
  if (!Number.isSafeInteger(value)) throw new HeadstartError("HS_MALFORMED", { what: `${what}: no number` });
  return value;
}

function headerName(header: Uint8Array): string {
  const name = text(header.subarray(0, 100));
  const isUstar = text(header.subarray(257, 262)) === "ustar" && header[262] === 0;
  const prefix = isUstar ? text(header.subarray(345, 500)) : "";
  return prefix === "" ? name : `${prefix}/${name}`;
}

function readPax(body: Uint8Array, what: string): { path?: string; link?: string; size?: number } {
  const result: { path?: string; link?: string; size?: number } = {};
  for (let position = 0; position < body.byteLength; ) {
    const blank = body.indexOf(0x20, position);
    const length = blank < 0 ? Number.NaN : Number(Buffer.from(body.subarray(position, blank)).toString("latin1"));
    if (!Number.isSafeInteger(length) || length < blank - position + 3 || position + length > body.byteLength) {
      throw new HeadstartError("HS_MALFORMED", { what: `${what}: a pax record is damaged` });
    }
    const record = Buffer.from(body.subarray(blank + 1, position + length - 1)).toString("utf8");
    const equals = record.indexOf("=");
    const [key, value] = [record.slice(0, equals), record.slice(equals + 1)];
    if (key === "path") result.path = value;
    else if (key === "linkpath") result.link = value;
    else if (key === "size") {
      if (!/^\d{1,16}$/.test(value))
        throw new HeadstartError("HS_MALFORMED", { what: `${what}: a pax size is no number` });
      result.size = Number(value);
    }
    position += length;
  }
  return result;
}

function text(field: Uint8Array): string {
  const end = field.indexOf(0);
  return Buffer.from(end < 0 ? field : field.subarray(0, end)).toString("utf8");
}

function cleanName(name: string): string {
  return name
    .split("/")
    .filter((part) => part !== "" && part !== ".")
    .join("/");
}

/** A symlink's target, relative to the archive's root. */
function resolveLink(name: string, target: string): string {
  const parts = target.startsWith("/") ? [] : name.split("/").slice(0, -1);
  for (const part of target.split("/")) {
    if (part === "..") parts.pop();
    else if (part !== "" && part !== ".") parts.push(part);
  }
  return parts.join("/");
}
