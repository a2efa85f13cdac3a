/**
 * The border to gRPC: kinds of errors become status codes, which containerd turns into its own error classes (specs/containerd.md 2.2). The code is the protocol; the message is
 * what people read in `kubectl describe`.
 */

import { Code, ConnectError } from "@connectrpc/connect";
import { describeError, type ErrorKind, HeadstartError, kindOf } from "../base/errors.ts";

const CODES: Readonly<Record<ErrorKind, Code>> = {
  "not-found": Code.NotFound,
  "already-exists": Code.AlreadyExists,
  invalid: Code.InvalidArgument,
  precondition: Code.FailedPrecondition,
  unsupported: Code.Unimplemented,
  unavailable: Code.Unavailable,
  denied: Code.PermissionDenied,
  exhausted: Code.ResourceExhausted,
  corrupt: Code.DataLoss,
  canceled: Code.Canceled,
  internal: Code.Internal,
};

/** Kinds that say something about the named snapshot to containerd: only an error of ours may, never some file that is missing. */
const ABOUT_THE_SNAPSHOT: ReadonlySet<ErrorKind> = new Set(["not-found", "already-exists", "invalid", "precondition"]);
const OF_THE_SNAPSHOTTER = /^HS_(?:SNAPSHOT_|FILTER$|DIGEST_SYNTAX$)/;

export function toConnectError(error: unknown): ConnectError {
  if (error instanceof ConnectError) return error;
  const kind = kindOf(error);
  const ours = error instanceof HeadstartError && OF_THE_SNAPSHOTTER.test(error.code);
  // a blob that a registry does not have is no missing snapshot: containerd would start its own repairs on NOT_FOUND
  const code =
    ABOUT_THE_SNAPSHOT.has(kind) && !ours ? (kind === "not-found" ? Code.Unavailable : Code.Internal) : CODES[kind];
  // containerd shows its users nothing but the text
  const named = kind === "exhausted" && !(error instanceof HeadstartError) ? fullDisk(error) : error;
  return new ConnectError(describeError(named), code, undefined, undefined, error);
}

function fullDisk(cause: unknown): HeadstartError {
  return new HeadstartError("HS_DISK_FULL", { what: "a snapshot cannot be written", cause });
}
