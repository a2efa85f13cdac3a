/** ioctl(2) with a pointer or with a value as its argument. */

import { call, callAsync, declare } from "./call.ts";

const withPointer = declare<[number, number, Uint8Array]>("int ioctl(int fd, unsigned long request, void *argument)");
const withValue = declare<[number, number, number]>("int ioctl(int fd, unsigned long request, uintptr_t value)");

export function ioctl(what: string, fd: number, request: number, argument: Uint8Array | number = 0): number {
  return typeof argument === "number"
    ? call(what, withValue, fd, request, argument)
    : call(what, withPointer, fd, request, argument);
}

export function ioctlAsync(
  what: string,
  fd: number,
  request: number,
  argument: Uint8Array | number = 0,
): Promise<number> {
  return typeof argument === "number"
    ? callAsync(what, withValue, fd, request, argument)
    : callAsync(what, withPointer, fd, request, argument);
}
