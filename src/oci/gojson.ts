/**
 * Manifests, indexes and descriptors printed byte for byte as Go's encoding/json prints the image-spec structs. SOCI verifies the
 * form that it printed again itself, not what it downloaded, so any other spelling makes an index useless to it (specs/soci.md 2.2).
 * Key order is that of the Go structs, empty optional fields are left out, map keys are sorted by bytes. Maps are printed by hand,
 * because a JavaScript object puts keys that look like integers first, whatever the order they were set in.
 */

import type { Descriptor } from "./descriptor.ts";
import type { ImageIndex, Manifest } from "./manifest.ts";
import type { Platform } from "./platform.ts";

/** JSON text as Go writes it: no blanks, `<>&` and line separators escaped. The order of an object's keys is the caller's. */
export function goJson(value: unknown): string {
  const text = JSON.stringify(value, (_key, item) => (typeof item === "string" ? item.toWellFormed() : item));
  return text.replace(
    /[<>&\u2028\u2029]/g,
    (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`,
  );
}

export function goManifest(manifest: Manifest): Uint8Array {
  return Buffer.from(
    object([
      ["schemaVersion", "2"],
      ["mediaType", text(manifest.mediaType)],
      ["artifactType", text(manifest.artifactType)],
      ["config", goDescriptor(manifest.config)],
      ["layers", array(manifest.layers.map(goDescriptor))],
      ["subject", manifest.subject && goDescriptor(manifest.subject)],
      ["annotations", map(manifest.annotations)],
    ]),
  );
}

export function goIndex(index: ImageIndex): Uint8Array {
  return Buffer.from(
    object([
      ["schemaVersion", "2"],
      ["mediaType", text(index.mediaType)],
      ["artifactType", text(index.artifactType)],
      ["manifests", array(index.manifests.map(goDescriptor))],
      ["subject", index.subject && goDescriptor(index.subject)],
      ["annotations", map(index.annotations)],
    ]),
  );
}

export function goDescriptor(descriptor: Descriptor): string {
  return object([
    ["mediaType", goJson(descriptor.mediaType)],
    ["digest", goJson(descriptor.digest)],
    ["size", String(descriptor.size)],
    ["urls", strings(descriptor.urls)],
    ["annotations", map(descriptor.annotations)],
    ["data", text(descriptor.data)],
    ["platform", descriptor.platform && goPlatform(descriptor.platform)],
    ["artifactType", text(descriptor.artifactType)],
  ]);
}

function goPlatform(platform: Platform): string {
  return object([
    ["architecture", goJson(platform.architecture)],
    ["os", goJson(platform.os)],
    ["os.version", text(platform["os.version"])],
    ["os.features", strings(platform["os.features"])],
    ["variant", text(platform.variant)],
  ]);
}

function object(fields: readonly (readonly [key: string, json: string | undefined])[]): string {
  const printed = fields.filter(([, json]) => json !== undefined).map(([key, json]) => `${goJson(key)}:${json}`);
  return `{${printed.join(",")}}`;
}

function array(items: readonly string[]): string {
  return `[${items.join(",")}]`;
}

function text(value: string | undefined): string | undefined {
  return value ? goJson(value) : undefined;
}

function strings(values: readonly string[] | undefined): string | undefined {
  return values?.length ? array(values.map(goJson)) : undefined;
}

function map(entries: Readonly<Record<string, string>> | undefined): string | undefined {
  const sorted = Object.entries(entries ?? {}).sort(([a], [b]) => Buffer.compare(Buffer.from(a), Buffer.from(b)));
  return sorted.length === 0 ? undefined : object(sorted.map(([key, value]) => [key, goJson(value)] as const));
}
