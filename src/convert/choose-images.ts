/** Which images of a source are meant: by platform, or all, or the only one there is. */

import { HeadstartError } from "../base/errors.ts";
import { type Descriptor, isImageEntry } from "../oci/descriptor.ts";
import { type ImageIndex, type LoadedImage, loadManifest, parseIndex, rankEntries } from "../oci/manifest.ts";
import { isIndexType, isManifestType } from "../oci/media-types.ts";
import { formatPlatform, hostPlatform, normalizePlatform, type Platform, samePlatform } from "../oci/platform.ts";
import type { ImageReader } from "../oci/store.ts";

/** Platforms by name, all there are, or (undefined) the host's; a source that is a single image is meant itself unless another is named. */
export type PlatformChoice = readonly Platform[] | "all" | undefined;

export interface ChosenImage {
  readonly image: LoadedImage;
  /** The entry of the index, or what the source names. */
  readonly entry: Descriptor;
  readonly platform: Platform;
  /** What its SOCI index is labelled with: the platform as it was asked for by name, else as the image has it. */
  readonly indexPlatform: Platform;
}

export interface ChosenImages {
  readonly root: Descriptor;
  /** Null when the source is a single image. */
  readonly index: ImageIndex | null;
  /** In the order of the index, each once. */
  readonly images: readonly ChosenImage[];
}

/** Throws HS_PLATFORM, HS_MANIFEST, HS_NOT_FOUND. */
export async function chooseImages(
  reader: ImageReader,
  choice: PlatformChoice,
  signal?: AbortSignal,
): Promise<ChosenImages> {
  const root = await reader.resolve(signal);
  if (!isIndexType(root.mediaType)) {
    const image = await loadManifest(reader, root, signal);
    const { platform } = image.config;
    if (Array.isArray(choice) && choice.every((one) => rankEntries([{ ...root, platform }], one).length === 0)) {
      throw noImage(reader, choice, [platform]);
    }
    return { root, index: null, images: [{ image, entry: root, platform, indexPlatform: platform }] };
  }
  const index = parseIndex(await reader.readManifest(root, signal), `index ${root.digest}`);
  // an entry without a platform cannot be chosen by one, and is left as it is (specs/soci.md B32)
  const offered = index.manifests.filter(
    (entry) => isImageEntry(entry) && isManifestType(entry.mediaType) && entry.platform,
  );
  let wanted: readonly Descriptor[] = offered;
  const asked = new Map<Descriptor, Platform>();
  if (choice !== "all") {
    const platforms = choice ?? [hostPlatform()];
    for (const platform of platforms) {
      const best = rankEntries(offered, platform).find(({ certain }) => certain);
      if (best === undefined)
        throw noImage(
          reader,
          [platform],
          offered.map((entry) => entry.platform!),
        );
      const same = samePlatform(platform, best.entry.platform!);
      asked.set(best.entry, same ? normalizePlatform(platform) : best.entry.platform!);
    }
    wanted = offered.filter((entry) => asked.has(entry));
  }
  if (wanted.length === 0) throw noImage(reader, [], []);
  const images: ChosenImage[] = [];
  for (const entry of wanted) {
    const platform = entry.platform!;
    images.push({
      image: await loadManifest(reader, entry, signal),
      entry,
      platform,
      indexPlatform: asked.get(entry) ?? platform,
    });
  }
  return { root, index, images };
}

/** HS_PLATFORM, with the platforms that there are. */
export function noImage(
  reader: ImageReader,
  wanted: readonly Platform[],
  offered: readonly Platform[],
): HeadstartError {
  const names = (platforms: readonly Platform[]) => platforms.map(formatPlatform).join(", ");
  return new HeadstartError("HS_PLATFORM", {
    what: `${reader.what}: no image for ${names(wanted) || "any platform"}; there are: ${names(offered) || "none"}`,
  });
}
