/** Files that survive a crash: written beside, fsynced, renamed. And small helpers on descriptors. */

import {
  closeSync,
  constants,
  fsyncSync,
  linkSync,
  mkdirSync,
  openSync,
  readSync,
  renameSync,
  rmSync,
  writeSync,
} from "node:fs";
import { basename, dirname, join } from "node:path";
import { HeadstartError } from "./errors.ts";
import { failpoint } from "./failpoint.ts";

/** Replaces `path` at once and durably. `bytes` are on disk when this returns. */
export function writeFileDurably(path: string, bytes: Uint8Array | string, mode = 0o600): void {
  const temporary = join(dirname(path), `.${basename(path)}.${process.pid}.new`);
  const fd = openSync(temporary, constants.O_WRONLY | constants.O_CREAT | constants.O_TRUNC, mode);
  try {
    writeFully(fd, typeof bytes === "string" ? Buffer.from(bytes) : bytes, 0);
    failpoint("files:fsync");
    fsyncSync(fd);
  } catch (error) {
    closeSync(fd);
    rmSync(temporary, { force: true });
    throw error;
  }
  closeSync(fd);
  failpoint("files:rename");
  renameSync(temporary, path);
  fsyncDirectory(dirname(path));
}

/**
 * Gives a finished file its name; `file` may keep its own, which the caller removes. Unlike a rename, a link never replaces what came there meanwhile; not every file
 * system has links. Throws HS_OUTPUT_EXISTS.
 */
export function giveName(file: string, name: string): void {
  try {
    linkSync(file, name);
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code ?? "";
    if (code === "EEXIST") throw new HeadstartError("HS_OUTPUT_EXISTS", { what: name });
    if (!["EPERM", "ENOTSUP", "EOPNOTSUPP", "ENOSYS"].includes(code)) throw error;
    renameSync(file, name);
  }
}

export function fsyncDirectory(path: string): void {
  const fd = openSync(path, constants.O_RDONLY | constants.O_DIRECTORY);
  try {
    fsyncSync(fd);
  } finally {
    closeSync(fd);
  }
}

/** pwrite of all bytes; a short write goes on. */
export function writeFully(fd: number, bytes: Uint8Array, position: number): void {
  let done = 0;
  while (done < bytes.byteLength) done += writeSync(fd, bytes, done, bytes.byteLength - done, position + done);
}

/** pread until `into` is full or the file ends; the number of bytes read. */
export function readFully(fd: number, into: Uint8Array, position: number): number {
  let done = 0;
  while (done < into.byteLength) {
    const count = readSync(fd, into, done, into.byteLength - done, position + done);
    if (count === 0) break;
    done += count;
  }
  return done;
}

/** A directory that only root may enter. */
export function makePrivateDirectory(path: string): string {
  mkdirSync(path, { recursive: true, mode: 0o700 });
  return path;
}
