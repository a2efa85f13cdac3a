/**
 * Where the bytes of an EROFS image come from when it is read: memory, a file, or a layout that was not written yet.
 */

import { fstatSync } from "node:fs";
import { HeadstartError } from "../base/errors.ts";
import { readFully } from "../base/files.ts";
import type { ErofsLayout } from "./write.ts";

export interface ErofsSource {
  /** Bytes of the whole image. */
  readonly size: number;
  /** Exactly `length` bytes; the caller has checked that they lie inside of `size`. Not to be changed; stays valid. */
  readAt(offset: number, length: number): Uint8Array;
}

export function bytesSource(bytes: Uint8Array): ErofsSource {
  return { size: bytes.byteLength, readAt: (offset, length) => bytes.subarray(offset, offset + length) };
}

/** Metadata are read inode by inode: windows of this size make one pread of a thousand. */
const WINDOW = 64 * 1024;
const WINDOWS_MAX = 64;

/** An open file. `size` is the file's own unless given. readAt throws HS_TRUNCATED when the file has become shorter. */
export function fdSource(fd: number, size: number = fstatSync(fd).size): ErofsSource {
  const windows = new Map<number, Uint8Array>();
  const read = (offset: number, length: number): Uint8Array => {
    const bytes = new Uint8Array(length);
    const count = readFully(fd, bytes, offset);
    if (count < length) {
      throw new HeadstartError("HS_TRUNCATED", {
        what: `EROFS image: ${length} bytes at byte ${offset} wanted, ${count} there`,
      });
    }
    return bytes;
  };
  return {
    size,
    readAt(offset, length) {
      const number = Math.floor(offset / WINDOW);
      const start = number * WINDOW;
      if (offset + length > start + WINDOW) return read(offset, length);
      let window = windows.get(number);
      if (window === undefined) {
        if (windows.size >= WINDOWS_MAX) windows.delete(windows.keys().next().value!);
        window = read(start, Math.min(WINDOW, size - start));
        windows.set(number, window);
      }
      return window.subarray(offset - start, offset - start + length);
    },
  };
}

/** A layout's metadata with zeros for all file data: what the self-check of a fresh image reads. */
export function layoutSource(layout: ErofsLayout): ErofsSource {
  return {
    size: layout.size,
    readAt(offset, length) {
      for (const part of layout.parts) {
        const from = offset - part.offset;
        if (from >= 0 && from + length <= part.bytes.byteLength) return part.bytes.subarray(from, from + length);
      }
      const bytes = new Uint8Array(length);
      for (const part of layout.parts) {
        const from = Math.max(offset, part.offset);
        const to = Math.min(offset + length, part.offset + part.bytes.byteLength);
        if (from < to) bytes.set(part.bytes.subarray(from - part.offset, to - part.offset), from - offset);
      }
      return bytes;
    },
  };
}
