/** Which images are to become plain OCI images: for each platform one, and of an OCI image beside its Nydus form the OCI image. */

import { isNydusEntry } from "../image/siblings.ts";
import { type Descriptor, isImageEntry } from "../oci/descriptor.ts";
import { type LoadedImage, loadManifest, parseIndex } from "../oci/manifest.ts";
import { isIndexType, isManifestType } from "../oci/media-types.ts";
import { hostPlatform, type Platform, platformRank, samePlatform } from "../oci/platform.ts";
import type { ImageReader } from "../oci/store.ts";
import { noImage, type PlatformChoice } from "./choose-images.ts";

export interface ChosenForm {
  readonly image: LoadedImage;
  readonly platform: Platform;
}

export interface ChosenForms {
  /** True when the source is a single image, and is meant itself. */
  readonly single: boolean;
  readonly images: readonly ChosenForm[];
}

interface Offer {
  readonly entry: Descriptor;
  readonly platform: Platform;
  readonly isNydus: boolean;
}

/** Throws HS_PLATFORM, HS_MANIFEST, HS_NOT_FOUND. */
export async function chooseForms(
  reader: ImageReader,
  choice: PlatformChoice,
  signal?: AbortSignal,
): Promise<ChosenForms> {
  const root = await reader.resolve(signal);
  if (!isIndexType(root.mediaType)) {
    const image = await loadManifest(reader, root, signal);
    const { platform } = image.config;
    if (Array.isArray(choice) && choice.every((one) => platformRank(one, platform) < 0))
      throw noImage(reader, choice, [platform]);
    return { single: true, images: [{ image, platform }] };
  }
  const { manifests } = parseIndex(await reader.readManifest(root, signal), `index ${root.digest}`);
  const offers = manifests.flatMap((entry): Offer[] => {
    const { platform } = entry;
    const isNydus = isNydusEntry(entry);
    if (platform === undefined || !isManifestType(entry.mediaType) || !(isNydus || isImageEntry(entry))) return [];
    return [{ entry, platform, isNydus }];
  });
  const images: ChosenForm[] = [];
  for (const platform of choice === "all" ? distinct(offers) : (choice ?? [hostPlatform()])) {
    const offer = best(offers, platform);
    if (offer === undefined)
      throw noImage(
        reader,
        [platform],
        offers.map((one) => one.platform),
      );
    if (images.some(({ image }) => image.manifestDescriptor.digest === offer.entry.digest)) continue;
    images.push({ image: await loadManifest(reader, offer.entry, signal), platform: offer.platform });
  }
  if (images.length === 0) throw noImage(reader, [], []);
  return { single: false, images };
}

/** The closest platform first, of one platform the OCI image, else the order of the index. */
function best(offers: readonly Offer[], wanted: Platform): Offer | undefined {
  return offers
    .map((offer) => ({ offer, rank: platformRank(wanted, offer.platform) }))
    .filter(({ rank }) => rank >= 0)
    .toSorted((a, b) => a.rank - b.rank || Number(a.offer.isNydus) - Number(b.offer.isNydus))[0]?.offer;
}

function distinct(offers: readonly Offer[]): Platform[] {
  const found: Platform[] = [];
  for (const { platform } of offers) if (!found.some((one) => samePlatform(one, platform))) found.push(platform);
  return found;
}
