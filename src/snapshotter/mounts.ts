/**
 * The mounts that containerd performs for a snapshot (specs/containerd.md 5): pure, from directories to a list of `Mount`. The shim does the mounting, perhaps hours later.
 */

import { existsSync } from "node:fs";
import { HeadstartError } from "../base/errors.ts";
import type { SnapshotKind } from "./store.ts";

export interface Mount {
  readonly type: "bind" | "overlay";
  readonly source: string;
  readonly options: readonly string[];
}

export interface MountPlan {
  readonly kind: Exclude<SnapshotKind, "committed">;
  readonly upper: string;
  readonly work: string;
  /** Lowest first, as the provider gives them. */
  readonly lowers: readonly string[];
  /** Options for overlays, before those that we need. */
  readonly overlayOptions: readonly string[];
  /** `uidmap=…`, `gidmap=…` for containerd, which maps the lowers (idmap.ts). */
  readonly idmapOptions: readonly string[];
}

/** overlayfs refuses the 501st (measured; specs/containerd.md 5.3). */
const LOWERS_MAX = 500;
/** mount(2) copies one page, the last byte of which is NUL. */
const OPTION_BYTES_MAX = 4095;
/** From here on containerd changes into the common directory of all lowers and names them relatively. */
const COMPACT_BYTES = 4096 - 512;

/** Throws HS_MOUNT_OPTIONS when the kernel cannot take that many layers. */
export function planMounts(plan: MountPlan): Mount[] {
  const { lowers, upper } = plan;
  const access = plan.kind === "view" ? "ro" : "rw";
  if (lowers.length === 0) return [bind(upper, access, plan.idmapOptions)];
  if (plan.kind === "view" && lowers.length === 1) return [bind(lowers[0]!, access, plan.idmapOptions)];
  const options = [...plan.idmapOptions, ...plan.overlayOptions];
  if (plan.kind === "active") options.push(`workdir=${plan.work}`, `upperdir=${upper}`);
  checkFits(options, lowers);
  options.push(`lowerdir=${lowers.toReversed().join(":")}`);
  return [{ type: "overlay", source: "overlay", options }];
}

function bind(source: string, access: "ro" | "rw", idmapOptions: readonly string[]): Mount {
  return { type: "bind", source, options: [access, "rbind", ...idmapOptions] };
}

function checkFits(options: readonly string[], lowers: readonly string[]): void {
  const odd = lowers.find((lower) => /[,:\\]/.test(lower));
  if (odd !== undefined) {
    throw new HeadstartError("HS_MOUNT_OPTIONS", { what: `lower ${odd}: a comma, colon or backslash in its path` });
  }
  if (lowers.length > LOWERS_MAX) {
    throw new HeadstartError("HS_MOUNT_OPTIONS", {
      what: `${lowers.length} lower directories, overlayfs takes ${LOWERS_MAX}`,
    });
  }
  const size = mountOptionBytes(options, lowers);
  if (size > OPTION_BYTES_MAX) {
    throw new HeadstartError("HS_MOUNT_OPTIONS", {
      what: `mount options of ${size} bytes for ${lowers.length} layers, the kernel takes ${OPTION_BYTES_MAX}`,
    });
  }
}

/** What containerd will hand to mount(2), in bytes: options that it keeps for itself left out, lowers relative when they would be too long. */
function mountOptionBytes(options: readonly string[], lowers: readonly string[]): number {
  const others = options.filter((option) => !/^[ug]idmap=/.test(option)).reduce((sum, o) => sum + o.length + 1, 0);
  const absolute = lowers.reduce((sum, lower) => sum + Buffer.byteLength(lower) + 1, 0);
  const size = others + "lowerdir=".length + absolute - 1;
  if (size < COMPACT_BYTES || lowers.length < 2) return size;
  const common = commonDirectory(lowers);
  return common === "/" ? size : size - lowers.length * (common.length + 1);
}

/** The longest directory that all paths lie in. */
export function commonDirectory(paths: readonly string[]): string {
  let common = paths[0]!.split("/").slice(0, -1);
  for (const path of paths) {
    const parts = path.split("/");
    let same = 0;
    while (same < common.length && same < parts.length - 1 && common[same] === parts[same]) same++;
    common = common.slice(0, same);
  }
  return common.join("/") || "/";
}

/**
 * What every overlay of ours gets: `index=off` where the kernel has it, so that an upper may be mounted again upon other lowers (after a layer became complete, say). An
 * administrator's own options come last and win. Throws HS_CONFIG for those that would change what an answer means.
 */
export function overlayDefaults(extra: readonly string[], parameters = "/sys/module/overlay/parameters"): string[] {
  // a read-only last mount says "already unpacked" to containerd 2.4 (specs/containerd.md 4.6); the directories are ours to name
  const wrong = extra.find((option) => /^(?:ro|(?:lower|upper|work)dir\+?=.*)$|,/.test(option));
  if (wrong !== undefined) throw new HeadstartError("HS_CONFIG", { what: `overlay option ${JSON.stringify(wrong)}` });
  const index = existsSync(`${parameters}/index`) && !extra.some((option) => option.startsWith("index="));
  return [...(index ? ["index=off"] : []), ...extra];
}
