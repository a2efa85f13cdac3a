/** What a process holds in memory now. */

import { readFileSync } from "node:fs";

export interface Memory {
  /** Resident, in bytes; file pages (the node executable) are shared by all processes that run it. */
  readonly rss: number;
  /** Resident and of the process alone: heaps, stacks, buffers. */
  readonly anonymous: number;
  /** The highest `rss` so far. */
  readonly peak: number;
}

/** Throws when there is no such process. */
export function memoryOf(pid: number): Memory {
  const status = readFileSync(`/proc/${pid}/status`, "latin1");
  const bytes = (field: string) => Number(new RegExp(`^${field}:\\s+(\\d+) kB`, "m").exec(status)?.[1]) * 1024;
  return { rss: bytes("VmRSS"), anonymous: bytes("RssAnon"), peak: bytes("VmHWM") };
}

export function formatMemory({ rss, anonymous }: Memory): string {
  const mebibytes = (bytes: number) => Math.round(bytes / 2 ** 20);
  return `${mebibytes(rss)} MiB resident, ${mebibytes(anonymous)} MiB of its own`;
}
