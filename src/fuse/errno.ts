/** The border to the kernel: which errno a failed read gets. Nearly always EIO, the one that every program understands; EROFS shows its readers EIO in any case. */

import { isHeadstartError, kindOf } from "../base/errors.ts";
import { Errno } from "./ondisk.ts";

export function errnoOf(error: unknown): number {
  if (isHeadstartError(error, "HS_NOT_FOUND")) return Errno.ESTALE;
  if (kindOf(error) === "exhausted") return Errno.ENOSPC;
  return Errno.EIO;
}
