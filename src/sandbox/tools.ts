/** Which Debian package each program of the sandbox comes from, and where the program lies. Nothing here is installed on the system. */

import { join } from "node:path";
import { type Say, type Suite, sayOnStderr, unpackedPackages } from "./packages.ts";

/** The versions that Headstart is proven with: Debian 12, 13 and unstable. */
export const CONTAINERD_VERSIONS = ["1.6.20", "1.7.24", "2.1.9"] as const;
export type ContainerdVersion = (typeof CONTAINERD_VERSIONS)[number];

const CONTAINERD_SUITES: Readonly<Record<ContainerdVersion, Suite>> = {
  "1.6.20": "bookworm",
  "1.7.24": "trixie",
  "2.1.9": "sid",
};

/** The folder of `containerd`, `ctr` and `containerd-shim-runc-v2` of that version. Throws HS_TOOL_MISSING. */
export async function containerdPrograms(version: ContainerdVersion, say: Say = sayOnStderr): Promise<string> {
  const wanted = { suite: CONTAINERD_SUITES[version], packages: { containerd: version } };
  return join(await unpackedPackages(wanted, say), "usr/bin");
}

/** bookworm's runc runs under all three containerds: the newer ones' own needs a newer C library than Debian 12 has. */
export async function runcProgram(say: Say = sayOnStderr): Promise<string> {
  const directory = await unpackedPackages({ suite: "bookworm", packages: { runc: "1.1.5" } }, say);
  return join(directory, "usr/sbin/runc");
}

export async function registryProgram(say: Say = sayOnStderr): Promise<string> {
  const directory = await unpackedPackages({ suite: "bookworm", packages: { "docker-registry": "2.8." } }, say);
  return join(directory, "usr/bin/docker-registry");
}

/** A static busybox, the whole content of the pause image. */
export async function busyboxProgram(say: Say = sayOnStderr): Promise<string> {
  const directory = await unpackedPackages({ suite: "bookworm", packages: { "busybox-static": "" } }, say);
  return join(directory, "bin/busybox");
}
