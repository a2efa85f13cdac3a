/**
 * An image with its SOCI indexes bound to it by digest (v2; specs/soci.md 1.2), from any source to any destination, without a daemon. Always an OCI index,
 * even for one platform. Converting a converted image gives the same digest.
 *
 * Only manifests that get an index are touched: what else the source's index names (other platforms, other SOCI indexes) is carried along as it is, and
 * attestations are made to name the new manifests.
 */

import type { Digest } from "../base/digest.ts";
import { HeadstartError } from "../base/errors.ts";
import { SOCI_ANNOTATIONS, SOCI_MEDIA_TYPES } from "../formats/soci/ondisk.ts";
import { annotation, type Descriptor } from "../oci/descriptor.ts";
import { goIndex, goManifest } from "../oci/gojson.ts";
import { defined } from "../oci/json.ts";
import { MEDIA_TYPES } from "../oci/media-types.ts";
import { type Platform, samePlatform } from "../oci/platform.ts";
import type { ImageReader, ImageWriter } from "../oci/store.ts";
import { type ChosenImage, chooseImages, type PlatformChoice } from "./choose-images.ts";
import { Copier } from "./copy.ts";
import { type LayerOutcome, SociIndexer, type SociOptions } from "./soci-index.ts";

export interface ConvertToSociOptions extends SociOptions {
  readonly source: ImageReader;
  readonly destination: ImageWriter;
  /** What the result is called in the destination. */
  readonly tag?: string | undefined;
  readonly platforms?: PlatformChoice;
}

export interface ConvertedToSoci {
  /** The OCI index. */
  readonly root: Descriptor;
  readonly images: readonly ConvertedImage[];
}

export interface ConvertedImage {
  readonly platform: Platform;
  readonly before: Digest;
  /** The same when the image has no index. */
  readonly manifest: Digest;
  readonly index: Digest | null;
  readonly layers: readonly LayerOutcome[];
}

/** An image with its index, both in the destination. */
interface Bound {
  readonly chosen: ChosenImage;
  readonly manifest: Descriptor;
  readonly index: Descriptor;
}

/**
 * Throws HS_NOTHING_TO_INDEX when no layer of any chosen image has a zTOC; HS_PLATFORM, HS_USAGE, and what sources and destinations throw. Nothing
 * is named in the destination before all of it is there.
 */
export async function convertToSoci(options: ConvertToSociOptions): Promise<ConvertedToSoci> {
  const { source, destination, signal, onProgress } = options;
  const { root, index, images } = await chooseImages(source, options.platforms, signal);
  const copier = new Copier(source, destination, { signal, onProgress });
  await using indexer = new SociIndexer(copier, options);
  const results: ConvertedImage[] = [];
  const bound: Bound[] = [];
  for (const chosen of images) {
    const { image, platform } = chosen;
    const before = image.manifestDescriptor.digest;
    onProgress?.({ t: "image", platform, manifest: before, layers: image.layers.length });
    const { indexed, layers } = await indexer.index(image, { version: 2, platform, withLayers: true });
    if (indexed === null) {
      results.push({ platform, before, manifest: before, index: null, layers });
      continue;
    }
    const manifest = await bindIndex(copier, chosen, indexed.index);
    bound.push({ chosen, manifest, index: indexed.index });
    results.push({ platform, before, manifest: manifest.digest, index: indexed.index.digest, layers });
  }
  if (bound.length === 0) {
    throw new HeadstartError("HS_NOTHING_TO_INDEX", {
      what: `${source.what}: no ztocs created, all layers either skipped or produced errors`,
      reasons: results.flatMap(({ layers }) => layers.map(({ layer, reason }) => `${layer}: ${reason}`)),
    });
  }
  const manifests = newEntries(index?.manifests ?? [root], bound);
  const made = new Set(bound.flatMap((one) => [one.manifest.digest, one.index.digest]));
  for (const entry of manifests) if (!made.has(entry.digest)) await copier.child(entry);
  const document = goIndex(
    defined({
      mediaType: MEDIA_TYPES.ociIndex,
      artifactType: index?.artifactType,
      manifests,
      subject: index?.subject,
      annotations: index?.annotations,
    }),
  );
  const top = await copier.manifest(document, MEDIA_TYPES.ociIndex, options.tag);
  await destination.finish({ signal });
  return { root: top, images: results };
}

/** The image's manifest with the annotation that names its index, as SOCI rewrites it: OCI types, layer types untouched. */
async function bindIndex(copier: Copier, { image }: ChosenImage, index: Descriptor): Promise<Descriptor> {
  await copier.blob(image.manifest.config);
  const bytes = goManifest({
    ...image.manifest,
    mediaType: MEDIA_TYPES.ociManifest,
    config: { ...image.manifest.config, mediaType: MEDIA_TYPES.ociConfig },
    annotations: { ...image.manifest.annotations, [SOCI_ANNOTATIONS.indexDigest]: index.digest },
  });
  return await copier.manifest(bytes, MEDIA_TYPES.ociManifest);
}

const ATTESTED = "vnd.docker.reference.digest";

/** The entries of the new index: images in their places, then SOCI indexes, so that no runtime takes one for an image (specs/soci.md 1.1). */
function newEntries(before: readonly Descriptor[], bound: readonly Bound[]): Descriptor[] {
  const byEntry = new Map(bound.map((one) => [one.chosen.entry, one]));
  const renamed = new Map(bound.map((one) => [one.chosen.entry.digest as string, one.manifest.digest]));
  const entries = before.map((entry): Descriptor => {
    const one = byEntry.get(entry);
    if (one !== undefined) return imageEntry(entry, one);
    const attested = annotation(entry, ATTESTED);
    const now = attested === undefined ? undefined : renamed.get(attested);
    return now === undefined ? entry : { ...entry, annotations: { ...entry.annotations, [ATTESTED]: now } };
  });
  for (const { chosen, manifest, index } of bound) {
    const platform = chosen.indexPlatform;
    const entry: Descriptor = {
      mediaType: MEDIA_TYPES.ociManifest,
      digest: index.digest,
      size: index.size,
      annotations: { [SOCI_ANNOTATIONS.imageManifestDigest]: manifest.digest },
      platform,
      artifactType: SOCI_MEDIA_TYPES.indexV2,
    };
    const place = entries.findIndex(
      ({ artifactType, platform: other }) =>
        artifactType === SOCI_MEDIA_TYPES.indexV2 && other && samePlatform(other, platform),
    );
    if (place < 0) entries.push(entry);
    else entries[place] = entry;
  }
  const isIndex = (entry: Descriptor) => entry.artifactType === SOCI_MEDIA_TYPES.indexV2;
  return [...entries.filter((entry) => !isIndex(entry)), ...entries.filter(isIndex)];
}

function imageEntry(before: Descriptor, { manifest, index, chosen }: Bound): Descriptor {
  const annotations = {
    ...before.annotations,
    ...chosen.image.manifest.annotations,
    [SOCI_ANNOTATIONS.indexDigest]: index.digest,
  };
  // the name in a layout's index.json belongs to that place
  delete (annotations as Record<string, string>)["org.opencontainers.image.ref.name"];
  return defined<Descriptor>({
    mediaType: MEDIA_TYPES.ociManifest,
    digest: manifest.digest,
    size: manifest.size,
    urls: before.urls,
    annotations,
    platform: chosen.platform,
  });
}
