/**
 * Manifest and configuration of a Nydus image from those of its source, and back (specs/nydus.md 1.1). Pure.
 *
 *   layers    one blob a source layer, in order | blobs of a chunk dictionary | the bootstrap layer
 *   config    the source's, but for rootfs.diff_ids (of a blob: its digest) and one more entry of the history
 *
 * What a source layer was stands in annotations of ours on its blob: its diffID, digest, size and media type; that is what the way back is checked against. No
 * time, no host and no reference is written: the same source gives the same bytes.
 */

import { type Digest, isDigest } from "../base/digest.ts";
import { HeadstartError } from "../base/errors.ts";
import { VERSION } from "../base/version.ts";
import { NYDUS_ANNOTATIONS, NYDUS_MEDIA_TYPES } from "../formats/nydus/ondisk.ts";
import { annotation, type Descriptor } from "../oci/descriptor.ts";
import { goJson, goManifest } from "../oci/gojson.ts";
import { asObject, defined, field, type JsonObject, optionalArray } from "../oci/json.ts";
import type { ImageConfig, Manifest } from "../oci/manifest.ts";
import { MEDIA_TYPES } from "../oci/media-types.ts";
import type { StoredBlob } from "../oci/store.ts";

/** On a blob of ours. */
export const SOURCE_ANNOTATIONS = {
  diffID: "dev.headstart.source.diff-id",
  digest: "dev.headstart.source.digest",
  size: "dev.headstart.source.size",
  mediaType: "dev.headstart.source.media-type",
} as const;

export const BUILDER = `headstart ${VERSION}`;
const HISTORY_MAX = 10_000;
const BOOTSTRAP_COMMENT = "Nydus Bootstrap Layer";
const EMPTY_COMMENT = "Nydus Empty Layer";

export interface SourceLayer {
  readonly descriptor: Descriptor;
  readonly diffID: Digest;
}

/** A source layer's blob: native data, or the metadata of a ref. */
export interface NydusLayerBlob {
  readonly source: SourceLayer;
  readonly stored: StoredBlob;
  readonly mode: "native" | "ref";
}

export interface NydusImageParts {
  readonly layers: readonly NydusLayerBlob[];
  /** Of a chunk dictionary, where files of the image refer to them: descriptors as in the dictionary's image. */
  readonly dictionary: readonly Descriptor[];
  readonly bootstrap: StoredBlob & { readonly diffID: Digest };
}

/** The source's configuration with the diffIDs and the history of the Nydus image. */
export function nydusConfig(source: ImageConfig, parts: NydusImageParts, what: string): Uint8Array {
  const blobs = [...parts.layers.map(({ stored }) => stored.digest), ...parts.dictionary.map(({ digest }) => digest)];
  return replaceRootfs(
    source.document,
    [...blobs, parts.bootstrap.diffID],
    [...history(source.document, what), { created_by: "Nydus Converter", comment: BOOTSTRAP_COMMENT }],
  );
}

export interface NydusManifestInput extends NydusImageParts {
  readonly config: StoredBlob;
  /** In an index beside its OCI form: then no plain runtime may take it for an OCI image. */
  readonly beside: boolean;
  /** The manifest that was converted. */
  readonly source: Descriptor;
  readonly sourceAnnotations: Readonly<Record<string, string>> | undefined;
  /** `source` becomes the subject. */
  readonly isReferrer: boolean;
}

export function nydusManifest(input: NydusManifestInput): Uint8Array {
  const { source } = input;
  return goManifest(
    defined<Manifest>({
      mediaType: MEDIA_TYPES.ociManifest,
      config: { ...input.config, mediaType: input.beside ? NYDUS_MEDIA_TYPES.config : MEDIA_TYPES.ociConfig },
      layers: [
        ...input.layers.map(layerDescriptor),
        ...input.dictionary.map((blob) => blobDescriptor(blob, {})),
        {
          mediaType: MEDIA_TYPES.ociLayerGzip,
          digest: input.bootstrap.digest,
          size: input.bootstrap.size,
          annotations: { [NYDUS_ANNOTATIONS.bootstrap]: "true", [NYDUS_ANNOTATIONS.fsVersion]: "6" },
        },
      ],
      // without a platform: ECR refuses one there
      subject: input.isReferrer ? { mediaType: source.mediaType, digest: source.digest, size: source.size } : undefined,
      annotations: {
        ...input.sourceAnnotations,
        [NYDUS_ANNOTATIONS.builderVersion]: BUILDER,
        [NYDUS_ANNOTATIONS.fsVersion]: "6",
        [NYDUS_ANNOTATIONS.sourceDigest]: source.digest,
      },
    }),
  );
}

function layerDescriptor({ source, stored, mode }: NydusLayerBlob): Descriptor {
  const { descriptor, diffID } = source;
  return blobDescriptor(stored, {
    ...(mode === "ref" && { [NYDUS_ANNOTATIONS.ref]: descriptor.digest }),
    [SOURCE_ANNOTATIONS.diffID]: diffID,
    [SOURCE_ANNOTATIONS.digest]: descriptor.digest,
    [SOURCE_ANNOTATIONS.size]: String(descriptor.size),
    [SOURCE_ANNOTATIONS.mediaType]: descriptor.mediaType,
  });
}

function blobDescriptor({ digest, size }: StoredBlob, annotations: Readonly<Record<string, string>>): Descriptor {
  return {
    mediaType: NYDUS_MEDIA_TYPES.blob,
    digest,
    size,
    annotations: { [NYDUS_ANNOTATIONS.blob]: "true", ...annotations },
  };
}

/** What a blob of ours says of the layer that it was made of; null where it says nothing. Throws HS_MANIFEST for nonsense. */
export function sourceLayerOf(blob: Descriptor): SourceLayer | null {
  const diffID = annotation(blob, SOURCE_ANNOTATIONS.diffID);
  if (diffID === undefined) return null;
  const digest = annotation(blob, SOURCE_ANNOTATIONS.digest);
  const size = Number(annotation(blob, SOURCE_ANNOTATIONS.size));
  const mediaType = annotation(blob, SOURCE_ANNOTATIONS.mediaType);
  if (!isDigest(diffID) || !isDigest(digest) || !Number.isSafeInteger(size) || size < 0 || mediaType === undefined)
    throw new HeadstartError("HS_MANIFEST", {
      what: `layer ${blob.digest}: its annotations do not say which layer it was made of`,
    });
  return { descriptor: { mediaType, digest, size }, diffID };
}

/** A Nydus image's configuration with the diffIDs of plain layers, and without the history of the conversion. `merged`: one layer holds what all of them did. */
export function ociConfig(
  nydus: ImageConfig,
  diffIDs: readonly Digest[],
  options: { readonly what: string; readonly merged: boolean },
): Uint8Array {
  const before = history(nydus.document, options.what)
    .map((entry) => asObject(entry, `${options.what}.history`))
    .filter(({ comment }) => comment !== BOOTSTRAP_COMMENT && comment !== EMPTY_COMMENT);
  if (!options.merged) return replaceRootfs(nydus.document, diffIDs, before);
  // as many entries that are not empty as there are layers
  const empty = before.map((entry) => ({ ...entry, empty_layer: true }));
  return replaceRootfs(nydus.document, diffIDs, [...empty, { created_by: BUILDER, comment: "Merged Nydus Layers" }]);
}

/** The annotations of a manifest that were there before it became a Nydus image. */
export function withoutNydusAnnotations(
  annotations: Readonly<Record<string, string>> | undefined,
): Readonly<Record<string, string>> | undefined {
  const ours = new Set<string>(Object.values(NYDUS_ANNOTATIONS));
  const kept = Object.entries(annotations ?? {}).filter(([name]) => !ours.has(name));
  return kept.length === 0 ? undefined : Object.fromEntries(kept);
}

function history(document: JsonObject, what: string): readonly unknown[] {
  return optionalArray(document, "history", what, HISTORY_MAX);
}

/** Other fields keep their places; without entries there is no history. */
function replaceRootfs(document: JsonObject, diffIDs: readonly Digest[], entries: readonly unknown[]): Uint8Array {
  const rootfs = field(document, "rootfs");
  const changed: Record<string, unknown> = {
    ...document,
    rootfs: { ...asObject(rootfs ?? { type: "layers" }, "rootfs"), diff_ids: diffIDs },
    history: entries,
  };
  if (entries.length === 0) delete changed.history;
  return Buffer.from(goJson(changed));
}
