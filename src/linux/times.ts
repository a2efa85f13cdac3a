/** utimensat(2): times to the nanosecond, which Node's own calls round. */

import { call, cString, declare } from "./call.ts";

const utimensatCall = declare<[number, string | Uint8Array, Uint8Array, number]>(
  "int utimensat(int directory, const char *path, const void *times, int flags)",
);

const AT_FDCWD = -100;
const AT_SYMLINK_NOFOLLOW = 0x100;

/** Access and modification time of the path itself (symlinks are not followed). Throws HS_SYSCALL. */
export function setTimes(path: string | Uint8Array, seconds: number, nanoseconds: number): void {
  const times = new DataView(new ArrayBuffer(32));
  for (const offset of [0, 16]) {
    times.setBigInt64(offset, BigInt(seconds), true);
    times.setBigInt64(offset + 8, BigInt(nanoseconds), true);
  }
  const bytes = new Uint8Array(times.buffer);
  call(`utimensat ${path}`, utimensatCall, AT_FDCWD, cString(path), bytes, AT_SYMLINK_NOFOLLOW);
}
