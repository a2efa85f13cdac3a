/**
 * Manifests, indexes and descriptors printed byte for byte as Go's encoding/json prints the image-spec structs. SOCI verifies the
 * form that it printed again itself, not what it downloaded, so any other spelling makes an index useless to it (specs/soci.md 2.2).
 * Key order is that of the Go structs, empty optional fields are left out, map keys are sorted by bytes.
 */

import type { Descriptor } from "./descriptor.ts";
import type { ImageIndex, Manifest } from "./manifest.ts";
import type { Platform } from "./platform.ts";

/** JSON text as Go writes it: the order of keys is the caller's. */
export function goJson(value: unknown): string {
  return JSON.stringify(value).replace(
    /[<>&\u2028\u2029]/g,
    (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`,
  );
}

export function goManifest(manifest: Manifest): Uint8Array {
  return Buffer.from(
    goJson({
      schemaVersion: 2,
      mediaType: manifest.mediaType || undefined,
      artifactType: manifest.artifactType || undefined,
      config: orderDescriptor(manifest.config),
      layers: manifest.layers.map(orderDescriptor),
      subject: manifest.subject === undefined ? undefined : orderDescriptor(manifest.subject),
      annotations: orderMap(manifest.annotations),
    }),
  );
}

export function goIndex(index: ImageIndex): Uint8Array {
  return Buffer.from(
    goJson({
      schemaVersion: 2,
      mediaType: index.mediaType || undefined,
      artifactType: index.artifactType || undefined,
      manifests: index.manifests.map(orderDescriptor),
      subject: index.subject === undefined ? undefined : orderDescriptor(index.subject),
      annotations: orderMap(index.annotations),
    }),
  );
}

export function goDescriptor(descriptor: Descriptor): string {
  return goJson(orderDescriptor(descriptor));
}

function orderDescriptor(descriptor: Descriptor): object {
  return {
    mediaType: descriptor.mediaType,
    digest: descriptor.digest,
    size: descriptor.size,
    urls: descriptor.urls?.length ? descriptor.urls : undefined,
    annotations: orderMap(descriptor.annotations),
    data: descriptor.data || undefined,
    platform: descriptor.platform === undefined ? undefined : orderPlatform(descriptor.platform),
    artifactType: descriptor.artifactType || undefined,
  };
}

function orderPlatform(platform: Platform): object {
  return {
    architecture: platform.architecture,
    os: platform.os,
    "os.version": platform["os.version"] || undefined,
    "os.features": platform["os.features"]?.length ? platform["os.features"] : undefined,
    variant: platform.variant || undefined,
  };
}

/**
 * Sorted by UTF-8 bytes, which JavaScript's UTF-16 order is not. Integer-like keys would come first in any object, whatever the order of
 * insertion, so a map is printed by hand through `toJSON` where that matters: see `RawJson`.
 */
function orderMap(map: Readonly<Record<string, string>> | undefined): object | undefined {
  const entries = Object.entries(map ?? {});
  if (entries.length === 0) return undefined;
  entries.sort(([a], [b]) => Buffer.compare(Buffer.from(a), Buffer.from(b)));
  return JSON.rawJSON(`{${entries.map(([key, text]) => `${JSON.stringify(key)}:${JSON.stringify(text)}`).join(",")}}`);
}
