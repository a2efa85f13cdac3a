/** The golden SOCI artifacts (test/golden/soci/README.md) and the fixture layers they were made from. */

import { globSync, readFileSync } from "node:fs";
import { join, relative } from "node:path";
import { gunzipSync } from "node:zlib";
import type { LayerIdentity } from "../../src/formats/format.ts";

const GOLDEN = join(import.meta.dirname, "../golden");

/** An OCI layout; tags are the variants. */
export const fixtureDirectory = join(GOLDEN, "fixture/oci");

export interface GoldenLayer extends LayerIdentity {
  readonly bytes: Buffer;
}

interface LayoutDescriptor {
  readonly digest: string;
  readonly size: number;
  readonly mediaType: string;
  readonly annotations?: Readonly<Record<string, string>>;
}

function layoutBlob(digest: string): Buffer {
  return readFileSync(join(GOLDEN, "fixture/oci/blobs/sha256", digest.slice(7)));
}

/** The layers of one variant of the fixture, lowest first (for `index`: of linux/amd64). */
export function fixtureLayers(variant: string): GoldenLayer[] {
  const index = JSON.parse(readFileSync(join(GOLDEN, "fixture/oci/index.json"), "utf8")) as {
    manifests: LayoutDescriptor[];
  };
  const entry = index.manifests.find(
    (candidate) => candidate.annotations?.["org.opencontainers.image.ref.name"] === variant,
  );
  if (entry === undefined) throw new Error(`no variant ${variant}`);
  let manifest = JSON.parse(layoutBlob(entry.digest).toString());
  if (manifest.manifests !== undefined) manifest = JSON.parse(layoutBlob(manifest.manifests[0].digest).toString());
  const config = JSON.parse(layoutBlob(manifest.config.digest).toString()) as { rootfs: { diff_ids: string[] } };
  return (manifest.layers as LayoutDescriptor[]).map((layer, number) => ({
    digest: layer.digest as GoldenLayer["digest"],
    size: layer.size,
    mediaType: layer.mediaType,
    diffID: config.rootfs.diff_ids[number] as GoldenLayer["diffID"],
    bytes: layoutBlob(layer.digest),
  }));
}

export interface GoldenZtoc {
  /** "gogz/span-65536/layer-0". */
  readonly name: string;
  readonly variant: string;
  readonly spanSize: number;
  readonly layerNumber: number;
  readonly bytes: Buffer;
}

/** Every golden zTOC. */
export function goldenZtocs(): GoldenZtoc[] {
  const root = join(GOLDEN, "soci");
  return globSync("**/*.ztoc.gz", { cwd: root })
    .sort()
    .map((path) => {
      const [folder, kind] = path.split("/") as [string, string];
      const option = folder === "options";
      return {
        name: relative(root, join(root, path)).replace(/\.ztoc\.gz$/, ""),
        variant: !option ? folder : kind.startsWith("odd-") ? kind : "gogz",
        spanSize: !option ? Number(kind.slice("span-".length)) : kind === "span-size-0" ? 0 : 262_144,
        layerNumber: Number(/layer-(\d+)/.exec(path)![1]),
        bytes: gunzipSync(readFileSync(join(root, path))),
      };
    });
}

/** Path of a golden file that is no zTOC. */
export function goldenPath(...parts: string[]): string {
  return join(GOLDEN, "soci", ...parts);
}
