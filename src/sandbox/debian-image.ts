/**
 * Real images from Debian packages. mmdebstrap makes one root file system, which is cut into layers by package, as Bazel's rules do it; images
 * are stacks of these layers under a small one with their application. Layers are cached, and two images share the ones that they have in common.
 */

import { createHash } from "node:crypto";
import { createReadStream } from "node:fs";
import { open, readFile, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import type { Digest } from "../base/digest.ts";
import { HeadstartError } from "../base/errors.ts";
import { MEDIA_TYPES } from "../oci/media-types.ts";
import { cachedDirectory } from "./cache.ts";
import { assignPackages, BASE, type DebianPackage, type LayerPlan, parseStatus } from "./debian-packages.ts";
import { type BuiltLayer, gzipLayer, type ImageSettings, layerOf, writeImage } from "./image-builder.ts";
import { debianPackages, type Say, sayOnStderr } from "./packages.ts";
import { execute } from "./process.ts";
import { copyMembers, listTar, type TarMember } from "./tar-split.ts";
import type { TarEntry } from "./tar-writer.ts";

/** 2025-01-01: the time of every file that the making of the root would date anew. */
const SOURCE_DATE_EPOCH = "1735689600";
const STATUS = "var/lib/dpkg/status";
const MIRROR = "deb http://deb.debian.org/debian bookworm main";

/** The layers that our images are made of. */
export const DEBIAN_LAYERS = {
  python: { packages: ["python3"] },
  science: {
    packages: ["python3-numpy", "libopenblas0-pthread", "python3-pandas", "python3-sympy"],
    on: ["python"],
  },
  redis: { packages: ["redis-server"] },
} as const satisfies Record<string, LayerPlan>;

export type DebianLayerName = keyof typeof DEBIAN_LAYERS;

export interface DebianImage extends ImageSettings {
  /** On the base, lowest first. */
  readonly layers: readonly DebianLayerName[];
  /** The topmost layer. */
  readonly application: readonly TarEntry[];
}

/** Writes the image into the layout. The first call on a machine takes a minute or two. Throws HS_TOOL_MISSING, HS_CHILD_FAILED. */
export async function writeDebianImage(layout: string, image: DebianImage, say: Say = sayOnStderr): Promise<void> {
  const set = await debianLayers(DEBIAN_LAYERS, say);
  const names = [BASE, ...image.layers];
  const status = set.packages
    .filter((one) => names.includes(set.assigned.get(one.name)!))
    .map((one) => one.stanza)
    .join("\n\n");
  const entries = withParents([{ path: STATUS, data: `${status}\n\n` }, ...image.application]);
  const top = layerOf(entries, { createdBy: "application" });
  const stack = names.map((name) => {
    const layer = set.layers.get(name);
    if (layer === undefined) throw new HeadstartError("HS_NOT_FOUND", { what: `Debian layer ${name}` });
    return layer;
  });
  await writeImage(layout, [...stack, top], image);
}

/** A builder's layer has an entry for every directory above what it changed. */
function withParents(entries: readonly TarEntry[]): TarEntry[] {
  const all = new Map<string, TarEntry>([["./", { path: "./" }]]);
  for (const entry of entries) {
    const parts = entry.path.split("/").slice(0, entry.path.endsWith("/") ? -2 : -1);
    for (const [index] of parts.entries()) {
      const path = `${parts.slice(0, index + 1).join("/")}/`;
      if (!all.has(path)) all.set(path, { path });
    }
    all.set(entry.path, entry);
  }
  return [...all.values()];
}

interface LayerSet {
  readonly layers: ReadonlyMap<string, BuiltLayer>;
  readonly packages: readonly DebianPackage[];
  readonly assigned: ReadonlyMap<string, string>;
}

interface LayerRecord {
  readonly name: string;
  readonly digest: Digest;
  readonly storedSize: number;
  readonly diffID: Digest;
  readonly size: number;
}

async function debianLayers(plans: Readonly<Record<string, LayerPlan>>, say: Say): Promise<LayerSet> {
  const recipe = createHash("sha256").update(JSON.stringify([1, plans, MIRROR, SOURCE_DATE_EPOCH, process.arch]));
  const directory = await cachedDirectory(join("debian", recipe.digest("hex").slice(0, 16)), async (part) => {
    say("making a Debian root with mmdebstrap (about a minute, once)");
    const root = join(part, "root.tar");
    await makeRoot(
      root,
      Object.values(plans).flatMap((plan) => plan.packages),
      say,
    );
    say("cutting it into layers");
    await cut(root, part, plans);
    await rm(root);
  });
  const packages = parseStatus(await readFile(join(directory, "status"), "utf8"));
  const records = JSON.parse(await readFile(join(directory, "layers.json"), "utf8")) as LayerRecord[];
  const layers = records.map((record): [string, BuiltLayer] => [
    record.name,
    {
      descriptor: { mediaType: MEDIA_TYPES.ociLayerGzip, digest: record.digest, size: record.storedSize },
      diffID: record.diffID,
      size: record.size,
      source: () => createReadStream(join(directory, `${record.name}.tar.gz`), { highWaterMark: 1 << 20 }),
      createdBy: `Debian ${record.name}`,
    },
  ]);
  return { layers: new Map(layers), packages, assigned: assignPackages(packages, plans) };
}

async function makeRoot(target: string, packages: readonly string[], say: Say): Promise<void> {
  await debianPackages(["mmdebstrap"], say);
  const options = [
    'APT::Install-Recommends "false"',
    'Acquire::Check-Valid-Until "false"',
    'Acquire::Languages "none"',
  ];
  await execute(
    "mmdebstrap",
    [
      "--quiet",
      "--mode=root",
      "--variant=minbase",
      `--include=${packages.join(",")}`,
      ...options.map((option) => `--aptopt=${option}`),
      "bookworm",
      target,
      MIRROR,
    ],
    { env: { SOURCE_DATE_EPOCH, LC_ALL: "C.UTF-8" }, timeoutMs: 900_000 },
  );
}

async function cut(root: string, directory: string, plans: Readonly<Record<string, LayerPlan>>): Promise<void> {
  await using file = await open(root, "r");
  const members = await listTar(file);
  const content = async (member: TarMember) => {
    const buffer = Buffer.alloc(member.size);
    await file.read(buffer, 0, member.size, member.dataStart);
    return buffer.toString();
  };
  const status = members.find((member) => member.path === STATUS);
  if (status === undefined) throw new HeadstartError("HS_NOT_FOUND", { what: `${STATUS} in Debian's root` });
  const statusText = await content(status);
  await writeFile(join(directory, "status"), statusText);
  const assigned = assignPackages(parseStatus(statusText), plans);
  const owners = new Map<string, Set<string>>();
  for (const member of members) {
    const name = /^var\/lib\/dpkg\/info\/([^:]+?)(?::\w+)?\.list$/.exec(member.path)?.[1];
    if (name === undefined) continue;
    const layer = assigned.get(name) ?? BASE;
    for (const path of (await content(member)).split("\n")) add(owners, mergedPath(path), layer);
  }
  const cutting = membersByLayer(
    members.filter((member) => member !== status),
    owners,
    assigned,
  );
  const records = await Promise.all(
    [BASE, ...Object.keys(plans)].map(async (name): Promise<LayerRecord> => {
      const target = join(directory, `${name}.tar.gz`);
      const layer = await gzipLayer(copyMembers(root, cutting.get(name) ?? []), target, name);
      const { digest, size: storedSize } = layer.descriptor;
      return { name, digest, storedSize, diffID: layer.diffID, size: layer.size };
    }),
  );
  await writeFile(join(directory, "layers.json"), JSON.stringify(records, null, 2));
}

function add(map: Map<string, Set<string>>, key: string, value: string): void {
  const known = map.get(key);
  if (known === undefined) map.set(key, new Set([value]));
  else known.add(value);
}

/** dpkg's lists say /bin/sh, which lies in /usr/bin since the merge of /usr. */
function mergedPath(path: string): string {
  return path.replace(/^\/+/, "").replace(/^(bin|sbin|lib|lib32|lib64|libx32)\//, "usr/$1/");
}

/** Layer -> its members in order, every directory above them included. */
export function membersByLayer(
  members: readonly TarMember[],
  owners: ReadonlyMap<string, ReadonlySet<string>>,
  assigned: ReadonlyMap<string, string>,
): Map<string, TarMember[]> {
  const layerOfPath = new Map<string, string>();
  const needed = new Map<string, Set<string>>();
  for (const member of members) {
    if (member.flag === "5") continue;
    const layer =
      member.flag === "1"
        ? layerOfPath.get(member.target)! // a hard link goes where its first name is
        : (infoLayer(member.path, assigned) ?? layerOfOwner(member.path, owners));
    layerOfPath.set(member.path, layer);
    add(needed, member.path, layer);
    for (let parent = member.path; parent !== ""; ) {
      parent = parent.slice(0, Math.max(0, parent.lastIndexOf("/")));
      add(needed, parent, layer);
    }
  }
  const result = new Map<string, TarMember[]>();
  for (const member of members) {
    for (const layer of needed.get(member.path) ?? [layerOfOwner(member.path, owners)]) {
      const list = result.get(layer);
      if (list === undefined) result.set(layer, [member]);
      else list.push(member);
    }
  }
  return result;
}

/** What dpkg notes about a package goes with the package. */
function infoLayer(path: string, assigned: ReadonlyMap<string, string>): string | undefined {
  const name = /^var\/lib\/dpkg\/info\/(.+?)(?::\w+)?\.\w+$/.exec(path)?.[1];
  return name === undefined ? undefined : assigned.get(name);
}

/** The layer of the package that owns the path or else the nearest directory above it; the base when several do. */
function layerOfOwner(path: string, owners: ReadonlyMap<string, ReadonlySet<string>>): string {
  for (let at = path; at !== ""; at = at.slice(0, Math.max(0, at.lastIndexOf("/")))) {
    const found = owners.get(at);
    if (found !== undefined) return found.size === 1 ? [...found][0]! : BASE;
  }
  return BASE;
}
