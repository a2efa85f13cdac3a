/** From what a user names to images that a plan can be made of: manifests and configurations are read, layers are not. */

import type { Digest } from "../base/digest.ts";
import { HeadstartError, isHeadstartError } from "../base/errors.ts";
import { annotation, type Descriptor } from "../oci/descriptor.ts";
import { loadImage, parseIndex } from "../oci/manifest.ts";
import { isIndexType } from "../oci/media-types.ts";
import { type OpenOptions, openSource } from "../oci/open.ts";
import { formatPlatform, type Platform, platformRank } from "../oci/platform.ts";
import {
  formatReference,
  formatSource,
  type ImageReference,
  type ImageSource,
  parseReference,
} from "../oci/reference.ts";
import type { ImageReader } from "../oci/store.ts";
import type { ResolvedImage } from "./plan.ts";

/** A source, and names that the user gives its image beside its own. */
export interface NamedSource {
  readonly source: ImageSource;
  readonly names: readonly string[];
}

/** Stays open until the layers were read. */
export interface OpenImage extends AsyncDisposable {
  readonly image: ResolvedImage;
  readonly reader: ImageReader;
}

/** Throws HS_USAGE when the image would have no name, and what opening and reading throw. */
export async function openImage(
  named: NamedSource,
  platform: Platform,
  options: OpenOptions & { readonly signal?: AbortSignal },
): Promise<OpenImage> {
  const { source } = named;
  const reader = await openSource(source, options);
  try {
    const image = await resolveImage(named, reader, platform, options.signal);
    return { image, reader, [Symbol.asyncDispose]: () => reader[Symbol.asyncDispose]() };
  } catch (error) {
    await reader[Symbol.asyncDispose]();
    throw error;
  }
}

async function resolveImage(
  { source, names }: NamedSource,
  reader: ImageReader,
  platform: Platform,
  signal: AbortSignal | undefined,
): Promise<ResolvedImage> {
  const loaded = await loadImage(reader, platform, signal);
  checkPlatform(loaded.config.platform, platform, reader.what);
  const target = loaded.indexDescriptor ?? loaded.manifestDescriptor;
  const manifest = loaded.manifestDescriptor;
  const indexes =
    loaded.indexDescriptor === undefined
      ? []
      : await indexPath(reader, loaded.indexDescriptor, manifest.digest, INDEX_DEPTH_MAX, signal);
  return {
    source: formatSource(source),
    names: [...new Set([...ownNames(source, target, names.length > 0), ...names.map(normalizeName)])].sort(),
    target,
    indexes: indexes ?? [],
    manifest,
    config: loaded.configDescriptor,
    layers: loaded.layers.map((descriptor, index) => ({ descriptor, diffID: loaded.diffIDs[index]! })),
    created: creationTime(loaded.config.document.created),
    repository:
      source.kind === "registry" ? { host: source.reference.host, repository: source.reference.repository } : null,
  };
}

/** An image without an index says only in its configuration what it runs on; containerd would call it missing on any other node. Throws HS_PLATFORM. */
function checkPlatform(own: Platform, wanted: Platform, what: string): void {
  if (own.architecture === "" || platformRank(wanted, own) >= 0) return;
  throw new HeadstartError("HS_PLATFORM", {
    what: `${what}: it is for ${formatPlatform(own)}, the volume for ${formatPlatform(wanted)}`,
  });
}

/** Indexes in indexes, as loadImage follows them. */
const INDEX_DEPTH_MAX = 3;

/** The indexes that lead from `top` to the manifest, null when it is not below. */
async function indexPath(
  reader: ImageReader,
  top: Descriptor,
  manifest: Digest,
  depth: number,
  signal: AbortSignal | undefined,
): Promise<ResolvedImage["indexes"] | null> {
  const { manifests } = parseIndex(await reader.readManifest(top, signal), `index ${top.digest}`);
  if (manifests.some((entry) => entry.digest === manifest)) return [{ descriptor: top, child: manifest }];
  if (depth <= 1) return null;
  for (const entry of manifests) {
    if (!isIndexType(entry.mediaType)) continue;
    const below = await indexPath(reader, entry, manifest, depth - 1, signal);
    if (below !== null) return [{ descriptor: top, child: entry.digest }, ...below];
  }
  return null;
}

/** Kubelet asks by tag or by digest: a name by tag gets its digest form beside it. */
function ownNames(source: ImageSource, target: Descriptor, named: boolean): string[] {
  const reference = ownReference(source, target);
  if (reference !== null) return bothForms(reference, target.digest);
  if (named) return [];
  throw new HeadstartError("HS_USAGE", {
    what: `${formatSource(source)}: containerd needs a whole name for this image: give it by --name HOST/REPO:TAG`,
  });
}

function bothForms(reference: ImageReference, digest: Digest): string[] {
  const { host, repository, tag } = reference;
  // with a digest the tag says nothing, and containerd leaves it out too
  if (reference.digest !== undefined) return [formatReference({ host, repository, digest: reference.digest })];
  return [formatReference({ host, repository, tag: tag! }), formatReference({ host, repository, digest })];
}

function ownReference(source: ImageSource, target: Descriptor): ImageReference | null {
  switch (source.kind) {
    case "registry":
      return source.reference;
    case "containerd":
      return wholeReference(source.reference);
    case "layout":
    case "archive":
      return (
        wholeReference(annotation(target, "io.containerd.image.name")) ??
        wholeReference(annotation(target, "org.opencontainers.image.ref.name")) ??
        wholeReference(source.tag)
      );
    case "rafs":
      return null;
  }
}

/** A bare word is a tag, not a name: "latest" would become docker.io/library/latest. */
function wholeReference(text: string | undefined): ImageReference | null {
  if (text === undefined || !text.includes("/")) return null;
  try {
    return parseReference(text);
  } catch (error) {
    if (isHeadstartError(error, "HS_REFERENCE")) return null;
    throw error;
  }
}

/** As containerd writes it. Throws HS_REFERENCE. */
export function normalizeName(text: string): string {
  const { host, repository, tag, digest } = parseReference(text);
  return formatReference(digest === undefined ? { host, repository, tag: tag! } : { host, repository, digest });
}

/** RFC 3339 to whole seconds; null for anything else, and for times before 1970. */
function creationTime(created: unknown): number | null {
  if (typeof created !== "string") return null;
  const seconds = Math.floor(Date.parse(created) / 1000);
  return Number.isFinite(seconds) && seconds >= 0 ? seconds : null;
}
