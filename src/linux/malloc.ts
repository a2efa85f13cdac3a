/** glibc's allocator, told to give back what is freed (mallopt(3), malloc_trim(3)). */

import { call, declare } from "./call.ts";

const mallopt = declare<[number, number]>("int mallopt(int param, int value)");

const mallocTrim = declare<[number]>("int malloc_trim(size_t pad)");

const M_TRIM_THRESHOLD = -1;
const M_MMAP_THRESHOLD = -3;

/**
 * For the whole process, and for good. Left alone, glibc keeps freed buffers of up to 32 MiB in one heap a thread, once it has seen such ones come and go; measured on
 * a volume of 3.4 GB: 318 MiB at the peak instead of 246, for 0.2 s more CPU.
 */
export function returnFreedMemory(): void {
  call("mallopt M_MMAP_THRESHOLD", mallopt, M_MMAP_THRESHOLD, 64 * 1024);
  call("mallopt M_TRIM_THRESHOLD", mallopt, M_TRIM_THRESHOLD, 128 * 1024);
}

/** Gives back what is free now, of all threads' heaps: takes milliseconds, and is for when work is over. */
export function trimHeap(): void {
  mallocTrim(0);
}
