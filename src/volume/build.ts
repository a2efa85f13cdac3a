/**
 * Builds a volume: sources -> plan -> files -> databases -> provenance. Everything is made in a folder beside the output that gets its name at the very end; on any
 * failure that folder goes, and a path that exists is never touched.
 */

import { randomUUID } from "node:crypto";
import { chmodSync, chownSync, lstatSync, mkdirSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { rm } from "node:fs/promises";
import { basename, dirname, join, resolve } from "node:path";
import { digestAlgorithm } from "../base/digest.ts";
import { HeadstartError } from "../base/errors.ts";
import { fsyncDirectory } from "../base/files.ts";
import { ACL_ACCESS, ACL_DEFAULT } from "../erofs/acl.ts";
import { syncFileSystem } from "../linux/syncfs.ts";
import { getXattr, removeXattr } from "../linux/xattr.ts";
import type { OpenOptions } from "../oci/open.ts";
import type { Platform } from "../oci/platform.ts";
import type { ImageReader } from "../oci/store.ts";
import { writeBolt } from "./bolt/write.ts";
import { metaDatabase, snapshotDatabase } from "./containerd-db.ts";
import { type NamedSource, type OpenImage, openImage } from "./images.ts";
import { ContainerdPaths, makeSkeleton, SNAPSHOTTER, setStoreTimes, writeDatabases } from "./layout/containerd.ts";
import { type Provenance, provenance } from "./manifest.ts";
import { makePlan, type VolumePlan } from "./plan.ts";
import { type UnpackProgress, unpackImages } from "./unpack.ts";

/** What this version writes. */
export const LAYOUTS = ["containerd"] as const;
export type VolumeLayout = (typeof LAYOUTS)[number];
/** What the command line will know. */
export const LAYOUTS_LATER = ["bottlerocket", "al2023", "headstart", "gke"] as const;

export interface BuildSource extends NamedSource {
  readonly open: OpenOptions;
}

export interface PlanRequest {
  readonly sources: readonly BuildSource[];
  readonly platform: Platform;
  readonly pinned: boolean;
  readonly blobs: boolean;
  /** Seconds since 1970 for all records (SOURCE_DATE_EPOCH); default: the newest image's creation. */
  readonly time?: number | undefined;
  readonly signal: AbortSignal;
}

/** A plan with its sources still open. */
export interface OpenPlan extends AsyncDisposable {
  readonly plan: VolumePlan;
  /** One for each image of the plan. */
  readonly readers: readonly ImageReader[];
  readonly sources: readonly string[];
}

/** Reads manifests and configurations, no layers. Throws what sources throw, HS_USAGE for names that are missing or collide. */
export async function openPlan(request: PlanRequest): Promise<OpenPlan> {
  await using stack = new AsyncDisposableStack();
  const opened: OpenImage[] = [];
  for (const source of request.sources) {
    opened.push(stack.use(await openImage(source, request.platform, { ...source.open, signal: request.signal })));
  }
  const plan = makePlan(
    opened.map(({ image }) => image),
    { ...request, snapshotter: SNAPSHOTTER },
  );
  const readers = plan.images.map((image) => opened.find((one) => one.image.source === image.source)!.reader);
  const owned = stack.move();
  return {
    plan,
    readers,
    sources: opened.map(({ image }) => image.source),
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  };
}

export interface BuildRequest {
  readonly output: string;
  readonly layout: VolumeLayout;
  readonly signal: AbortSignal;
  readonly onProgress?: ((progress: UnpackProgress) => void) | undefined;
}

/** Throws HS_OUTPUT_EXISTS, HS_NEEDS_ROOT, and what fetching and unpacking throw; then nothing is left. */
export async function buildVolume(opened: OpenPlan, request: BuildRequest): Promise<Provenance> {
  const { plan } = opened;
  const output = resolve(request.output);
  const manifestPath = `${output}.json`;
  checkOutput(output);
  const part = join(dirname(output), `.${basename(output)}.part-${randomUUID().slice(0, 8)}`);
  const work = join(part, ".work");
  makePart(part);
  let published = false;
  try {
    makeSkeleton(part, new Set(plan.blobs.map((blob) => digestAlgorithm(blob.descriptor.digest))));
    mkdirSync(work);
    const { readers } = opened;
    const { signal, onProgress } = request;
    const usage = await unpackImages(plan, { root: part, work, readers, signal, onProgress });
    const meta = writeBolt(metaDatabase(plan));
    const snapshots = writeBolt(snapshotDatabase(plan, usage));
    writeDatabases(part, meta, snapshots);
    const files = { [ContainerdPaths.metaDatabase]: meta, [ContainerdPaths.snapshotDatabase]: snapshots };
    const record = provenance(plan, { layout: request.layout, sources: opened.sources, usage, files });
    await rm(work, { recursive: true });
    setStoreTimes(part, plan.time);
    writeFileSync(`${part}.json`, `${JSON.stringify(record, null, 2)}\n`, { flag: "wx", mode: 0o644 });
    await syncFileSystem(part);
    request.signal.throwIfAborted();
    checkOutput(output);
    renameSync(part, output);
    published = true;
    renameSync(`${part}.json`, manifestPath);
    fsyncDirectory(dirname(output));
    return record;
  } catch (error) {
    rmSync(published ? output : part, { recursive: true, force: true });
    rmSync(`${part}.json`, { force: true });
    throw error;
  }
}

/** Asked before anything is fetched. Throws HS_OUTPUT_EXISTS, HS_NEEDS_ROOT, HS_NOT_FOUND for a parent that is not there. */
export function checkOutput(output: string): void {
  const path = resolve(output);
  for (const each of [path, `${path}.json`]) {
    if (exists(each)) throw new HeadstartError("HS_OUTPUT_EXISTS", { what: each });
  }
  if (!exists(dirname(path))) throw new HeadstartError("HS_NOT_FOUND", { what: `the folder ${dirname(path)}` });
  if (process.geteuid?.() !== 0) {
    throw new HeadstartError("HS_NEEDS_ROOT", {
      what: "a directory for containerd holds owners, devices and attributes that only root can set",
    });
  }
}

/** A setgid bit or a default ACL of the folder around it would otherwise reach everything that is made inside. */
function makePart(path: string): void {
  mkdirSync(path, { mode: 0o700 });
  chownSync(path, 0, 0);
  chmodSync(path, 0o700);
  for (const name of [ACL_DEFAULT, ACL_ACCESS]) if (getXattr(path, name) !== null) removeXattr(path, name);
}

function exists(path: string): boolean {
  return lstatSync(path, { throwIfNoEntry: false }) !== undefined;
}
