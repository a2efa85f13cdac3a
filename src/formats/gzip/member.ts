/** The header of a gzip member (RFC 1952 2.3): how long it is, checked as containerd's unpack checks it (specs/layer.md 1.2). */

import { crc32 } from "node:zlib";
import { HeadstartError } from "../../base/errors.ts";

export const GZIP_TRAILER_SIZE = 8;

const FIXED_SIZE = 10;
const FHCRC = 2;
const FEXTRA = 4;
const FNAME = 8;
const FCOMMENT = 16;
const RESERVED = 0xe0;
/** FEXTRA is at most 65 535 bytes; a name or comment that is longer than this is no name. */
const HEADER_BYTES_MAX = 256 * 1024;

/**
 * Length of the member header at `offset`, or -1 when `bytes` end before it does. Throws HS_LAYER_REFUSED (`details.refusal` "gzip") for bytes that are none.
 */
export function gzipHeaderLength(bytes: Uint8Array, offset = 0): number {
  const have = bytes.byteLength - offset;
  if ((have > 0 && bytes[offset] !== 0x1f) || (have > 1 && bytes[offset + 1] !== 0x8b)) throw refused("no gzip header");
  if (have > 2 && bytes[offset + 2] !== 8) throw refused(`compression method ${bytes[offset + 2]}`);
  if (have < FIXED_SIZE) return -1;
  const flags = bytes[offset + 3]!;
  if ((flags & RESERVED) !== 0) throw refused("reserved flags are set");
  let end = offset + FIXED_SIZE;
  if (flags & FEXTRA) {
    if (bytes.byteLength < end + 2) return -1;
    end += 2 + bytes[end]! + bytes[end + 1]! * 256;
  }
  for (const flag of [FNAME, FCOMMENT]) {
    if ((flags & flag) === 0) continue;
    const zero = bytes.indexOf(0, end);
    if (zero < 0) {
      if (have > HEADER_BYTES_MAX) throw refused("a header without an end");
      return -1;
    }
    end = zero + 1;
  }
  if (flags & FHCRC) {
    if (bytes.byteLength < end + 2) return -1;
    const want = bytes[end]! + bytes[end + 1]! * 256;
    if ((crc32(bytes.subarray(offset, end)) & 0xffff) !== want) throw refused("the header's checksum is wrong");
    end += 2;
  }
  return end > bytes.byteLength ? -1 : end - offset;
}

/** True where a gzip member may begin. */
export function isGzip(bytes: Uint8Array): boolean {
  return bytes.byteLength >= 3 && bytes[0] === 0x1f && bytes[1] === 0x8b && bytes[2] === 8;
}

function refused(message: string): HeadstartError {
  return new HeadstartError("HS_LAYER_REFUSED", { what: `gzip: ${message}`, refusal: "gzip", reason: message });
}
