/**
 * Manifests, indexes and image configurations, OCI and Docker schema 2 (image-spec manifest.md, image-index.md, config.md): bytes to
 * checked values, and the walk from what a reader names to one image. A document that could be read as either manifest or index is
 * refused (CVE-2021-41190).
 */

import { type DiffID, type Digest, parseDigest } from "../base/digest.ts";
import { HeadstartError } from "../base/errors.ts";
import { LIMITS } from "../base/limits.ts";
import { type Descriptor, isImageEntry, readDescriptor } from "./descriptor.ts";
import {
  asObject,
  defined,
  field,
  type JsonObject,
  optionalArray,
  optionalString,
  parseJson,
  stringArray,
  stringMap,
  wrong,
} from "./json.ts";
import { bareMediaType, isConfigType, isIndexType, isManifestType, isSchema1Type, MEDIA_TYPES } from "./media-types.ts";
import { formatPlatform, hostPlatform, type Platform, platformRank } from "./platform.ts";
import type { ImageReader } from "./store.ts";

export interface Manifest {
  /** Empty when the document does not say: then the descriptor that led here does. */
  readonly mediaType: string;
  readonly artifactType?: string;
  readonly config: Descriptor;
  /** Lowest layer first; for an artifact its blobs. */
  readonly layers: readonly Descriptor[];
  readonly subject?: Descriptor;
  readonly annotations?: Readonly<Record<string, string>>;
}

export interface ImageIndex {
  readonly mediaType: string;
  readonly artifactType?: string;
  readonly manifests: readonly Descriptor[];
  readonly subject?: Descriptor;
  readonly annotations?: Readonly<Record<string, string>>;
}

export interface ImageConfig {
  readonly platform: Platform;
  readonly diffIDs: readonly DiffID[];
  /** What a container runs unless told otherwise. */
  readonly process: {
    readonly env: readonly string[];
    readonly entrypoint: readonly string[];
    readonly cmd: readonly string[];
    readonly workingDir: string;
    readonly user: string;
    readonly stopSignal?: string;
  };
  /** The whole document, for those who write a changed one. */
  readonly document: JsonObject;
}

/** A SOCI index lists zTOCs and prefetch lists: two blobs for each layer of an image, so twice its limit, with room. */
const MANIFEST_LAYERS_MAX = LIMITS.imageLayers * 4;
const INDEX_MANIFESTS_MAX = 10_000;

/** Throws HS_MANIFEST, HS_LIMIT, HS_DIGEST_SYNTAX, HS_FORMAT_UNSUPPORTED (Docker schema 1). */
export function parseManifest(bytes: Uint8Array, what: string): Manifest {
  const object = parseDocument(bytes, what);
  const mediaType = documentType(object, what, isManifestType, "a manifest");
  if (field(object, "manifests") !== undefined) throw wrong(`${what}.manifests`, "no such field in a manifest", "one");
  const layers = optionalArray(object, "layers", what, MANIFEST_LAYERS_MAX);
  return defined<Manifest>({
    mediaType,
    artifactType: optionalString(object, "artifactType", what) || undefined,
    config: readDescriptor(field(object, "config"), `${what}.config`),
    layers: layers.map((layer, position) => readDescriptor(layer, `${what}.layers[${position}]`)),
    subject: readSubject(object, what),
    annotations: stringMap(object, "annotations", what),
  });
}

/** Throws like parseManifest. */
export function parseIndex(bytes: Uint8Array, what: string): ImageIndex {
  const object = parseDocument(bytes, what);
  const mediaType = documentType(object, what, isIndexType, "an index");
  for (const key of ["config", "layers"]) {
    if (field(object, key) !== undefined) throw wrong(`${what}.${key}`, "no such field in an index", "one");
  }
  const manifests = optionalArray(object, "manifests", what, INDEX_MANIFESTS_MAX);
  return defined<ImageIndex>({
    mediaType,
    artifactType: optionalString(object, "artifactType", what) || undefined,
    manifests: manifests.map((entry, position) => readDescriptor(entry, `${what}.manifests[${position}]`)),
    subject: readSubject(object, what),
    annotations: stringMap(object, "annotations", what),
  });
}

/** Throws HS_MANIFEST, HS_LIMIT, HS_DIGEST_SYNTAX. */
export function parseConfig(bytes: Uint8Array, what: string): ImageConfig {
  const object = parseJson(bytes, what, LIMITS.configBytes);
  const rootfs = field(object, "rootfs");
  const diffIDs =
    rootfs === undefined ? [] : stringArray(asObject(rootfs, `${what}.rootfs`), "diff_ids", what, LIMITS.imageLayers);
  const inner = field(object, "config");
  const config = inner === undefined ? {} : asObject(inner, `${what}.config`);
  const texts = (key: string) => stringArray(config, key, `${what}.config`, 10_000);
  return {
    platform: defined<Platform>({
      architecture: optionalString(object, "architecture", what) ?? "",
      os: optionalString(object, "os", what) ?? "",
      "os.version": optionalString(object, "os.version", what) || undefined,
      variant: optionalString(object, "variant", what) || undefined,
    }),
    diffIDs: diffIDs.map((text, position) => parseDigest(text, `${what}.rootfs.diff_ids[${position}]`) as DiffID),
    process: defined<ImageConfig["process"]>({
      env: texts("Env"),
      entrypoint: texts("Entrypoint"),
      cmd: texts("Cmd"),
      workingDir: optionalString(config, "WorkingDir", `${what}.config`) ?? "",
      user: optionalString(config, "User", `${what}.config`) ?? "",
      stopSignal: optionalString(config, "StopSignal", `${what}.config`) || undefined,
    }),
    document: object,
  };
}

/** The media type of a manifest or index: what it says itself, else what its fields show. Throws HS_MANIFEST. */
export function sniffManifestType(bytes: Uint8Array, what: string): string {
  const object = parseDocument(bytes, what);
  const said = optionalString(object, "mediaType", what);
  if (said) return bareMediaType(said);
  if (field(object, "manifests") !== undefined) return MEDIA_TYPES.ociIndex;
  if (field(object, "config") !== undefined) return MEDIA_TYPES.ociManifest;
  throw wrong(what, "a manifest or an index", Object.keys(object).slice(0, 5));
}

function parseDocument(bytes: Uint8Array, what: string): JsonObject {
  const object = parseJson(bytes, what, LIMITS.manifestBytes);
  const version = field(object, "schemaVersion");
  if (version === 1 || field(object, "fsLayers") !== undefined) {
    throw new HeadstartError("HS_FORMAT_UNSUPPORTED", { what: `${what}: a Docker schema 1 manifest` });
  }
  if (version !== 2) throw wrong(`${what}.schemaVersion`, "2", version);
  return object;
}

function documentType(object: JsonObject, what: string, fits: (type: string) => boolean, wanted: string): string {
  const mediaType = bareMediaType(optionalString(object, "mediaType", what) ?? "");
  if (mediaType !== "" && !fits(mediaType)) throw wrong(`${what}.mediaType`, wanted, mediaType);
  return mediaType;
}

function readSubject(object: JsonObject, what: string): Descriptor | undefined {
  const subject = field(object, "subject");
  return subject === undefined ? undefined : readDescriptor(subject, `${what}.subject`);
}

export interface LoadedImage {
  readonly manifest: Manifest;
  readonly manifestDescriptor: Descriptor;
  readonly manifestBytes: Uint8Array;
  readonly config: ImageConfig;
  readonly configDescriptor: Descriptor;
  /** Lowest first; as many as diffIDs. */
  readonly layers: readonly Descriptor[];
  readonly diffIDs: readonly DiffID[];
  /** What the source named, when that was an index. */
  readonly indexDescriptor?: Descriptor;
  readonly index?: ImageIndex;
}

/**
 * Follows what `reader` names down to the image for `platform` (default: this machine's). Throws HS_PLATFORM with the platforms that
 * there are, HS_MANIFEST when it is no image.
 */
export async function loadImage(
  reader: ImageReader,
  platform: Platform = hostPlatform(),
  signal?: AbortSignal,
): Promise<LoadedImage> {
  const root = await reader.resolve(signal);
  if (!isIndexType(root.mediaType)) return loadManifest(reader, root, signal);
  const indexes: { descriptor: Descriptor; index: ImageIndex }[] = [];
  const offered: Descriptor[] = [];
  await collectEntries(reader, root, { signal, depth: 0, offered, indexes });
  const top = indexes[0]!;
  const ranked = rankEntries(offered, platform);
  for (const { entry, certain } of ranked) {
    const image = await loadManifest(reader, entry, signal);
    // an entry without a platform is what its configuration says
    if (!certain && platformRank(platform, image.config.platform) < 0) continue;
    return { ...image, indexDescriptor: top.descriptor, index: top.index };
  }
  const names = offered.map((entry) => (entry.platform === undefined ? "unknown" : formatPlatform(entry.platform)));
  throw new HeadstartError("HS_PLATFORM", {
    what: `${reader.what}: no image for ${formatPlatform(platform)}; there are: ${names.join(", ") || "none"}`,
  });
}

/** Images of an index that run on `platform`, best first; then those of unknown platform. Order within a rank is the index's. */
export function rankEntries(
  entries: readonly Descriptor[],
  platform: Platform,
): { readonly entry: Descriptor; readonly certain: boolean }[] {
  const candidates = entries.filter(isImageEntry).map((entry) => {
    const known = entry.platform !== undefined && entry.platform.architecture !== "";
    return { entry, certain: known, rank: known ? platformRank(platform, entry.platform!) : Number.MAX_SAFE_INTEGER };
  });
  return candidates.filter(({ rank }) => rank >= 0).sort((a, b) => a.rank - b.rank);
}

/** Every image entry of an index and of the indexes in it (two levels, as no builder nests deeper). */
async function collectEntries(
  reader: ImageReader,
  descriptor: Descriptor,
  walk: {
    signal: AbortSignal | undefined;
    depth: number;
    offered: Descriptor[];
    indexes: { descriptor: Descriptor; index: ImageIndex }[];
  },
): Promise<void> {
  const what = `index ${descriptor.digest}`;
  const index = parseIndex(await reader.readManifest(descriptor, walk.signal), what);
  if (index.mediaType !== "" && index.mediaType !== descriptor.mediaType) {
    throw wrong(`${what}.mediaType`, descriptor.mediaType, index.mediaType);
  }
  walk.indexes.push({ descriptor, index });
  for (const entry of index.manifests.filter(isImageEntry)) {
    if (!isIndexType(entry.mediaType)) walk.offered.push(entry);
    else if (walk.depth < 2 && walk.indexes.length < 64) {
      await collectEntries(reader, entry, { ...walk, depth: walk.depth + 1 });
    }
  }
}

/** Manifest and configuration behind one manifest descriptor, checked against each other. */
export async function loadManifest(
  reader: ImageReader,
  descriptor: Descriptor,
  signal?: AbortSignal,
): Promise<LoadedImage> {
  const what = `manifest ${descriptor.digest}`;
  if (isSchema1Type(descriptor.mediaType)) {
    throw new HeadstartError("HS_FORMAT_UNSUPPORTED", { what: `${what}: a Docker schema 1 manifest` });
  }
  if (!isManifestType(descriptor.mediaType)) throw wrong(what, "the media type of a manifest", descriptor.mediaType);
  const manifestBytes = await reader.readManifest(descriptor, signal);
  const manifest = parseManifest(manifestBytes, what);
  if (manifest.mediaType !== "" && manifest.mediaType !== descriptor.mediaType) {
    throw wrong(`${what}.mediaType`, descriptor.mediaType, manifest.mediaType);
  }
  if (!isConfigType(manifest.config.mediaType)) throw wrong(what, "an image", manifest.config.mediaType);
  if (manifest.layers.length > LIMITS.imageLayers) {
    throw new HeadstartError("HS_LIMIT", {
      what: `${what}: ${manifest.layers.length} layers, at most ${LIMITS.imageLayers}`,
    });
  }
  const configBytes = await reader.openBlob(manifest.config).readAll({ signal, limit: LIMITS.configBytes });
  const config = parseConfig(configBytes, `configuration ${manifest.config.digest}`);
  if (config.diffIDs.length !== manifest.layers.length) {
    throw wrong(`${what}.layers`, `${config.diffIDs.length} layers, as many as diff_ids,`, manifest.layers.length);
  }
  return {
    manifest,
    manifestDescriptor: descriptor,
    manifestBytes,
    config,
    configDescriptor: manifest.config,
    layers: manifest.layers,
    diffIDs: config.diffIDs,
  };
}

export function digestOf(manifest: Descriptor | Digest): Digest {
  return typeof manifest === "string" ? manifest : manifest.digest;
}
