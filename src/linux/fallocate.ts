/** fallocate(2): reserving blocks. */

import { call, declare } from "./call.ts";

const fallocateCall = declare<[number, number, number, number]>(
  "int fallocate(int fd, int mode, int64_t offset, int64_t length)",
);
const FALLOC_FL_KEEP_SIZE = 1;

/** Reserves blocks without changing the size. Throws HS_DISK_FULL when they are not there. */
export function reserve(fd: number, offset: number, length: number): void {
  call("fallocate", fallocateCall, fd, FALLOC_FL_KEEP_SIZE, offset, length);
}
