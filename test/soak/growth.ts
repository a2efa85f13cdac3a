/**
 * Disks that we built grow online, as a node grows them at its first boot: EXT4_IOC_RESIZE_FS on a mounted file system, which takes a kernel of its own and its init's
 * privileges. Debian 12's kernel 6.1 in QEMU without KVM, with an initramfs of busybox and resize2fs (which calls the ioctl for what is mounted).
 */

import { readlinkSync, rmSync, statSync, truncateSync, writeFileSync } from "node:fs";
import { basename, join } from "node:path";
import { GiB, MiB } from "../../src/base/limits.ts";
import { debianPackages, unpackedPackages } from "../../src/sandbox/packages.ts";
import { execute } from "../../src/sandbox/process.ts";
import type { VolumeLayout } from "../../src/volume/build.ts";
import { BOTTLEROCKET_DATA } from "../../src/volume/gpt.ts";
import { verifyVolume } from "../../src/volume/verify/verify.ts";
import { temporaryFolder } from "../tools/erofs-image.ts";
import { fsckExt4 } from "../tools/ext4-image.ts";
import { FIXTURE_SOURCE, makeVolume, TINY_SOURCE } from "../tools/volumes.ts";
import { initramfs } from "./initramfs.ts";

interface Growth {
  readonly layout: VolumeLayout;
  readonly fromGib: number;
  readonly toGib: number;
}

const GROWTHS: readonly Growth[] = [
  { layout: "bottlerocket", fromGib: 1, toGib: 2 },
  { layout: "al2023", fromGib: 1, toGib: 2 },
  { layout: "bottlerocket", fromGib: 8, toGib: 200 },
  { layout: "al2023", fromGib: 8, toGib: 40 },
  { layout: "al2023", fromGib: 8, toGib: 1024 },
];
const META = "linux-image-cloud-amd64";
const BOOT_TIMEOUT_MS = 600_000;

export async function growth(): Promise<void> {
  await debianPackages(["qemu-system-x86", "busybox-static", "e2fsprogs", "gdisk"]);
  const kernel = await debianKernel();
  using folder = temporaryFolder("headstart-growth-");
  for (const each of GROWTHS) {
    const { layout, fromGib, toGib } = each;
    const disk = join(folder.path, `${layout}-${fromGib}-${toGib}.img`);
    await makeVolume(disk, [FIXTURE_SOURCE, TINY_SOURCE], { layout, sizeGib: fromGib });
    // it says how large the disk was
    rmSync(`${disk}.json`);
    truncateSync(disk, toGib * GiB);
    if (layout === "bottlerocket") await growPartition(disk);
    const seconds = await boot(kernel, disk, folder.path, layout === "bottlerocket" ? "/dev/vda1" : "/dev/vda");
    await check(disk, layout, toGib);
    const used = statSync(disk).blocks * 512;
    console.log(
      `${layout}: ${fromGib} -> ${toGib} GiB in ${seconds} s, ${Math.round(used / MiB)} MiB on disk, clean and right`,
    );
    rmSync(disk);
  }
}

/** The kernel that Debian 12 has now, unpacked. */
async function debianKernel(): Promise<string> {
  const meta = await unpackedPackages({ suite: "bookworm", packages: { [META]: "6.1." } });
  const name = basename(readlinkSync(join(meta, "usr/share/doc", META)));
  return await unpackedPackages({ suite: "bookworm", packages: { [name]: "6.1." } });
}

/** As systemd-repart does it on a node: the same partition, up to the new end. */
async function growPartition(disk: string): Promise<void> {
  const { typeGuid, uniqueGuid, name } = BOTTLEROCKET_DATA;
  const last = statSync(disk).size / 512 - 2048 - 1;
  const partition = ["-n", `1:2048:${last}`, "-t", `1:${typeGuid}`, "-u", `1:${uniqueGuid}`, "-c", `1:${name}`];
  await execute("sgdisk", ["-e", "-d", "1", ...partition, disk]);
}

/** Seconds that growing took, as the guest's clock has it. */
async function boot(kernel: string, disk: string, folder: string, device: string): Promise<number> {
  const initrd = join(folder, "initramfs");
  const script = `
mount -t ext4 -o nosuid,nodev,noatime ${device} /mnt || echo FAILED mount
start=$(cut -d. -f1 /proc/uptime)
resize2fs ${device} && echo "GROWN in $(( $(cut -d. -f1 /proc/uptime) - start )) s"
df -k /mnt | tail -n 1
umount /mnt || echo FAILED umount
sync`;
  const modules = [
    "virtio",
    "virtio_ring",
    "virtio_pci_legacy_dev",
    "virtio_pci_modern_dev",
    "virtio_pci",
    "virtio_blk",
  ];
  writeFileSync(initrd, initramfs({ kernel, modules, programs: ["/sbin/resize2fs"], script }));
  const version = basename(kernel)
    .replace(/^linux-image-/, "")
    .replace(/_.*$/, "");
  const machine = [
    "-machine",
    "pc",
    "-accel",
    "tcg",
    "-cpu",
    "max",
    "-m",
    "768",
    "-display",
    "none",
    "-nodefaults",
    "-no-reboot",
  ];
  const devices = [
    "-serial",
    "stdio",
    "-drive",
    `file=${disk},format=raw,if=virtio,cache=unsafe,discard=unmap,detect-zeroes=unmap`,
  ];
  const start = ["-kernel", join(kernel, "boot", `vmlinuz-${version}`), "-initrd", initrd];
  const append = ["-append", "console=ttyS0 quiet panic=-1"];
  const { stdout } = await execute("qemu-system-x86_64", [...machine, ...devices, ...start, ...append], {
    timeoutMs: BOOT_TIMEOUT_MS,
  });
  const [, seconds] = /GROWN in (\d+) s/.exec(stdout) ?? [];
  if (seconds === undefined || /FAILED|Call Trace|EXT4-fs error/.test(stdout)) throw new Error(`${disk}: ${stdout}`);
  return Number(seconds);
}

async function check(disk: string, layout: VolumeLayout, gib: number): Promise<void> {
  fsckExt4(layout === "bottlerocket" ? `${disk}?offset=${MiB}` : disk);
  const { ok, differences, checked } = await verifyVolume({
    path: disk,
    sources: [],
    signal: new AbortController().signal,
  });
  if (!ok || checked.provenSnapshots !== checked.snapshots) throw new Error(JSON.stringify(differences));
  const { stdout } = await execute("dumpe2fs", ["-h", layout === "bottlerocket" ? `${disk}?offset=${MiB}` : disk]);
  const blocks = Number(/^Block count:\s+(\d+)/m.exec(stdout)?.[1]);
  // the last group may be too short to be one
  if (blocks * 4096 < gib * GiB - 130 * MiB) throw new Error(`${disk}: ${blocks} blocks after growing to ${gib} GiB`);
}
