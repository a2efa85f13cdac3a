/**
 * PAX extension records (POSIX pax, "pax Header Block"; Go archive/tar, parsePAX): `LEN KEY=VALUE\n`, of equal keys the last counts. Keys are strings of
 * one char a byte, values are bytes. What a record means for its entry is said in records.ts.
 */

import { parseInt64 } from "./numbers.ts";

export type PaxRecords = ReadonlyMap<string, Uint8Array>;

export const NO_PAX_RECORDS: PaxRecords = new Map();

/** What may not hold a NUL in its value; for all other records the key may not. */
const TEXT_VALUES = new Set(["path", "linkpath", "uname", "gname"]);

/**
 * Records of one extended header; values are views of `body`. GNU sparse 0.0 pairs are folded into one `GNU.sparse.map` as Go does. Returns the reason as
 * a string when they are malformed.
 */
export function parsePax(body: Uint8Array): Map<string, Uint8Array> | string {
  const records = new Map<string, Uint8Array>();
  const sparse: string[] = [];
  const buffer = Buffer.from(body.buffer, body.byteOffset, body.byteLength);
  let position = 0;
  while (position < buffer.length) {
    const blank = buffer.indexOf(0x20, position);
    if (blank < 0) return "a PAX record has no length";
    const length = parseInt64(buffer.toString("latin1", position, blank));
    if (typeof length !== "number" || length < 5 || length > buffer.length - position) {
      return "the length of a PAX record does not fit";
    }
    const end = position + length;
    if (end <= blank + 1 || buffer[end - 1] !== 0x0a) return "a PAX record does not end with its line";
    const equals = buffer.indexOf(0x3d, blank + 1);
    if (equals < 0 || equals >= end - 1) return "a PAX record has no '='";
    const key = buffer.toString("latin1", blank + 1, equals);
    const value = body.subarray(equals + 1, end - 1);
    if (key === "") return "a PAX record has an empty key";
    if (TEXT_VALUES.has(key) ? value.includes(0) : key.includes("\0")) return "a PAX record holds a NUL";
    if (key === "GNU.sparse.offset" || key === "GNU.sparse.numbytes") {
      if ((sparse.length % 2 === 0) !== (key === "GNU.sparse.offset") || value.includes(0x2c)) {
        return "GNU.sparse.offset and GNU.sparse.numbytes do not alternate";
      }
      sparse.push(paxText(value));
    } else {
      records.set(key, value);
    }
    position = end;
  }
  if (sparse.length > 0) records.set("GNU.sparse.map", Buffer.from(sparse.join(","), "latin1"));
  return records;
}

/** One char a byte. */
export function paxText(value: Uint8Array): string {
  return Buffer.from(value.buffer, value.byteOffset, value.byteLength).toString("latin1");
}
