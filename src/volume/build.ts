/**
 * Builds a volume: sources -> plan -> files -> databases -> provenance. Everything is made in a folder beside the output that gets its name at the very end; on any
 * failure that folder goes, and a path that exists is never touched.
 */

import { randomUUID } from "node:crypto";
import { chmodSync, chownSync, lstatSync, mkdirSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { rm } from "node:fs/promises";
import { basename, dirname, join, resolve } from "node:path";
import { type Digest, digestAlgorithm, sha256 } from "../base/digest.ts";
import { HeadstartError } from "../base/errors.ts";
import { fsyncDirectory, giveName } from "../base/files.ts";
import { keepYoungGenerationSmall } from "../base/heap.ts";
import { ACL_ACCESS, ACL_DEFAULT } from "../erofs/acl.ts";
import { returnFreedMemory } from "../linux/malloc.ts";
import { syncFileSystem } from "../linux/syncfs.ts";
import { getXattr, removeXattr } from "../linux/xattr.ts";
import type { OpenOptions } from "../oci/open.ts";
import { formatPlatform, type Platform } from "../oci/platform.ts";
import type { ImageReader } from "../oci/store.ts";
import { writeBolt } from "./bolt/write.ts";
import { metaDatabase, snapshotDatabase } from "./containerd-db.ts";
import { type DiskProgress, writeDisk } from "./disk.ts";
import { identityOf } from "./disk-layout.ts";
import { type FormerVolume, numberAfter } from "./former.ts";
import type { HotList } from "./hot.ts";
import { type NamedSource, type OpenImage, openImage } from "./images.ts";
import { ContainerdPaths, makeSkeleton, SNAPSHOTTER, setStoreTimes, writeDatabases } from "./layout/containerd.ts";
import { DISK_TARGETS, type DiskTarget } from "./layout/disk.ts";
import { type DiskOptions, MANIFEST_SCHEMA, type Provenance, provenance } from "./manifest.ts";
import { makePlan, type VolumePlan } from "./plan.ts";
import { type UnpackProgress, unpackImages } from "./unpack.ts";

/** What this version writes. */
export const LAYOUTS = ["containerd", "bottlerocket", "al2023"] as const;
export type VolumeLayout = (typeof LAYOUTS)[number];
/** What the command line will know. */
export const LAYOUTS_LATER = ["headstart", "gke"] as const;

export interface BuildSource extends NamedSource {
  readonly open: OpenOptions;
}

export interface PlanRequest {
  readonly sources: readonly BuildSource[];
  readonly platform: Platform;
  readonly layout: VolumeLayout;
  readonly pinned: boolean;
  readonly blobs: boolean;
  /** Seconds since 1970 for all records (SOURCE_DATE_EPOCH); default: the newest image's creation. */
  readonly time?: number | undefined;
  /** An earlier disk: what it had keeps its numbers and times. */
  readonly former?: FormerVolume | undefined;
  readonly signal: AbortSignal;
}

/** A plan with its sources still open. */
export interface OpenPlan extends AsyncDisposable {
  readonly plan: VolumePlan;
  readonly layout: VolumeLayout;
  readonly former: FormerVolume | null;
  /** One for each image of the plan. */
  readonly readers: readonly ImageReader[];
  readonly sources: readonly string[];
}

/** Reads manifests and configurations, no layers. Throws what sources throw, HS_USAGE for names that are missing or collide, and for a former volume of another kind. */
export async function openPlan(request: PlanRequest): Promise<OpenPlan> {
  const { former, layout } = request;
  if (former !== undefined) checkFormer(former, request);
  await using stack = new AsyncDisposableStack();
  const opened: OpenImage[] = [];
  for (const source of request.sources) {
    opened.push(stack.use(await openImage(source, request.platform, { ...source.open, signal: request.signal })));
  }
  const plan = makePlan(
    opened.map(({ image }) => image),
    {
      ...request,
      snapshotter: SNAPSHOTTER,
      // other times would change every inode
      time: former?.time ?? request.time,
      numbering: former === undefined ? undefined : (layers) => numberAfter(former, layers),
    },
  );
  const readers = plan.images.map((image) => opened.find((one) => one.image.source === image.source)!.reader);
  const owned = stack.move();
  return {
    plan,
    layout,
    former: former ?? null,
    readers,
    sources: opened.map(({ image }) => image.source),
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  };
}

function checkFormer(former: FormerVolume, { layout, platform }: PlanRequest): void {
  const problem = (what: string) => new HeadstartError("HS_USAGE", { what: `--previous ${former.path}: ${what}` });
  if (layout === "containerd") throw problem("only disks have places to keep");
  const wanted = formatPlatform(platform);
  if (former.target !== layout) throw problem(`its layout is ${former.target}, this one's ${layout}`);
  if (former.platform !== wanted) throw problem(`it is for ${former.platform}, this one for ${wanted}`);
}

export interface BuildRequest {
  readonly output: string;
  readonly signal: AbortSignal;
  /** Of disks alone. */
  readonly disk?: DiskSettings | undefined;
  readonly onProgress?: ((progress: BuildProgress) => void) | undefined;
}

export interface DiskSettings {
  /** Whole GiB of the disk; default "auto": as few as will do. */
  readonly sizeGib?: number | "auto" | undefined;
  /** Default: as a real node of the layout does. */
  readonly selinux?: boolean | undefined;
  readonly hot?: HotList | undefined;
}

export type BuildProgress = UnpackProgress & Partial<DiskProgress>;

export interface BuiltVolume {
  readonly record: Provenance;
  /** What became of the former volume's places, null without one. */
  readonly followed: { readonly kept: boolean; readonly moved?: number; readonly reason?: string } | null;
}

/** Throws HS_OUTPUT_EXISTS, HS_NEEDS_ROOT, and what fetching, unpacking and writing throw; then nothing is left. */
export async function buildVolume(opened: OpenPlan, request: BuildRequest): Promise<BuiltVolume> {
  const { layout } = opened;
  const output = resolve(request.output);
  checkOutput(output, layout);
  const part = join(dirname(output), `.${basename(output)}.part-${randomUUID().slice(0, 8)}`);
  returnFreedMemory();
  keepYoungGenerationSmall();
  makePart(part);
  try {
    if (layout === "containerd") {
      return { record: await buildDirectory(opened, request, output, part), followed: null };
    }
    return await buildDisk(opened, request, output, part, DISK_TARGETS[layout]);
  } finally {
    rmSync(part, { recursive: true, force: true });
    rmSync(`${part}.json`, { force: true });
  }
}

async function buildDirectory(
  opened: OpenPlan,
  request: BuildRequest,
  output: string,
  part: string,
): Promise<Provenance> {
  const { plan, readers, layout } = opened;
  const work = join(part, ".work");
  makeSkeleton(part, new Set(plan.blobs.map((blob) => digestAlgorithm(blob.descriptor.digest))));
  mkdirSync(work);
  const { signal, onProgress } = request;
  const usage = await unpackImages(plan, { root: part, work, readers, signal, onProgress });
  const meta = writeBolt(metaDatabase(plan));
  const snapshots = writeBolt(snapshotDatabase(plan, usage));
  writeDatabases(part, meta, snapshots);
  const files = { [ContainerdPaths.metaDatabase]: meta, [ContainerdPaths.snapshotDatabase]: snapshots };
  const record = provenance(plan, { layout, sources: opened.sources, usage, files });
  await rm(work, { recursive: true });
  setStoreTimes(part, plan.time);
  writeManifest(`${part}.json`, record);
  await syncFileSystem(part);
  signal.throwIfAborted();
  checkOutput(output, layout);
  publish(`${part}.json`, output, () => renameSync(part, output));
  return record;
}

async function buildDisk(
  opened: OpenPlan,
  request: BuildRequest,
  output: string,
  part: string,
  target: DiskTarget,
): Promise<BuiltVolume> {
  const { plan, readers, layout, former } = opened;
  const { signal, onProgress } = request;
  const options = diskOptions(layout, request.disk)!;
  const planDigest = digestOfPlan(plan, layout, options);
  const image = join(part, "image");
  const written = await writeDisk(plan, {
    ...options,
    target,
    identity: identityOf(planDigest),
    former,
    image,
    work: part,
    readers,
    signal,
    onProgress,
  });
  const { meta, snapshots } = written.databases;
  const files = {
    [`${target.containerd}${ContainerdPaths.metaDatabase}`]: meta,
    [`${target.containerd}${ContainerdPaths.snapshotDatabase}`]: snapshots,
  };
  const { usage } = written;
  const record = provenance(plan, {
    layout,
    sources: opened.sources,
    usage,
    files,
    disk: { ...options, written, planDigest, former },
  });
  writeManifest(`${part}.json`, record);
  signal.throwIfAborted();
  checkOutput(output, layout);
  publish(`${part}.json`, output, () => giveName(image, output));
  return { record, followed: written.layout.followed };
}

/** Null: the layout is no disk. */
export function diskOptions(layout: VolumeLayout, settings: DiskSettings | undefined): DiskOptions | null {
  if (layout === "containerd") return null;
  const target = DISK_TARGETS[layout];
  return {
    selinux: settings?.selinux ?? target.selinux,
    partitioned: target.partition !== null,
    sizeGib: settings?.sizeGib ?? "auto",
    hot: settings?.hot ?? null,
  };
}

/** Of all that decides the bytes of a disk that follows no other. */
function digestOfPlan(plan: VolumePlan, layout: VolumeLayout, options: DiskOptions): Digest {
  const { platform, snapshotter, pinned, blobsKept, time, images, snapshots } = plan;
  const canonical = {
    schema: MANIFEST_SCHEMA,
    layout,
    platform: formatPlatform(platform),
    snapshotter,
    pinned,
    blobsKept,
    time,
    images: images.map(({ names, target, manifest }) => [names, target.digest, manifest.digest]),
    snapshots: snapshots.map(({ id, chainID, layer }) => [id, chainID, layer.digest]),
    selinux: options.selinux,
    size: options.sizeGib,
    hot: options.hot?.digest ?? null,
  };
  return sha256(Buffer.from(JSON.stringify(canonical)));
}

function writeManifest(path: string, record: Provenance): void {
  writeFileSync(path, `${JSON.stringify(record, null, 2)}\n`, { flag: "wx", mode: 0o644, flush: true });
}

/** Both or none. */
function publish(manifest: string, output: string, name: () => void): void {
  name();
  try {
    renameSync(manifest, `${output}.json`);
  } catch (error) {
    rmSync(output, { recursive: true, force: true });
    throw error;
  }
  fsyncDirectory(dirname(output));
}

/** Asked before anything is fetched. Throws HS_OUTPUT_EXISTS, HS_NOT_FOUND for a parent that is not there, HS_NEEDS_ROOT for a directory of real owners. */
export function checkOutput(output: string, layout: VolumeLayout): void {
  const path = resolve(output);
  for (const each of [path, `${path}.json`]) {
    if (exists(each)) throw new HeadstartError("HS_OUTPUT_EXISTS", { what: each });
  }
  if (!exists(dirname(path))) throw new HeadstartError("HS_NOT_FOUND", { what: `the folder ${dirname(path)}` });
  if (layout === "containerd" && process.geteuid?.() !== 0) {
    throw new HeadstartError("HS_NEEDS_ROOT", {
      what: "a directory for containerd holds owners, devices and attributes that only root can set",
    });
  }
}

/** A setgid bit or a default ACL of the folder around it would otherwise reach everything that is made inside. */
function makePart(path: string): void {
  mkdirSync(path, { mode: 0o700 });
  if (process.geteuid?.() === 0) chownSync(path, 0, 0);
  chmodSync(path, 0o700);
  for (const name of [ACL_DEFAULT, ACL_ACCESS]) if (getXattr(path, name) !== null) removeXattr(path, name);
}

function exists(path: string): boolean {
  return lstatSync(path, { throwIfNoEntry: false }) !== undefined;
}
