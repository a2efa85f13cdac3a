/** fallocate(2): giving blocks of a file back, or reserving them. */

import { call, declare } from "./call.ts";

const fallocateCall = declare<[number, number, number, number]>(
  "int fallocate(int fd, int mode, int64_t offset, int64_t length)",
);
const FALLOC_FL_KEEP_SIZE = 1;
const FALLOC_FL_PUNCH_HOLE = 2;

/** Bytes [offset, offset + length) become a hole: they read as zeros and take no space. Throws HS_SYSCALL (EOPNOTSUPP). */
export function punchHole(fd: number, offset: number, length: number): void {
  call("fallocate PUNCH_HOLE", fallocateCall, fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length);
}

/** Reserves blocks without changing the size. Throws HS_DISK_FULL when they are not there. */
export function reserve(fd: number, offset: number, length: number): void {
  call("fallocate", fallocateCall, fd, FALLOC_FL_KEEP_SIZE, offset, length);
}
