/**
 * Files of a few big arrays with a magic, a version and a checksum: the placement and the file tree beside a layer. Little endian.
 *
 *   magic (8) | u32 version | u32 sectionCount | sectionCount x u64 length | sections, each padded to 8 bytes | sha256 of all before (32)
 *
 * Whatever does not check out is an error, never a guess: the caller makes the file again from the index.
 */

import { createHash } from "node:crypto";
import { constants } from "node:fs";
import { open, readFile, rename, writeFile } from "node:fs/promises";
import { dirname } from "node:path";
import { Reader, Writer } from "../base/bytes.ts";
import { HeadstartError } from "../base/errors.ts";
import { failpoint } from "../base/failpoint.ts";

export interface SectionFormat {
  /** 8 characters. */
  readonly magic: string;
  readonly version: number;
  readonly sectionCount: number;
}

/** Replaces `path` at once. Not synced unless `durable`: a seal syncs what it keeps, and what is not sealed is not believed after a reboot. */
export async function writeSections(
  path: string,
  format: SectionFormat,
  sections: readonly Uint8Array[],
  options: { durable?: boolean } = {},
): Promise<void> {
  if (sections.length !== format.sectionCount)
    throw new HeadstartError("HS_INTERNAL", { what: `${format.magic}: ${sections.length} sections` });
  const head = new Writer(64).put(Buffer.from(format.magic, "latin1")).u32(format.version).u32(sections.length);
  for (const section of sections) head.u64(section.byteLength);
  const hash = createHash("sha256");
  const parts: Uint8Array[] = [head.finish()];
  for (const section of sections) {
    parts.push(section, new Uint8Array((8 - (section.byteLength % 8)) % 8));
  }
  for (const part of parts) hash.update(part);
  parts.push(hash.digest());
  const temporary = `${path}.new`;
  await writeFile(temporary, parts, { mode: 0o600, flush: options.durable === true });
  failpoint("layer:section-rename");
  await rename(temporary, path);
  if (options.durable !== true) return;
  await using directory = await open(dirname(path), constants.O_RDONLY | constants.O_DIRECTORY);
  await directory.sync();
}

/** The sections, each over a SharedArrayBuffer of its own. Throws HS_MALFORMED, HS_TRUNCATED, HS_LIMIT, HS_DIGEST_MISMATCH, or ENOENT. */
export async function readSections(path: string, format: SectionFormat): Promise<Uint8Array[]> {
  const bytes = await readFile(path);
  const reader = new Reader(bytes, { what: path });
  if (reader.ascii(8, "magic") !== format.magic) throw reader.malformed(`no ${format.magic} file`);
  const version = reader.u32("version");
  if (version !== format.version) throw reader.malformed(`version ${version} is unknown`);
  const count = reader.u32("sectionCount");
  if (count !== format.sectionCount) throw reader.malformed(`${count} sections, not ${format.sectionCount}`);
  const lengths = Array.from({ length: count }, () => reader.u64("length"));
  const total = lengths.reduce((sum, length) => sum + length + ((8 - (length % 8)) % 8), reader.position);
  if (total + 32 !== bytes.byteLength) throw reader.malformed("the lengths of its sections do not fit the file");
  const digest = createHash("sha256").update(bytes.subarray(0, total)).digest();
  if (!digest.equals(bytes.subarray(total)))
    throw new HeadstartError("HS_DIGEST_MISMATCH", { what: `${path}: damaged` });
  return lengths.map((length) => {
    const section = new Uint8Array(new SharedArrayBuffer(length));
    section.set(reader.take(length, "section"));
    reader.skip((8 - (length % 8)) % 8);
    return section;
  });
}
