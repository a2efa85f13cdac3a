/**
 * Loop devices over our virtual files, for kernels without file-backed EROFS (before 6.12; specs/erofs-fuse.md 16.2). Always read-only, with direct I/O (no second
 * page cache) and AUTOCLEAR: the device frees itself when its mount is gone and `close` was called.
 */

import { constants, existsSync } from "node:fs";
import { open } from "node:fs/promises";
import { Writer } from "../base/bytes.ts";
import { HeadstartError, isHeadstartError } from "../base/errors.ts";
import { ioctl, ioctlAsync } from "./ioctl.ts";
import { makeNode } from "./node.ts";

// linux/loop.h
const LOOP_CONFIGURE = 0x4c0a;
const LOOP_CTL_GET_FREE = 0x4c82;
const LO_FLAGS_READ_ONLY = 1;
const LO_FLAGS_AUTOCLEAR = 4;
const LO_FLAGS_DIRECT_IO = 16;
const LOOP_MAJOR = 7;
/** Somebody else may take the free device between GET_FREE and CONFIGURE. */
const ATTEMPTS_MAX = 32;

export interface LoopDevice extends AsyncDisposable {
  /** "/dev/loopN": mount it, then dispose of this; the mount keeps the device. */
  readonly path: string;
}

/** Opens `file` and puts a device over it. Does not block the calling thread on the file. Throws HS_SYSCALL. */
export async function attachLoop(file: string): Promise<LoopDevice> {
  await using stack = new AsyncDisposableStack();
  const backing = stack.use(await open(file, constants.O_RDONLY));
  const control = stack.use(await open("/dev/loop-control", constants.O_RDWR));
  for (let attempt = 0; attempt < ATTEMPTS_MAX; attempt++) {
    const number = ioctl("LOOP_CTL_GET_FREE", control.fd, LOOP_CTL_GET_FREE);
    const path = `/dev/loop${number}`;
    // a container's /dev is often no devtmpfs: the node of a new device is missing there
    if (!existsSync(path)) makeNode(path, { kind: "block", mode: 0o600, major: LOOP_MAJOR, minor: number });
    const device = await open(path, constants.O_RDONLY);
    try {
      await ioctlAsync(`LOOP_CONFIGURE ${path} over ${file}`, device.fd, LOOP_CONFIGURE, loopConfig(backing.fd, file));
      return { path, [Symbol.asyncDispose]: () => device.close() };
    } catch (error) {
      await device.close();
      if (!(isHeadstartError(error) && error.details.errnoName === "EBUSY")) throw error;
    }
  }
  throw new HeadstartError("HS_SYSCALL", { what: `no free loop device after ${ATTEMPTS_MAX} attempts` });
}

/** struct loop_config (304 bytes): fd, block_size, struct loop_info64 (232 bytes), 8 reserved u64. */
function loopConfig(fd: number, file: string): Uint8Array {
  const name = Buffer.from(file).subarray(0, 63);
  const writer = new Writer(304)
    .u32(fd)
    .u32(4096)
    // lo_device, lo_inode, lo_rdevice, lo_offset, lo_sizelimit
    .zeros(5 * 8)
    // lo_number, lo_encrypt_type, lo_encrypt_key_size
    .zeros(3 * 4)
    .u32(LO_FLAGS_READ_ONLY | LO_FLAGS_AUTOCLEAR | LO_FLAGS_DIRECT_IO)
    .put(name)
    .zeros(64 - name.byteLength)
    // lo_crypt_name, lo_encrypt_key, lo_init
    .zeros(64 + 32 + 16)
    .zeros(8 * 8);
  return writer.finish();
}
