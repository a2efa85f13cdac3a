/**
 * fsck.erofs in two versions: the one that this machine's Debian has, and sid's, unpacked with all its libraries into .cache/ and run through its own ld.so.
 */

import { execFileSync, spawnSync } from "node:child_process";
import { existsSync, mkdirSync, mkdtempSync, readdirSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";

const CACHE = join(import.meta.dirname, "../../.cache");
const SID = join(CACHE, "erofs-utils-sid");
const MIRROR = "http://deb.debian.org/debian";

/** Throws with the tool's words when the image is not clean. `data: false` leaves file contents out (sparse files of many GiB). */
export type Fsck = (image: string, options?: { data: boolean }) => void;

const checkArguments = (image: string, options?: { data: boolean }) =>
  options?.data === false ? [image] : ["--extract", image];

export function systemFsck(): Fsck {
  return (image, options) => run("fsck.erofs", checkArguments(image, options), image);
}

/** Downloads on first use (about 13 MB of packages and sid's package list). */
export function sidFsck(): Fsck {
  if (!existsSync(SID)) unpackSid();
  const libraries = ["usr/lib/x86_64-linux-gnu", "usr/lib/aarch64-linux-gnu"]
    .map((path) => join(SID, path))
    .filter((path) => existsSync(path));
  const loader = readdirSync(libraries[0]!).find((name) => name.startsWith("ld-linux-"))!;
  const program = ["usr/bin/fsck.erofs", "usr/sbin/fsck.erofs"].map((path) => join(SID, path)).find(existsSync)!;
  return (image, options) =>
    run(
      join(libraries[0]!, loader),
      ["--library-path", libraries.join(":"), program, ...checkArguments(image, options)],
      `${image} (sid)`,
    );
}

function run(program: string, args: readonly string[], what: string): void {
  const result = spawnSync(program, args, { encoding: "utf8" });
  const output = `${result.stdout}${result.stderr}`;
  if (result.status !== 0 || /<E>|corrupt/i.test(output)) {
    throw new Error(`fsck.erofs ${what}: status ${result.status}\n${output}${result.error ?? ""}`);
  }
}

function unpackSid(): void {
  mkdirSync(CACHE, { recursive: true });
  const work = mkdtempSync(join(CACHE, "apt-"));
  try {
    for (const folder of ["lists/partial", "cache/archives/partial", "root"]) {
      mkdirSync(join(work, folder), { recursive: true });
    }
    writeFileSync(
      join(work, "sources.list"),
      `deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] ${MIRROR} sid main\n`,
    );
    // nothing counts as installed: then the download has every library that the program needs
    writeFileSync(join(work, "status"), "");
    const options = [
      `Dir::Etc::SourceList=${join(work, "sources.list")}`,
      "Dir::Etc::SourceParts=/dev/null",
      `Dir::State::Lists=${join(work, "lists")}`,
      `Dir::State::status=${join(work, "status")}`,
      `Dir::Cache=${join(work, "cache")}`,
      "Acquire::Check-Valid-Until=false",
      "APT::Sandbox::User=root",
      "Debug::NoLocking=1",
    ].flatMap((option) => ["-o", option]);
    const apt = (...args: string[]) =>
      execFileSync("apt-get", [...options, "-q", "-y", ...args], { stdio: ["ignore", "ignore", "inherit"] });
    apt("update");
    apt("install", "--download-only", "--no-install-recommends", "erofs-utils");
    const archives = join(work, "cache/archives");
    for (const name of readdirSync(archives).filter((file) => file.endsWith(".deb"))) {
      execFileSync("dpkg-deb", ["-x", join(archives, name), join(work, "root")]);
    }
    // two test files may get here at once: the second finds the folder there
    if (!existsSync(SID)) renameSync(join(work, "root"), SID);
  } finally {
    rmSync(work, { recursive: true, force: true });
  }
}
