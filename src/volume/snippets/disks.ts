/** The disks of nodes that boot with a volume: sizes, speeds, what they cost and how long they load (specs/warm-volume.md 2, 10). What every snippet prints, whoever it is for. */

import { GiB } from "../../base/limits.ts";
import { sizeFor } from "../doctor/checks.ts";
import type { VolumeFacts } from "../doctor/volume-facts.ts";
import { EBS_PRICES } from "../ebs/prices.ts";
import { hydrationSeconds, RATE_MAX } from "../hydration.ts";

export interface SnippetInput {
  /** Completed. */
  readonly snapshot: string;
  /** For the names of things. */
  readonly name: string;
  readonly volume: VolumeFacts;
  /** Of the snapshot. */
  readonly kmsKey: string | null;
}

export interface NodeDisks {
  readonly system: "bottlerocket" | "al2023";
  readonly root: { readonly name: string; readonly sizeGib: number };
  readonly data: {
    readonly name: string;
    readonly snapshot: string;
    readonly sizeGib: number;
    readonly type: "gp3";
    readonly iops: number;
    /** MiB/s. */
    readonly throughput: number;
    /** MiB/s. */
    readonly rate: number;
  };
  /** Lines that say what was chosen, and what it costs and takes. */
  readonly notes: readonly string[];
}

/** Of Bottlerocket's own disk, and of an AL2023 image's. */
const ROOT_GIB = { bottlerocket: 4, al2023: 20 };
const IOPS = 3000;
const THROUGHPUT = 500;
/** Dollars a month for what gp3 has beyond its 125 MiB/s, for each MiB/s; of us-east-1. */
const THROUGHPUT_MONTH = 0.04;
const THROUGHPUT_FREE = 125;

export function nodeDisks({ snapshot, volume }: SnippetInput): NodeDisks {
  const sizeGib = volume.disk === null ? 1 : sizeFor(volume.disk);
  const used = volume.disk?.usedBytes ?? 0;
  const usedGib = used / GiB;
  const cost = usedGib * EBS_PRICES.initializationPerGiB;
  const hot = volume.disk?.hotRange?.[1] ?? null;
  const notes = [
    `${usedGib.toFixed(1)} of ${sizeGib} GiB are used: below 70 %, so that kubelet's collection leaves the images alone`,
    `loaded at ${RATE_MAX} MiB/s: ${Math.ceil(hydrationSeconds(used, RATE_MAX))} s and about $${cost.toFixed(3)} for each node; without the rate about ${Math.ceil(hydrationSeconds(used, null))} s`,
    `gp3 with ${THROUGHPUT} MiB/s: about $${((THROUGHPUT - THROUGHPUT_FREE) * THROUGHPUT_MONTH).toFixed(0)} a month and node more than with ${THROUGHPUT_FREE}`,
  ];
  if (hot !== null)
    notes.push(`the hot part (${(hot / GiB).toFixed(2)} GiB) comes first with the DaemonSet of --snippet daemonset`);
  const system = volume.target === "al2023" ? "al2023" : "bottlerocket";
  return {
    system,
    root: { name: "/dev/xvda", sizeGib: ROOT_GIB[system] },
    data: { name: "/dev/xvdb", snapshot, sizeGib, type: "gp3", iops: IOPS, throughput: THROUGHPUT, rate: RATE_MAX },
    notes,
  };
}

/**
 * AL2023's user data: the volume is mounted where containerd has its root, before nodeadm starts it, by the file system's UUID (device names differ), and grown to the disk.
 */
export function mountScript(volume: VolumeFacts): string {
  const uuid = volume.disk?.uuid ?? "";
  return `#!/bin/bash
set -euo pipefail
device=/dev/disk/by-uuid/${uuid}
for _ in $(seq 60); do [ -e "$device" ] && break; sleep 1; done
mkdir -p /var/lib/containerd
echo "UUID=${uuid} /var/lib/containerd ext4 defaults,noatime,nofail 0 2" >> /etc/fstab
mount /var/lib/containerd
resize2fs "$(readlink -f "$device")"
`;
}

const BOUNDARY = "==headstart==";

/** MIME, so that EKS adds its own part. */
export function userData(volume: VolumeFacts): string {
  return `MIME-Version: 1.0
Content-Type: multipart/mixed; boundary="${BOUNDARY}"

--${BOUNDARY}
Content-Type: text/x-shellscript; charset="us-ascii"

${mountScript(volume)}
--${BOUNDARY}--
`;
}
