/** Writing to the device: each reply is exactly one write(2) of its whole length (specs/erofs-fuse.md 9). */

import { writeSync } from "node:fs";
import { IN_HEADER, OUT_HEADER } from "./ondisk.ts";

/** gone: the kernel no longer waits for it (interrupted, or a duplicate); closed: unmounted or aborted. */
export type Sent = "sent" | "gone" | "closed";

/** A buffer for a reply with room for `size` bytes of body behind the header. */
export function replyBuffer(size: number): Uint8Array {
  return new Uint8Array(OUT_HEADER.size + size);
}

/**
 * Sends `buffer`, whose body of `bodyLength` bytes is in place, as the answer to `request` (its header at least). `unique` is copied as it came: resent
 * requests carry bit 63. `error` is a positive errno.
 */
export function sendReply(
  fd: number,
  request: Uint8Array,
  buffer: Uint8Array,
  error: number,
  bodyLength: number,
): Sent {
  const view = new DataView(buffer.buffer, buffer.byteOffset, OUT_HEADER.size);
  const length = OUT_HEADER.size + bodyLength;
  view.setUint32(OUT_HEADER.offsets.len, length, true);
  view.setInt32(OUT_HEADER.offsets.error, -error, true);
  for (let index = 0; index < 8; index++) {
    buffer[OUT_HEADER.offsets.unique + index] = request[IN_HEADER.offsets.unique + index]!;
  }
  return writeOnce(fd, buffer, length);
}

export function writeOnce(fd: number, buffer: Uint8Array, length: number): Sent {
  for (;;) {
    try {
      writeSync(fd, buffer, 0, length, null);
      return "sent";
    } catch (error) {
      switch ((error as NodeJS.ErrnoException).code) {
        case "EINTR":
          continue;
        case "ENOENT":
          return "gone";
        case "ENODEV":
        case "ECONNABORTED":
        case "ENOTCONN":
        case "EPERM":
          return "closed";
        default:
          throw error;
      }
    }
  }
}
