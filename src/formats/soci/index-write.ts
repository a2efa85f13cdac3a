/**
 * Writes the documents around zTOCs: the SOCI index, byte for byte as Go prints it, because SOCI verifies what it printed itself and not what it
 * downloaded (specs/soci.md 2.2), and prefetch artifacts (2.8). index.ts reads them.
 */

import { posix } from "node:path";
import { type Digest, parseDigest } from "../../base/digest.ts";
import { HeadstartError } from "../../base/errors.ts";
import type { Descriptor } from "../../oci/descriptor.ts";
import { goJson, goManifest } from "../../oci/gojson.ts";
import { parseManifest } from "../../oci/manifest.ts";
import { entryAt } from "./entries.ts";
import { FlatBuffer } from "./flatbuffer.ts";
import type { PrefetchRange } from "./index.ts";
import { SOCI_ANNOTATIONS, SOCI_MEDIA_TYPES } from "./ondisk.ts";
import type { Ztoc } from "./read.ts";
import { type SpanTable, spanOfOffset } from "./spans.ts";

/** The config blob of every SOCI index. */
export const EMPTY_CONFIG = Buffer.from("{}");
const EMPTY_CONFIG_DIGEST = parseDigest("sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a");

export interface IndexedLayer {
  /** The compressed image layer. */
  readonly layer: Descriptor;
  readonly ztoc: { readonly digest: Digest; readonly size: number };
  readonly prefetch?: { readonly digest: Digest; readonly size: number } | undefined;
  /** Only with the `xattr` optimization, and only where the zTOC allows it. */
  readonly disableXattrs?: boolean;
}

export interface SociIndexContent {
  readonly version: 1 | 2;
  /** In the order of the image's layers; those without a zTOC are left out. */
  readonly layers: readonly IndexedLayer[];
  readonly spanSize: number;
  readonly buildTool: string;
  /** Version 1: the image manifest. */
  readonly subject?: Descriptor;
}

export function writeSociIndex(content: SociIndexContent): Uint8Array {
  const ztocs = content.layers.map(({ layer, ztoc, disableXattrs }) => ({
    mediaType: SOCI_MEDIA_TYPES.ztoc,
    digest: ztoc.digest,
    size: ztoc.size,
    annotations: {
      ...(disableXattrs ? { [SOCI_ANNOTATIONS.disableXattrs]: "true" } : {}),
      [SOCI_ANNOTATIONS.imageLayerDigest]: layer.digest,
      [SOCI_ANNOTATIONS.imageLayerMediaType]: layer.mediaType,
      [SOCI_ANNOTATIONS.spanSize]: String(content.spanSize),
    },
  }));
  const prefetches = content.layers.flatMap(({ layer, prefetch }) =>
    prefetch === undefined
      ? []
      : [
          {
            mediaType: SOCI_MEDIA_TYPES.prefetch,
            digest: prefetch.digest,
            size: prefetch.size,
            annotations: { [SOCI_ANNOTATIONS.imageLayerDigest]: layer.digest },
          },
        ],
  );
  const { subject } = content;
  return goManifest({
    mediaType: "application/vnd.oci.image.manifest.v1+json",
    config: {
      mediaType: content.version === 1 ? SOCI_MEDIA_TYPES.indexV1 : SOCI_MEDIA_TYPES.indexV2,
      digest: EMPTY_CONFIG_DIGEST,
      size: EMPTY_CONFIG.byteLength,
    },
    layers: [...ztocs, ...prefetches],
    ...(subject && { subject: { mediaType: subject.mediaType, digest: subject.digest, size: subject.size } }),
    annotations: { [SOCI_ANNOTATIONS.buildTool]: content.buildTool },
  });
}

/**
 * Why SOCI itself would not take this index, or null: it prints what it read again and verifies that, so any other spelling makes the image silently eager
 * (specs/soci.md 2.2, B24). We read such an index all the same.
 */
export function sociRefuses(bytes: Uint8Array): string | null {
  let printed: Uint8Array;
  try {
    const manifest = parseManifest(bytes, "SOCI index");
    if (manifest.artifactType !== undefined)
      return "it has an artifactType, which SOCI drops when it prints the index again";
    printed = goManifest(manifest);
  } catch (error) {
    if (error instanceof HeadstartError) return error.message;
    throw error;
  }
  return Buffer.compare(printed, bytes) === 0
    ? null
    : "it is not spelled as Go prints it, so its digest is another to SOCI";
}

export function writePrefetch(ranges: readonly PrefetchRange[]): Uint8Array {
  const spans = ranges.map(({ start, end, priority }) => ({
    start_span: start,
    end_span: end,
    ...(priority === 0 ? {} : { priority }),
  }));
  return Buffer.from(goJson({ version: "1.0", prefetch_spans: spans }));
}

export interface PrefetchPlan {
  /** Per layer given, its ranges, merged; empty when it has none of the files. */
  readonly ranges: readonly (readonly PrefetchRange[])[];
  /** Cleaned paths that no layer has. */
  readonly notFound: readonly string[];
}

/**
 * Which spans hold the given files, as SOCI plans it: the topmost layer whose table of contents has the very name wins; links are not followed and
 * directories not opened. A layer without a zTOC is null. Lowest layer first.
 */
export function planPrefetch(files: readonly string[], layers: readonly (Ztoc | null)[]): PrefetchPlan {
  const ranges: PrefetchRange[][] = layers.map(() => []);
  // the last file of a name counts once, as a set
  const missing = new Set(files.map((file) => posix.join("/", file).slice(1)));
  const wanted = new Map([...missing].map((file) => [Buffer.from(file).toString("latin1"), file]));
  for (let number = layers.length - 1; number >= 0; number--) {
    const ztoc = layers[number];
    if (!ztoc) continue;
    const buffer = new FlatBuffer(ztoc.bytes, "zTOC", { trusted: true });
    for (let index = 0; index < ztoc.entries.count && missing.size > 0; index++) {
      const entry = entryAt(buffer, ztoc.entries, index);
      const file = wanted.get(Buffer.from(entry.name).toString("latin1"));
      if (file === undefined || !missing.delete(file)) continue;
      ranges[number]!.push({
        start: spanOfOffset(ztoc.spans, entry.dataOffset),
        // the span of the byte behind the file: one too many at a border, but what SOCI writes
        end: lastSpan(ztoc.spans, entry.dataOffset + entry.size),
        priority: 0,
      });
    }
  }
  return { ranges: ranges.map(mergeSpanRanges), notFound: [...missing] };
}

function lastSpan(spans: SpanTable, offset: number): number {
  return Math.max(0, spanOfOffset(spans, offset));
}

/** Sorted; overlapping and neighbouring ranges are one. */
export function mergeSpanRanges(ranges: readonly PrefetchRange[]): PrefetchRange[] {
  const merged: { start: number; end: number; priority: number }[] = [];
  for (const range of [...ranges].sort((a, b) => a.start - b.start || a.end - b.end)) {
    const last = merged.at(-1);
    if (last !== undefined && range.start <= last.end + 1) last.end = Math.max(last.end, range.end);
    else merged.push({ ...range });
  }
  return merged;
}
