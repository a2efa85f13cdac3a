/**
 * Tar members for images that we make ourselves: ustar headers (POSIX.1-1988), and a PAX header (POSIX.1-2001) where ustar cannot say it. For small
 * layers: a member's data are in memory. Same entries, same bytes.
 */

export interface TarEntry {
  /** As it shall stand in the header: "usr/bin/python3", "./etc/", "tmp". */
  readonly path: string;
  /** Default: "dir" when the path ends in a slash, "reg" otherwise. */
  readonly type?: "reg" | "dir" | "symlink" | "hardlink" | "char" | "block" | "fifo";
  readonly data?: Uint8Array | string;
  /** Default 0644, 0755 for directories, 0777 for symlinks. */
  readonly mode?: number;
  readonly uid?: number;
  readonly gid?: number;
  /** Seconds since 1970; with a fraction it becomes a PAX record. Default: 2024-01-01. */
  readonly mtime?: number;
  /** Of a symlink or hard link. */
  readonly target?: string;
  readonly major?: number;
  readonly minor?: number;
  /** Become PAX records SCHILY.xattr.<name>. */
  readonly xattrs?: Readonly<Record<string, Uint8Array | string>>;
  /** Further PAX records, as they are. */
  readonly pax?: Readonly<Record<string, string>>;
}

const BLOCK = 512;
export const DEFAULT_MTIME = 1_704_067_200;
const TYPES = { reg: "0", hardlink: "1", symlink: "2", char: "3", block: "4", dir: "5", fifo: "6" } as const;
/** ustar fields of octal digits: 7 for ids and devices, 11 for size and time. */
const ID_MAX = 0o7777777;
const SIZE_MAX = 0o77777777777;

/** A whole tar stream with its two zero blocks at the end. */
export function writeTar(entries: readonly TarEntry[]): Buffer {
  return Buffer.concat([...entries.flatMap(member), Buffer.alloc(2 * BLOCK)]);
}

function member(entry: TarEntry): Buffer[] {
  const type = entry.type ?? (entry.path.endsWith("/") ? "dir" : "reg");
  const data = Buffer.from(entry.data ?? "");
  const records = paxRecords(entry);
  const parts: Buffer[] = [];
  if (records.byteLength > 0) {
    const name = `PaxHeaders/${entry.path.slice(-80)}`;
    parts.push(header({ path: name, mode: 0o644, mtime: 0 }, "x", records.byteLength), padded(records));
  }
  parts.push(header(entry, TYPES[type], type === "reg" ? data.byteLength : 0));
  if (type === "reg") parts.push(padded(data));
  return parts;
}

function paxRecords(entry: TarEntry): Buffer {
  const { uid = 0, gid = 0, mtime = DEFAULT_MTIME } = entry;
  const records: [string, string | Uint8Array][] = [];
  if (splitName(entry.path) === undefined) records.push(["path", entry.path]);
  if (entry.target !== undefined && needsPax(entry.target, 100)) records.push(["linkpath", entry.target]);
  if (uid > ID_MAX) records.push(["uid", String(uid)]);
  if (gid > ID_MAX) records.push(["gid", String(gid)]);
  if (!Number.isInteger(mtime) || mtime < 0 || mtime > SIZE_MAX) records.push(["mtime", String(mtime)]);
  for (const [name, value] of Object.entries(entry.xattrs ?? {})) records.push([`SCHILY.xattr.${name}`, value]);
  records.push(...Object.entries(entry.pax ?? {}));
  return Buffer.concat(records.map(([key, value]) => paxRecord(key, Buffer.from(value))));
}

/** "<length> <key>=<value>\n", where the length counts itself. */
function paxRecord(key: string, value: Buffer): Buffer {
  const rest = Buffer.byteLength(key) + value.byteLength + 3;
  let length = rest + String(rest).length;
  if (String(length).length !== String(rest).length) length = rest + String(length).length;
  return Buffer.concat([Buffer.from(`${length} ${key}=`), value, Buffer.from("\n")]);
}

function needsPax(text: string, limit: number): boolean {
  return Buffer.byteLength(text) > limit || !/^[\x20-\x7e]*$/.test(text);
}

/** ustar's name and prefix, or undefined when the path fits neither or is not ASCII. */
function splitName(path: string): { name: string; prefix: string } | undefined {
  if (needsPax(path, 255)) return undefined;
  if (path.length <= 100) return { name: path, prefix: "" };
  for (let at = path.indexOf("/", path.length - 101); at > 0 && at <= 155; at = path.indexOf("/", at + 1)) {
    if (at < path.length - 1) return { name: path.slice(at + 1), prefix: path.slice(0, at) };
  }
  return undefined;
}

function header(entry: TarEntry, flag: string, size: number): Buffer {
  const block = Buffer.alloc(BLOCK);
  const { name, prefix } = splitName(entry.path) ?? { name: entry.path.slice(-100), prefix: "" };
  const { uid = 0, gid = 0, mtime = DEFAULT_MTIME, target = "" } = entry;
  const mode = entry.mode ?? (flag === "5" ? 0o755 : flag === "2" ? 0o777 : 0o644);
  const octal = (value: number, at: number, digits: number) =>
    block.write(value.toString(8).padStart(digits, "0"), at, digits, "latin1");
  block.write(name, 0, 100, "latin1");
  octal(mode, 100, 7);
  octal(uid > ID_MAX ? 0 : uid, 108, 7);
  octal(gid > ID_MAX ? 0 : gid, 116, 7);
  octal(size, 124, 11);
  octal(Math.min(Math.max(0, Math.floor(mtime)), SIZE_MAX), 136, 11);
  block.write(flag, 156, 1, "latin1");
  block.write(target, 157, 100, "latin1");
  block.write("ustar\x0000", 257, 8, "latin1");
  octal(entry.major ?? 0, 329, 7);
  octal(entry.minor ?? 0, 337, 7);
  block.write(prefix, 345, 155, "latin1");
  block.fill(0x20, 148, 156); // the checksum counts itself as blanks
  octal(
    block.reduce((sum, byte) => sum + byte, 0),
    148,
    6,
  );
  block[154] = 0;
  return block;
}

function padded(data: Buffer): Buffer {
  const rest = data.byteLength % BLOCK;
  return rest === 0 ? data : Buffer.concat([data, Buffer.alloc(BLOCK - rest)]);
}
