/** Descriptors (image-spec descriptor.md): the links of which images are made. Parsing checks every field that is used. */

import { type Digest, parseDigest } from "../base/digest.ts";
import {
  asObject,
  defined,
  field,
  type JsonObject,
  optionalString,
  requiredString,
  stringArray,
  stringMap,
  wrong,
} from "./json.ts";
import { bareMediaType, isConfigType, isIndexType, isManifestType } from "./media-types.ts";
import { type Platform, readPlatform } from "./platform.ts";

export interface Descriptor {
  readonly mediaType: string;
  readonly digest: Digest;
  /** Bytes of the blob as stored. */
  readonly size: number;
  readonly urls?: readonly string[];
  readonly annotations?: Readonly<Record<string, string>>;
  /** The content itself, in base64. */
  readonly data?: string;
  readonly platform?: Platform;
  readonly artifactType?: string;
}

/** Throws HS_MANIFEST or HS_DIGEST_SYNTAX, naming the field. */
export function readDescriptor(value: unknown, what: string): Descriptor {
  const object: JsonObject = asObject(value, what);
  const size = field(object, "size");
  if (typeof size !== "number" || !Number.isSafeInteger(size) || size < 0) {
    throw wrong(`${what}.size`, "a size in bytes", size);
  }
  const urls = stringArray(object, "urls", what, 64);
  const platform = field(object, "platform");
  return defined<Descriptor>({
    mediaType: bareMediaType(requiredString(object, "mediaType", what)),
    digest: parseDigest(field(object, "digest"), `${what}.digest`),
    size,
    urls: urls.length === 0 ? undefined : urls,
    annotations: stringMap(object, "annotations", what),
    data: optionalString(object, "data", what) || undefined,
    platform: platform === undefined ? undefined : readPlatform(platform, `${what}.platform`),
    artifactType: optionalString(object, "artifactType", what) || undefined,
  });
}

/** An annotation, or undefined. */
export function annotation(holder: { readonly annotations?: Readonly<Record<string, string>> }, name: string) {
  const annotations = holder.annotations;
  return annotations !== undefined && Object.hasOwn(annotations, name) ? annotations[name] : undefined;
}

/**
 * False for entries of an index that are no image: BuildKit's attestations (platform unknown/unknown and an annotation), SOCI
 * indexes and other artifacts (artifactType), and media types that are neither manifest nor index.
 */
export function isImageEntry(entry: Descriptor): boolean {
  if (!isManifestType(entry.mediaType) && !isIndexType(entry.mediaType)) return false;
  if (entry.artifactType !== undefined && !isConfigType(entry.artifactType)) return false;
  if (annotation(entry, "vnd.docker.reference.type") !== undefined) return false;
  if (annotation(entry, "com.amazon.soci.image-manifest-digest") !== undefined) return false;
  return !(entry.platform?.os === "unknown" && entry.platform.architecture === "unknown");
}
