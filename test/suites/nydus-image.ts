/** Nydus images over the golden bootstraps and blobs, in a fake registry, with any part of them wrong as a test wants: digests are bound again after the damage, as a hostile or faulty builder would. */

import { readFileSync } from "node:fs";
import { join } from "node:path";
import { gzipSync } from "node:zlib";
import { type Digest, digestHex, sha256 } from "../../src/base/digest.ts";
import { NYDUS_ANNOTATIONS, NYDUS_MEDIA_TYPES } from "../../src/formats/nydus/ondisk.ts";
import type { Descriptor } from "../../src/oci/descriptor.ts";
import { goIndex, goJson, goManifest } from "../../src/oci/gojson.ts";
import type { Manifest } from "../../src/oci/manifest.ts";
import { MEDIA_TYPES } from "../../src/oci/media-types.ts";
import { hostPlatform } from "../../src/oci/platform.ts";
import { writeTar } from "../../src/sandbox/tar-writer.ts";
import type { FakeRegistry } from "../fakes/registry.ts";
import { nydusBlob, nydusBootstrap, nydusLayout, nydusVariants } from "./golden-nydus.ts";

/** An OCI image in the fake registry's own words. */
export interface StoredManifest {
  readonly descriptor: Descriptor;
  readonly manifest: Manifest;
}

export type ChangeBlob = (
  bytes: Buffer,
  blob: { readonly layer: string; readonly isOriginal: boolean },
) => Uint8Array | null;

export interface NydusImageOptions {
  readonly repository: string;
  /** Of the golden files. */
  readonly variant: string;
  /** On the bootstrap's bytes. */
  readonly bootstrap?: (bytes: Buffer) => Uint8Array;
  /** On a stored blob; null: it is named and not there. `original`: the layer that a ref refers to. */
  readonly blob?: ChangeBlob;
  /** On the manifest, after everything. */
  readonly manifest?: (manifest: Manifest) => Manifest;
  readonly configType?: string;
  /** Stored as blobs of the image too, the lowest, though the bootstrap knows nothing of them. */
  readonly further?: readonly Uint8Array[];
  /** Name of a further file beside the bootstrap, which readers leave alone: the layer's diffID is another then, and containerd's chainID. */
  readonly beside?: string;
}

const put = (registry: FakeRegistry, repository: string, bytes: Uint8Array, mediaType: string): Descriptor => {
  registry.putBlob(repository, bytes);
  return { mediaType, digest: sha256(bytes), size: bytes.byteLength };
};

function putConfig(registry: FakeRegistry, repository: string, diffIDs: readonly Digest[], type: string): Descriptor {
  const config = {
    architecture: hostPlatform().architecture,
    os: "linux",
    config: { Env: ["PATH=/bin"], Cmd: ["/bin/sh"] },
    rootfs: { type: "layers", diff_ids: diffIDs },
  };
  return put(registry, repository, Buffer.from(goJson(config)), type);
}

function putImage(registry: FakeRegistry, repository: string, manifest: Manifest): StoredManifest {
  const bytes = goManifest(manifest);
  registry.putManifest(repository, bytes, MEDIA_TYPES.ociManifest);
  const descriptor = { mediaType: MEDIA_TYPES.ociManifest, digest: sha256(bytes), size: bytes.byteLength };
  return { descriptor, manifest };
}

/** Blobs, bootstrap layer (without chunk arrays beside the bootstrap: they are in the blobs), configuration and manifest. */
export function storeNydusImage(registry: FakeRegistry, options: NydusImageOptions): StoredManifest {
  const { repository, variant } = options;
  const { layers, original } = nydusVariants[variant]!;
  const store = (hex: string, layer: string, isOriginal: boolean): { digest: Digest; size: number } => {
    const bytes = nydusBlob(hex);
    if (bytes === null) throw new Error(`blob ${hex} is left out of the repository`);
    const changed = options.blob === undefined ? bytes : options.blob(bytes, { layer, isOriginal });
    // under its old name: a registry that returns wrong bytes
    if (changed !== null) registry.stored(repository).blobs.set(`sha256:${hex}`, changed);
    return { digest: `sha256:${hex}` as Digest, size: bytes.byteLength };
  };
  const blobs = Object.entries(layers).map(([layer, hex]): Descriptor => {
    const ref = original?.[layer];
    if (ref !== undefined) store(ref, layer, true);
    const annotations = { [NYDUS_ANNOTATIONS.blob]: "true", ...(ref && { [NYDUS_ANNOTATIONS.ref]: `sha256:${ref}` }) };
    return { mediaType: NYDUS_MEDIA_TYPES.blob, ...store(hex, layer, false), annotations };
  });
  for (const bytes of options.further ?? [])
    blobs.unshift({
      ...put(registry, repository, bytes, NYDUS_MEDIA_TYPES.blob),
      annotations: { [NYDUS_ANNOTATIONS.blob]: "true" },
    });
  const boot = nydusBootstrap(variant);
  const tar = writeTar([
    { path: "image/", mode: 0o755 },
    { path: "image/image.boot", mode: 0o444, data: Buffer.from(options.bootstrap?.(boot) ?? boot) },
    ...(options.beside === undefined ? [] : [{ path: `image/${options.beside}` }]),
  ]);
  const bootstrap = {
    ...put(registry, repository, gzipSync(tar), MEDIA_TYPES.ociLayerGzip),
    annotations: {
      [NYDUS_ANNOTATIONS.bootstrap]: "true",
      [NYDUS_ANNOTATIONS.fsVersion]: variant.startsWith("v5") ? "5" : "6",
    },
  };
  const diffIDs = [...blobs.map(({ digest }) => digest), sha256(tar)];
  const config = putConfig(registry, repository, diffIDs, options.configType ?? MEDIA_TYPES.ociConfig);
  const manifest: Manifest = { mediaType: MEDIA_TYPES.ociManifest, config, layers: [...blobs, bootstrap] };
  return putImage(registry, repository, options.manifest?.(manifest) ?? manifest);
}

/** The OCI image of which the golden Nydus images were made. `withEmptyLayer`: as the peer writes it beside its Nydus form. */
export function storeOciTwin(
  registry: FakeRegistry,
  repository: string,
  options: { readonly withEmptyLayer?: boolean } = {},
): StoredManifest {
  const read = (digest: Digest) => readFileSync(join(nydusLayout, "blobs/sha256", digestHex(digest)));
  const index = JSON.parse(readFileSync(join(nydusLayout, "index.json"), "utf8")) as { manifests: Descriptor[] };
  const merged = index.manifests.find(
    (one) => one.annotations?.["org.opencontainers.image.ref.name"] === "native-merge",
  )!;
  const [oci] = (JSON.parse(read(merged.digest).toString()) as { manifests: Descriptor[] }).manifests;
  const golden = JSON.parse(read(oci!.digest).toString()) as Manifest;
  const known = JSON.parse(read(golden.config.digest).toString()) as { rootfs: { diff_ids: Digest[] } };
  const from = options.withEmptyLayer === true ? 0 : 1;
  const layers = golden.layers.slice(from);
  for (const layer of layers) registry.putBlob(repository, read(layer.digest));
  const config = putConfig(registry, repository, known.rootfs.diff_ids.slice(from), MEDIA_TYPES.ociConfig);
  return putImage(registry, repository, { mediaType: MEDIA_TYPES.ociManifest, config, layers });
}

/** An OCI image of layers that a test made. */
export function storeOciImage(
  registry: FakeRegistry,
  repository: string,
  layers: readonly { readonly descriptor: Descriptor; readonly diffID: Digest; readonly source: unknown }[],
): StoredManifest {
  for (const { source } of layers) registry.putBlob(repository, source as Uint8Array);
  const diffIDs = layers.map(({ diffID }) => diffID);
  const config = putConfig(registry, repository, diffIDs, MEDIA_TYPES.ociConfig);
  const manifest = { mediaType: MEDIA_TYPES.ociManifest, config, layers: layers.map(({ descriptor }) => descriptor) };
  return putImage(registry, repository, manifest);
}

/** One tag for all; returns HOST/REPOSITORY:TAG. `nydus` entries have the mark of the artifact type. */
export function storeIndex(
  registry: FakeRegistry,
  repository: string,
  parts: { readonly oci?: StoredManifest; readonly nydus?: StoredManifest; readonly others?: readonly Descriptor[] },
  options: { readonly tag?: string; readonly mark?: "artifactType" | "os.features" } = {},
): string {
  const { tag = "1", mark = "artifactType" } = options;
  const platform = hostPlatform();
  const nydus = parts.nydus && {
    ...parts.nydus.descriptor,
    platform: mark === "artifactType" ? platform : { ...platform, "os.features": ["nydus.remoteimage.v1"] },
    ...(mark === "artifactType" && { artifactType: NYDUS_MEDIA_TYPES.manifest }),
  };
  const manifests = [
    ...(parts.others ?? []),
    ...(parts.oci ? [{ ...parts.oci.descriptor, platform }] : []),
    ...(nydus ? [nydus] : []),
  ];
  registry.putManifest(repository, goIndex({ mediaType: MEDIA_TYPES.ociIndex, manifests }), MEDIA_TYPES.ociIndex, tag);
  return `${registry.host}/${repository}:${tag}`;
}

/** The manifest itself under a tag. */
export function tagManifest(registry: FakeRegistry, repository: string, image: StoredManifest, tag = "1"): string {
  registry.putManifest(repository, goManifest(image.manifest), MEDIA_TYPES.ociManifest, tag);
  return `${registry.host}/${repository}:${tag}`;
}
