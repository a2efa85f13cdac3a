/** A running node, or one whose file systems lie under a directory (Bottlerocket's admin container has them at /.bottlerocket/rootfs). Reads files only. */

import { existsSync, readdirSync, readFileSync, realpathSync, statfsSync } from "node:fs";
import { basename, join } from "node:path";
import { describeError, HeadstartError } from "../../base/errors.ts";
import { readMountInfo } from "../../linux/mountinfo.ts";
import { inspectRoot } from "../inspect.ts";
import type { LiveFacts, NodeFacts } from "./facts.ts";
import { learnFrom } from "./read.ts";

const CONTAINERD_ROOT = "/var/lib/containerd";
/** Where nodes keep what they are told. */
const CONFIGURATIONS = [
  "/etc/containerd/config.toml",
  "/etc/kubernetes/kubelet/config.json",
  "/etc/kubernetes/kubelet/config",
  "/var/lib/kubelet/config.yaml",
];

/** Adds to `facts`. Throws HS_NOT_FOUND when there is no containerd below `root`, HS_DOCTOR_INPUT. */
export function readLive(facts: NodeFacts, root = "/"): void {
  const at = (path: string) => join(root, path);
  const store = at(CONTAINERD_ROOT);
  if (!existsSync(store))
    throw new HeadstartError("HS_NOT_FOUND", { what: `${store}: no containerd has its root here` });
  readSystem(facts, at("/etc/os-release"));
  for (const path of CONFIGURATIONS) {
    const file = at(path);
    // one that leaves all as it is by default tells nothing
    if (existsSync(file)) learnFrom(facts, readFileSync(file, "utf8"), file);
  }
  const value: LiveFacts = {
    store: images(store),
    mount: root === "/" ? mountOf(store) : null,
    activeSnapshotter: snapshotterIn(at("/var/cache/containerd/active-snapshotter")),
    selectedSnapshotter: snapshotterIn(at("/etc/containerd/selected-snapshotter")),
    used: root === "/" ? usedOf(store) : null,
  };
  facts.live = { value, where: store };
}

function readSystem(facts: NodeFacts, file: string): void {
  if (!existsSync(file)) return;
  const text = readFileSync(file, "utf8");
  const field = (name: string) => new RegExp(`^${name}="?([^"\n]*)"?$`, "m").exec(text)?.[1];
  const id = field("ID");
  if (id === undefined) return;
  const isAl2023 = id === "amzn" && field("VERSION_ID") === "2023";
  facts.learn("system", id === "bottlerocket" ? "bottlerocket" : isAl2023 ? "al2023" : "other", file);
}

function images(store: string): LiveFacts["store"] {
  try {
    const { namespaces } = inspectRoot(store);
    const found = namespaces.find(({ name }) => name === "k8s.io")?.images ?? [];
    return { images: found.map(({ name, pinned }) => ({ name, pinned })) };
  } catch (error) {
    return { trouble: describeError(error) };
  }
}

/** `ACTIVE_SNAPSHOTTER=overlayfs`, as Bottlerocket writes it. */
function snapshotterIn(file: string): string | null {
  if (!existsSync(file)) return null;
  return /^\w+=["']?([\w.-]+)["']?\s*$/m.exec(readFileSync(file, "utf8"))?.[1] ?? null;
}

function mountOf(path: string): LiveFacts["mount"] {
  const mounts = readMountInfo();
  const holds = (mountPoint: string) =>
    path === mountPoint || path.startsWith(mountPoint === "/" ? "/" : `${mountPoint}/`);
  const best = mounts
    .filter(({ mountPoint }) => holds(mountPoint))
    .reduce<(typeof mounts)[number] | null>(
      // of two on one place the later one is seen
      (top, each) => (top === null || each.mountPoint.length >= top.mountPoint.length ? each : top),
      null,
    );
  if (best === null) return null;
  const { source, mountPoint, type } = best;
  const { blocks, bsize } = statfsSync(mountPoint);
  return { source, mountPoint, type, uuid: uuidOf(source), bytes: blocks * bsize, deviceBytes: deviceBytes(source) };
}

const BY_UUID = "/dev/disk/by-uuid";

function uuidOf(device: string): string | null {
  if (!existsSync(device) || !existsSync(BY_UUID)) return null;
  const own = realpathSync(device);
  // a device that has just gone leaves its link for a moment
  const leadsThere = (name: string) => existsSync(join(BY_UUID, name)) && realpathSync(join(BY_UUID, name)) === own;
  return readdirSync(BY_UUID).find(leadsThere) ?? null;
}

/** sysfs counts sectors of 512 bytes, whatever the device's are. */
function deviceBytes(device: string): number | null {
  if (!existsSync(device)) return null;
  const file = `/sys/class/block/${basename(realpathSync(device))}/size`;
  return existsSync(file) ? Number(readFileSync(file, "utf8")) * 512 : null;
}

function usedOf(path: string): number | null {
  const { blocks, bfree } = statfsSync(path);
  return blocks === 0 ? null : (blocks - bfree) / blocks;
}
