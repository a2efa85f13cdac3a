/**
 * What was agreed with the kernel about one FUSE connection, and its memory across server processes.
 *
 *   fresh --INIT--> ready          INIT comes once in the life of the mount, to whichever server reads first
 *   (state file) -> ready          a successor on the same descriptor gets no INIT: it adopts what the file says
 *   ready --INIT--> ready          the same INIT again, resent or replayed: its reply never reached the kernel
 *   any   --ENODEV-> closed        unmounted or aborted
 *
 * Invariant: the state file is on disk before the INIT reply is written, so a server that answers READs always has a successor that can too.
 */

import { readFileSync, renameSync, writeFileSync } from "node:fs";
import { HeadstartError } from "../base/errors.ts";
import { INIT_IN, INIT_OUT, InitFlag, READ_BYTES_MAX } from "./ondisk.ts";

export type ConnectionState =
  | { readonly t: "fresh" }
  | { readonly t: "ready"; readonly negotiated: Negotiated }
  | { readonly t: "closed" };

export interface Negotiated {
  readonly minor: number;
  /** Flags that both sides agreed on. */
  readonly flags: bigint;
  readonly maxReadAhead: number;
}

const MAJOR = 7;
/** The newest minor whose structures we know (Linux 6.18). */
const MINOR_MAX = 45;
/** Below this replies have other sizes (fuse.h, change log); such kernels are from before 2011. */
const MINOR_MIN = 23;
const WANTED =
  InitFlag.asyncRead |
  InitFlag.bigWrites |
  InitFlag.asyncDio |
  InitFlag.noOpenSupport |
  InitFlag.parallelDirops |
  InitFlag.maxPages |
  InitFlag.initExt |
  InitFlag.hasResend;
// never: PASSTHROUGH (makes the superblock a stacked one: file-backed EROFS then fails with ENOTBLK), REQUEST_TIMEOUT (aborts the whole connection), AUTO_INVAL_DATA
const MAX_BACKGROUND = 64;
const CONGESTION_THRESHOLD = 48;
const MAX_WRITE = 4096;
const PAGE = 4096;

/** What to agree on, given a fuse_init_in. Null: the kernel speaks a newer major and shall ask again (answer with our major). Throws HS_FUSE_PROTOCOL. */
export function negotiate(body: Uint8Array): Negotiated | null {
  if (body.byteLength < 16) throw new HeadstartError("HS_FUSE_PROTOCOL", { what: `INIT of ${body.byteLength} bytes` });
  const view = new DataView(body.buffer, body.byteOffset, body.byteLength);
  const major = view.getUint32(INIT_IN.offsets.major, true);
  const minor = view.getUint32(INIT_IN.offsets.minor, true);
  if (major > MAJOR) return null;
  if (major < MAJOR || minor < MINOR_MIN) {
    throw new HeadstartError("HS_FUSE_PROTOCOL", {
      what: `the kernel speaks FUSE ${major}.${minor}, we need 7.${MINOR_MIN}`,
    });
  }
  let offered = BigInt(view.getUint32(INIT_IN.offsets.flags, true));
  if ((offered & InitFlag.initExt) !== 0n && body.byteLength >= INIT_IN.offsets.flags2 + 4) {
    offered |= BigInt(view.getUint32(INIT_IN.offsets.flags2, true)) << 32n;
  }
  return {
    minor: Math.min(minor, MINOR_MAX),
    flags: offered & WANTED,
    maxReadAhead: view.getUint32(INIT_IN.offsets.max_readahead, true),
  };
}

/** The fuse_init_out for it; for null (newer major) only our version counts. */
export function initReply(negotiated: Negotiated | null): Uint8Array {
  const out = new Uint8Array(INIT_OUT.size);
  const view = new DataView(out.buffer);
  const at = INIT_OUT.offsets;
  view.setUint32(at.major, MAJOR, true);
  view.setUint32(at.minor, negotiated?.minor ?? MINOR_MAX, true);
  if (negotiated === null) return out;
  view.setUint32(at.max_readahead, negotiated.maxReadAhead, true);
  view.setUint32(at.flags, Number(negotiated.flags & 0xffffffffn), true);
  view.setUint32(at.flags2, Number(negotiated.flags >> 32n), true);
  view.setUint16(at.max_background, MAX_BACKGROUND, true);
  view.setUint16(at.congestion_threshold, CONGESTION_THRESHOLD, true);
  view.setUint32(at.max_write, MAX_WRITE, true);
  view.setUint32(at.time_gran, 1, true);
  view.setUint16(at.max_pages, READ_BYTES_MAX / PAGE, true);
  return out;
}

export function canResend(state: ConnectionState): boolean {
  return state.t === "ready" && (state.negotiated.flags & InitFlag.hasResend) !== 0n;
}

const VERSION = 1;

/** Written beside and renamed, not fsynced: like the mount itself it need not survive the kernel. */
export function saveNegotiated(path: string, negotiated: Negotiated): void {
  const text = JSON.stringify({
    version: VERSION,
    minor: negotiated.minor,
    flags: `0x${negotiated.flags.toString(16)}`,
    maxReadAhead: negotiated.maxReadAhead,
  });
  writeFileSync(`${path}.new`, text, { mode: 0o600 });
  renameSync(`${path}.new`, path);
}

/** "fresh" when there is no file: the supervisor removes it when it mounts anew. Throws HS_FUSE_PROTOCOL on an unreadable one. */
export function loadConnection(path: string): ConnectionState {
  let text: string;
  try {
    text = readFileSync(path, "utf8");
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return { t: "fresh" };
    throw error;
  }
  try {
    const { version, minor, flags, maxReadAhead } = JSON.parse(text);
    if (
      version === VERSION &&
      Number.isInteger(minor) &&
      /^0x[0-9a-f]{1,16}$/.test(flags) &&
      Number.isInteger(maxReadAhead)
    ) {
      return { t: "ready", negotiated: { minor, flags: BigInt(flags), maxReadAhead } };
    }
  } catch {
    // falls to the refusal below
  }
  throw new HeadstartError("HS_FUSE_PROTOCOL", { what: `${path} does not say what was agreed with the kernel` });
}
