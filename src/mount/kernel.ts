/**
 * Which kernels may mount EROFS from a file, and which with direct I/O: by patch level, since both once were use-after-free bugs (specs/erofs-fuse.md 8.2). This only
 * forbids; whether a mount works is found out by trying (ladder.ts).
 */

import { readFileSync } from "node:fs";
import { release } from "node:os";

export interface KernelGate {
  /** "6.18.44": the upstream version. */
  readonly version: string;
  readonly fileBacked: boolean;
  readonly directio: boolean;
  /** Why not, for the status; empty when both are allowed. */
  readonly reason: string;
}

/** Ubuntu's release says only "6.14.0-29-generic"; the upstream level is the last word of /proc/version_signature. */
export function runningKernel(): string {
  try {
    return readFileSync("/proc/version_signature", "latin1").trim().split(" ").at(-1) ?? release();
  } catch {
    return release();
  }
}

export function kernelGate(text: string): KernelGate {
  const match = /^(\d+)\.(\d+)(?:\.(\d+))?/.exec(text);
  if (match === null) {
    return { version: text, fileBacked: false, directio: false, reason: `cannot read the kernel version ${text}` };
  }
  const [major, minor, patch] = [Number(match[1]), Number(match[2]), Number(match[3] ?? 0)];
  const at = (wantedMajor: number, wantedMinor: number) => major === wantedMajor && minor === wantedMinor;
  const from = (wantedMajor: number, wantedMinor: number) =>
    major > wantedMajor || (major === wantedMajor && minor >= wantedMinor);
  // CVE-2025-37999
  const fileBacked = from(6, 15) || (at(6, 14) && patch >= 7) || (at(6, 12) && patch >= 29);
  // CVE-2026-23224
  const directio = from(6, 19) || (at(6, 18) && patch >= 11) || (at(6, 12) && patch >= 72);
  const reason = !fileBacked
    ? from(6, 12)
      ? "CVE-2025-37999: file-backed EROFS needs 6.12.29, 6.14.7 or 6.15"
      : "file-backed EROFS came with 6.12"
    : directio
      ? ""
      : "CVE-2026-23224: directio needs 6.12.72, 6.18.11 or 6.19";
  return { version: match[0], fileBacked, directio: directio && fileBacked, reason };
}

/** Settings of this machine under which FUSE requests are cut off by the kernel, as warnings. */
export function fuseTimeoutWarnings(directory = "/proc/sys/fs/fuse"): string[] {
  const warnings: string[] = [];
  for (const name of ["max_request_timeout", "default_request_timeout"]) {
    try {
      const seconds = Number(readFileSync(`${directory}/${name}`, "latin1"));
      // beyond it the kernel aborts the whole connection, and with it every lazy layer
      if (seconds > 0)
        warnings.push(`fs.fuse.${name} is ${seconds} s: a slow registry can cost all lazy mounts; set it to 0`);
    } catch {
      // before 6.15 there is no such setting
    }
  }
  return warnings;
}
