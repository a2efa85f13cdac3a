/**
 * From layers to an image in an OCI layout: compresses, hashes, writes configuration and manifest. Deterministic: same layers and settings, same
 * digests (gzip's header carries no time).
 */

import { createHash } from "node:crypto";
import { createReadStream, createWriteStream } from "node:fs";
import { pipeline } from "node:stream/promises";
import { createGzip, gzipSync } from "node:zlib";
import { type Digest, sha256 } from "../base/digest.ts";
import type { Descriptor } from "../oci/descriptor.ts";
import { goJson, goManifest } from "../oci/gojson.ts";
import { LayoutWriter } from "../oci/layout.ts";
import { MEDIA_TYPES } from "../oci/media-types.ts";
import type { BlobSource } from "../oci/store.ts";
import { type TarEntry, writeTar } from "./tar-writer.ts";

export interface BuiltLayer {
  readonly descriptor: Descriptor;
  readonly diffID: Digest;
  /** Uncompressed bytes. */
  readonly size: number;
  readonly source: BlobSource;
  readonly createdBy: string;
}

export interface ImageSettings {
  readonly name: string;
  readonly command?: readonly string[];
  readonly entrypoint?: readonly string[];
  readonly env?: readonly string[];
  readonly user?: string;
  readonly workingDir?: string;
}

export type Compression = "gzip" | "none";

const GZIP_LEVEL = 6;

/** A small layer of entries in memory. */
export function layerOf(
  entries: readonly TarEntry[],
  options: { readonly compression?: Compression; readonly createdBy?: string } = {},
): BuiltLayer {
  return layerOfTar(writeTar(entries), options);
}

/** A small layer of a finished tar stream. */
export function layerOfTar(
  tar: Buffer,
  options: { readonly compression?: Compression; readonly createdBy?: string } = {},
): BuiltLayer {
  const compressed = options.compression === "none" ? tar : gzipSync(tar, { level: GZIP_LEVEL });
  return {
    descriptor: {
      mediaType: options.compression === "none" ? MEDIA_TYPES.ociLayer : MEDIA_TYPES.ociLayerGzip,
      digest: sha256(compressed),
      size: compressed.byteLength,
    },
    diffID: sha256(tar),
    size: tar.byteLength,
    source: compressed,
    createdBy: options.createdBy ?? "headstart",
  };
}

/** Compresses a tar stream into the file `target`. */
export async function gzipLayer(
  tar: AsyncIterable<Uint8Array>,
  target: string,
  createdBy: string,
): Promise<BuiltLayer> {
  const plain = measure();
  const stored = measure();
  const gzip = createGzip({ level: GZIP_LEVEL, chunkSize: 1 << 18 });
  await pipeline(tar, plain.through, gzip, stored.through, createWriteStream(target));
  return {
    descriptor: { mediaType: MEDIA_TYPES.ociLayerGzip, digest: stored.digest(), size: stored.size() },
    diffID: plain.digest(),
    size: plain.size(),
    source: () => createReadStream(target, { highWaterMark: 1 << 20 }),
    createdBy,
  };
}

/** Counts and hashes what goes through. */
function measure() {
  const hash = createHash("sha256");
  let bytes = 0;
  return {
    through: async function* (chunks: AsyncIterable<Uint8Array>) {
      for await (const chunk of chunks) {
        hash.update(chunk);
        bytes += chunk.byteLength;
        yield chunk;
      }
    },
    digest: () => `sha256:${hash.digest("hex")}` as Digest,
    size: () => bytes,
  };
}

/** Writes the image into the layout under `settings.name`; the manifest's descriptor. */
export async function writeImage(
  layout: string,
  layers: readonly BuiltLayer[],
  settings: ImageSettings,
): Promise<Descriptor> {
  await using writer = new LayoutWriter(layout, settings.name, `oci:${layout}:${settings.name}`);
  for (const layer of layers) await writer.pushBlob(layer.descriptor, layer.source);
  const configBytes = Buffer.from(goJson(imageConfig(layers, settings)));
  const config = { mediaType: MEDIA_TYPES.ociConfig, digest: sha256(configBytes), size: configBytes.byteLength };
  await writer.pushBlob(config, configBytes);
  const manifest = goManifest({
    mediaType: MEDIA_TYPES.ociManifest,
    config,
    layers: layers.map((layer) => layer.descriptor),
  });
  const descriptor = await writer.pushManifest(manifest, MEDIA_TYPES.ociManifest, settings.name);
  await writer.finish();
  return descriptor;
}

const CREATED = "2024-01-01T00:00:00Z";
const ARCHITECTURES: Readonly<Record<string, string>> = { x64: "amd64" };

function imageConfig(layers: readonly BuiltLayer[], settings: ImageSettings): object {
  const { command, entrypoint, env, user, workingDir } = settings;
  return {
    created: CREATED,
    architecture: ARCHITECTURES[process.arch] ?? process.arch,
    os: "linux",
    config: {
      User: user,
      Env: env ?? ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
      Entrypoint: entrypoint,
      Cmd: command,
      WorkingDir: workingDir,
    },
    rootfs: { type: "layers", diff_ids: layers.map((layer) => layer.diffID) },
    history: layers.map((layer) => ({ created: CREATED, created_by: layer.createdBy })),
  };
}
