/** The walk behind compare.ts, in a thread of its own. Streams: only the names of one directory and the inodes with more than one name are held. */

import { createHash } from "node:crypto";
import { type BigIntStats, closeSync, lstatSync, openSync, readdirSync, readlinkSync, readSync } from "node:fs";
import { getXattr, listXattrs } from "../linux/xattr.ts";
import type { CompareSettings, Comparison, Difference } from "./compare.ts";

const READ_BYTES = 1 << 20;

export function walkTrees(left: string, right: string, settings: CompareSettings): Comparison {
  const walk = new Walk(left, right, settings);
  walk.run();
  const { entries, bytes, differences } = walk;
  return { entries, bytes, differences, equal: differences.length === 0 };
}

class Walk {
  entries = 0;
  bytes = 0;
  readonly differences: Difference[] = [];
  readonly #roots: readonly [Buffer, Buffer];
  readonly #options: CompareSettings;
  readonly #limit: number;
  readonly #ignored: ReadonlySet<string>;
  /** Inodes with several names: left device and inode -> the first path, and the right inode found there. */
  readonly #left = new Map<string, string>();
  readonly #right = new Map<string, string>();
  readonly #buffers = [Buffer.alloc(READ_BYTES), Buffer.alloc(READ_BYTES)] as const;

  constructor(left: string, right: string, options: CompareSettings) {
    this.#roots = [Buffer.from(left), Buffer.from(right)];
    this.#options = options;
    this.#limit = options.limit ?? 100;
    this.#ignored = new Set((options.ignore ?? []).map((path) => Buffer.from(path).toString("latin1")));
  }

  run(): void {
    const queue = ["/"];
    while (queue.length > 0 && this.differences.length < this.#limit) queue.push(...this.#entry(queue.pop()!));
  }

  /** Compares one entry that both have; the entries below it that both have. */
  #entry(path: string): string[] {
    this.entries++;
    const [left, right] = this.#both(path);
    const before = lstatSync(left, { bigint: true });
    const after = lstatSync(right, { bigint: true });
    const type = typeOf(before);
    if (!this.#same(path, "type", type, typeOf(after))) return [];
    this.#attributes(path, type, before, after);
    this.#xattrs(path, left, right);
    if (type === "symlink") this.#same(path, "target", readlinkSync(left), readlinkSync(right));
    if (type !== "dir") this.#names(path, before, after);
    if (type === "reg") this.#content(path, left, right, before);
    return type === "dir" ? this.#children(path, left, right) : [];
  }

  #attributes(path: string, type: string, before: BigIntStats, after: BigIntStats): void {
    const octal = (stats: BigIntStats) => `0${(stats.mode & 0o7777n).toString(8)}`;
    this.#same(path, "mode", octal(before), octal(after));
    this.#same(path, "uid", before.uid, after.uid);
    this.#same(path, "gid", before.gid, after.gid);
    if (type !== "dir" || !this.#madeByUnpack(before)) this.#same(path, "mtime", before.mtimeNs, after.mtimeNs);
    if (type !== "dir") {
      // a directory's size and link count are the file system's own business
      this.#same(path, "nlink", before.nlink, after.nlink);
      this.#same(path, "size", before.size, after.size);
    }
    if (type === "char" || type === "block") this.#same(path, "rdev", before.rdev, after.rdev);
  }

  #madeByUnpack(before: BigIntStats): boolean {
    const { unpacked } = this.#options;
    return unpacked !== undefined && before.mtimeMs >= unpacked.startMs && before.mtimeMs <= unpacked.endMs;
  }

  #xattrs(path: string, left: Buffer, right: Buffer): void {
    if (this.#options.without?.includes("xattrs")) return;
    const before = readXattrs(left);
    const after = readXattrs(right);
    for (const name of new Set([...before.keys(), ...after.keys()])) {
      this.#same(path, `xattr ${name}`, before.get(name) ?? "absent", after.get(name) ?? "absent");
    }
  }

  /** Names that are one inode on the left must be one inode on the right, and the other way round. */
  #names(path: string, before: BigIntStats, after: BigIntStats): void {
    if (before.nlink === 1n && after.nlink === 1n) return;
    const first = (map: Map<string, string>, stats: BigIntStats) => {
      const key = `${stats.dev}:${stats.ino}`;
      if (!map.has(key)) map.set(key, path);
      return map.get(key)!;
    };
    this.#same(path, "the same file as", display(first(this.#left, before)), display(first(this.#right, after)));
  }

  #content(path: string, left: Buffer, right: Buffer, before: BigIntStats): void {
    if (before.nlink > 1n && this.#left.get(`${before.dev}:${before.ino}`) !== path) return; // read under its first name
    const [one, oneSize] = this.#hash(left, this.#buffers[0]);
    const [two] = this.#hash(right, this.#buffers[1]);
    this.bytes += oneSize;
    this.#same(path, "content", one, two);
  }

  /** sha256 and length of what read(2) gives, or the errno it gives. */
  #hash(path: Buffer, buffer: Buffer): [string, number] {
    const hash = createHash("sha256");
    let size = 0;
    let fd: number | undefined;
    try {
      fd = openSync(path, "r");
      for (;;) {
        const count = readSync(fd, buffer, 0, buffer.byteLength, size);
        if (count === 0) return [`sha256:${hash.digest("hex")}`, size];
        hash.update(buffer.subarray(0, count));
        size += count;
      }
    } catch (error) {
      return [`unreadable at byte ${size}: ${(error as NodeJS.ErrnoException).code}`, size];
    } finally {
      if (fd !== undefined) closeSync(fd);
    }
  }

  #children(path: string, left: Buffer, right: Buffer): string[] {
    const names = (directory: Buffer) =>
      readdirSync(directory, { encoding: "buffer" }).map((name) => Buffer.from(name).toString("latin1"));
    const before = names(left);
    const after = new Set(names(right));
    const parent = path === "/" ? "/" : `${path}/`;
    const common: string[] = [];
    for (const name of before) {
      if (this.#ignored.has(parent + name)) after.delete(name);
      else if (after.delete(name)) common.push(parent + name);
      else this.#lonely(parent + name, "missing", 0);
    }
    for (const name of after) if (!this.#ignored.has(parent + name)) this.#lonely(parent + name, "extra", 1);
    return common.sort().reverse(); // the queue is taken from its end: sorted order, depth first
  }

  #lonely(path: string, what: "missing" | "extra", side: 0 | 1): void {
    const type = typeOf(lstatSync(this.#both(path)[side], { bigint: true }));
    this.#add({ path: display(path), what, ...(side === 0 ? { left: type } : { right: type }) });
  }

  #both(path: string): readonly [Buffer, Buffer] {
    const tail = Buffer.from(path === "/" ? "" : path, "latin1");
    return [Buffer.concat([this.#roots[0], tail]), Buffer.concat([this.#roots[1], tail])];
  }

  #same(path: string, what: string, left: string | bigint, right: string | bigint): boolean {
    if (left === right || this.#options.without?.includes(what)) return true;
    this.#add({ path: display(path), what, left: String(left), right: String(right) });
    return false;
  }

  #add(difference: Difference): void {
    if (this.differences.length < this.#limit) this.differences.push(difference);
  }
}

function display(path: string): string {
  return Buffer.from(path, "latin1").toString();
}

function readXattrs(path: Buffer): Map<string, string> {
  const found = new Map<string, string>();
  for (const name of listXattrs(path)) {
    const value = getXattr(path, name);
    if (value !== null) found.set(Buffer.from(name).toString("latin1"), `0x${Buffer.from(value).toString("hex")}`);
  }
  return found;
}

function typeOf(stats: BigIntStats): string {
  if (stats.isFile()) return "reg";
  if (stats.isDirectory()) return "dir";
  if (stats.isSymbolicLink()) return "symlink";
  if (stats.isCharacterDevice()) return "char";
  if (stats.isBlockDevice()) return "block";
  return stats.isFIFO() ? "fifo" : "socket";
}
