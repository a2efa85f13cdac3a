/**
 * Platforms: normalised as containerd's platforms package does it (database.go), matched as its `Only` does (compare.go), and chosen
 * from an index. Entries that are no images (attestations, SOCI indexes, other artifacts) are never chosen.
 */

import { HeadstartError } from "../base/errors.ts";
import { asObject, defined, type JsonObject, optionalString, stringArray } from "./json.ts";

export interface Platform {
  readonly architecture: string;
  readonly os: string;
  readonly "os.version"?: string;
  readonly "os.features"?: readonly string[];
  readonly variant?: string;
}

const ARCHITECTURES: Readonly<Record<string, readonly [architecture: string, variant?: string]>> = {
  i386: ["386"],
  i486: ["386"],
  i586: ["386"],
  i686: ["386"],
  x86_64: ["amd64"],
  "x86-64": ["amd64"],
  aarch64: ["arm64"],
  armhf: ["arm", "v7"],
  armel: ["arm", "v6"],
};

const OPERATING_SYSTEMS: Readonly<Record<string, string>> = { macos: "darwin" };

/** Lower case, one name for one architecture, no variant that is the default (amd64 v1, arm64 v8). */
export function normalizePlatform(platform: Platform): Platform {
  const os = platform.os.toLowerCase();
  const given = platform.architecture.toLowerCase();
  const [architecture, implied] = ARCHITECTURES[given] ?? [given];
  let variant = platform.variant?.toLowerCase() || implied;
  if (architecture === "amd64" && variant === "v1") variant = undefined;
  if (architecture === "arm64" && (variant === "8" || variant === "v8")) variant = undefined;
  if (architecture === "arm") variant = variant === undefined ? "v7" : variant.replace(/^([5-8])$/, "v$1");
  return defined<Platform>({
    architecture,
    os: OPERATING_SYSTEMS[os] ?? os,
    "os.version": platform["os.version"],
    "os.features": platform["os.features"],
    variant,
  });
}

/** Reads "os/arch[/variant]" or "arch". Throws HS_USAGE. */
export function parsePlatform(text: string): Platform {
  const parts = text.split("/");
  if (parts.length > 3 || parts.some((part) => !/^[\w.()+-]{1,64}$/.test(part))) {
    throw new HeadstartError("HS_USAGE", {
      what: `platform ${JSON.stringify(text.slice(0, 200))} is not os/arch[/variant]`,
    });
  }
  const [os, architecture, variant] = parts.length === 1 ? ["linux", parts[0]!] : parts;
  return normalizePlatform(defined<Platform>({ os: os!, architecture: architecture!, variant }));
}

export function formatPlatform(platform: Platform): string {
  return [platform.os, platform.architecture, platform.variant].filter((part) => part !== undefined).join("/");
}

/** The platform of containers on this machine: always Linux. `arch` is Node's name for it. */
export function hostPlatform(arch: string = process.arch): Platform {
  const names: Record<string, string> = { x64: "amd64", ia32: "386", arm: "arm", ppc64: "ppc64le" };
  return normalizePlatform({ os: "linux", architecture: names[arch] ?? arch });
}

/** What a machine of `platform` can run, best first. */
export function runnablePlatforms(platform: Platform): Platform[] {
  const wanted = normalizePlatform(platform);
  const all: Platform[] = [wanted];
  const { os, architecture, variant } = wanted;
  const below = (prefix: number, lowest: number, arch: string) => {
    for (let level = prefix; level >= lowest; level--) {
      all.push(normalizePlatform({ os, architecture: arch, variant: `v${level}` }));
    }
  };
  if (architecture === "amd64") {
    if (variant !== undefined) below(Number(variant.slice(1)) - 1, 1, "amd64");
    all.push({ os, architecture: "386" });
  } else if (architecture === "arm64") {
    if (variant !== undefined) all.push({ os, architecture });
    below(8, 5, "arm");
  } else if (architecture === "arm" && variant !== undefined) {
    below(Number(variant.slice(1)) - 1, 5, "arm");
  }
  return all;
}

/** True when both name the same platform once normalised. */
export function samePlatform(a: Platform, b: Platform): boolean {
  const [left, right] = [normalizePlatform(a), normalizePlatform(b)];
  return left.os === right.os && left.architecture === right.architecture && left.variant === right.variant;
}

/** 0 for the very platform, higher for what also runs there, -1 when it does not. */
export function platformRank(wanted: Platform, offered: Platform): number {
  const osVersion = wanted["os.version"];
  if (osVersion !== undefined && !(offered["os.version"] ?? "").startsWith(osVersion)) return -1;
  return runnablePlatforms(wanted).findIndex((candidate) => samePlatform(candidate, offered));
}

/** Reads a descriptor's `platform`. Throws HS_MANIFEST. */
export function readPlatform(value: unknown, what: string): Platform {
  const object: JsonObject = asObject(value, what);
  const features = stringArray(object, "os.features", what, 64);
  return defined<Platform>({
    architecture: optionalString(object, "architecture", what) ?? "",
    os: optionalString(object, "os", what) ?? "",
    "os.version": optionalString(object, "os.version", what) || undefined,
    "os.features": features.length === 0 ? undefined : features,
    variant: optionalString(object, "variant", what) || undefined,
  });
}
