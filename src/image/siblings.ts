/**
 * The other form of an image: OCI beside Nydus, Nydus beside OCI. It stands in the index that the user's reference names, is the manifest's `subject`, or refers to the
 * manifest (specs/nydus.md 1.1). Finding decides nothing: who may be used, and for what, is the planner's business.
 *
 * Entries without platform are nobody's until their configuration says what they are (N27); attestations, SOCI indexes and other artifacts are never taken (N28).
 */

import type { Digest } from "../base/digest.ts";
import { isHeadstartError } from "../base/errors.ts";
import { isNydusManifest } from "../formats/nydus/manifest.ts";
import { NYDUS_MEDIA_TYPES, NYDUS_OS_FEATURE } from "../formats/nydus/ondisk.ts";
import { type Descriptor, isImageEntry } from "../oci/descriptor.ts";
import { type LoadedImage, loadManifest, parseIndex } from "../oci/manifest.ts";
import { isConfigType, isIndexType, isManifestType } from "../oci/media-types.ts";
import { samePlatform } from "../oci/platform.ts";
import type { ImageReader } from "../oci/store.ts";

/** Where the other form was found. `index`: both stand in the index of this digest. */
export type Found =
  | { readonly how: "index"; readonly index: Digest }
  | { readonly how: "subject" }
  | { readonly how: "referrer" };

export interface Sibling {
  readonly loaded: LoadedImage;
  readonly found: Found;
}

/** Manifests that are looked at, one after the other, before the search is given up. */
const CANDIDATES_MAX = 8;

/**
 * The Nydus form of an OCI image. `reader` resolves what the user's reference names. With `referrers` also one that is attached to the manifest. Throws HS_REGISTRY_* and the signal's reason
 * alone: what is no Nydus image is passed over.
 */
export async function findNydus(
  reader: ImageReader,
  image: LoadedImage,
  options: { referrers: boolean; signal?: AbortSignal | undefined },
): Promise<Sibling | null> {
  const { signal } = options;
  const beside = await entriesBeside(reader, image, isNydusEntry, signal);
  const found = await firstThat(reader, image, beside, isNydusManifest, signal);
  if (found !== null || !options.referrers) return found;
  const attached = (await referrersOf(reader, image.manifestDescriptor.digest, signal))
    .filter((entry) => isManifestType(entry.mediaType) && mayBeNydus(entry))
    .map((descriptor) => ({ descriptor, found: { how: "referrer" as const } }));
  return await firstThat(reader, image, attached, isNydusManifest, signal);
}

/** The OCI form of a Nydus image: what its manifest names as `subject` first, then what stands beside it. Throws as `findNydus`. */
export async function findOci(
  reader: ImageReader,
  image: LoadedImage,
  signal?: AbortSignal | undefined,
): Promise<Sibling | null> {
  const { subject } = image.manifest;
  const isOci = (manifest: LoadedImage["manifest"]) => !isNydusManifest(manifest);
  if (subject !== undefined && isManifestType(subject.mediaType)) {
    const named = [{ descriptor: subject, found: { how: "subject" as const } }];
    const found = await firstThat(reader, image, named, isOci, signal);
    if (found !== null) return found;
  }
  const isOciEntry = (entry: Descriptor) =>
    isImageEntry(entry) && isManifestType(entry.mediaType) && !isNydusEntry(entry);
  return await firstThat(reader, image, await entriesBeside(reader, image, isOciEntry, signal), isOci, signal);
}

export function isNydusEntry(entry: Descriptor): boolean {
  if (!isManifestType(entry.mediaType)) return false;
  if (entry.artifactType === NYDUS_MEDIA_TYPES.manifest) return true;
  return entry.platform?.["os.features"]?.includes(NYDUS_OS_FEATURE) === true;
}

/** Some builders give a referrer no type of its own: then its configuration's stands for it. */
function mayBeNydus(entry: Descriptor): boolean {
  return (
    entry.artifactType === undefined ||
    entry.artifactType === NYDUS_MEDIA_TYPES.manifest ||
    isConfigType(entry.artifactType)
  );
}

interface Candidate {
  readonly descriptor: Descriptor;
  readonly found: Found;
}

/** Entries of the index that the reference names, if our manifest is one of them too: a tag may have moved on since containerd resolved it. */
async function entriesBeside(
  reader: ImageReader,
  image: LoadedImage,
  wanted: (entry: Descriptor) => boolean,
  signal: AbortSignal | undefined,
): Promise<Candidate[]> {
  const root = await reader.resolve(signal);
  if (!isIndexType(root.mediaType)) return [];
  const { manifests } = parseIndex(await reader.readManifest(root, signal), `index ${root.digest}`);
  const own = manifests.find((entry) => entry.digest === image.manifestDescriptor.digest);
  if (own === undefined) return [];
  const platform = own.platform ?? image.config.platform;
  const found = { how: "index", index: root.digest } as const;
  return manifests
    .filter((entry) => entry.digest !== own.digest && wanted(entry))
    .filter((entry) => entry.platform === undefined || samePlatform(entry.platform, platform))
    .toSorted((a, b) => Number(a.platform === undefined) - Number(b.platform === undefined))
    .map((descriptor) => ({ descriptor, found }));
}

async function firstThat(
  reader: ImageReader,
  image: LoadedImage,
  candidates: readonly Candidate[],
  fits: (manifest: LoadedImage["manifest"]) => boolean,
  signal: AbortSignal | undefined,
): Promise<Sibling | null> {
  for (const { descriptor, found } of candidates.slice(0, CANDIDATES_MAX)) {
    try {
      const loaded = await loadManifest(reader, descriptor, signal);
      if (fits(loaded.manifest) && samePlatform(loaded.config.platform, image.config.platform))
        return { loaded, found };
    } catch (error) {
      signal?.throwIfAborted();
      if (!isHeadstartError(error) || error.kind === "unavailable") throw error;
    }
  }
  return null;
}

async function referrersOf(
  reader: ImageReader,
  manifest: Digest,
  signal: AbortSignal | undefined,
): Promise<readonly Descriptor[]> {
  try {
    return await reader.referrers(manifest, { signal });
  } catch (error) {
    if (isHeadstartError(error, "HS_NOT_FOUND", "HS_BLOB_NOT_FOUND")) return [];
    throw error;
  }
}
