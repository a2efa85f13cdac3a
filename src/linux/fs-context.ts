/**
 * Mounting by the calls that take one option at a time (fsopen, fsconfig, fsmount, move_mount; Linux 5.2), for option lists that mount(2)'s page of 4096 bytes cannot hold:
 * EROFS images with data in many files. By number, since glibc has names for them only from 2.36 on.
 */

import { closeSync } from "node:fs";
import { call, callAsync, declare } from "./call.ts";

// asm-generic/unistd.h: the same on all architectures
const SYS_MOVE_MOUNT = 429;
const SYS_FSOPEN = 430;
const SYS_FSCONFIG = 431;
const SYS_FSMOUNT = 432;
// linux/mount.h
const FSOPEN_CLOEXEC = 1;
const FSCONFIG_SET_FLAG = 0;
const FSCONFIG_SET_STRING = 1;
const FSCONFIG_CMD_CREATE = 6;
const FSMOUNT_CLOEXEC = 1;
const MOUNT_ATTR_RDONLY = 1;
const MOVE_MOUNT_F_EMPTY_PATH = 4;
const AT_FDCWD = -100;

const fsopen = declare<[number, string, number]>("long syscall(long number, const char *type, unsigned int flags)");
const fsconfig = declare<[number, number, number, string | null, string | null, number]>(
  "long syscall(long number, int fd, unsigned int command, const char *key, const char *value, int aux)",
);
const fsmount = declare<[number, number, number, number]>(
  "long syscall(long number, int fd, unsigned int flags, unsigned int attributes)",
);
const moveMount = declare<[number, number, string, number, string, number]>(
  "long syscall(long number, int from, const char *fromPath, int to, const char *toPath, unsigned int flags)",
);

export interface OptionMount {
  readonly source: string;
  /** An existing directory. */
  readonly target: string;
  readonly type: string;
  /** In order; a flag has no value. A value may have 255 bytes. */
  readonly options: readonly (readonly [key: string, value?: string])[];
}

/** Read-only. On threads of the pool: opening the source and the files of options may wait for one of our own mounts. Throws HS_SYSCALL. */
export async function mountReadOnlyAsync(request: OptionMount): Promise<void> {
  const { source, target, type, options } = request;
  const what = `mount -t ${type} ${source} ${target}`;
  const context = call(`${what}: fsopen`, fsopen, SYS_FSOPEN, type, FSOPEN_CLOEXEC);
  try {
    const set = (key: string, value: string | undefined) =>
      callAsync(
        `${what} -o ${key}${value === undefined ? "" : `=${value}`}`,
        fsconfig,
        SYS_FSCONFIG,
        context,
        value === undefined ? FSCONFIG_SET_FLAG : FSCONFIG_SET_STRING,
        key,
        value ?? null,
        0,
      );
    await set("source", source);
    await set("ro", undefined);
    for (const [key, value] of options) await set(key, value);
    await callAsync(what, fsconfig, SYS_FSCONFIG, context, FSCONFIG_CMD_CREATE, null, null, 0);
    const mount = call(`${what}: fsmount`, fsmount, SYS_FSMOUNT, context, FSMOUNT_CLOEXEC, MOUNT_ATTR_RDONLY);
    try {
      call(what, moveMount, SYS_MOVE_MOUNT, mount, "", AT_FDCWD, target, MOVE_MOUNT_F_EMPTY_PATH);
    } finally {
      closeSync(mount);
    }
  } finally {
    closeSync(context);
  }
}
