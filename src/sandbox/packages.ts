/**
 * Debian packages that the sandbox needs. `debianPackages` installs on this machine, saying so; `unpackedPackages` fetches packages of any Debian
 * suite into the cache without installing them, so that no service starts and nothing of the system changes: that is how the three containerds, the
 * registry and newer tools are had. apt verifies every download through Debian's signatures, in state folders of our own.
 */

import { existsSync } from "node:fs";
import { access, mkdir, readdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { HeadstartError } from "../base/errors.ts";
import { cacheDirectory, cachedDirectory, withCacheLock } from "./cache.ts";
import { execute } from "./process.ts";

/** Told to the person who waits: what is being installed or fetched. */
export type Say = (text: string) => void;

export const sayOnStderr: Say = (text) => {
  process.stderr.write(`headstart: ${text}\n`);
};

const MIRROR = "http://deb.debian.org/debian";
const KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg";
const QUIET = { DEBIAN_FRONTEND: "noninteractive", LC_ALL: "C.UTF-8" };

/** Makes sure that the packages are installed here. Throws HS_TOOL_MISSING when apt cannot. */
export async function debianPackages(names: readonly string[], say: Say = sayOnStderr): Promise<void> {
  const missing = await notInstalled(names);
  if (missing.length === 0) return;
  const command = `apt-get install ${missing.join(" ")}`;
  if (process.getuid?.() !== 0 || !existsSync("/usr/bin/apt-get")) {
    throw new HeadstartError("HS_TOOL_MISSING", {
      what: `Debian packages ${missing.join(", ")}: root and apt are needed to install them`,
    });
  }
  await withCacheLock("apt-install", async () => {
    say(`installing the Debian packages ${missing.join(", ")}`);
    const install = () =>
      execute("apt-get", ["install", "-y", "-qq", "--no-install-recommends", ...missing], {
        env: QUIET,
        timeoutMs: 900_000,
      });
    try {
      await install().catch(async () => {
        await execute("apt-get", ["update", "-qq"], { env: QUIET }); // no lists yet, or old ones
        await install();
      });
    } catch (cause) {
      throw new HeadstartError("HS_TOOL_MISSING", { what: command, cause });
    }
  });
}

async function notInstalled(names: readonly string[]): Promise<string[]> {
  const format = "$" + "{binary:Package} $" + "{db:Status-Abbrev}\n"; // dpkg-query's own variables
  const { stdout } = await execute("dpkg-query", ["-W", "-f", format, ...names], { accept: [1] }).catch((cause) => {
    throw new HeadstartError("HS_TOOL_MISSING", { what: `Debian packages ${names.join(", ")}: no dpkg here`, cause });
  });
  const installed = new Set(
    stdout
      .split("\n")
      .filter((line) => /\sii\s*$/.test(line))
      .map((line) => line.split(/[:\s]/)[0]!),
  );
  return names.filter((name) => !installed.has(name));
}

export type Suite = "bookworm" | "trixie" | "sid";

export interface Unpacking {
  readonly suite: Suite;
  /** Package name -> what its upstream version must begin with, e.g. `{ containerd: "1.7.24", "erofs-utils": "1.9." }`; "" takes any. */
  readonly packages: Readonly<Record<string, string>>;
}

/**
 * A directory with the files of these packages (no dependencies, no maintainer scripts). Throws HS_TOOL_MISSING, naming what the suite has, when a
 * version cannot be had.
 */
export async function unpackedPackages(wanted: Unpacking, say: Say = sayOnStderr): Promise<string> {
  const names = Object.keys(wanted.packages).toSorted();
  const key = names.map((name) => `${name}_${wanted.packages[name] || "any"}`).join("+");
  return cachedDirectory(join("packages", wanted.suite, key), async (directory) => {
    say(`fetching from Debian ${wanted.suite}: ${names.join(", ")}`);
    try {
      await withCacheLock(`apt-${wanted.suite}`, () => fetchPackages(wanted, directory));
    } catch (cause) {
      if (cause instanceof HeadstartError && cause.code === "HS_TOOL_MISSING") throw cause;
      throw new HeadstartError("HS_TOOL_MISSING", { what: `${names.join(", ")} of Debian ${wanted.suite}`, cause });
    }
  });
}

async function fetchPackages(wanted: Unpacking, directory: string): Promise<void> {
  const apt = await aptFor(wanted.suite);
  const names = Object.keys(wanted.packages);
  const debs = join(directory, ".debs");
  await mkdir(debs);
  const download = async () => {
    await assertCandidates(wanted, apt);
    await execute("apt-get", [...apt, "download", "-qq", ...names], { cwd: debs, env: QUIET });
  };
  if (await hasLists(wanted.suite)) {
    await download().catch(() => updateLists(apt).then(download)); // lists may name files that the archive has since replaced
  } else {
    await updateLists(apt);
    await download();
  }
  for (const file of await readdir(debs)) {
    const path = join(debs, file);
    const { stdout } = await execute("dpkg-deb", ["-f", path, "Package", "Version"]);
    const [, name, version] = /Package: (\S+)\nVersion: (\S+)/.exec(stdout) ?? [];
    assertVersion(wanted, name ?? file, version ?? "none");
    await execute("dpkg-deb", ["-x", path, directory]);
    await writeFile(join(directory, ".versions"), `${name} ${version}\n`, { flag: "a" });
  }
  await execute("rm", ["-r", debs]);
}

function updateLists(apt: readonly string[]): Promise<unknown> {
  return execute("apt-get", [...apt, "update", "-qq"], { env: QUIET, timeoutMs: 600_000 });
}

function stateOf(suite: Suite): string {
  return join(cacheDirectory(), "apt", suite);
}

async function hasLists(suite: Suite): Promise<boolean> {
  const names = await readdir(join(stateOf(suite), "lists"));
  return names.some((name) => name.includes("_Packages"));
}

/** apt's options for one suite, with sources, lists and caches of our own. */
async function aptFor(suite: Suite): Promise<string[]> {
  await access(KEYRING).catch((cause) => {
    throw new HeadstartError("HS_TOOL_MISSING", { what: "debian-archive-keyring", cause });
  });
  const state = stateOf(suite);
  await mkdir(join(state, "lists/partial"), { recursive: true });
  await mkdir(join(state, "cache/archives/partial"), { recursive: true });
  const sources = join(state, "sources.list");
  await writeFile(sources, `deb [signed-by=${KEYRING}] ${MIRROR} ${suite} main\n`);
  return [
    `Dir::Etc::SourceList=${sources}`,
    "Dir::Etc::SourceParts=/dev/null",
    "Dir::Etc::PreferencesParts=/dev/null",
    `Dir::State::Lists=${join(state, "lists")}`,
    `Dir::Cache=${join(state, "cache")}`,
    "Acquire::Check-Valid-Until=false",
    "Acquire::Languages=none",
    "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false",
    "Acquire::Retries=3",
    "APT::Sandbox::User=root",
  ].flatMap((option) => ["-o", option]);
}

async function assertCandidates(wanted: Unpacking, apt: readonly string[]): Promise<void> {
  const { stdout } = await execute(
    "apt-cache",
    [...apt, "show", "--no-all-versions", ...Object.keys(wanted.packages)],
    {
      env: QUIET,
      accept: [100],
    },
  );
  const found = new Map(
    [...stdout.matchAll(/^Package: (\S+)\n(?:.*\n)*?Version: (\S+)/gm)].map((match) => [match[1]!, match[2]!]),
  );
  for (const name of Object.keys(wanted.packages)) assertVersion(wanted, name, found.get(name) ?? "no such package");
}

function assertVersion(wanted: Unpacking, name: string, version: string): void {
  const start = wanted.packages[name];
  const upstream = version.replace(/^\d+:/, "");
  if (start === undefined || !upstream.startsWith(start) || version === "no such package") {
    throw new HeadstartError("HS_TOOL_MISSING", {
      what: `${name} ${start || "(any version)"} of Debian ${wanted.suite}: the archive has ${version}`,
    });
  }
}
