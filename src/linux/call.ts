/**
 * How linux/ declares and calls C functions: typed, errno read at once, and an asynchronous form that runs on libuv's pool for calls that may wait for one of
 * our own mounts (a thread that serves FUSE must not wait for itself).
 */

import { checked, type KoffiFunc, libc } from "./ffi.ts";

export type Foreign<A extends unknown[]> = KoffiFunc<(...args: A) => number>;

/** `declaration` is C; its argument types must agree with `A`, which nothing can check. */
export function declare<A extends unknown[]>(declaration: string): Foreign<A> {
  return libc.func(declaration) as Foreign<A>;
}

/** Returns a result >= 0; throws HS_SYSCALL or HS_DISK_FULL, with `what` in its message. */
export function call<A extends unknown[]>(what: string, foreign: Foreign<A>, ...args: A): number {
  return checked(foreign(...args), what);
}

/** The same on a thread of libuv's pool (four of them, shared with fs and zlib: never start many that may wait for long). */
export function callAsync<A extends unknown[]>(what: string, foreign: Foreign<A>, ...args: A): Promise<number> {
  return new Promise((resolve, reject) => {
    const done = (error: unknown, result: number) => {
      try {
        if (error) throw error;
        // koffi restores the pool thread's errno for the length of this callback
        resolve(checked(result, what));
      } catch (failure) {
        reject(failure);
      }
    };
    (foreign.async as (...all: unknown[]) => void)(...args, done);
  });
}

/** A path or name as C wants it: bytes need their NUL. */
export function cString(text: string | Uint8Array): string | Uint8Array {
  if (typeof text === "string") return text;
  const terminated = new Uint8Array(text.byteLength + 1);
  terminated.set(text);
  return terminated;
}
