/** mmap(2) of a file that several processes or threads share, as bytes. */

import { koffi, libc, syscallError } from "./ffi.ts";

// a pointer comes back as a BigInt address
const mmapCall = libc.func(
  "uintptr_t mmap(void *address, size_t length, int protection, int flags, int fd, int64_t offset)",
) as (address: null, length: number, protection: number, flags: number, fd: number, offset: number) => number | bigint;
const PROT_READ = 1;
const PROT_WRITE = 2;
const MAP_SHARED = 1;
const MAP_LOCKED = 0x2000;
const MAP_POPULATE = 0x8000;

/**
 * The first `length` bytes of the file, mapped for the life of the process: what is written here is in the file at once, also when the process is killed the moment after.
 * The pages are present from the beginning and stay so: a system call that copies to them needs no page fault, which would fail in a process that is being killed.
 * The file must be that long and its blocks reserved: a missing block is SIGBUS. Throws HS_SYSCALL.
 */
export function mapShared(fd: number, length: number): Uint8Array<ArrayBuffer> {
  const address = BigInt(mmapCall(null, length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_LOCKED | MAP_POPULATE, fd, 0));
  if (address === 2n ** 64n - 1n) throw syscallError(koffi.errno(), "mmap");
  return new Uint8Array(koffi.view(address, length));
}
