/**
 * mount(2) and umount2(2). Never through mount(8): util-linux before 2.41 silently puts a loop device under a file (specs/erofs-fuse.md 8.1).
 * The asynchronous forms are for everything that may wait for one of our own mounts.
 */

import { call, callAsync, declare } from "./call.ts";

/** linux/mount.h, MS_*. */
export const MountFlag = {
  readOnly: 1,
  noSuid: 2,
  noDev: 4,
  noExec: 8,
  remount: 32,
  bind: 4096,
  recursive: 16384,
  private: 1 << 18,
} as const;

/** sys/mount.h, MNT_* and UMOUNT_NOFOLLOW. */
export const UnmountFlag = { force: 1, detach: 2, noFollow: 8 } as const;

export interface MountRequest {
  readonly source: string;
  readonly target: string;
  readonly type: string;
  /** Or of MountFlag values. */
  readonly flags: number;
  /** At most one page (4096 bytes with its NUL): more is cut by the kernel, so it is refused by it with EINVAL. */
  readonly data?: string;
}

const mountCall = declare<[string, string, string, number, string]>(
  "int mount(const char *source, const char *target, const char *type, unsigned long flags, const char *data)",
);
const unmountCall = declare<[string, number]>("int umount2(const char *target, int flags)");

function describe(request: MountRequest): string {
  return `mount -t ${request.type || "none"} ${request.source} ${request.target}${request.data ? ` -o ${request.data.slice(0, 200)}` : ""}`;
}

/** Throws HS_SYSCALL (details.errnoName). */
export function mount(request: MountRequest): void {
  call(describe(request), mountCall, request.source, request.target, request.type, request.flags, request.data ?? "");
}

export async function mountAsync(request: MountRequest): Promise<void> {
  await callAsync(
    describe(request),
    mountCall,
    request.source,
    request.target,
    request.type,
    request.flags,
    request.data ?? "",
  );
}

/** `flags` is an or of UnmountFlag values. Throws HS_SYSCALL: EBUSY in use, EINVAL no mount point. */
export function unmount(target: string, flags = 0): void {
  call(`umount ${target}`, unmountCall, target, flags);
}

export async function unmountAsync(target: string, flags = 0): Promise<void> {
  await callAsync(`umount ${target}`, unmountCall, target, flags);
}
