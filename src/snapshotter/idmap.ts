/**
 * User-namespace containers (specs/containerd.md 6): the labels `uidmapping` and `gidmapping`, `<container id>:<host id>:<size>[,…]`. The upper's root is given to the host
 * ids of the container's root; the lowers are mapped by containerd, which we ask for it with `uidmap=`/`gidmap=` in the options. Pure.
 * Not every version can do that with layers that are mounts: then the snapshot is refused, in words, rather than a container started on an empty root.
 */

import { HeadstartError } from "../base/errors.ts";
import type { Labels } from "./store.ts";

const UID_LABEL = "containerd.io/snapshot/uidmapping";
const GID_LABEL = "containerd.io/snapshot/gidmapping";
const ID_MAX = 0xffff_fffe;
/** The kernel takes 340 lines (user_namespaces(7)). */
const RANGES_MAX = 340;

export interface IdMapping {
  /** Host ids of the container's root. */
  readonly root: { readonly uid: number; readonly gid: number };
  readonly mountOptions: readonly string[];
}

/** Null without the labels. Throws HS_SNAPSHOT_INVALID. */
export function readIdMapping(labels: Labels): IdMapping | null {
  const uids = Object.hasOwn(labels, UID_LABEL) ? labels[UID_LABEL] : undefined;
  const gids = Object.hasOwn(labels, GID_LABEL) ? labels[GID_LABEL] : undefined;
  if (uids === undefined && gids === undefined) return null;
  if (uids === undefined || gids === undefined) {
    throw new HeadstartError("HS_SNAPSHOT_INVALID", { what: `only one of the labels ${UID_LABEL} and ${GID_LABEL}` });
  }
  return {
    root: { uid: hostRoot(uids, UID_LABEL), gid: hostRoot(gids, GID_LABEL) },
    mountOptions: [`uidmap=${uids}`, `gidmap=${gids}`],
  };
}

/**
 * Whether this containerd maps lowers that are mounts of their own (specs/containerd.md 6.3): up to 2.0.6 and 2.1.4 it clones each lower, from 2.3 on their common directory
 * with all that is mounted in it. Between these the layers' mounts would vanish, and the container would see an empty root.
 */
export function mapsMountedLowers(version: string): boolean {
  const match = /^v?(\d+)\.(\d+)\.(\d+)/.exec(version);
  if (match === null) return false;
  const [major, minor, patch] = [Number(match[1]), Number(match[2]), Number(match[3])];
  if (major !== 2) return major > 2;
  if (minor >= 3) return true;
  return (minor === 0 && patch <= 6) || (minor === 1 && patch <= 4);
}

function hostRoot(mapping: string, label: string): number {
  const invalid = () =>
    new HeadstartError("HS_SNAPSHOT_INVALID", { what: `label ${label}: ${JSON.stringify(mapping)}` });
  const ranges = mapping.split(",", RANGES_MAX + 1);
  if (ranges.length > RANGES_MAX) throw invalid();
  let root: number | null = null;
  for (const range of ranges) {
    const match = /^(\d{1,10}):(\d{1,10}):(\d{1,10})$/.exec(range);
    if (match === null) throw invalid();
    const [container, host, size] = [Number(match[1]), Number(match[2]), Number(match[3])];
    if (size === 0 || container + size - 1 > ID_MAX || host + size - 1 > ID_MAX) throw invalid();
    if (container === 0) root ??= host;
  }
  if (root === null) throw invalid();
  return root;
}
