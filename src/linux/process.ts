/** What a process can do to itself and, by pidfd, to another one; Node has none of it. */

import { call, declare } from "./call.ts";

const exitCall = declare<[number]>("int _exit(int status)");
const pidfdOpenCall = declare<[number, number, number]>("long syscall(long number, int pid, unsigned int flags)");
const pidfdGetfdCall = declare<[number, number, number, number]>(
  "long syscall(long number, int pidfd, int targetfd, unsigned int flags)",
);
// asm-generic/unistd.h: the same on x86-64 and arm64
const SYS_PIDFD_OPEN = 434;
const SYS_PIDFD_GETFD = 438;

/**
 * Ends the process at once. Node's own exit joins its worker threads and its pool, and would wait for ever for one that is blocked in
 * read(2) of /dev/fuse.
 */
export function exitNow(status: number): never {
  exitCall(status);
  throw new Error("_exit returned");
}

/** A descriptor of the process (close it). Linux 5.3. Throws HS_SYSCALL (ESRCH). */
export function openPidfd(pid: number): number {
  return call(`pidfd_open ${pid}`, pidfdOpenCall, SYS_PIDFD_OPEN, pid, 0);
}

/** A duplicate of descriptor `fd` of the process behind `pidfd`: the same open file. Linux 5.6. Throws HS_SYSCALL (EBADF). */
export function takeDescriptor(pidfd: number, fd: number): number {
  return call(`pidfd_getfd ${fd}`, pidfdGetfdCall, SYS_PIDFD_GETFD, pidfd, fd, 0);
}
