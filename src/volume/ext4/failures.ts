/** The errors of this folder, each with what it is about. */

import { HeadstartError } from "../../base/errors.ts";

/** Something that ext4 cannot hold: HS_EXT4_LIMIT. */
export function beyondExt4(what: string): HeadstartError {
  return new HeadstartError("HS_EXT4_LIMIT", { what });
}

/** The file system is too small for what shall be in it: HS_EXT4_FULL. */
export function tooSmall(what: string): HeadstartError {
  return new HeadstartError("HS_EXT4_FULL", { what });
}

/** A damaged image: HS_EXT4_INVALID. */
export function invalid(what: string): HeadstartError {
  return new HeadstartError("HS_EXT4_INVALID", { what: `ext4 image: ${what}` });
}
