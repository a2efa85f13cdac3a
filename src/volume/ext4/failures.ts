/** The errors of this folder, each with what it is about. */

import { HeadstartError } from "../../base/errors.ts";

/** Something that ext4 cannot hold: HS_EXT4_LIMIT. */
export function beyondExt4(what: string): HeadstartError {
  return new HeadstartError("HS_EXT4_LIMIT", { what });
}

/** The file system is too small for what shall be in it: HS_EXT4_FULL. `region`: it is this one's given place that is. */
export function tooSmall(what: string, region?: number): HeadstartError {
  return new HeadstartError("HS_EXT4_FULL", region === undefined ? { what } : { what, region });
}

/** The region whose given place is too small, counted as in Ext4Layout.regions; null when it is something else. */
export function regionTooSmall(error: HeadstartError): number | null {
  const { region } = error.details;
  return typeof region === "number" ? region : null;
}

/** A damaged image: HS_EXT4_INVALID. */
export function invalid(what: string): HeadstartError {
  return new HeadstartError("HS_EXT4_INVALID", { what: `ext4 image: ${what}` });
}
