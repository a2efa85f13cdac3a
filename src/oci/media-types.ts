/**
 * Media types of the OCI image-spec 1.1 and of Docker's schema 2, and what they say about a blob. Knows names only.
 * Sources: image-spec media-types.md; distribution manifest-v2-2.md; ocicrypt ("+encrypted").
 */

export const MEDIA_TYPES = {
  ociIndex: "application/vnd.oci.image.index.v1+json",
  ociManifest: "application/vnd.oci.image.manifest.v1+json",
  ociConfig: "application/vnd.oci.image.config.v1+json",
  ociLayer: "application/vnd.oci.image.layer.v1.tar",
  ociLayerGzip: "application/vnd.oci.image.layer.v1.tar+gzip",
  ociLayerZstd: "application/vnd.oci.image.layer.v1.tar+zstd",
  ociEmpty: "application/vnd.oci.empty.v1+json",
  dockerList: "application/vnd.docker.distribution.manifest.list.v2+json",
  dockerManifest: "application/vnd.docker.distribution.manifest.v2+json",
  dockerConfig: "application/vnd.docker.container.image.v1+json",
  dockerLayer: "application/vnd.docker.image.rootfs.diff.tar",
  dockerLayerGzip: "application/vnd.docker.image.rootfs.diff.tar.gzip",
  dockerLayerZstd: "application/vnd.docker.image.rootfs.diff.tar.zstd",
  dockerForeignGzip: "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
  sociIndexV1: "application/vnd.amazon.soci.index.v1+json",
  sociIndexV2: "application/vnd.amazon.soci.index.v2+json",
  nydusConfig: "application/vnd.nydus.image.config.v1+json",
  octetStream: "application/octet-stream",
} as const;

/** What a request for a manifest accepts (specs/containerd.md 13.4). */
export const MANIFEST_ACCEPT = [
  MEDIA_TYPES.ociIndex,
  MEDIA_TYPES.ociManifest,
  MEDIA_TYPES.dockerList,
  MEDIA_TYPES.dockerManifest,
].join(", ");

const DOCKER_SCHEMA_1 = new Set([
  "application/vnd.docker.distribution.manifest.v1+json",
  "application/vnd.docker.distribution.manifest.v1+prettyjws",
]);

/** "type/subtype" in lower case, without parameters. */
export function bareMediaType(text: string): string {
  return text.split(";", 1)[0]!.trim().toLowerCase();
}

export function isIndexType(mediaType: string): boolean {
  return mediaType === MEDIA_TYPES.ociIndex || mediaType === MEDIA_TYPES.dockerList;
}

export function isManifestType(mediaType: string): boolean {
  return mediaType === MEDIA_TYPES.ociManifest || mediaType === MEDIA_TYPES.dockerManifest;
}

export function isSchema1Type(mediaType: string): boolean {
  return DOCKER_SCHEMA_1.has(mediaType);
}

export function isConfigType(mediaType: string): boolean {
  // a Nydus image beside its OCI form in one index has the third, so that nobody takes it for an OCI image
  return (
    mediaType === MEDIA_TYPES.ociConfig ||
    mediaType === MEDIA_TYPES.dockerConfig ||
    mediaType === MEDIA_TYPES.nydusConfig
  );
}

export interface LayerKind {
  readonly compression: "none" | "gzip" | "zstd";
  /** Not to be pushed to registries; its bytes may be at a URL only. */
  readonly foreign: boolean;
  readonly encrypted: boolean;
}

const OCI_LAYER = /^application\/vnd\.oci\.image\.layer\.(nondistributable\.)?v1\.tar(?:\+(gzip|zstd))?(\+encrypted)?$/;
const DOCKER_LAYER = /^application\/vnd\.docker\.image\.rootfs\.(foreign\.)?diff\.tar(?:\.(gzip|zstd))?(\+encrypted)?$/;

/** What a layer's media type says, or undefined when it is no layer of a file system. */
export function layerKind(mediaType: string): LayerKind | undefined {
  const match = OCI_LAYER.exec(mediaType) ?? DOCKER_LAYER.exec(mediaType);
  if (match === null) return undefined;
  return {
    compression: (match[2] as "gzip" | "zstd" | undefined) ?? "none",
    foreign: match[1] !== undefined,
    encrypted: match[3] !== undefined,
  };
}
