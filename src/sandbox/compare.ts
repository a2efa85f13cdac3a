/**
 * Two directory trees entry by entry and byte by byte: type, mode, owner, mtime to the nanosecond, link count of non-directories, which names are
 * one inode, size, device, link target, every xattr, sha256 of the content. Names are bytes, carried as latin1 strings.
 *
 * It runs in a thread: a read of a lazy tree waits for the registry, and the meter in front of that registry is often in this process.
 */

import { WorkerPool } from "../base/worker-pool.ts";

export interface Difference {
  /** From the root of the trees: "/etc/passwd". */
  readonly path: string;
  /** "missing", "extra", or the attribute that differs. */
  readonly what: string;
  readonly left?: string;
  readonly right?: string;
}

export interface Comparison {
  readonly entries: number;
  /** Of regular files, once for each inode. */
  readonly bytes: number;
  /** At most `limit` of them. */
  readonly differences: readonly Difference[];
  readonly equal: boolean;
}

export interface CompareSettings {
  /** Differences after which it stops (default 100). */
  readonly limit?: number;
  /** Paths from the root that are left out with all below them: "/etc/resolv.conf". */
  readonly ignore?: readonly string[];
  /**
   * When the left tree was unpacked, in milliseconds since 1970. A directory that no layer has an entry for gets the time of the unpack: such a time is no
   * part of the image, and is not compared.
   */
  readonly unpacked?: { readonly startMs: number; readonly endMs: number };
  /** Attributes that are not compared, e.g. "mtime" where one tree was copied. */
  readonly without?: readonly string[];
}

export interface CompareOptions extends CompareSettings {
  readonly signal?: AbortSignal;
}

/** What the thread is asked. */
export interface CompareJob {
  readonly t: "compare";
  readonly left: string;
  readonly right: string;
  readonly settings: CompareSettings;
}

/** Compares what lies below `left` (what should be) and `right` (what is). The roots themselves are entries too. Throws the signal's reason, HS_SYSCALL. */
export async function compareTrees(left: string, right: string, options: CompareOptions = {}): Promise<Comparison> {
  const { signal, ...settings } = options;
  await using thread = new WorkerPool<CompareJob>({
    entry: new URL("./compare.worker.ts", import.meta.url),
    options: { name: "headstart-compare" },
    idleMax: 0,
    idleMs: 0,
  });
  return (await thread.run({ t: "compare", left, right, settings }, { signal })) as Comparison;
}

export function formatDifference(difference: Difference): string {
  const { path, what, left, right } = difference;
  if (what === "missing" || what === "extra") return `${path}: ${what} (${left ?? right})`;
  return `${path}: ${what} is ${right}, should be ${left}`;
}
