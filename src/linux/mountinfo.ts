/** /proc/self/mountinfo (proc_pid_mountinfo(5)): which mounts there are. Reading it touches none of them. */

import { readFileSync } from "node:fs";

export interface MountInfo {
  readonly id: number;
  readonly parentId: number;
  readonly major: number;
  readonly minor: number;
  /** What of the file system is mounted here: "/" but for bind mounts. */
  readonly root: string;
  readonly mountPoint: string;
  readonly options: readonly string[];
  readonly type: string;
  readonly source: string;
  readonly superOptions: readonly string[];
}

/** Space, tab, newline and backslash are written as three octal digits. */
function unescapeOctal(text: string): string {
  if (!text.includes("\\")) return text;
  return Buffer.from(
    text.replace(/\\([0-7]{3})/g, (_, digits: string) => String.fromCharCode(Number.parseInt(digits, 8))),
    "latin1",
  ).toString("utf8");
}

/** In the order of the file, which is the order of mounting. Lines that do not follow the format are left out. */
export function parseMountInfo(text: Uint8Array): MountInfo[] {
  const mounts: MountInfo[] = [];
  for (const line of Buffer.from(text).toString("latin1").split("\n")) {
    const [left, right] = line.split(" - ", 2);
    if (left === undefined || right === undefined) continue;
    const [id, parentId, device, root, mountPoint, options] = left.split(" ");
    const [type, source, superOptions] = right.split(" ");
    if (device === undefined || root === undefined || mountPoint === undefined || source === undefined) continue;
    const [major, minor] = device.split(":");
    mounts.push({
      id: Number(id),
      parentId: Number(parentId),
      major: Number(major),
      minor: Number(minor),
      root: decode(root),
      mountPoint: decode(mountPoint),
      options: (options ?? "").split(","),
      type: type ?? "",
      source: decode(source),
      superOptions: (superOptions ?? "").split(",").map(decode),
    });
  }
  return mounts;
}

function decode(field: string): string {
  return field.includes("\\") ? unescapeOctal(field) : Buffer.from(field, "latin1").toString("utf8");
}

export function readMountInfo(): MountInfo[] {
  return parseMountInfo(readFileSync("/proc/self/mountinfo"));
}

/** The topmost mount on exactly this path. */
export function findMount(mounts: readonly MountInfo[], mountPoint: string): MountInfo | undefined {
  return mounts.findLast((mount) => mount.mountPoint === mountPoint);
}

/** True for `directory` itself and everything below it. */
export function isUnder(path: string, directory: string): boolean {
  return path === directory || path.startsWith(directory.endsWith("/") ? directory : `${directory}/`);
}
