/**
 * What a run could leave behind: mounts, processes, loop devices, cgroups, FUSE connections. An inventory is taken before and after; only what
 * carries one of the given marks (a path of ours) counts, so that other work on the same machine does not disturb.
 */

import { readdirSync, readFileSync, readlinkSync } from "node:fs";
import { join } from "node:path";
import { systemClock } from "../base/clock.ts";
import { isUnder, readMountInfo } from "../linux/mountinfo.ts";

/** The mount points at or below `directory`, in the order of mounting. */
export function mountsUnder(directory: string): string[] {
  return readMountInfo()
    .map((mount) => mount.mountPoint)
    .filter((target) => isUnder(target, directory));
}

/** The name of the cgroup of whatever lives in that directory. */
export function cgroupNameOf(directory: string): string {
  return directory.replace(/^\//, "").replaceAll("/", "-");
}

/** "mount /tmp/x", "process 123 containerd-shim…", …: one line for each thing that is there. */
export function takeInventory(marks: readonly string[]): Set<string> {
  const marked = (text: string) => marks.some((mark) => text.includes(mark));
  const found = new Set<string>();
  for (const mount of readMountInfo()) {
    if (marked(`${mount.mountPoint} ${mount.source}`)) found.add(`mount ${mount.mountPoint} (${mount.type})`);
  }
  for (const entry of processes()) {
    if (entry.pid !== process.pid && marked(entry.text)) found.add(`process ${entry.pid}: ${entry.text.slice(0, 300)}`);
  }
  for (const loop of loopDevices()) if (marked(loop.file)) found.add(`loop device ${loop.name}: ${loop.file}`);
  const named = marks.map(cgroupNameOf);
  for (const path of cgroups()) if (named.some((name) => path.includes(name))) found.add(`cgroup ${path}`);
  return found;
}

/** A process that was told to end, and the mount that it held, may take a moment on a busy machine; what is really left stays. */
const ENDING_MS = 15_000;
const POLL_MS = 50;

/** What was not there before, and is still there after a while. */
export async function leftBehind(before: ReadonlySet<string>, marks: readonly string[]): Promise<string[]> {
  for (const deadline = systemClock.monotonic() + ENDING_MS; ; await systemClock.sleep(POLL_MS)) {
    const left = leftSince(before, marks);
    if (left.length === 0 || systemClock.monotonic() > deadline) return left;
  }
}

/** What is there now and was not before. */
export function leftSince(before: ReadonlySet<string>, marks: readonly string[]): string[] {
  return [...takeInventory(marks)].filter((line) => !before.has(line));
}

function* processes(): Generator<{ pid: number; text: string }> {
  for (const name of readdirSync("/proc")) {
    if (!/^\d+$/.test(name)) continue;
    try {
      const text = readFileSync(`/proc/${name}/cmdline`, "utf8").replaceAll("\0", " ").trim();
      const cwd = readlinkSync(`/proc/${name}/cwd`);
      if (text !== "") yield { pid: Number(name), text: `${text} [${cwd}]` };
    } catch {
      // ended meanwhile
    }
  }
}

function* loopDevices(): Generator<{ name: string; file: string }> {
  for (const name of readdirSync("/sys/block")) {
    if (!name.startsWith("loop")) continue;
    try {
      yield { name, file: readFileSync(join("/sys/block", name, "loop/backing_file"), "utf8").trim() };
    } catch {
      // not bound to a file
    }
  }
}

const CGROUP_DEPTH = 2;

function cgroups(directory = "/sys/fs/cgroup", depth = CGROUP_DEPTH): string[] {
  if (depth < 0) return [];
  try {
    return readdirSync(directory, { withFileTypes: true })
      .filter((entry) => entry.isDirectory())
      .map((entry) => join(directory, entry.name))
      .flatMap((path) => [path, ...cgroups(path, depth - 1)]);
  } catch {
    return []; // went meanwhile
  }
}
