/**
 * Nydus images of OCI images (specs/nydus.md 1.1), from any source to any destination: native blobs, or an index over the unmodified layers (OCI-ref). Each layer streams from the source
 * through its builder into the destination; layers run side by side. The same source and options give the same digests.
 *
 *   one image            a manifest; as referrer (`--with-referrer`, and always for OCI-ref) its `subject` is the OCI manifest, which is in the destination too
 *   several platforms    an index of such manifests
 *   `--merge-index`      the source's index, or one around its manifest, as it is, and behind it the Nydus manifests under the artifactType that marks them
 *
 * The peer puts an empty layer in front of the OCI images of a merged index, because its snapshotter gives their snapshots other content than their layers have. Ours never does
 * (docs/formats.md), so the OCI images stay byte for byte what they were.
 */

import type { Digest } from "../base/digest.ts";
import { HeadstartError } from "../base/errors.ts";
import { isNydusManifest } from "../formats/nydus/manifest.ts";
import { NYDUS_MEDIA_TYPES } from "../formats/nydus/ondisk.ts";
import type { NydusOptions } from "../formats/nydus/write/options.ts";
import { isNydusEntry } from "../image/siblings.ts";
import { returnFreedMemory } from "../linux/malloc.ts";
import type { Descriptor } from "../oci/descriptor.ts";
import { goIndex } from "../oci/gojson.ts";
import { defined } from "../oci/json.ts";
import type { ImageIndex } from "../oci/manifest.ts";
import { layerKind, MEDIA_TYPES } from "../oci/media-types.ts";
import { type Platform, samePlatform } from "../oci/platform.ts";
import type { ImageReader, ImageWriter } from "../oci/store.ts";
import { type ChosenImage, chooseImages, type PlatformChoice } from "./choose-images.ts";
import { Copier } from "./copy.ts";
import type { DictionarySource } from "./nydus-dictionary.ts";
import { NydusImageWriter, type NydusLayerOutcome } from "./nydus-image.ts";
import type { OnProgress } from "./progress.ts";
import { Together } from "./together.ts";

export interface ConvertToNydusOptions {
  readonly source: ImageReader;
  readonly destination: ImageWriter;
  /** What the result is called in the destination. */
  readonly tag?: string | undefined;
  readonly platforms?: PlatformChoice;
  readonly mode: "native" | "ref";
  readonly build: NydusOptions;
  /** Layers of up to 1 MiB are compressed by zstd's level 19 instead. */
  readonly thorough?: boolean | undefined;
  readonly dictionary?: DictionarySource | undefined;
  /** Paths in the order in which a start wants them, one char a byte. */
  readonly prefetch?: readonly string[] | undefined;
  /** OCI and Nydus under one tag. */
  readonly mergeIndex?: boolean | undefined;
  /** The Nydus manifest refers to the OCI manifest, which is copied too. */
  readonly withReferrer?: boolean | undefined;
  readonly signal?: AbortSignal | undefined;
  readonly onProgress?: OnProgress | undefined;
}

export interface NydusImage {
  readonly platform: Platform;
  /** The OCI manifest. */
  readonly before: Digest;
  readonly manifest: Digest;
  readonly bootstrap: { readonly digest: Digest; readonly size: number };
  readonly layers: readonly NydusLayerOutcome[];
  /** Blobs of the chunk dictionary that the image refers to. */
  readonly dictionary: readonly Digest[];
  /** Paths of the prefetch list that nothing in the image has. */
  readonly prefetchNotFound: readonly string[];
}

export interface ConvertedToNydus {
  /** A manifest, or an index. */
  readonly root: Descriptor;
  readonly images: readonly NydusImage[];
}

/**
 * Throws HS_USAGE for options that do not go together and for a source that is a Nydus image, HS_PLATFORM, HS_LAYER_REFUSED, HS_FORMAT_UNSUPPORTED (a zstd layer of a ref), HS_NYDUS_LIMIT (a layer that cannot be in a Nydus image, by
 * name), and what sources and destinations throw. Nothing is named in the destination before all of it is there.
 */
export async function convertToNydus(options: ConvertToNydusOptions): Promise<ConvertedToNydus> {
  const { source, destination, onProgress } = options;
  // buffers of up to 1 MiB come and go on every thread, and each thread's heap would keep its share of them
  returnFreedMemory();
  const together = new Together(options.signal);
  const { signal } = together;
  const { root, index, images } = await chooseImages(source, options.platforms, signal);
  const wanted = images.filter(({ image }) => !isNydusManifest(image.manifest));
  if (wanted.length === 0)
    throw new HeadstartError("HS_USAGE", { what: `${source.what}: a Nydus image already; --to oci makes a plain one` });
  if (options.mode === "ref") for (const { image } of wanted) image.layers.forEach(checkRefLayer);
  const mergeIndex = options.mergeIndex === true;
  const copier = new Copier(source, destination, { signal, onProgress });
  await using writer = new NydusImageWriter(copier, { ...options, together });
  // the data of a ref are its original layers: something must keep them
  const isReferrer = options.withReferrer === true || (options.mode === "ref" && !mergeIndex);
  const asIndex = mergeIndex || wanted.length > 1;
  const results: NydusImage[] = [];
  const made: { readonly chosen: ChosenImage; readonly manifest: Descriptor }[] = [];
  for (const chosen of wanted) {
    const { image, platform } = chosen;
    const before = image.manifestDescriptor;
    onProgress?.({ t: "image", platform, manifest: before.digest, layers: image.layers.length });
    const written = await writer.write(image, { beside: mergeIndex, isReferrer });
    // its layers went there while they were read
    if (isReferrer && !mergeIndex) await copier.tree(before);
    const manifest = await copier.manifest(written.bytes, MEDIA_TYPES.ociManifest, asIndex ? undefined : options.tag);
    made.push({ chosen, manifest });
    const { bootstrap, layers, dictionary, prefetchNotFound } = written;
    results.push({
      platform,
      before: before.digest,
      manifest: manifest.digest,
      bootstrap,
      layers,
      dictionary,
      prefetchNotFound,
    });
  }
  let top = made[0]!.manifest;
  if (asIndex) {
    const document = mergeIndex ? await mergedIndex(copier, root, index, made) : plainIndex(made);
    top = await copier.manifest(goIndex(document), MEDIA_TYPES.ociIndex, options.tag);
  }
  await destination.finish({ signal });
  return { root: top, images: results };
}

/** Before anything is copied; by their first bytes the builder tells those whose type is wrong. */
function checkRefLayer({ digest, mediaType }: Descriptor): void {
  if (layerKind(mediaType)?.compression !== "zstd") return;
  throw new HeadstartError("HS_FORMAT_UNSUPPORTED", {
    what: `layer ${digest} is compressed with zstd, which has no place where reading could begin: --to nydus converts it`,
  });
}

type Made = readonly { readonly chosen: ChosenImage; readonly manifest: Descriptor }[];

function plainIndex(made: Made): ImageIndex {
  const manifests = made.map(({ chosen, manifest }) => ({ ...manifest, platform: chosen.platform }));
  return { mediaType: MEDIA_TYPES.ociIndex, manifests };
}

/** All that the source's index names, copied, and the Nydus images behind it. Nydus images of the same platforms that were there give way. */
async function mergedIndex(
  copier: Copier,
  root: Descriptor,
  index: ImageIndex | null,
  made: Made,
): Promise<ImageIndex> {
  const before = index?.manifests ?? [{ ...root, platform: made[0]!.chosen.platform }];
  const isReplaced = (entry: Descriptor) =>
    isNydusEntry(entry) &&
    made.some(({ chosen }) => entry.platform !== undefined && samePlatform(entry.platform, chosen.platform));
  const kept = before.filter((entry) => !isReplaced(entry));
  for (const entry of kept) await copier.child(entry);
  const nydus = made.map(
    ({ chosen, manifest }): Descriptor => ({
      ...manifest,
      platform: withoutFeatures(chosen.platform),
      artifactType: NYDUS_MEDIA_TYPES.manifest,
    }),
  );
  return defined<ImageIndex>({
    mediaType: MEDIA_TYPES.ociIndex,
    manifests: [...kept.map(withoutName), ...nydus],
    subject: index?.subject,
    annotations: index?.annotations,
  });
}

/** ECR refuses an index with os.features (specs/nydus.md 1.1). */
function withoutFeatures({ "os.features": _, ...platform }: Platform): Platform {
  return platform;
}

/** The name in a layout's index.json belongs to that place. */
function withoutName({ annotations, ...entry }: Descriptor): Descriptor {
  const { "org.opencontainers.image.ref.name": _, ...kept } = annotations ?? {};
  return Object.keys(kept).length === 0 ? entry : { ...entry, annotations: kept };
}
