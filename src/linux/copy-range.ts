/** copy_file_range(2): file to file inside the kernel; where the file system can, both then share the blocks (XFS, btrfs). */

import { isHeadstartError } from "../base/errors.ts";
import { call, declare } from "./call.ts";

const copyFileRange = declare<[number, BigInt64Array, number, BigInt64Array, number, number]>(
  "long copy_file_range(int from, void *fromOffset, int to, void *toOffset, size_t length, unsigned int flags)",
);
/** Between two file systems, of file systems that cannot, and of kernels or sandboxes that know no such call. */
const CANNOT = new Set(["EXDEV", "EOPNOTSUPP", "ENOSYS", "EINVAL", "EPERM"]);

/** Copies `length` bytes. False where this cannot be done here, or the source ends before: then part of them may be copied. Throws HS_SYSCALL, HS_DISK_FULL. */
export function copyRange(from: number, fromOffset: number, to: number, toOffset: number, length: number): boolean {
  const source = BigInt64Array.of(BigInt(fromOffset));
  const target = BigInt64Array.of(BigInt(toOffset));
  try {
    for (let left = length; left > 0; ) {
      const count = call("copy_file_range", copyFileRange, from, source, to, target, left, 0);
      if (count === 0) return false;
      left -= count;
    }
    return true;
  } catch (error) {
    if (isHeadstartError(error, "HS_SYSCALL") && CANNOT.has(String(error.details.errnoName))) return false;
    throw error;
  }
}
