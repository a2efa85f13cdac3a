/** Where a sparse file has data: lseek(2) with SEEK_DATA and SEEK_HOLE. */

import { isHeadstartError } from "../base/errors.ts";
import { declare } from "./call.ts";
import { checked } from "./ffi.ts";

const lseekCall = declare<[number, number, number]>("int64_t lseek(int fd, int64_t offset, int whence)");
const SEEK_DATA = 3;
const SEEK_HOLE = 4;

/**
 * The half-open byte ranges of [0, size) that may hold anything but zeros, ascending; a file system that knows no holes gives one for all. Moves the descriptor's position: read with pread. Throws
 * HS_SYSCALL.
 */
export function* dataExtents(fd: number, size: number): Generator<{ readonly start: number; readonly end: number }> {
  for (let at = 0; at < size; ) {
    const start = seek(fd, at, SEEK_DATA);
    if (start === undefined || start >= size) return;
    const end = Math.min(seek(fd, start, SEEK_HOLE) ?? size, size);
    yield { start, end };
    at = end;
  }
}

/** Undefined where there is nothing more. */
function seek(fd: number, offset: number, whence: number): number | undefined {
  try {
    return checked(Number(lseekCall(fd, offset, whence)), `lseek at ${offset}`);
  } catch (error) {
    if (isHeadstartError(error, "HS_SYSCALL") && error.details.errnoName === "ENXIO") return undefined;
    throw error;
  }
}
