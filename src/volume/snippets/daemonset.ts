/**
 * A DaemonSet whose pods read a node's volume once, the hot region first, so that it is there before anybody asks: a volume made from a snapshot is loaded when it is first
 * touched (specs/warm-volume.md 1, 8.2). Bottlerocket has no programs on the host, so all it needs is in a small image: sh, dd, ionice.
 */

import { stringify } from "yaml";
import { MiB } from "../../base/limits.ts";
import type { VolumeFacts } from "../doctor/volume-facts.ts";
import type { SnippetInput } from "./disks.ts";

/** Reads in flight, and bytes of each: EBS answers reads of up to 256 KiB as one. */
const IN_FLIGHT = 32;
const READ_BYTES = MiB / 4;

/** [first byte, bytes] of the disk; hot first. */
export type ReadRange = readonly [number, number];

/**
 * For sh (POSIX, busybox): reads each range of DEVICE in IN_FLIGHT stripes at once, one range after the other. Whatever the number of bytes, no stripe is read twice.
 */
export function readScript(device: string, ranges: readonly ReadRange[]): string {
  const calls = ranges.map(([start, bytes]) => {
    const first = Math.floor(start / READ_BYTES);
    return `read_range ${first} ${Math.ceil((start + bytes) / READ_BYTES) - first}`;
  });
  return `set -eu
device=${device}
renice -n 19 $$ >/dev/null 2>&1 || true
ionice -c 3 -p $$ >/dev/null 2>&1 || true
read_range() {
  each=$(( ($2 + ${IN_FLIGHT - 1}) / ${IN_FLIGHT} ))
  done=0
  while [ "$done" -lt "$2" ]; do
    count=$(( $2 - done < each ? $2 - done : each ))
    dd if="$device" of=/dev/null bs=${READ_BYTES} skip=$(( $1 + done )) count="$count" 2>/dev/null &
    done=$(( done + count ))
  done
  wait
  echo "read $(( $2 * ${READ_BYTES / 1024} )) KiB from $(( $1 * ${READ_BYTES / 1024} )) KiB on"
}
${calls.join("\n")}
echo done
exec sleep 2147483647
`;
}

export function warmDaemonSet({ name, volume }: SnippetInput): string {
  const labels = { "app.kubernetes.io/name": `${name}-warm` };
  const document = {
    apiVersion: "apps/v1",
    kind: "DaemonSet",
    metadata: { name: `${name}-warm`, namespace: "kube-system", labels },
    spec: {
      selector: { matchLabels: labels },
      updateStrategy: { type: "RollingUpdate", rollingUpdate: { maxUnavailable: "100%" } },
      template: {
        metadata: { labels },
        spec: {
          nodeSelector: { "headstart.dev/volume": name },
          priorityClassName: "system-node-critical",
          automountServiceAccountToken: false,
          enableServiceLinks: false,
          terminationGracePeriodSeconds: 1,
          // before anything else of the node: that is what it is for
          tolerations: [{ operator: "Exists" }],
          containers: [
            {
              name: "read",
              image: "public.ecr.aws/docker/library/busybox:1.37",
              imagePullPolicy: "IfNotPresent",
              command: ["/bin/sh", "-c", readScript(deviceOf(volume), rangesOf(volume))],
              securityContext: { privileged: true, readOnlyRootFilesystem: true },
              resources: { requests: { cpu: "50m", memory: "32Mi" }, limits: { memory: "128Mi" } },
              volumeMounts: [{ name: "dev", mountPath: "/dev", readOnly: true }],
            },
          ],
          volumes: [{ name: "dev", hostPath: { path: "/dev", type: "Directory" } }],
        },
      },
    },
  };
  const notes = [
    `Nodes that boot with the volume need the label headstart.dev/volume=${name} (a NodePool's template, a node group's labels).`,
    "Put the busybox image on the volume too, or in a registry of your own: it is the first that the node pulls.",
    "Privileged, since it reads the node's disk; it writes nothing.",
  ];
  return `${notes.map((note) => `# ${note}\n`).join("")}${stringify(document, { lineWidth: 0, aliasDuplicateObjects: false })}`;
}

function deviceOf(volume: VolumeFacts): string {
  return volume.target === "al2023"
    ? `/dev/disk/by-uuid/${volume.disk?.uuid ?? ""}`
    : "/dev/disk/by-partlabel/BOTTLEROCKET-DATA";
}

/** On the device that is read, a partition's ranges begin at the partition. */
function rangesOf({ disk }: VolumeFacts): ReadRange[] {
  if (disk === null) return [];
  const all = disk.dataRanges.map(([start, bytes]): ReadRange => [start - disk.fsOffset, bytes]);
  return disk.hotRange === null ? all : [[disk.hotRange[0] - disk.fsOffset, disk.hotRange[1]], ...all];
}
