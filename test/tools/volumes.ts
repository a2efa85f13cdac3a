/** Volumes for tests: built in this process from layouts, and unpacked from the golden files. */

import { closeSync, ftruncateSync, openSync, readFileSync, writeSync } from "node:fs";
import { join } from "node:path";
import { gunzipSync } from "node:zlib";
import { PROJECT } from "../../src/base/project.ts";
import { parseSource } from "../../src/oci/reference.ts";
import { buildVolume, openPlan, type VolumeLayout } from "../../src/volume/build.ts";
import { readFormer } from "../../src/volume/former.ts";
import type { HotList } from "../../src/volume/hot.ts";
import type { VolumeManifest } from "../../src/volume/manifest.ts";

export const FIXTURE_SOURCE = `oci:${PROJECT}/test/golden/fixture/oci:gogz`;
export const INDEX_SOURCE = `oci:${PROJECT}/test/golden/fixture/oci:index`;
export const TINY_SOURCE = `oci:${PROJECT}/test/golden/volume/oci-layout`;
export const STORES = {
  meta: "io.containerd.metadata.v1.bolt/meta.db",
  backend: "io.containerd.snapshotter.v1.overlayfs/metadata.db",
  snapshots: "io.containerd.snapshotter.v1.overlayfs/snapshots",
  blobs: "io.containerd.content.v1.content/blobs/sha256",
} as const;

export interface VolumeSettings {
  readonly layout?: VolumeLayout;
  readonly blobs?: boolean;
  readonly previous?: string;
  /** Of a disk; default: as few as will do. */
  readonly sizeGib?: number;
  readonly hot?: HotList;
}

/** For a layout: of its directory's name and tag alone, so that the order of the images is the same in any checkout. */
export function imageName(source: string): string {
  return `host/${source
    .split("/")
    .at(-1)!
    .replace(/[^a-z0-9]/g, "")}:1`;
}

export async function makeVolume(
  output: string,
  sources: readonly string[],
  settings: VolumeSettings = {},
): Promise<VolumeManifest> {
  const { layout = "containerd", blobs = true, previous } = settings;
  const { signal } = new AbortController();
  await using opened = await openPlan({
    sources: sources.map((source) => ({
      source: parseSource(source),
      names: [imageName(source)],
      open: {},
    })),
    platform: { os: "linux", architecture: "amd64" },
    ...{ layout, pinned: true, blobs, signal },
    former: previous === undefined ? undefined : readFormer(previous),
  });
  const disk = layout === "containerd" ? undefined : { sizeGib: settings.sizeGib, hot: settings.hot };
  const { record } = await buildVolume(opened, { output, signal, disk });
  return record.predicate.headstart_volume;
}

const BLOCK = 4096;

/** As a sparse file. */
export function unpackGoldenImage(name: string, path: string): void {
  const bytes = gunzipSync(readFileSync(join(PROJECT, "test/golden/volume/ext4", name)));
  const fd = openSync(path, "w");
  try {
    ftruncateSync(fd, bytes.byteLength);
    const zeros = Buffer.alloc(BLOCK);
    for (let at = 0; at < bytes.byteLength; at += BLOCK) {
      if (!bytes.subarray(at, at + BLOCK).equals(zeros)) writeSync(fd, bytes, at, BLOCK, at);
    }
  } finally {
    closeSync(fd);
  }
}
