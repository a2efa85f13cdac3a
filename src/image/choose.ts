/**
 * Which format and which source each layer of an image has: an index that the manifest names by digest, else (policy permitting) one attached as a referrer, else none. A bad or missing index
 * is never an error here: it is a reason, and the layers it would have served are pulled eagerly.
 */

import type { Digest } from "../base/digest.ts";
import { describeError, isHeadstartError } from "../base/errors.ts";
import { FORMATS } from "../formats/all.ts";
import type { FormatAdapter, LayerTables } from "../formats/format.ts";
import { annotation } from "../oci/descriptor.ts";
import type { ImageReader } from "../oci/store.ts";
import type { OpenedImage } from "./open.ts";
import type { TrustPolicy } from "./trust.ts";
import { allowsReferrers } from "./trust.ts";

export interface ChosenIndex {
  readonly format: FormatAdapter;
  readonly digest: Digest;
  /** True when the manifest names it by digest. */
  readonly bound: boolean;
  readonly tables: ReadonlyMap<Digest, LayerTables>;
}

export interface Choice {
  readonly index: ChosenIndex | null;
  /** Why there is no index, or null. */
  readonly reason: string | null;
}

/** Throws only what a retry may mend: the caller's signal. */
export async function chooseIndex(
  image: OpenedImage,
  reader: ImageReader,
  options: { policy: TrustPolicy; signal?: AbortSignal | undefined },
): Promise<Choice> {
  const { loaded } = image;
  const facts = { manifest: loaded.manifestDescriptor.digest, layers: loaded.layers };
  for (const format of FORMATS) {
    try {
      const digest = format.boundIndex(loaded.manifest);
      if (digest === null) continue;
      const tables = format.readIndex(await reader.readManifest(digest, options.signal), facts);
      if (tables.size > 0) return { index: { format, digest, bound: true, tables }, reason: null };
      return { index: null, reason: `${format.name} index ${digest} has no table for any layer of this image` };
    } catch (error) {
      options.signal?.throwIfAborted();
      // a manifest that names an index means this one: no other is looked for (specs/soci.md 1.1)
      return {
        index: null,
        reason: `${format.name} index that the manifest names cannot be used: ${describeError(error)}`,
      };
    }
  }
  if (!allowsReferrers(options.policy)) return { index: null, reason: "the manifest names no index" };
  return await chooseReferrer(image, reader, options.signal);
}

async function chooseReferrer(
  image: OpenedImage,
  reader: ImageReader,
  signal: AbortSignal | undefined,
): Promise<Choice> {
  const { loaded } = image;
  const facts = { manifest: loaded.manifestDescriptor.digest, layers: loaded.layers };
  const reasons: string[] = [];
  for (const format of FORMATS) {
    if (format.referrerType === null) continue;
    try {
      for (const candidate of newestFirst(await findReferrers(format, facts.manifest, reader, signal))) {
        const tables = format.readIndex(await reader.readManifest(candidate, signal), facts);
        if (tables.size > 0) return { index: { format, digest: candidate.digest, bound: false, tables }, reason: null };
        reasons.push(`${format.name} index ${candidate.digest} has no table for any layer of this image`);
      }
    } catch (error) {
      signal?.throwIfAborted();
      reasons.push(`looking for a ${format.name} index failed: ${describeError(error)}`);
    }
  }
  return { index: null, reason: reasons.join("; ") || "no index" };
}

/**
 * For the status alone, when the policy is `bound` and nothing is bound: says whether a lazy start was missed because of the policy. Null when there is nothing to say. Never throws.
 */
export async function missedByPolicy(
  image: OpenedImage,
  reader: ImageReader,
  policy: TrustPolicy,
  signal: AbortSignal,
): Promise<string | null> {
  for (const format of FORMATS) {
    const found = await findReferrers(format, image.loaded.manifestDescriptor.digest, reader, signal).catch(() => []);
    if (found.length > 0) return `${format.name} index found, policy is ${policy}`;
  }
  return null;
}

async function findReferrers(
  format: FormatAdapter,
  manifest: Digest,
  reader: ImageReader,
  signal: AbortSignal | undefined,
) {
  if (format.referrerType === null) return [];
  try {
    return await reader.referrers(manifest, { artifactType: format.referrerType, ...(signal && { signal }) });
  } catch (error) {
    if (isHeadstartError(error, "HS_NOT_FOUND", "HS_BLOB_NOT_FOUND")) return [];
    throw error;
  }
}

/** By the creation annotation where there is one; else the registry's order (specs/soci.md B26). */
function newestFirst<T extends { readonly annotations?: Readonly<Record<string, string>> }>(found: readonly T[]): T[] {
  const created = (entry: T) => Date.parse(annotation(entry, "org.opencontainers.image.created") ?? "") || 0;
  return found.slice(0, 16).sort((a, b) => created(b) - created(a));
}
