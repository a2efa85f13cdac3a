/** Performs containerd's mounts as containerd does: with mount(8), and for very many layers from within their common directory (specs/containerd.md 5.3). */

import { execFileSync } from "node:child_process";
import { commonDirectory } from "../../src/snapshotter/mounts.ts";

export interface MountLike {
  readonly type: string;
  readonly source: string;
  readonly options: readonly string[];
}

const COMPACT_BYTES = 4096 - 512;

export function mountAll(mounts: readonly MountLike[], target: string): Disposable {
  for (const mount of mounts) mountOne(mount, target);
  return { [Symbol.dispose]: () => unmount(target) };
}

function mountOne({ type, source, options }: MountLike, target: string): void {
  if (type === "bind") {
    execFileSync("mount", ["--bind", source, target]);
    if (options.includes("ro")) execFileSync("mount", ["-o", "remount,bind,ro", target]);
    return;
  }
  const joined = options.join(",");
  if (joined.length < COMPACT_BYTES) {
    execFileSync("mount", ["-t", type, source, target, "-o", joined]);
    return;
  }
  const lowers = options
    .find((option) => option.startsWith("lowerdir="))!
    .slice("lowerdir=".length)
    .split(":");
  const common = commonDirectory(lowers);
  const relative = `lowerdir=${lowers.map((lower) => lower.slice(common.length + 1)).join(":")}`;
  const compact = options.map((option) => (option.startsWith("lowerdir=") ? relative : option)).join(",");
  // -i, -c: no helper and no canonical paths, which would undo the relative ones
  execFileSync("mount", ["-i", "-c", "-t", type, source, target, "-o", compact], { cwd: common });
}

export function unmount(target: string): void {
  execFileSync("umount", [target]);
}
