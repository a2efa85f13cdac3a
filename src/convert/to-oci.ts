/**
 * Plain OCI images of Nydus images (specs/nydus.md 3.7), never by fetching the image that was converted. In one of three ways, which the result names:
 *
 *   "original"   the layers themselves: those that an OCI-ref image reads its data from, or of the OCI image that stands beside in the index
 *   "exact"      tars with the diffIDs of the source, put together from what our native blobs keep of them, and compressed anew
 *   "equal"      one layer that holds the merged tree: all that a native image of other tools tells
 *
 * An OCI image that the peer rewrote for an index with both forms loses the empty layer that it was given in front.
 */

import { createHash } from "node:crypto";
import { type Digest, sha256 } from "../base/digest.ts";
import { HeadstartError, isHeadstartError } from "../base/errors.ts";
import { isNydusManifest } from "../formats/nydus/manifest.ts";
import { NYDUS_ANNOTATIONS } from "../formats/nydus/ondisk.ts";
import { openLayerStream } from "../formats/tar/decompress.ts";
import { openNydusImage } from "../image/look-nydus.ts";
import { annotation, type Descriptor } from "../oci/descriptor.ts";
import { goIndex, goManifest } from "../oci/gojson.ts";
import { defined } from "../oci/json.ts";
import { type LoadedImage, loadManifest, type Manifest } from "../oci/manifest.ts";
import { isManifestType, MEDIA_TYPES } from "../oci/media-types.ts";
import type { Platform } from "../oci/platform.ts";
import type { BlobSizes, ImageReader, ImageWriter } from "../oci/store.ts";
import { verified } from "../oci/verify.ts";
import { chooseForms } from "./choose-forms.ts";
import type { PlatformChoice } from "./choose-images.ts";
import { Copier } from "./copy.ts";
import { copyPassing } from "./copy-passing.ts";
import { writeEqualLayer } from "./equal-layer.ts";
import { exactLayers } from "./exact-layers.ts";
import { ociConfig, type SourceLayer, sourceLayerOf, withoutNydusAnnotations } from "./nydus-manifest.ts";
import type { OnProgress } from "./progress.ts";
import { Together } from "./together.ts";

export interface ConvertToOciOptions {
  readonly source: ImageReader & BlobSizes;
  readonly destination: ImageWriter;
  /** What the result is called in the destination. */
  readonly tag?: string | undefined;
  readonly platforms?: PlatformChoice;
  readonly signal?: AbortSignal | undefined;
  readonly onProgress?: OnProgress | undefined;
}

export type HowConverted = "original" | "exact" | "equal";

export interface PlainImage {
  readonly platform: Platform;
  /** Manifests before and after. */
  readonly before: Digest;
  readonly manifest: Digest;
  readonly how: HowConverted;
  readonly layers: readonly { readonly layer: Digest; readonly size: number; readonly diffID: Digest }[];
  /** Paths that a layer cannot hold: sockets, and names that a layer would take for marks. Only of "equal". */
  readonly leftOut: readonly string[];
}

export interface ConvertedToOci {
  /** A manifest, or an index where several platforms were asked for. */
  readonly root: Descriptor;
  readonly images: readonly PlainImage[];
}

/** Throws HS_PLATFORM, HS_NYDUS_INVALID, HS_BLOB_NOT_FOUND (an original layer that is not there), and what sources and destinations throw. Nothing is named before all of it is there. */
export async function convertToOci(options: ConvertToOciOptions): Promise<ConvertedToOci> {
  const { source, destination, onProgress } = options;
  const together = new Together(options.signal);
  const { signal } = together;
  const { single, images } = await chooseForms(source, options.platforms, signal);
  const copier = new Copier(source, destination, { signal, onProgress });
  const asIndex = !single && images.length > 1;
  const results: PlainImage[] = [];
  const entries: Descriptor[] = [];
  let root: Descriptor | null = null;
  for (const { image, platform } of images) {
    const before = image.manifestDescriptor;
    onProgress?.({ t: "image", platform, manifest: before.digest, layers: image.layers.length });
    const made = await plainImage({ source, copier, together }, image);
    root = await copier.manifest(made.bytes, made.mediaType, asIndex ? undefined : options.tag);
    entries.push({ ...root, platform });
    results.push({
      platform,
      before: before.digest,
      manifest: root.digest,
      how: made.how,
      layers: made.layers.map(({ descriptor, diffID }) => ({
        layer: descriptor.digest,
        size: descriptor.size,
        diffID,
      })),
      leftOut: made.leftOut,
    });
  }
  if (asIndex) {
    const document = goIndex({ mediaType: MEDIA_TYPES.ociIndex, manifests: entries });
    root = await copier.manifest(document, MEDIA_TYPES.ociIndex, options.tag);
  }
  await destination.finish({ signal });
  return { root: root!, images: results };
}

interface Work {
  readonly source: ImageReader & BlobSizes;
  readonly copier: Copier;
  readonly together: Together;
}

interface MadeImage {
  readonly how: HowConverted;
  readonly bytes: Uint8Array;
  readonly mediaType: string;
  readonly layers: readonly SourceLayer[];
  readonly leftOut: readonly string[];
}

/** The image's manifest; all that it names is in the destination. */
async function plainImage(work: Work, image: LoadedImage): Promise<MadeImage> {
  const { source, copier, together } = work;
  const { signal } = together;
  if (!isNydusManifest(image.manifest)) {
    const whole = image.layers.map((descriptor, position) => ({ descriptor, diffID: image.diffIDs[position]! }));
    const layers = whole.filter(({ descriptor }) => annotation(descriptor, NYDUS_ANNOTATIONS.emptyLayer) !== "true");
    await together.all(layers.map(({ descriptor }) => copier.blob(descriptor)));
    if (layers.length < whole.length) return await written(copier, image, { how: "original", layers, leftOut: [] });
    await copier.blob(image.configDescriptor);
    const { manifestBytes: bytes, manifestDescriptor } = image;
    return { how: "original", bytes, mediaType: manifestDescriptor.mediaType, layers, leftOut: [] };
  }
  const blobs = image.layers.slice(0, -1);
  const refs = blobs.map((blob) => annotation(blob, NYDUS_ANNOTATIONS.ref));
  if (blobs.length > 0 && refs.every((ref) => ref !== undefined)) {
    const named = await originalImage(source, image.manifest, refs, signal);
    if (named !== null) return await plainImage(work, named);
    const layers = await originalLayers(work, image);
    return await written(copier, image, { how: "original", layers, leftOut: [] });
  }
  const exact = await exactLayers(copier, together, image);
  if (exact !== null) return await written(copier, image, { how: "exact", layers: exact, leftOut: [] });
  const parts = await openNydusImage(source, image, signal);
  const { layer, leftOut } = await writeEqualLayer(copier, parts, signal);
  return await written(copier, image, { how: "equal", layers: [layer], leftOut });
}

/** The image that the manifest names as its subject, if it is here and has just those layers. */
async function originalImage(
  source: ImageReader,
  { subject }: Manifest,
  refs: readonly (string | undefined)[],
  signal: AbortSignal | undefined,
): Promise<LoadedImage | null> {
  if (subject === undefined || !isManifestType(subject.mediaType)) return null;
  try {
    const image = await loadManifest(source, subject, signal);
    const same =
      image.layers.length === refs.length && image.layers.every(({ digest }, index) => digest === refs[index]);
    return same ? image : null;
  } catch (error) {
    if (isHeadstartError(error, "HS_NOT_FOUND", "HS_BLOB_NOT_FOUND", "HS_MANIFEST")) return null;
    throw error;
  }
}

/** The layers that a ref reads from, copied as they are, each with the diffID that it turns out to have. */
async function originalLayers({ source, copier, together }: Work, image: LoadedImage): Promise<SourceLayer[]> {
  const { signal } = together;
  const { bootstrap } = await openNydusImage(source, image, signal);
  const sizes = new Map(bootstrap.blobs.map((blob) => [`sha256:${blob.id}`, blob.compressedSize]));
  return await together.all(
    image.layers.slice(0, -1).map(async (blob) => {
      const digest = annotation(blob, NYDUS_ANNOTATIONS.ref) as Digest;
      const known = sourceLayerOf(blob);
      // a layer without chunks is no blob of the bootstrap, which has the sizes of the others
      const size = known?.descriptor.size ?? sizes.get(digest) ?? (await source.blobSize(digest, signal));
      if (size === undefined)
        throw new HeadstartError("HS_BLOB_NOT_FOUND", { what: `${source.what}: original layer ${digest}` });
      const descriptor = { mediaType: known?.descriptor.mediaType ?? MEDIA_TYPES.ociLayerGzip, digest, size };
      const diffID = await copyPassing(copier, descriptor, (chunks) => diffIDOf(descriptor, chunks));
      if (known !== null && (known.diffID !== diffID || known.descriptor.digest !== digest))
        throw new HeadstartError("HS_DIGEST_MISMATCH", {
          what: `original layer ${digest}: the image says that its diffID is ${known.diffID}, it is ${diffID}`,
        });
      return { descriptor, diffID };
    }),
  );
}

async function diffIDOf(layer: Descriptor, chunks: AsyncIterable<Uint8Array>): Promise<Digest> {
  const hash = createHash("sha256");
  const checked = verified(chunks, layer, `original layer ${layer.digest}`);
  for await (const piece of openLayerStream(layer.mediaType, checked, { layer: layer.digest })) hash.update(piece);
  return `sha256:${hash.digest("hex")}` as Digest;
}

/** Configuration and manifest of an image of those layers. */
async function written(
  copier: Copier,
  image: LoadedImage,
  made: Pick<MadeImage, "how" | "layers" | "leftOut">,
): Promise<MadeImage> {
  const config = ociConfig(
    image.config,
    made.layers.map(({ diffID }) => diffID),
    { what: `configuration ${image.configDescriptor.digest}`, merged: made.how === "equal" },
  );
  const descriptor = { mediaType: MEDIA_TYPES.ociConfig, digest: sha256(config), size: config.byteLength };
  await copier.bytes(descriptor, config);
  const bytes = goManifest(
    defined<Manifest>({
      mediaType: MEDIA_TYPES.ociManifest,
      config: descriptor,
      layers: made.layers.map((layer) => layer.descriptor),
      annotations: withoutNydusAnnotations(image.manifest.annotations),
    }),
  );
  return { ...made, bytes, mediaType: MEDIA_TYPES.ociManifest };
}
