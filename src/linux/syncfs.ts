/** syncfs(2): everything that was written to one file system, made durable with one call. */

import { closeSync, constants, openSync } from "node:fs";
import { callAsync, declare } from "./call.ts";

const syncfsCall = declare<[number]>("int syncfs(int fd)");

/** The file system that `directory` lies on. Throws HS_SYSCALL, HS_DISK_FULL. */
export async function syncFileSystem(directory: string): Promise<void> {
  const fd = openSync(directory, constants.O_RDONLY | constants.O_DIRECTORY);
  try {
    await callAsync(`syncfs ${directory}`, syncfsCall, fd);
  } finally {
    closeSync(fd);
  }
}
