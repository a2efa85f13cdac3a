/**
 * Tars by hand for tests: every field can be set to what no sane writer writes. `tar(entry...)` joins blocks; an entry is its header blocks, its data and
 * their padding; `END` are the two zero blocks.
 */

export interface TarFields {
  /** One char; "" or "\0" is the old regular type. */
  readonly type?: string;
  readonly name?: string | Uint8Array;
  readonly link?: string | Uint8Array;
  /** A number is written as octal, bytes or text as they are. */
  readonly mode?: number | string | Uint8Array;
  readonly uid?: number | string | Uint8Array;
  readonly gid?: number | string | Uint8Array;
  readonly mtime?: number | string | Uint8Array;
  readonly size?: number | string | Uint8Array;
  readonly major?: number | string | Uint8Array;
  readonly minor?: number | string | Uint8Array;
  readonly uname?: string;
  readonly gname?: string;
  readonly prefix?: string | Uint8Array;
  readonly form?: "ustar" | "gnu" | "v7" | "star";
  readonly data?: string | Uint8Array;
  /** PAX records in an `x` header before it. */
  readonly pax?: Record<string, string | Uint8Array> | readonly (readonly [string, string | Uint8Array])[];
  /** Short for PAX records `SCHILY.xattr.NAME`. */
  readonly xattrs?: Record<string, string | Uint8Array>;
  readonly checksum?: number;
}

export const END = new Uint8Array(1024);

export function tar(...parts: readonly (TarFields | Uint8Array)[]): Uint8Array {
  return Buffer.concat(parts.map((part) => (part instanceof Uint8Array ? part : entry(part))));
}

/** With its end. */
export function wholeTar(...parts: readonly (TarFields | Uint8Array)[]): Uint8Array {
  return tar(...parts, END);
}

export function file(name: string, data: string | Uint8Array = "", fields: TarFields = {}): Uint8Array {
  return entry({ type: "0", name, data, ...fields });
}

export function directory(name: string, fields: TarFields = {}): Uint8Array {
  return entry({ type: "5", name, mode: 0o755, ...fields });
}

export function symlink(name: string, link: string, fields: TarFields = {}): Uint8Array {
  return entry({ type: "2", name, link, mode: 0o777, ...fields });
}

export function hardLink(name: string, link: string, fields: TarFields = {}): Uint8Array {
  return entry({ type: "1", name, link, ...fields });
}

export function entry(fields: TarFields): Uint8Array {
  const data = bytesOf(fields.data ?? "");
  const records: (readonly [string, string | Uint8Array])[] = [
    ...(Array.isArray(fields.pax)
      ? (fields.pax as readonly (readonly [string, string])[])
      : Object.entries(fields.pax ?? {})),
    ...Object.entries(fields.xattrs ?? {}).map(([name, value]) => [`SCHILY.xattr.${name}`, value] as const),
  ];
  const extended = records.length > 0 ? entry({ type: "x", name: "PaxHeaders.0/x", data: paxBody(records) }) : null;
  const blocks = [header({ size: data.byteLength, ...fields }), padded(data)];
  return Buffer.concat(extended === null ? blocks : [extended, ...blocks]);
}

export function paxBody(records: readonly (readonly [string, string | Uint8Array])[]): Uint8Array {
  return Buffer.concat(records.map(([key, value]) => paxRecord(key, value)));
}

export function paxRecord(key: string, value: string | Uint8Array): Uint8Array {
  const body = Buffer.concat([Buffer.from(` ${key}=`, "latin1"), bytesOf(value), Buffer.from("\n")]);
  let length = body.byteLength + 1;
  while (String(length).length + body.byteLength !== length) length = String(length).length + body.byteLength;
  return Buffer.concat([Buffer.from(String(length)), body]);
}

/** `L` or `K`. */
export function longName(type: "L" | "K", name: string | Uint8Array): Uint8Array {
  return entry({ type, name: "././@LongLink", form: "gnu", data: Buffer.concat([bytesOf(name), Buffer.from([0])]) });
}

export function globalHeader(records: Record<string, string> = {}, name = "pax_global_header"): Uint8Array {
  return entry({ type: "g", name, data: paxBody(Object.entries(records)) });
}

export function header(fields: TarFields): Uint8Array {
  const block = Buffer.alloc(512);
  put(block, 0, 100, fields.name ?? "");
  putNumber(block, 100, 8, fields.mode ?? 0o644);
  putNumber(block, 108, 8, fields.uid ?? 0);
  putNumber(block, 116, 8, fields.gid ?? 0);
  putNumber(block, 124, 12, fields.size ?? 0);
  putNumber(block, 136, 12, fields.mtime ?? 1_700_000_000);
  put(block, 156, 1, fields.type ?? "0");
  put(block, 157, 100, fields.link ?? "");
  const form = fields.form ?? "ustar";
  if (form !== "v7") {
    put(block, 257, 8, form === "gnu" ? "ustar  \0" : "ustar\x0000");
    put(block, 265, 32, fields.uname ?? "");
    put(block, 297, 32, fields.gname ?? "");
  }
  if (form !== "v7" || fields.major !== undefined) putNumber(block, 329, 8, fields.major ?? 0);
  if (form !== "v7" || fields.minor !== undefined) putNumber(block, 337, 8, fields.minor ?? 0);
  put(block, 345, form === "star" ? 131 : 155, fields.prefix ?? "");
  if (form === "star") put(block, 508, 4, "tar\0");
  return withChecksum(block, fields.checksum);
}

/** Sets the checksum of a header block that was changed by hand. */
export function withChecksum(block: Uint8Array, checksum?: number): Uint8Array {
  const copy = Buffer.from(block);
  copy.fill(0x20, 148, 156);
  const sum = copy.reduce((total, byte) => total + byte, 0);
  copy.write(`${(checksum ?? sum).toString(8).padStart(6, "0")}\0 `, 148, "latin1");
  return copy;
}

/** A base-256 field, as GNU tar writes large and negative numbers. */
export function base256(value: bigint, length: number): Uint8Array {
  const field = Buffer.alloc(length);
  let rest = BigInt.asUintN(length * 8, value);
  for (let index = length - 1; index >= 0; index--) {
    field[index] = Number(rest & 0xffn);
    rest >>= 8n;
  }
  field[0]! |= 0x80;
  return field;
}

export function padded(data: Uint8Array): Uint8Array {
  return Buffer.concat([data, new Uint8Array(-data.byteLength & 511)]);
}

function put(block: Buffer, offset: number, length: number, value: string | Uint8Array): void {
  block.set(bytesOf(value).subarray(0, length), offset);
}

function putNumber(block: Buffer, offset: number, length: number, value: number | string | Uint8Array): void {
  if (typeof value === "number") put(block, offset, length, `${value.toString(8).padStart(length - 1, "0")}\0`);
  else put(block, offset, length, value);
}

function bytesOf(value: string | Uint8Array): Uint8Array {
  return typeof value === "string" ? Buffer.from(value) : value;
}
