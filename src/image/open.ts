/**
 * From a manifest digest to an image: manifest and configuration, verified, from what this node already has (containerd's content store) or else from the registry, and what of it cannot
 * be provided by us at all.
 */

import { type ChainID, chainIDs, type Digest, sha256, verifyDigest } from "../base/digest.ts";
import { HeadstartError } from "../base/errors.ts";
import type { LayerIdentity } from "../formats/format.ts";
import type { Descriptor } from "../oci/descriptor.ts";
import { type LoadedImage, loadManifest } from "../oci/manifest.ts";
import { layerKind, MEDIA_TYPES } from "../oci/media-types.ts";
import type { BlobHandle, ImageReader, ReferrersOptions } from "../oci/store.ts";

/** Manifests and configurations that this node already has. snapshotter/content.ts gives containerd's. */
export interface ManifestSource {
  /** The bytes, or null when they are not here. Need not be verified: the reader does. */
  read(
    digest: Digest,
    options: { namespace: string | null; signal?: AbortSignal | undefined },
  ): Promise<Uint8Array | null>;
}

export interface OpenedImage {
  readonly loaded: LoadedImage;
  readonly chain: readonly ChainID[];
  readonly layers: readonly LayerIdentity[];
}

/** Throws as `imageOf`; HS_MANIFEST and others when it is no image. */
export async function openImage(reader: ImageReader, manifest: Descriptor, signal?: AbortSignal): Promise<OpenedImage> {
  return imageOf(await loadManifest(reader, manifest, signal));
}

/** Throws HS_IMAGE_UNCLAIMED with the reason when a layer is foreign, encrypted or no layer. */
export function imageOf(loaded: LoadedImage): OpenedImage {
  const layers = loaded.layers.map((layer, index): LayerIdentity => {
    const kind = layerKind(layer.mediaType);
    const refuse = (why: string) =>
      new HeadstartError("HS_IMAGE_UNCLAIMED", { what: `layer ${index} (${layer.digest}) ${why}` });
    if (kind === undefined) throw refuse(`is no layer: ${layer.mediaType}`);
    if (kind.encrypted) throw refuse("is encrypted");
    if (kind.foreign && (layer.urls?.length ?? 0) > 0) throw refuse("is foreign: its bytes are at a URL");
    return { digest: layer.digest, size: layer.size, mediaType: layer.mediaType, diffID: loaded.diffIDs[index]! };
  });
  return { loaded, chain: chainIDs(loaded.diffIDs), layers };
}

/**
 * `remote`, but manifests and small blobs (configurations) come from `local` where it has them. Whoever resolves gets `manifest`, whose size and type are
 * those of the bytes that hash to its digest.
 */
export function preferLocal(
  remote: ImageReader,
  local: ManifestSource,
  options: { namespace: string | null; manifest: Descriptor },
): ImageReader {
  const known = async (digest: Digest, signal: AbortSignal | undefined) => {
    const bytes = await local.read(digest, { namespace: options.namespace, signal });
    if (bytes !== null) verifyDigest(bytes, digest, `${digest} of the local content store`);
    return bytes;
  };
  return {
    what: remote.what,
    resolve: () => Promise.resolve(options.manifest),
    async readManifest(manifest, signal) {
      const digest = typeof manifest === "string" ? manifest : manifest.digest;
      return (await known(digest, signal)) ?? (await remote.readManifest(manifest, signal));
    },
    openBlob(descriptor): BlobHandle {
      const blob = remote.openBlob(descriptor);
      return {
        descriptor: blob.descriptor,
        what: blob.what,
        sourceCount: blob.sourceCount,
        stream: (offset, streamOptions) => blob.stream(offset, streamOptions),
        readRange: (start, end, rangeOptions) => blob.readRange(start, end, rangeOptions),
        readAll: async (readOptions) =>
          (await known(descriptor.digest, readOptions?.signal)) ?? (await blob.readAll(readOptions)),
      };
    },
    referrers: (subject: Digest, referrersOptions?: ReferrersOptions) => remote.referrers(subject, referrersOptions),
  };
}

/**
 * The descriptor of a manifest of which only the digest is known (containerd's labels name nothing else): from the local bytes, else by asking the registry.
 */
export async function describeManifest(
  remote: ImageReader,
  local: ManifestSource,
  digest: Digest,
  options: { namespace: string | null; signal?: AbortSignal | undefined },
): Promise<{ descriptor: Descriptor; isLocal: boolean }> {
  const here = await local.read(digest, options);
  const bytes = here ?? (await remote.readManifest(digest, options.signal));
  if (sha256(bytes) !== digest) verifyDigest(bytes, digest, `manifest ${digest}`);
  let mediaType: unknown;
  try {
    mediaType = (JSON.parse(Buffer.from(bytes).toString()) as { mediaType?: unknown } | null)?.mediaType;
  } catch (cause) {
    throw new HeadstartError("HS_MANIFEST", { what: `manifest ${digest} is no JSON`, cause });
  }
  return {
    descriptor: {
      mediaType: typeof mediaType === "string" && mediaType !== "" ? mediaType : MEDIA_TYPES.ociManifest,
      digest,
      size: bytes.byteLength,
    },
    isLocal: here !== null,
  };
}
