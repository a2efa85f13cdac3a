/**
 * The documents around zTOCs: the SOCI index (an OCI manifest, v1 or v2) and the prefetch artifact (specs/soci.md 2.1, 2.8). Reading only; write.ts
 * makes them. The whole object graph: specs/soci.md 1.
 */

import { type Digest, isDigest } from "../../base/digest.ts";
import { HeadstartError } from "../../base/errors.ts";
import { LIMITS } from "../../base/limits.ts";
import { annotation, type Descriptor, readDescriptor } from "../../oci/descriptor.ts";
import { SOCI_ANNOTATIONS, SOCI_MEDIA_TYPES } from "./ondisk.ts";

export interface SociIndex {
  readonly version: 1 | 2;
  /** The image manifest that a v1 index is about. */
  readonly subject: Descriptor | null;
  /** zTOC descriptors by the digest of the image layer; the first of several for one layer. */
  readonly ztocs: ReadonlyMap<Digest, Descriptor>;
  /** Prefetch artifacts by the digest of the image layer, likewise. */
  readonly prefetch: ReadonlyMap<Digest, Descriptor>;
  readonly annotations: Readonly<Record<string, string>>;
}

/**
 * Reads a SOCI index whose digest was checked. The version is that of `config.mediaType` alone. Entries that name no layer, or a layer that has
 * one already, are left out (specs/soci.md B23). Throws HS_INDEX_INVALID, HS_FORMAT_UNSUPPORTED, HS_LIMIT.
 */
export function readSociIndex(bytes: Uint8Array, what = "SOCI index"): SociIndex {
  const manifest = parseJson(bytes, LIMITS.manifestBytes, what);
  const config = asObject(manifest.config);
  const mediaType = config?.mediaType;
  let version: 1 | 2;
  if (mediaType === SOCI_MEDIA_TYPES.indexV1) version = 1;
  else if (mediaType === SOCI_MEDIA_TYPES.indexV2) version = 2;
  else throw new HeadstartError("HS_FORMAT_UNSUPPORTED", { what: `${what}: config type ${print(mediaType)}` });
  if (!Array.isArray(manifest.layers)) throw invalid(what, "layers is no list");
  const ztocs = new Map<Digest, Descriptor>();
  const prefetch = new Map<Digest, Descriptor>();
  for (const [number, value] of manifest.layers.entries()) {
    const descriptor = descriptorOf(value, `${what}: layers[${number}]`);
    const layer = annotation(descriptor, SOCI_ANNOTATIONS.imageLayerDigest);
    if (!isDigest(layer)) continue;
    const into = descriptor.mediaType === SOCI_MEDIA_TYPES.prefetch ? prefetch : ztocs;
    if (!into.has(layer)) into.set(layer, descriptor);
  }
  if (ztocs.size === 0) throw invalid(what, "it names no zTOC");
  const annotations: Record<string, string> = {};
  for (const [key, value] of Object.entries(asObject(manifest.annotations) ?? {})) {
    if (typeof value === "string") annotations[key] = value;
  }
  const subject = manifest.subject == null ? null : descriptorOf(manifest.subject, `${what}: subject`);
  return { version, subject, ztocs, prefetch, annotations };
}

/** Span ids, inclusive. */
export interface PrefetchRange {
  readonly start: number;
  readonly end: number;
  /** Lower is earlier. */
  readonly priority: number;
}

/** More ranges than any list of files makes; the artifact is a hint. */
const PREFETCH_RANGES_MAX = 65_536;
const PREFETCH_BYTES_MAX = 8 * 1024 * 1024;

/** Reads a prefetch artifact. Throws HS_INDEX_INVALID, HS_FORMAT_UNSUPPORTED, HS_LIMIT; a caller goes on without (specs/soci.md B22). */
export function readPrefetch(bytes: Uint8Array, what = "prefetch artifact"): PrefetchRange[] {
  const document = parseJson(bytes, PREFETCH_BYTES_MAX, what);
  if (document.version !== "1.0") {
    throw new HeadstartError("HS_FORMAT_UNSUPPORTED", { what: `${what}: version ${print(document.version)}` });
  }
  if (!Array.isArray(document.prefetch_spans) || document.prefetch_spans.length === 0) throw invalid(what, "no spans");
  if (document.prefetch_spans.length > PREFETCH_RANGES_MAX) {
    throw new HeadstartError("HS_LIMIT", { what: `${what}: ${document.prefetch_spans.length} ranges` });
  }
  return document.prefetch_spans.map((value) => {
    const range = asObject(value);
    const [start, end, priority] = [range?.start_span, range?.end_span, range?.priority ?? 0];
    if (!Number.isSafeInteger(start) || !Number.isSafeInteger(end) || !Number.isSafeInteger(priority)) {
      throw invalid(what, `a range is ${print(value)}`);
    }
    return { start: start as number, end: end as number, priority: priority as number };
  });
}

/** Span ids in the wanted order, each once: clamped to what there is, inverted ranges left out (specs/soci.md B21). */
export function prefetchSpans(ranges: readonly PrefetchRange[], spanCount: number): number[] {
  const order = ranges.map((range, index) => ({ range, index }));
  order.sort((a, b) => a.range.priority - b.range.priority || a.index - b.index);
  const seen = new Uint8Array(spanCount);
  const spans: number[] = [];
  let next = 0;
  for (const { range } of order) {
    const last = Math.min(range.end, spanCount - 1);
    for (let span = Math.max(0, range.start); span <= last; span++) {
      if (seen[span] === 1) {
        // many ranges over the same spans must not cost ranges x spans
        if (++next > PREFETCH_RANGES_MAX) return spans;
        continue;
      }
      seen[span] = 1;
      spans.push(span);
    }
  }
  return spans;
}

type Json = Readonly<Record<string, unknown>>;

function parseJson(bytes: Uint8Array, limit: number, what: string): Json {
  if (bytes.byteLength > limit) throw new HeadstartError("HS_LIMIT", { what: `${what}: ${bytes.byteLength} bytes` });
  let value: unknown;
  try {
    // ignoreBOM false: a BOM is dropped, as a lenient reader should (specs/soci.md B24)
    value = JSON.parse(new TextDecoder("utf-8").decode(bytes));
  } catch (cause) {
    throw new HeadstartError("HS_INDEX_INVALID", { what: `${what}: not JSON`, cause });
  }
  const object = asObject(value);
  if (object === undefined) throw invalid(what, "not an object");
  return object;
}

function descriptorOf(value: unknown, what: string): Descriptor {
  try {
    return readDescriptor(value, what);
  } catch (cause) {
    throw new HeadstartError("HS_INDEX_INVALID", { what, cause });
  }
}

function asObject(value: unknown): Json | undefined {
  return typeof value === "object" && value !== null && !Array.isArray(value) ? (value as Json) : undefined;
}

function print(value: unknown): string {
  return (JSON.stringify(value) ?? "undefined").slice(0, 200);
}

function invalid(what: string, message: string): HeadstartError {
  return new HeadstartError("HS_INDEX_INVALID", { what: `${what}: ${message}` });
}
