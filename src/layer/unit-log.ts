/**
 * The file `units` beside a lazy layer: which units are filled, persisted (of a data file: which pieces). It is the truth that survives the process (fill-state.ts derives the rest).
 *
 *   0   magic "HSUNITS\0"     8   u32 version     12  u32 unitCount     16  boot id (16 bytes)     32  bitmap, bit u = unit u
 *
 * Order: the unit's data are written (pwrite returned), then its bit. Neither is synced: both lie in the page cache, so a killed process loses
 * nothing, and after a reboot the boot id differs and nothing in the file is believed (specs: "not sealed is believed only within the same boot").
 */

import { closeSync, constants, ftruncateSync, openSync } from "node:fs";
import { rename, writeFile } from "node:fs/promises";
import type { Bitmap } from "../base/bitmap.ts";
import { Reader, struct, Writer } from "../base/bytes.ts";
import { HeadstartError } from "../base/errors.ts";
import { failpoint } from "../base/failpoint.ts";
import { readFully, writeFully } from "../base/files.ts";

const MAGIC = Buffer.from("HSUNITS\0");
const VERSION = 1;
const HEADER = struct("units_header", 32, { magic: 8, version: "u32", unitCount: "u32", bootId: 16 });

export class UnitLog {
  readonly #fd: number;

  private constructor(fd: number) {
    this.#fd = fd;
  }

  /** A new, empty log. Throws what open(2) says. */
  static create(path: string, unitCount: number, bootId: string): UnitLog {
    const fd = openSync(path, constants.O_RDWR | constants.O_CREAT | constants.O_TRUNC, 0o600);
    try {
      writeFully(fd, headerOf(unitCount, bootId), 0);
      ftruncateSync(fd, HEADER.size + Math.ceil(unitCount / 8));
    } catch (error) {
      closeSync(fd);
      throw error;
    }
    return new UnitLog(fd);
  }

  /**
   * Opens a log of this boot, or with `bootId` null, of a file that was synced with its log, whichever boot it is of. `filled` has one byte per 8 units. Null when the log is of another boot.
   * Throws HS_MALFORMED, HS_TRUNCATED, or ENOENT.
   */
  static open(path: string, unitCount: number, bootId: string | null): { log: UnitLog; filled: Uint8Array } | null {
    const fd = openSync(path, constants.O_RDWR);
    try {
      const bytes = new Uint8Array(HEADER.size + Math.ceil(unitCount / 8));
      const length = readFully(fd, bytes, 0);
      const reader = new Reader(bytes.subarray(0, length), { what: `unit log ${path}` });
      if (!MAGIC.equals(reader.take(8, "magic"))) throw reader.malformed("no unit log");
      const version = reader.u32("version");
      if (version !== VERSION) throw reader.malformed(`version ${version} is unknown`);
      const count = reader.u32("unitCount");
      if (count !== unitCount) throw reader.malformed(`it is of ${count} units, the index has ${unitCount}`);
      const boot = reader.take(16, "bootId");
      if (bootId !== null && !bootIdBytes(bootId).equals(boot)) {
        closeSync(fd);
        return null;
      }
      return { log: new UnitLog(fd), filled: reader.take(Math.ceil(unitCount / 8), "bitmap") };
    } catch (error) {
      closeSync(fd);
      throw error;
    }
  }

  /**
   * Makes a log whose bits are believed one of this boot. There is a whole one at any moment, also after a power loss. Throws as `open`, and what writing it says.
   */
  static async renew(path: string, unitCount: number, bootId: string): Promise<void> {
    const { log, filled } = UnitLog.open(path, unitCount, null)!;
    log.close();
    const temporary = `${path}.new`;
    await writeFile(temporary, [headerOf(unitCount, bootId), filled], { mode: 0o600, flush: true });
    await rename(temporary, path);
  }

  /** Writes the bytes that hold the bits of units [first, end). Call it after the units' data were written. */
  persist(bitmap: Bitmap, first: number, end: number): void {
    failpoint("layer:unit-bit");
    const index = first >>> 3;
    writeFully(this.#fd, bitmap.bytes.subarray(index, ((end - 1) >>> 3) + 1), HEADER.size + index);
  }

  close(): void {
    closeSync(this.#fd);
  }
}

function headerOf(unitCount: number, bootId: string): Uint8Array {
  return new Writer(HEADER.size).put(MAGIC).u32(VERSION).u32(unitCount).put(bootIdBytes(bootId)).finish();
}

function bootIdBytes(bootId: string): Buffer {
  const bytes = Buffer.from(bootId.replaceAll("-", ""), "hex");
  if (bytes.byteLength !== 16) throw new HeadstartError("HS_INTERNAL", { what: `boot id ${JSON.stringify(bootId)}` });
  return bytes;
}
