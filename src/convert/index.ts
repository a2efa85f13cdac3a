/**
 * SOCI v1 indexes: artifacts beside an unmodified image, found by asking the registry what refers to its manifest (specs/soci.md 1, 1.1). Create, push, list,
 * remove.
 */

import type { Digest } from "../base/digest.ts";
import { HeadstartError, isHeadstartError } from "../base/errors.ts";
import { readSociIndex, type SociIndex } from "../formats/soci/index.ts";
import { SOCI_ANNOTATIONS, SOCI_MEDIA_TYPES } from "../formats/soci/ondisk.ts";
import { annotation, type Descriptor } from "../oci/descriptor.ts";
import { MEDIA_TYPES } from "../oci/media-types.ts";
import type { Platform } from "../oci/platform.ts";
import type { Repository } from "../oci/registry/client.ts";
import { forgetReferrer } from "../oci/registry/referrers.ts";
import type { ImageReader, ImageWriter } from "../oci/store.ts";
import { type ChosenImage, chooseImages, type PlatformChoice } from "./choose-images.ts";
import { Copier } from "./copy.ts";
import { type LayerOutcome, SociIndexer, type SociOptions } from "./soci-index.ts";

export interface CreateIndexOptions extends SociOptions {
  readonly source: ImageReader;
  /** Where index and zTOCs go: the image's own repository, or a layout to push from later. */
  readonly destination: ImageWriter;
  readonly platforms?: PlatformChoice;
}

export interface CreatedIndex {
  readonly platform: Platform;
  readonly manifest: Digest;
  /** Null when no layer has a zTOC. */
  readonly index: Descriptor | null;
  readonly layers: readonly LayerOutcome[];
}

/** Throws HS_NOTHING_TO_INDEX when no chosen image has a zTOC; HS_PLATFORM, HS_USAGE, and what sources and destinations throw. */
export async function createIndex(options: CreateIndexOptions): Promise<CreatedIndex[]> {
  const { source, destination, signal, onProgress } = options;
  const { images } = await chooseImages(source, options.platforms, signal);
  const copier = new Copier(source, destination, { signal, onProgress });
  await using indexer = new SociIndexer(copier, options);
  const created: CreatedIndex[] = [];
  for (const { image, platform } of images) {
    const manifest = image.manifestDescriptor.digest;
    onProgress?.({ t: "image", platform, manifest, layers: image.layers.length });
    const { indexed, layers } = await indexer.index(image, { version: 1, platform, withLayers: false });
    created.push({ platform, manifest, index: indexed?.index ?? null, layers });
  }
  if (created.every(({ index }) => index === null)) {
    throw new HeadstartError("HS_NOTHING_TO_INDEX", {
      what: `${source.what}: no ztocs created, all layers either skipped or produced errors`,
      reasons: created.flatMap(({ layers }) => layers.map(({ layer, reason }) => `${layer}: ${reason}`)),
    });
  }
  await destination.finish({ signal });
  return created;
}

export interface ListedIndex {
  readonly version: 1 | 2;
  readonly platform: Platform;
  /** The image manifest it is about. */
  readonly manifest: Digest;
  readonly index: Descriptor;
  readonly ztocs: number;
  readonly prefetch: number;
  readonly buildTool: string | null;
  /** Read from it, for whoever shows more; null when it cannot be read, with the reason. */
  readonly content: SociIndex | null;
  readonly reason: string | null;
}

export interface ListOptions {
  readonly source: ImageReader;
  /** Default: all. */
  readonly platforms?: PlatformChoice;
  readonly signal?: AbortSignal | undefined;
}

/** Indexes of an image: the one that its manifest binds (v2), then those that refer to it (v1). One that cannot be read is listed with the reason. */
export async function listIndexes(options: ListOptions): Promise<ListedIndex[]> {
  const { source, signal } = options;
  const { images } = await chooseImages(source, options.platforms ?? "all", signal);
  const found: ListedIndex[] = [];
  for (const chosen of images) {
    const bound = annotation(chosen.image.manifest, SOCI_ANNOTATIONS.indexDigest);
    if (bound !== undefined)
      found.push(
        await describe(source, chosen, { digest: bound as Digest, mediaType: MEDIA_TYPES.ociManifest }, 2, signal),
      );
    for (const referrer of await v1Referrers(source, chosen, signal))
      found.push(await describe(source, chosen, referrer, 1, signal));
  }
  return found;
}

async function v1Referrers(
  source: ImageReader,
  { image }: ChosenImage,
  signal: AbortSignal | undefined,
): Promise<Descriptor[]> {
  return await source.referrers(image.manifestDescriptor.digest, {
    artifactType: SOCI_MEDIA_TYPES.indexV1,
    ...(signal && { signal }),
  });
}

async function describe(
  source: ImageReader,
  { image, platform }: ChosenImage,
  descriptor: Pick<Descriptor, "digest" | "mediaType">,
  version: 1 | 2,
  signal: AbortSignal | undefined,
): Promise<ListedIndex> {
  const common = { version, platform, manifest: image.manifestDescriptor.digest };
  try {
    const bytes = await source.readManifest(descriptor.digest, signal);
    const content = readSociIndex(bytes, `SOCI index ${descriptor.digest}`);
    return {
      ...common,
      version: content.version,
      index: { mediaType: descriptor.mediaType, digest: descriptor.digest, size: bytes.byteLength },
      ztocs: content.ztocs.size,
      prefetch: content.prefetch.size,
      buildTool: content.annotations[SOCI_ANNOTATIONS.buildTool] ?? null,
      content,
      reason: null,
    };
  } catch (error) {
    signal?.throwIfAborted();
    if (!isHeadstartError(error)) throw error;
    const index = { mediaType: descriptor.mediaType, digest: descriptor.digest, size: 0 };
    return { ...common, index, ztocs: 0, prefetch: 0, buildTool: null, content: null, reason: error.message };
  }
}

export interface PushIndexOptions {
  /** Where the indexes are: a layout that createIndex wrote to, say. */
  readonly source: ImageReader;
  /** Where the image they are about can be read, if not there. */
  readonly image?: ImageReader | undefined;
  /** The repository that has the image. */
  readonly destination: ImageWriter;
  /** What the destination has, to see which indexes the image has there already. */
  readonly existing?: { readonly reader: ImageReader; readonly policy: "warn" | "skip" | "allow" } | undefined;
  readonly platforms?: PlatformChoice;
  readonly signal?: AbortSignal | undefined;
  readonly onProgress?: SociOptions["onProgress"];
}

export interface PushedIndex {
  readonly platform: Platform;
  readonly manifest: Digest;
  /** Null with the reason. */
  readonly pushed: Descriptor | null;
  readonly reason: string | null;
  /** Indexes that the destination had for the image before. */
  readonly existing: readonly Descriptor[];
}

/** Pushes, for each chosen image, its newest v1 index with all zTOCs: the last in the source's list. Throws HS_NOT_FOUND when there is none at all. */
export async function pushIndex(options: PushIndexOptions): Promise<PushedIndex[]> {
  const { source, destination, signal, onProgress } = options;
  const { images } = await chooseImages(options.image ?? source, options.platforms ?? "all", signal);
  const copier = new Copier(source, destination, { signal, onProgress });
  const results: PushedIndex[] = [];
  for (const chosen of images) {
    const common = { platform: chosen.platform, manifest: chosen.image.manifestDescriptor.digest };
    const newest = (await v1Referrers(source, chosen, signal)).at(-1);
    if (newest === undefined) {
      results.push({ ...common, pushed: null, reason: "it has no index here", existing: [] });
      continue;
    }
    const existing = options.existing === undefined ? [] : await v1Referrers(options.existing.reader, chosen, signal);
    if (existing.length > 0 && options.existing?.policy === "skip") {
      results.push({ ...common, pushed: null, reason: "the image has an index there already", existing });
      continue;
    }
    await copier.tree({ mediaType: newest.mediaType, digest: newest.digest, size: newest.size });
    results.push({ ...common, pushed: newest, reason: null, existing });
  }
  if (results.every(({ pushed, existing }) => pushed === null && existing.length === 0)) {
    throw new HeadstartError("HS_NOT_FOUND", { what: `${source.what}: no image of it has a SOCI index to push` });
  }
  await destination.finish({ signal });
  return results;
}

/** Who can take a referrer away: registries differ from layouts. */
export interface IndexRemover {
  removeReferrer(subject: Digest, index: Digest, signal?: AbortSignal): Promise<void>;
}

/** Deletes the manifest, and its entry in the list that registries without the referrers API have as a tag. zTOCs go with the registry's garbage collection. */
export function registryRemover(repository: Repository): IndexRemover {
  return {
    async removeReferrer(subject, index, signal) {
      await repository.deleteManifest(index, signal);
      await forgetReferrer(repository, subject, index, signal);
    },
  };
}

export interface RemoveIndexOptions {
  readonly source: ImageReader;
  readonly remover: IndexRemover;
  /** This one; default: every v1 index of the chosen images. */
  readonly index?: Digest | undefined;
  readonly platforms?: PlatformChoice;
  readonly signal?: AbortSignal | undefined;
}

/** The digests that were removed. Throws HS_NOT_FOUND when the image has no such index. A v2 index is part of its image and is not removed. */
export async function removeIndex(options: RemoveIndexOptions): Promise<Digest[]> {
  const { source, remover, signal } = options;
  const { images } = await chooseImages(source, options.platforms ?? "all", signal);
  const removed: Digest[] = [];
  for (const chosen of images) {
    for (const { digest } of await v1Referrers(source, chosen, signal)) {
      if (options.index !== undefined && digest !== options.index) continue;
      await remover.removeReferrer(chosen.image.manifestDescriptor.digest, digest, signal);
      removed.push(digest);
    }
  }
  if (removed.length === 0) throw new HeadstartError("HS_NOT_FOUND", { what: `${source.what}: no such SOCI index` });
  return removed;
}
