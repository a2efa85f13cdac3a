/**
 * The only import of koffi: everything foreign goes through here, and nothing outside of linux/ imports this. `libc` is the C library that Node itself runs on;
 * `executable` is the node binary, which exports its own zlib (never load the system's libz: specs/soci.md 3.3).
 */

import koffi from "koffi";
import { HeadstartError } from "../base/errors.ts";

export type { KoffiFunc } from "koffi";
export { koffi };
export const libc = koffi.load("libc.so.6");
export const executable = koffi.load(null);

/** Throws HS_SYSCALL with the errno's name unless `result` is >= 0. Call it right behind the foreign call: errno is per thread. */
export function checked(result: number, what: string): number {
  if (result >= 0) return result;
  throw syscallError(koffi.errno(), what);
}

/** `details.errno` is the number, `details.errnoName` e.g. "EBUSY". */
export function syscallError(errno: number, what: string): HeadstartError {
  const name = errnoName(errno);
  return new HeadstartError(errno === 28 || errno === 122 ? "HS_DISK_FULL" : "HS_SYSCALL", {
    what: `${what}: ${name}`,
    errno,
    errnoName: name,
  });
}

const NAMES = new Map<number, string>(Object.entries(koffi.os.errno).map(([name, value]) => [value as number, name]));

export function errnoName(errno: number): string {
  return NAMES.get(errno) ?? `errno ${errno}`;
}
