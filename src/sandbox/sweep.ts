/**
 * Removing what a private containerd leaves when it ends badly: shims and containers, cgroups, mounts, sockets. Everything is found by a
 * path or name that only our containerd has (its directory, its cgroup), never by a program's name: a containerd of the system is not ours.
 */

import { createHash } from "node:crypto";
import { readdirSync, readFileSync, rmdirSync, rmSync } from "node:fs";
import { join } from "node:path";
import { systemClock } from "../base/clock.ts";
import type { HeadstartError } from "../base/errors.ts";
import { UnmountFlag, unmount } from "../linux/mount.ts";
import { mountsUnder } from "./inventory.ts";

const CGROUPS = "/sys/fs/cgroup";
const POLL_MS = 20;
const GONE_MS_MAX = 10_000;

/** The directories of a cgroup in every hierarchy that has it (version 1, hybrid or unified). */
export function cgroupDirectories(name: string): string[] {
  const found: string[] = [];
  for (const candidate of ["", ...listDirectories(CGROUPS)]) {
    const directory = join(CGROUPS, candidate, name);
    if (listDirectories(directory, false) !== undefined) found.push(directory);
  }
  return found;
}

function listDirectories(path: string): string[];
function listDirectories(path: string, orEmpty: false): string[] | undefined;
function listDirectories(path: string, orEmpty = true): string[] | undefined {
  try {
    return readdirSync(path, { withFileTypes: true })
      .filter((entry) => entry.isDirectory())
      .map((entry) => entry.name);
  } catch {
    return orEmpty ? [] : undefined; // gone, or no directory
  }
}

/** Kills every process in the cgroup and removes it with all below it. */
export async function removeCgroup(name: string): Promise<void> {
  const deadline = systemClock.monotonic() + GONE_MS_MAX;
  while (true) {
    const directories = cgroupDirectories(name).flatMap(withDescendants);
    if (directories.length === 0) return;
    const pids = new Set(directories.flatMap(processesOf));
    for (const pid of pids) kill(pid);
    if (pids.size === 0) for (const directory of directories) removeDirectory(directory);
    if (systemClock.monotonic() > deadline) return; // the leak check of whoever cares names it
    await systemClock.sleep(POLL_MS);
  }
}

/** Deepest first. */
function withDescendants(directory: string): string[] {
  return [...listDirectories(directory).flatMap((name) => withDescendants(join(directory, name))), directory];
}

function processesOf(cgroup: string): number[] {
  try {
    return readFileSync(join(cgroup, "cgroup.procs"), "utf8").split("\n").filter(Boolean).map(Number);
  } catch {
    return []; // a cgroup that went meanwhile
  }
}

function removeDirectory(path: string): void {
  try {
    rmdirSync(path);
  } catch {
    // busy: a process is still ending; the next round takes it
  }
}

function kill(pid: number): void {
  try {
    process.kill(pid, "SIGKILL");
  } catch {
    // ended by itself
  }
}

/** The pids of shims that serve the containerd of this socket: its address is on their command line. */
export function shimsOf(socket: string): number[] {
  const pids: number[] = [];
  for (const name of readdirSync("/proc")) {
    if (!/^\d+$/.test(name)) continue;
    const words = commandLine(Number(name));
    const at = words.indexOf("-address");
    if (at > 0 && words[at + 1] === socket && words[0]!.includes("containerd-shim")) pids.push(Number(name));
  }
  return pids;
}

export function commandLine(pid: number): string[] {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, "utf8").split("\0").slice(0, -1);
  } catch {
    return []; // ended meanwhile
  }
}

export async function killAndWait(pids: readonly number[]): Promise<void> {
  const deadline = systemClock.monotonic() + GONE_MS_MAX;
  for (const pid of pids) kill(pid);
  while (pids.some((pid) => commandLine(pid).length > 0) && systemClock.monotonic() < deadline) {
    await systemClock.sleep(POLL_MS);
  }
}

/** Where a shim listens (containerd runtime/v2/shim, SocketAddress): outside of any folder of ours, so a killed one leaves its socket there. */
export function removeShimSockets(socket: string, state: string): void {
  const tasks = join(state, "io.containerd.runtime.v2.task");
  for (const namespace of listDirectories(tasks)) {
    for (const id of listDirectories(join(tasks, namespace))) {
      const name = createHash("sha256")
        .update(join(socket, namespace, id))
        .digest("hex");
      rmSync(join("/run/containerd/s", name), { force: true });
    }
  }
}

/** Unmounts everything mounted below `directory`, last mounted first. Lazily: whoever still holds a file there is ending. */
export function unmountAll(directory: string): void {
  for (const target of mountsUnder(directory).toReversed()) {
    try {
      unmount(target, UnmountFlag.detach);
    } catch (error) {
      if ((error as HeadstartError).details?.errnoName !== "EINVAL") throw error; // EINVAL: it went with one above it
    }
  }
}
